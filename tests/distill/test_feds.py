"""FEDS: its limits, its two distances by hand, and what must not reach the student or the teacher."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Laplace, Normal, kl_divergence

from sparsecodec._compat import import_compressai
from sparsecodec.distill import FEDS, channel_divergence, stages_of
from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.nn.likelihood import Latent

RATE = 0.7
EVC = ("enc", "hyper_enc", "hyper_dec", "dec")
COMPRESSAI = ("g_a", "h_a", "h_s", "g_s")


def forward(model: nn.Module, x: Tensor) -> tuple[dict[str, Any], Tensor]:
    """EVC at a step drawn for each picture, or any of CompressAI's codecs."""
    if not hasattr(model, "q_scale"):
        return model(x), torch.zeros(len(x))
    rates = torch.rand(len(x), 1, 1, 1) + 0.3
    return model(x, rates), rates


def compressai(name: str, *widths: int) -> nn.Module:
    torch.manual_seed(2)
    return getattr(import_compressai().models, name)(*widths)


def _louder(model: nn.Module) -> nn.Module:
    """`model` with latents of several symbols, so that rounding and noise show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ("enc.6.weight", "g_a.6.weight", "hyper_enc.3.weight", "h_a.4.weight"):
                parameter *= 12
    return model


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(0)
    return _louder(create("evc-tiny"))


@pytest.fixture(scope="module")
def student() -> nn.Module:
    torch.manual_seed(1)
    return create("evc-nano").train()


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.rand(2, 3, 64, 64, generator=draw) for _ in range(2)]


@pytest.fixture(scope="module")
def feds(student: nn.Module, teacher: nn.Module, batches: list[Tensor]) -> FEDS:
    return FEDS(student, teacher, forward, EVC, batches)


# --- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entropy_loss", ["mse", "kl"])
@pytest.mark.parametrize("family", ["evc", "MeanScaleHyperprior", "JointAutoregressiveHierarchicalPriors"])
def test_student_equal_to_its_teacher_has_no_loss(
    family: str, entropy_loss: str, teacher: nn.Module, batches: list[Tensor]
):
    """In training: CompressAI's networks read noisy latents, so the noise must be the same on both sides."""
    teacher = teacher if family == "evc" else _louder(compressai(family, 8, 12))
    student = copy.deepcopy(teacher).train()
    feds = FEDS(student, teacher, forward, EVC if family == "evc" else COMPRESSAI, batches, entropy_loss)
    torch.manual_seed(5)
    feds(student, batches[0])
    assert feds.feature_loss() == 0 and feds.channel_loss() == 0
    with torch.no_grad():
        next(student.get_submodule("enc" if family == "evc" else "g_a").parameters()).mul_(1.1)
    feds(student, batches[0])
    assert feds.feature_loss() > 0 and feds.channel_loss() > 0


def test_student_as_wide_as_its_teacher_follows_all_channels_in_order(teacher: nn.Module, batches: list[Tensor]):
    feds = FEDS(copy.deepcopy(teacher), teacher, forward, EVC, batches)
    assert feds.channels["y"].pairing.tolist() == list(range(96))


def test_weights_are_shares_of_the_entropy_and_sum_to_one(feds: FEDS):
    assert feds.channels["y"].weights.sum().item() == pytest.approx(1, abs=1e-6)
    ratio = feds.channels["y"].weights.double() / feds.channels["y"].entropies[feds.channels["y"].pairing]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-5, atol=0)


def test_narrower_student_follows_the_most_informative_channels(feds: FEDS):
    ranked = sorted(range(96), key=lambda c: -feds.channels["y"].entropies[c].item())
    assert len(feds.channels["y"].pairing) == 64 and set(feds.channels["y"].pairing.tolist()) == set(ranked[:64])
    assert feds.channels["y"].pairing.tolist() == sorted(ranked[:64])


def test_entropies_are_the_bits_that_the_latent_costs(teacher: nn.Module, batches: list[Tensor]):
    def one_rate(model: nn.Module, x: Tensor) -> tuple[dict[str, Any], Tensor]:
        return model(x, RATE), torch.zeros(len(x))

    feds = FEDS(copy.deepcopy(teacher), teacher, one_rate, EVC, batches)
    with torch.no_grad():
        bpp = torch.cat([teacher.eval()(x, RATE)["bpp_y"] for x in batches]).mean()
    assert feds.channels["y"].entropies.sum().item() / 16**2 == pytest.approx(bpp.item(), rel=1e-3)


# --- the two distances, by hand -----------------------------------------------------------------------------------


def _outputs(model: nn.Module, paths: list[str], x: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
    kept: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda m, i, out, path=path: kept.update({path: out}))
        for path in paths
    ]
    with torch.no_grad():
        out, _ = forward(model, x)
    for hook in hooks:
        hook.remove()
    return [kept[path] for path in paths], out


