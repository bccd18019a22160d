"""DCVC-RT's published test script codes a clip with our models, and ours reads and writes its file."""

import importlib
import io
import sys

import pytest
import torch

from sparsecodec.models import create
from sparsecodec.runtime.unit_stream import read_units, write_units

FAMILY = "rt"
FRAMES = 10


@pytest.fixture
def script(official, monkeypatch):
    yield importlib.import_module("test_video")
    del sys.modules["test_video"]


class Clip(list):
    """In the place of their reader."""

    def close(self) -> None:
        self.position = 0

    position = 0

    def frame(self, args, reader, device):
        self.position += 1
        return self[self.position - 1], None, None, None, None


def test_their_script_writes_what_we_write_and_reads_what_we_read(script, photo, tmp_path, monkeypatch):
    torch.manual_seed(0)
    codec = create("dcvc-rt-tiny").eval()
    for model in (codec.intra, codec.inter):
        model.update(0.12)
    clip, shown = Clip(photo[:, :, t : t + 41, 2 * t : 2 * t + 70] for t in range(FRAMES)), []
    monkeypatch.setattr(script, "get_src_reader", lambda args: clip)
    monkeypatch.setattr(script, "get_src_frame", clip.frame)
    monkeypatch.setattr(script, "get_distortion", lambda args, x_hat, *_: (shown.append(x_hat), [0.0], [0.0])[1:])
    args = {
        "frame_num": FRAMES, "reset_interval": 4, "intra_period": 8, "src_height": 41, "src_width": 70,
        "qp_i": 20, "qp_p": 24, "save_decoded_frame": False, "verbose": 0, "verbose_json": False,
        "check_existing": False,
        "curr_bin_path": str(tmp_path / "clip.bin"), "curr_json_path": str(tmp_path / "clip.json"),
    }  # fmt: skip
    script.run_one_point_with_stream(codec.inter, codec.intra, args)
    data = (tmp_path / "clip.bin").read_bytes()
    assert b"".join(write_units(codec, clip, 20, inter_qp=24, intra_period=8, reset_interval=4)) == data
    pictures = list(read_units(codec, io.BytesIO(data)))
    assert len(shown) == FRAMES and all(torch.equal(*pair) for pair in zip(pictures, shown, strict=True))
