"""The published scripts' readers and writers of streams, against ours, byte for byte."""

import io
import random

import pytest

from sparsecodec.entropy import FrameFile, NalFrame, NalReader, NalWriter

HEIGHTS, WIDTHS = (1, 127, 128, 1080, 16383), (5, 127, 1920, 16384, 32767, 32768)
PAYLOADS = (0, 1, 127, 128, 16383, 16384, 40000)


@pytest.fixture
def helper(official):
    return official("utils.stream_helper")


def family(name):
    return pytest.mark.parametrize("official", [name], indirect=True)


class Script:
    """Writes as the test scripts do: parameters first where the helper says that they are new."""

    def __init__(self, helper) -> None:
        self.helper = helper
        self.file, self.known = io.BytesIO(), helper.SPSHelper()

    def parameters(self, **values) -> int:
        number, new = self.known.get_sps_id({"sps_id": -1, **values})
        if new:
            self.helper.write_sps(self.file, {"sps_id": number, **values})
        return number


def check(family, script, frames):
    writer = NalWriter(family)
    data = b"".join(writer.write(frame) for frame in frames)
    assert data == script.file.getvalue()
    assert list(NalReader(family, io.BytesIO(data), 1 << 60)) == frames


@family("rt")
@pytest.mark.parametrize("seed", range(20))
def test_rt(helper, seed):
    rng, frames, script = random.Random(seed), [], Script(helper)
    sizes = [(rng.choice(HEIGHTS), rng.choice(WIDTHS)) for _ in range(2)]
    for _ in range(12):
        (height, width), intra = rng.choice(sizes), rng.random() < 0.3
        two, reset, qp = rng.randrange(2), rng.randrange(2), rng.randrange(64 if intra else 72)
        payload = rng.randbytes(rng.choice(PAYLOADS))
        number = script.parameters(height=height, width=width, ec_part=two, use_ada_i=reset)
        helper.write_ip(script.file, intra, number, qp, payload)
        frames.append(NalFrame(intra, height, width, qp, payload, streams=1 + two, reset=bool(reset)))
    check("rt", script, frames)


@family("uf")
@pytest.mark.parametrize("seed", range(20))
def test_uf(helper, seed):
    rng, frames, script = random.Random(seed), [], Script(helper)
    for _ in range(12):
        height, width, intra = rng.choice(HEIGHTS[:3]), rng.choice(WIDTHS[:5]), rng.random() < 0.3
        streams, reset, qp = rng.randrange(1, 9), rng.randrange(2), rng.randrange(64)
        payload = rng.randbytes(rng.choice(PAYLOADS))
        number = script.parameters(height=height, width=width)
        helper.write_ip(script.file, intra, number, qp, streams, reset, payload)
        frames.append(NalFrame(intra, height, width, qp, payload, streams=streams, reset=bool(reset)))
    check("uf", script, frames)


@family("fm")
@pytest.mark.parametrize("seed", range(20))
def test_fm(helper, seed):
    rng, frames, script = random.Random(seed), [], Script(helper)
    height, width, rates = rng.choice(HEIGHTS), rng.choice(WIDTHS), [rng.randrange(64) for _ in range(4)]
    for _ in range(12):
        payload = rng.randbytes(rng.choice(PAYLOADS))
        group = [(rng.choice(rates), rng.randrange(4)) for _ in range(rng.randrange(1, 17))]
        group = group if rng.random() < 0.5 else group[:1]
        ids = [script.parameters(height=height, width=width, qp=qp, fa_idx=index) for qp, index in group]
        if len(group) > 1:
            helper.write_p_frames(script.file, list(ids), payload)
            members = tuple(group)
        else:
            helper.write_ip(script.file, False, ids[0], payload)
            members = ()
        frames.append(NalFrame(False, height, width, group[0][0], payload, feature_index=group[0][1], group=members))
    check("fm", script, frames)


def check_file(path, file):
    assert path.read_bytes() == file.to_bytes()
    assert FrameFile.from_bytes(file.kind, path.read_bytes()) == file


@pytest.mark.parametrize("official, kind", [("evc", "evc"), ("hem", "hem-intra")], indirect=["official"])
def test_intra_file(helper, kind, tmp_path):
    helper.encode_i(512, 768, 123, b"payload", tmp_path / "i")
    check_file(tmp_path / "i", FrameFile(kind, {"height": 512, "width": 768, "step": 123}, (b"payload",)))


@family("hem")
def test_hem_inter_file(helper, tmp_path):
    helper.encode_p(b"payload", 5, 300, tmp_path / "p")
    check_file(tmp_path / "p", FrameFile("hem-inter", {"mv_step": 5, "step": 300}, (b"payload",)))


@family("dc")
def test_dc_files(helper, tmp_path):
    helper.encode_i(512, 768, True, 3, b"payload", tmp_path / "i")
    check_file(tmp_path / "i", FrameFile("dc-intra", {"height": 512, "width": 768, "rate": 134}, (b"payload",)))
    helper.encode_p(b"payload", False, 63, 2, tmp_path / "p")
    check_file(tmp_path / "p", FrameFile("dc-inter", {"rate": 126, "frame_index": 2}, (b"payload",)))


@family("dcvc")
def test_dcvc_files(helper, tmp_path):
    strings = b"mv_y", b"z", b"", b"y"
    helper.encode_i(64, 128, strings[0], strings[1], tmp_path / "i")
    check_file(tmp_path / "i", FrameFile("dcvc-intra", {"height": 64, "width": 128}, strings[:2]))
    helper.encode_p(64, 128, *strings, tmp_path / "p")
    check_file(tmp_path / "p", FrameFile("dcvc-inter", {"height": 64, "width": 128}, strings))