ENDS = {
    "evc-nano": "enc.1 enc.3 enc.5 enc hyper_enc.0 hyper_enc.2 hyper_enc hyper_dec.0 hyper_dec "
    "dec.0 dec.2 dec.4 dec.6 dec",
    "evc-tiny-swin": "enc.1 enc.3 enc.5 enc hyper_enc.0 hyper_enc.2 hyper_enc hyper_dec.0 hyper_dec "
    "dec.0 dec.2 dec.4 dec.6 dec",
    "MeanScaleHyperprior": "g_a.1 g_a.3 g_a.5 g_a h_a.1 h_a.3 h_a h_s.1 h_s g_s.1 g_s.3 g_s.5 g_s",
}


@pytest.mark.parametrize("name", ENDS)
def test_stages_end_where_the_size_changes(name: str):
    model = create(name) if name.startswith("evc") else compressai(name, 8, 12)
    stages = stages_of(forward, model, torch.rand(1, 3, 64, 64), EVC if name.startswith("evc") else COMPRESSAI)
    assert [stage.path for stage in stages] == ENDS[name].split()


def test_losses_are_the_stated_ones(feds: FEDS, student: nn.Module, teacher: nn.Module, batches: list[Tensor]):
    x, ends = batches[1], ENDS["evc-nano"].split()
    torch.manual_seed(7)
    ours, out_s = _outputs(student, ends, x)
    torch.manual_seed(7)
    theirs, out_t = _outputs(teacher.train(), ends, x)  # the teacher has stages at the same paths
    teacher.eval()
    expected = 0.0
    for adapter, f_s, f_t in zip(feds.adapters, ours, theirs, strict=True):
        mapped = torch.einsum("oc,nchw->nohw", adapter.weight[:, :, 0, 0], f_s) + adapter.bias[:, None, None]
        n, c, h, w = f_t.shape
        expected += (mapped - f_t).square().sum().item() / (n * c * h * w)
    torch.manual_seed(7)
    feds(student, x)
    assert feds.feature_loss().item() == pytest.approx(expected, rel=1e-5)

    pairing, entropies = feds.channels["y"].pairing, feds.channels["y"].entropies
    difference = (out_s["latents"]["y"].y - out_t["latents"]["y"].y[:, pairing]).square().sum((2, 3)) / (4 * 4)
    weights = entropies[pairing] / entropies[pairing].sum()
    assert feds.channel_loss().item() == pytest.approx((weights * difference.mean(0)).sum().item(), rel=1e-5)


def test_divergence_is_that_of_the_gaussians(feds: FEDS, student: nn.Module, teacher: nn.Module, batches: list[Tensor]):
    by_divergence = FEDS(student, teacher, forward, EVC, batches, "kl")
    torch.manual_seed(7)
    by_divergence(student, batches[0])
    s, t = (run.latents["y"] for run in by_divergence._last())
    channels = feds.channels["y"]
    theirs = Normal(t.means[:, channels.pairing], t.scales[:, channels.pairing].clamp(min=0.11))
    expected = kl_divergence(theirs, Normal(s.means, s.scales.clamp(min=0.11))).mean((0, 2, 3))
    assert by_divergence.channel_loss().item() == pytest.approx((channels.weights * expected).sum().item(), rel=1e-4)


def test_divergence_of_laplace_distributions_is_theirs():
    draw = torch.Generator().manual_seed(0)
    means, scales = torch.randn(2, 1, 5, 4, 4, generator=draw), torch.rand(2, 1, 5, 4, 4, generator=draw) + 1e-3
    s, t = (Latent(means[i], means[i], means[i], scales[i], laplace=True) for i in range(2))
    expected = kl_divergence(Laplace(means[1], scales[1]), Laplace(means[0], scales[0])).mean((0, 2, 3))
    torch.testing.assert_close(channel_divergence(s, t), expected, rtol=1e-4, atol=1e-5)
    assert channel_divergence(t, t).abs().max() < 1e-6


def test_latent_s_adapter_starts_as_the_pairing(feds: FEDS):
    latent = feds.adapters[3].weight[:, :, 0, 0]  # enc.6, 64 to 96
    assert latent.shape == (96, 64) and latent.sum() == 64
    assert torch.equal(latent[feds.channels["y"].pairing], torch.eye(64))
    picture = feds.adapters[-1].weight[:, :, 0, 0]
    assert torch.equal(picture, torch.eye(3))


# --- who learns, and what stays ------------------------------------------------------------------------------------


