"""FEDS on clips: the frames of both codecs side by side, both latents of a codec of motion, what rests in a clip."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from sparsecodec.distill import FEDS, stages_of
from sparsecodec.distill.feds import ANALYSES
from sparsecodec.models.dcvc import DCVC, DCVC_WIDTHS
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage, HEMImageWidths
from sparsecodec.models.dcvc_hem_video import HEM_VIDEO_TINY, DCVCHEMVideo
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.models.fvc import FVC, FVC_WIDTHS
from sparsecodec.models.video import VideoCodec
from sparsecodec.training import family_of
from sparsecodec.training.methods.feds import aligned_transforms

INTER = ["inter"]


def rt(latent: int, main: int) -> VideoCodec:
    intra = DCVCRTImage(RTImageWidths(16, 8, 16, 1, 1, 1, 1))
    return VideoCodec(intra, DCVCRTVideo(RTVideoWidths(latent, 8, main, 16, 1, 1, 1)))


def hem(mv: int, latent: int) -> VideoCodec:
    intra = DCVCHEMImage(HEMImageWidths(latent=16, refine=8, unet=(8, 8, 8), transform=16))
    return VideoCodec(intra, DCVCHEMVideo(dataclasses.replace(HEM_VIDEO_TINY, mv=mv, latent=latent)))


def dcvc(motion: int, latent: int) -> DCVC:
    return DCVC(dataclasses.replace(DCVC_WIDTHS["tiny"], motion=motion, latent=latent))


def fvc(latent: int, feature: int) -> FVC:
    return FVC(dataclasses.replace(FVC_WIDTHS["tiny"], latent=latent, feature=feature))


CODECS = {"rt": (rt, (24, 32), (16, 24)), "hem": (hem, (24, 48), (16, 32)), "dcvc": (dcvc, (32, 48), (24, 32))}
CODECS["fvc"] = (fvc, (32, 24), (24, 16))


def trained(model: nn.Module) -> list[str] | None:
    return INTER if isinstance(model, VideoCodec) else None


@pytest.fixture(params=CODECS)
def pair(request) -> tuple[nn.Module, nn.Module]:
    """A narrow codec and a wide one, with latents of several symbols."""
    build, wide, narrow = CODECS[request.param]
    torch.manual_seed(0)
    student, teacher = build(*narrow), build(*wide)
    with torch.no_grad():
        for path, module in teacher.named_modules():
            if path.removeprefix("inter.") in ANALYSES:
                [*(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))][-1].weight *= 12
    return student, teacher


def clips(frames: int, n: int = 1) -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.rand(n, frames, 3, 64, 64, generator=draw) for _ in range(2)]


def align(student: nn.Module, teacher: nn.Module, batches: list[Tensor], entropy_loss: str = "mse") -> FEDS:
    transforms = aligned_transforms(student, trained(student))
    return FEDS(student, teacher, family_of(student).forward, transforms, batches, entropy_loss)


def rested_intra(student: nn.Module) -> nn.Module:
    """`student` in the mode in which its inter model is trained."""
    student.train()
    if isinstance(student, VideoCodec):
        student.intra.eval()
    return student


@pytest.mark.parametrize("entropy_loss", ["mse", "kl"])
def test_student_equal_to_its_teacher_has_no_loss(pair: tuple[nn.Module, nn.Module], entropy_loss: str):
    teacher, batches = pair[1], clips(3, 2)
    student = rested_intra(copy.deepcopy(teacher))
    feds = align(student, teacher, batches, entropy_loss)
    for seed in range(3):  # DCVC-RT forgets the feature in one frame of ten
        torch.manual_seed(seed)
        feds(student, batches[0])
        assert feds.feature_loss() < 1e-9 and feds.channel_loss().abs() < 1e-6  # gradients may choose another kernel
    with torch.no_grad():
        for parameter in getattr(student, "inter", student).parameters():
            parameter *= 1.3
    feds(student, batches[0])
    assert feds.feature_loss() > 0 and feds.channel_loss() > 1e-6


def test_narrow_student_follows_every_latent_and_learns_from_each_frame(pair: tuple[nn.Module, nn.Module]):
    (student, teacher), batches = pair, clips(3)
    feds = align(rested_intra(student), teacher, batches)
    assert set(feds.channels) == ({"y"} if isinstance(getattr(student, "inter", 0), DCVCRTVideo) else {"mv_y", "y"})
    torch.manual_seed(1)
    out, _ = feds(student, batches[0])
    for name, channels in feds.channels.items():
        ours, theirs = (run.latents[name].y for run in feds._last())
        assert ours.shape[0] == theirs.shape[0] == 2  # of the predicted frames
        assert ours.shape[1] == len(channels.pairing) < theirs.shape[1] == len(channels.entropies)
        assert channels.weights.sum().item() == pytest.approx(1, abs=1e-6)
    (feds.feature_loss() + feds.channel_loss()).backward()
    assert all(parameter.grad is not None for parameter in feds.adapters.parameters())
    assert not any(parameter.grad is not None for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    inter = getattr(student, "inter", student)
    moved = sum(parameter.grad is not None and bool(parameter.grad.any()) for parameter in inter.parameters())
    assert moved > 0.5 * sum(1 for _ in inter.parameters())


def test_forward_is_the_student_s_own(pair: tuple[nn.Module, nn.Module]):
    (student, teacher), batches = pair, clips(3)
    feds = align(rested_intra(student), teacher, batches)
    for seed in range(3):
        torch.manual_seed(seed)
        expected, _ = family_of(student).forward(student, batches[0])
        draw = torch.rand(1)
        torch.manual_seed(seed)
        out, _ = feds(student, batches[0])
        assert torch.equal(out["x_hat"], expected["x_hat"]) and torch.equal(out["bpp"], expected["bpp"])
        assert torch.equal(torch.rand(1), draw)


def test_latents_are_what_the_rate_is_taken_from(pair: tuple[nn.Module, nn.Module]):
    model, x = pair[1].eval(), clips(1)[0][:, 0]
    inter, before = getattr(model, "inter", model), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        rates = (3,) if isinstance(model, VideoCodec) else ()
        out = inter(x, inter.start(before), *rates)
    for name, latent in out["latents"].items():
        bits = -latent.likelihoods.double().log2().sum() / 64**2
        assert bits.item() == pytest.approx(out[f"bpp_{name}"].item(), rel=1e-4)
        assert latent.y.shape == latent.means.shape == latent.scales.shape
        assert latent.laplace == (not isinstance(inter, (DCVCRTVideo, FVC)))


def test_what_reads_a_feature_has_no_stage_in_pairs_of_frames():
    torch.manual_seed(0)
    model = rt(16, 24)
    transforms = aligned_transforms(model, INTER)
    found = [
        {stage.transform for stage in stages_of(family_of(model).forward, model, clips(frames)[0], transforms)}
        for frames in (2, 3)
    ]
    assert found[1] - found[0] == {"inter.feature_adaptor_p"} and not found[0] - found[1]
    assert found[1] == set(transforms)


def test_a_transform_with_several_outputs_ends_in_each():
    torch.manual_seed(0)
    model = hem(16, 32)
    transforms = aligned_transforms(model, INTER)
    stages = stages_of(family_of(model).forward, model, clips(3)[0], transforms)
    contexts = [(stage.index, stage.height) for stage in stages if stage.path == "inter.context_fusion_net"]
    assert contexts == [(0, 64), (1, 32), (2, 16)]
