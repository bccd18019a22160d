"""Files of one frame each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecodec.entropy import FrameFile
from sparsecodec.entropy.frame_files import KINDS
from sparsecodec.errors import BitstreamError, UsageError

FILES = [
    (FrameFile("evc", {"height": 512, "width": 768, "step": 9}, (b"ab",)), "0000020000000300" "0009" "00000002" "6162"),
    (FrameFile("hem-intra", {"height": 1, "width": 2, "step": 65535}, (b"",)), "0000000100000002" "ffff" "00000000"),
    (FrameFile("hem-inter", {"mv_step": 5, "step": 300}, (b"a",)), "0005012c" "00000001" "61"),
    (FrameFile("dc-intra", {"height": 3, "width": 4, "rate": 134}, (b"a",)), "0000000300000004" "86" "00000001" "61"),
    (FrameFile("dc-inter", {"rate": 2 * 63, "frame_index": 7}, (b"a",)), "7e07" "00000001" "61"),
    (FrameFile("dcvc-intra", {"height": 64, "width": 8}, (b"", b"bc")), "0000004000000008" "0000000000000002" "6263"),
    (
        FrameFile("dcvc-inter", {"height": 64, "width": 128}, (b"a", b"bc", b"", b"d")),
        "0000004000000080" "00000001000000020000000000000001" "61626364",
    ),
]  # fmt: skip


@pytest.mark.parametrize("file, data", FILES, ids=[file.kind for file, _ in FILES])
def test_bytes(file, data):
    assert file.to_bytes().hex() == data
    assert FrameFile.from_bytes(file.kind, bytes.fromhex(data)) == file


def test_every_kind_is_above():
    assert [file.kind for file, _ in FILES] == list(KINDS)


@pytest.mark.parametrize("file, data", FILES, ids=[file.kind for file, _ in FILES])
def test_other_lengths_are_refused(file, data):
    data = bytes.fromhex(data)
    for wrong in (*(data[:size] for size in range(len(data))), data + b"\0"):
        with pytest.raises(BitstreamError, match=file.kind):
            FrameFile.from_bytes(file.kind, wrong)


@given(st.sampled_from(KINDS), st.binary(max_size=60))
def test_any_bytes_are_refused_or_are_the_file_of_what_is_read(kind, data):
    try:
        file = FrameFile.from_bytes(kind, data)
    except BitstreamError:
        return
    assert file.to_bytes() == data


@pytest.mark.parametrize("data", ["0000000000000300007b00000000", "0000030000000000007b00000000"])
def test_empty_pictures_are_refused(data):
    with pytest.raises(BitstreamError, match="are of no frame"):
        FrameFile.from_bytes("evc", bytes.fromhex(data))


def test_an_odd_rate_is_refused():
    with pytest.raises(BitstreamError, match="are of no frame"):
        FrameFile.from_bytes("dc-inter", bytes.fromhex("7f0700000000"))


@pytest.mark.parametrize(
    "file, message",
    [
        (FrameFile("hem", {}, ()), "kind='hem' \\(needs one of evc, hem-intra"),
        (FrameFile("evc", {"height": 1, "width": 1}, (b"",)), "needs \\['height', 'step', 'width'\\] and 1"),
        (FrameFile("dcvc-intra", {"height": 1, "width": 1}, (b"",)), "1 strings"),
        (FrameFile("evc", {"height": 1, "width": 1, "step": 65536}, (b"",)), "65536"),
    ],
)
def test_what_does_not_fit_is_refused(file, message):
    with pytest.raises(UsageError, match=message):
        file.to_bytes()