def test_student_and_adapters_learn_and_the_teacher_does_not(
    feds: FEDS, student: nn.Module, teacher: nn.Module, batches: list[Tensor]
):
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    feds(student, batches[0])
    (feds.feature_loss() + feds.channel_loss()).backward()
    assert all(p.grad.abs().max() > 0 for p in feds.adapters.parameters())
    assert student.enc[0].conv1.weight.grad.abs().max() > 0
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    student.zero_grad()


def test_student_s_pass_is_the_plain_one(feds: FEDS, student: nn.Module, batches: list[Tensor]):
    torch.manual_seed(11)
    expected, _ = forward(student, batches[0])
    draw = torch.rand(1)
    torch.manual_seed(11)
    out, _ = feds(student, batches[0])
    assert all(torch.equal(out[key], expected[key]) for key in ("x_hat", "bpp"))
    assert torch.equal(torch.rand(1), draw)


def test_nothing_is_left_in_the_student(student: nn.Module, feds: FEDS):
    assert student.state_dict().keys() == create("evc-nano").state_dict().keys()
    assert not any(module._forward_hooks for module in student.modules())


def test_adapters_are_all_that_trains_and_the_teacher_s_weights_do_not_travel(feds: FEDS):
    names = {name.partition(".")[0] for name, _ in feds.named_parameters()}
    assert names == {"adapters"}
    assert {name.partition(".")[0] for name in feds.state_dict()} == {*("adapters", "channels", "teacher_hash")}


def test_pairing_is_the_stored_one_whatever_a_new_calibration_says(
    feds: FEDS, student: nn.Module, teacher: nn.Module, batches: list[Tensor]
):
    other = FEDS(student, teacher, forward, EVC, [x * 0.2 for x in batches])
    assert not torch.equal(other.channels["y"].entropies, feds.channels["y"].entropies)
    other.load_state_dict(feds.state_dict())
    theirs, ours = feds.channels["y"], other.channels["y"]
    assert torch.equal(ours.pairing, theirs.pairing) and torch.equal(ours.weights, theirs.weights)


def test_state_of_another_teacher_is_refused(feds: FEDS, student: nn.Module, teacher: nn.Module, batches: list[Tensor]):
    changed = copy.deepcopy(teacher)
    with torch.no_grad():
        changed.dec[0].block[0].conv1[0].bias[0] += 1
    with pytest.raises(UsageError, match="another teacher"):
        FEDS(student, changed, forward, EVC, batches).load_state_dict(feds.state_dict())


# --- errors -------------------------------------------------------------------------------------------------------


def test_codecs_that_do_not_fit_are_refused(teacher: nn.Module, student: nn.Module, batches: list[Tensor]):
    with pytest.raises(UsageError, match="96 latent channels, its teacher 64"):
        FEDS(teacher, student, forward, EVC, batches)
    with pytest.raises(UsageError, match="ScaleHyperprior has no enc, hyper_enc, hyper_dec, dec"):
        FEDS(student, compressai("ScaleHyperprior", 8, 12), forward, EVC, batches)
    flatter = copy.deepcopy(student)
    flatter.enc.append(nn.Conv2d(64, 64, 3, padding=1)), flatter.enc.append(nn.AvgPool2d(2))
    flatter.enc.append(nn.Upsample(scale_factor=2))
    with pytest.raises(UsageError, match=r"ends? at rows enc 32.*the teacher's at enc 32.*needs one family"):
        FEDS(flatter, teacher, forward, EVC, batches)


def test_bad_settings_are_named(teacher: nn.Module, student: nn.Module, batches: list[Tensor]):
    with pytest.raises(UsageError, match="'l1'.*mse, kl"):
        FEDS(student, teacher, forward, EVC, batches, "l1")
    with pytest.raises(UsageError, match="calibration set is empty"):
        FEDS(student, teacher, forward, EVC, [])
    factorized = compressai("FactorizedPrior", 8, 12)
    with pytest.raises(UsageError, match="FactorizedPrior predicts no distributions"):
        FEDS(copy.deepcopy(factorized), factorized, forward, ("g_a", "g_s"), batches, "kl")
    same = FEDS(copy.deepcopy(factorized), factorized, forward, ("g_a", "g_s"), batches)
    assert same.channels["y"].pairing.tolist() == list(range(12))
    with pytest.raises(UsageError, match="no forward"):
        FEDS(student, teacher, forward, EVC, batches).feature_loss()


def test_transforms_that_none_runs_are_named(teacher: nn.Module, batches: list[Tensor]):
    def encoder_alone(model: nn.Module, x: Tensor) -> tuple[dict[str, Any], Tensor]:
        return {"y": model.enc(x)}, x

    assert {stage.transform for stage in stages_of(encoder_alone, teacher, batches[0], EVC)} == {"enc"}
    with pytest.raises(UsageError, match="none of the transforms hyper_dec, dec of EVC runs"):
        stages_of(encoder_alone, teacher, batches[0], ("hyper_dec", "dec"))
