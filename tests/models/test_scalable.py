"""The scalable encoder: prefixes, who learns from them, the choice on real bytes, and streams that stay EVC's."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from sparsecodec import UsageError, zoo
from sparsecodec.models import EVC, ScalableEVC, create
from sparsecodec.models.evc import LAMBDAS
from sparsecodec.sparsity import ChannelMasks, compact, compact_config, trace_model

Q_SCALE = 0.8


def _lively(model: EVC) -> EVC:
    """Latents of several symbols, so that bytes and pictures depend on them."""
    encoders = model.encs if isinstance(model, ScalableEVC) else [model.enc]
    with torch.no_grad():
        for encoder in encoders:
            encoder[6].weight *= 6
        model.hyper_enc[3].weight *= 5
    return model.eval()


@pytest.fixture(scope="module")
def evc() -> EVC:
    torch.manual_seed(0)
    return _lively(EVC("tiny-s", "tiny"))


@pytest.fixture(scope="module")
def model(evc: EVC) -> ScalableEVC:
    """Three encoders that differ. Not to be changed."""
    return _different(ScalableEVC.from_evc(evc, 3))


def _different(model: ScalableEVC) -> ScalableEVC:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for encoder in model.encs[1:]:
            for parameter in encoder.parameters():
                parameter += 0.3 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def x(photo: Tensor) -> Tensor:
    return photo[:, :, :64, :128].contiguous()


def test_prefix_0_is_plain_evc_bit_for_bit(evc: EVC, model: ScalableEVC, x: Tensor):
    ours, theirs = model(x, Q_SCALE, prefix=0), evc(x, Q_SCALE)
    assert {"x_hat", "bpp", "bpp_y", "bpp_z"} < set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs if isinstance(theirs[key], Tensor))
    ours, theirs = model.compress(x, Q_SCALE, prefix=0), evc.compress(x, Q_SCALE)
    assert ours["bit_stream"] == theirs["bit_stream"]
    assert torch.equal(ours["x_hat"], theirs["x_hat"])


def test_prefix_0_trains_as_plain_evc(evc: EVC, model: ScalableEVC, x: Tensor):
    pair = copy.deepcopy(model).train(), copy.deepcopy(evc).train()
    for codec, arguments in zip(pair, ((0,), ()), strict=True):
        torch.manual_seed(3)
        out = codec(x, Q_SCALE, *arguments)
        (out["bpp"].mean() + out["x_hat"].square().mean()).backward()
    ours, theirs = pair
    for name, parameter in theirs.named_parameters():
        mine = ours.get_parameter(name.replace("enc.", "encs.0.", 1) if name.startswith("enc.") else name)
        assert (mine.grad is None) == (parameter.grad is None), name
        assert parameter.grad is None or torch.equal(mine.grad, parameter.grad), name


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_latent_is_the_mean_of_the_encoders_so_far(model: ScalableEVC, x: Tensor, prefix: int):
    with torch.no_grad():
        expected = torch.stack([model.encs[i](x).double() for i in range(prefix + 1)]).mean(0)
        torch.testing.assert_close(model.latent(x, prefix).double(), expected, rtol=1e-5, atol=1e-6)


def test_all_encoders_are_the_default_of_the_forward(model: ScalableEVC, x: Tensor):
    assert torch.equal(model(x, Q_SCALE)["bpp"], model(x, Q_SCALE, prefix=2)["bpp"])
    assert not torch.equal(model(x, Q_SCALE)["bpp"], model(x, Q_SCALE, prefix=1)["bpp"])


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_only_the_last_encoder_of_a_prefix_learns(model: ScalableEVC, x: Tensor, prefix: int):
    model = copy.deepcopy(model).train()
    out = model(x, Q_SCALE, prefix)
    (out["bpp"].mean() + 100 * (out["x_hat"] - x).square().mean()).backward()
    for i, encoder in enumerate(model.encs):
        grads = [parameter.grad for parameter in encoder.parameters()]
        if i == prefix:
            assert all(grad is not None and grad.abs().max() > 0 for grad in grads)
        else:
            assert all(grad is None for grad in grads), f"encoder {i} learnt from prefix {prefix}"
    assert model.dec[0].block[0].conv1[0].weight.grad.abs().max() > 0


def test_a_gradient_is_that_of_the_encoders_own_share(model: ScalableEVC, x: Tensor):
    """d y_1 / d e_1 = 1/2: half of what the same latent gradient gives in prefix 0."""
    model = copy.deepcopy(model).train()
    weight = torch.randn(model.latent(x).shape, generator=torch.Generator().manual_seed(2))
    (model.latent(x, 1) * weight).sum().backward()
    in_second = model.encs[1][6].weight.grad.clone()
    model.zero_grad()
    (model.encs[1](x) * weight).sum().backward()
    torch.testing.assert_close(2 * in_second, model.encs[1][6].weight.grad)


# --- the choice ---------------------------------------------------------------------------------------------------


def _costs(model: ScalableEVC, x: Tensor) -> list[float]:
    """Rate-distortion cost of every prefix, from a decoded picture and the length of its bytes."""
    costs = []
    for k in range(len(model.encs)):
        payload = model.compress(x, Q_SCALE, prefix=k)["bit_stream"]
        x_hat = model.decompress(payload, *x.shape[2:], Q_SCALE)["x_hat"]
        mse = (x_hat - x).double().square().mean().item()
        costs.append(model.lambda_of(Q_SCALE) * 255**2 * mse + 8 * len(payload) / x[0, 0].numel())
    return costs


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_choice_has_the_least_cost_on_real_bytes(model: ScalableEVC, x: Tensor, best: int):
    model = copy.deepcopy(model)
    with torch.no_grad():  # latents of the prefixes: 40 for the best, which the decoder likes, and 0 for the others
        for k, encoder in enumerate(model.encs):
            encoder[6].weight.zero_()
            encoder[6].bias.fill_(40.0 * ((k + 1) * (k == best) - k * (k - 1 == best)))
    costs = _costs(model, x)
    assert costs.index(min(costs)) == best, costs
    chosen = model.compress(x, Q_SCALE)
    assert chosen["prefix"] == best
    alone = model.compress(x, Q_SCALE, prefix=best)
    assert chosen["bit_stream"] == alone["bit_stream"]
    assert torch.equal(chosen["x_hat"], alone["x_hat"])
    assert costs[chosen["prefix"]] <= costs[0]


def test_equal_prefixes_are_all_coded_with_the_first(evc: EVC, x: Tensor):
    assert ScalableEVC.from_evc(evc, 3).compress(x, Q_SCALE)["prefix"] == 0


def test_cost_is_lambda_times_distortion_plus_rate(model: ScalableEVC):
    x, x_hat = torch.zeros(1, 3, 64, 64), torch.full((1, 3, 64, 64), 2 / 255)
    for step, value in zip(model.q_scale.detach().flatten().tolist(), LAMBDAS, strict=True):
        assert model.cost(bytes(512), x_hat, x, step) == pytest.approx(value * 4 + 1, rel=1e-5)


def test_lambda_is_log_linear_between_the_anchors_and_constant_beyond(model: ScalableEVC):
    steps = model.q_scale.detach().flatten().tolist()
    assert [model.lambda_of(step) for step in steps] == pytest.approx(LAMBDAS)
    for i in range(3):
        between = model.lambda_of(math.sqrt(steps[i] * steps[i + 1]))
        assert between == pytest.approx(math.sqrt(LAMBDAS[i] * LAMBDAS[i + 1]))
    assert model.lambda_of(100.0) == pytest.approx(LAMBDAS[0])
    assert model.lambda_of(0.01) == pytest.approx(LAMBDAS[-1])


# --- streams, files, names ----------------------------------------------------------------------------------------


def test_payloads_decode_in_plain_evc_with_the_same_decoder(evc: EVC, model: ScalableEVC, x: Tensor):
    torch.manual_seed(9)
    other = EVC("tiny-s", "tiny").eval()
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith("encs.")}
    other.load_state_dict({**other.state_dict(), **weights})
    seen = set()
    for prefix in (0, 1, 2, None):
        coded = model.compress(x, Q_SCALE, prefix)
        assert torch.equal(other.decompress(coded["bit_stream"], 64, 128, Q_SCALE)["x_hat"], coded["x_hat"])
        seen.add(coded["bit_stream"])
    assert len(seen) == 3


def test_saved_and_loaded_it_codes_the_same_bytes(model: ScalableEVC, x: Tensor, tmp_path):
    zoo.save(model, tmp_path / "codec")
    loaded = zoo.load(tmp_path / "codec")
    assert isinstance(loaded, ScalableEVC) and len(loaded.encs) == 3
    assert loaded.compress(x, Q_SCALE)["bit_stream"] == model.compress(x, Q_SCALE)["bit_stream"]


def test_a_pruned_encoder_keeps_its_widths_in_every_copy(evc: EVC, x: Tensor, tmp_path):
    graph = trace_model(evc, ["enc", "dec"])
    masks = ChannelMasks.random(graph, sparsity=0.5, seed=0, round_to=8)
    small = compact(evc, masks, graph).eval()
    small.compact_config = compact_config(masks, graph)
    scalable = ScalableEVC.from_evc(small).extended().extended()
    assert torch.equal(scalable(x, Q_SCALE, 2)["x_hat"], small(x, Q_SCALE)["x_hat"])
    zoo.save(_different(scalable), tmp_path / "codec")
    loaded = zoo.load(tmp_path / "codec")
    assert torch.equal(loaded(x, Q_SCALE)["x_hat"], scalable(x, Q_SCALE)["x_hat"])


def test_a_new_encoder_leaves_the_rest_as_it_was(evc: EVC):
    wider = ScalableEVC.from_evc(evc, 2, encoder="tiny")
    assert wider.config == {"family": "scalable-evc", "encoder": "tiny", "decoder": "tiny", "encoders": 2}
    assert wider.encs[1][0].conv1.out_channels == 32
    for key, value in wider.state_dict().items():
        assert key.startswith("encs.") or torch.equal(value, evc.state_dict()[key]), key


def test_extending_leaves_the_model_and_its_prefixes_alone(model: ScalableEVC, x: Tensor):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    longer = model.extended()
    assert len(model.encs) == 3 and len(longer.encs) == 4
    assert torch.equal(longer(x, Q_SCALE, 2)["x_hat"], model(x, Q_SCALE, 2)["x_hat"])
    with torch.no_grad():
        longer.encs[3][6].weight.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_keys_are_those_of_evc_with_encs_for_enc():
    with torch.device("meta"):
        plain, scalable = create("evc-sl").state_dict(), create("scale-evc-sl").state_dict()
    expected = {key: tuple(value.shape) for key, value in plain.items() if not key.startswith("enc.")}
    for key, value in plain.items():
        if key.startswith("enc."):
            expected |= {f"encs.{i}{key.removeprefix('enc')}": tuple(value.shape) for i in range(4)}
    assert {key: tuple(value.shape) for key, value in scalable.items()} == expected


@pytest.mark.parametrize("prefix", [-1, 3, 1.0, True])
def test_a_prefix_that_does_not_exist_is_refused(model: ScalableEVC, x: Tensor, prefix):
    for call in (model.forward, model.compress):
        with pytest.raises(UsageError, match=f"prefix={prefix}.*0 to 2"):
            call(x, Q_SCALE, prefix)


def test_other_wrong_arguments_are_refused(evc: EVC, model: ScalableEVC, x: Tensor):
    with pytest.raises(UsageError, match="encoders=0"):
        ScalableEVC("tiny-s", "tiny", 0)
    with pytest.raises(UsageError, match="ScalableEVC.*one encoder"):
        ScalableEVC.from_evc(model)
    with pytest.raises(UsageError, match="latent channels"):
        ScalableEVC.from_evc(evc, encoder="s")
    small = copy.deepcopy(evc)
    small.compact_config = {"format": 1, "transforms": ["enc"], "kept": {}}
    with pytest.raises(UsageError, match="encoder='tiny'.*pruned"):
        ScalableEVC.from_evc(small, encoder="tiny")
    with pytest.raises(UsageError, match="batch of 2"):
        model.compress(x.expand(2, -1, -1, -1), Q_SCALE)
    with pytest.raises(UsageError, match="q_scale=0"):
        model.compress(x, 0)
    with pytest.raises(UsageError, match="multiples of 64"):
        model(x[:, :, :40], Q_SCALE)
