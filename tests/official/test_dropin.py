"""The published classes of every family code on our coder, and read it back (DCVC-RT has a file of its own)."""

import numpy as np
import pytest
import torch

from sparsecodec.entropy import observing

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def x():
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def family(name):
    return pytest.mark.parametrize("official", [name], indirect=True)


@family("hem")
def test_hem(official, x, monkeypatch):
    model = official("models.image_model").IntraNoAR().eval()
    model.update(force=True)
    encoder, written, read = model.entropy_coder.encoder, [], []
    push = encoder.encode_with_indexes
    monkeypatch.setattr(encoder, "encode_with_indexes", lambda *call: (written.append(call[0]), push(*call)))
    payload = model.compress(x, 1.0)["bit_stream"]
    with observing(lambda symbols: read.append(symbols.copy())):
        model.decompress(payload, 64, 64, 1.0)
    assert np.array_equal(np.concatenate(read), np.concatenate(written)) and np.any(read[0])


@family("evc")
def test_evc(official, x):
    model = official("models").build_model("EVC_SS").eval()
    model.update(force=True)
    encoded = model.compress(x, 1.0)
    assert torch.equal(model.decompress(encoded["bit_stream"], 64, 64, 1.0)["x_hat"], encoded["x_hat"])


@family("dc")
def test_dc(official, x):
    model = official("models.image_model").IntraNoAR(stream_part=3).eval()
    model.load_state_dict(model.state_dict())
    model.update(force=True)
    encoded = model.compress(x, True, 1)
    assert torch.equal(model.decompress(encoded["bit_stream"], 64, 64, True, 1)["x_hat"], encoded["x_hat"])


@family("fm")
@pytest.mark.parametrize("parts", [1, 3])
def test_fm(official, x, parts):
    model = official("models.image_model").DMCI(stream_part=parts).eval()
    model.update(force=True)
    encoded = model.compress(x, 20)
    sps = {"height": 64, "width": 64, "qp": 20}
    assert torch.equal(model.decompress(encoded["bit_stream"], sps)["x_hat"], encoded["x_hat"])


@family("dcvc")
def test_dcvc(official, x):
    model = official("models.DCVC_net").DCVC_net().eval()
    model.update(force=True)
    for name, layer in model.named_modules():
        if name.startswith("auto_regressive"):
            layer.weight.mul_(layer.mask)  # their coding uses the weights as they are, and masks them elsewhere
    encoded = model.compress(x, x.roll(2, 3))
    strings = [encoded[f"{name}_string"] for name in ("mv_y", "mv_z", "y", "z")]
    assert torch.allclose(model.decompress(x, *strings, 64, 64), encoded["recon_image"].clamp(0, 1), atol=1e-5)
