"""Clips in training: each frame from the decoded one before, at its own quality, with gradients through all of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import sparsecodec
from sparsecodec import zoo
from sparsecodec.data import RandomClips, RandomCrops
from sparsecodec.data.bt709 import halved_chroma, rgb_to_ycbcr, ycbcr_to_rgb, yuv_error
from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo, HEMVideoWidths
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.models.evc import EVC
from sparsecodec.models.video import VideoCodec
from sparsecodec.sparsity import count, trace_model
from sparsecodec.training import Recipe, Trainer, calibration_loss, family_of, rate_distortion, run
from sparsecodec.training import video_families as rollouts
from sparsecodec.training.optimizers import build_optimizer

from ..sparsity.test_video_channels import codec_of


def small_codec() -> VideoCodec:
    torch.manual_seed(0)
    intra = DCVCRTImage(RTImageWidths(16, 8, 16, 1, 1, 1, 1))
    return VideoCodec(intra, DCVCRTVideo(RTVideoWidths(16, 8, 24, 16, 1, 1, 1)))


@pytest.fixture
def codec() -> VideoCodec:
    return small_codec()


def test_colours_are_those_of_bt709_and_come_back():
    x = torch.rand(2, 3, 4, 6, dtype=torch.float64)
    assert torch.allclose(ycbcr_to_rgb(rgb_to_ycbcr(x)), x)
    red = rgb_to_ycbcr(torch.tensor([1.0, 0, 0]).view(3, 1, 1)).flatten()
    assert red.tolist() == pytest.approx([0.2126, 0.5 - 0.2126 / 1.8556, 1.0], abs=1e-6)
    planes = halved_chroma(x)
    assert torch.equal(planes[:, 0], x[:, 0])
    assert torch.allclose(planes[:, 1:, :2, :2], x[:, 1:, :2, :2].mean((2, 3), keepdim=True))
    wrong = x.clone()
    wrong[:, 1] += 0.1
    assert yuv_error(wrong, x).tolist() == pytest.approx([0.01 / 8] * 2)


def test_a_clip_has_rate_and_error_of_its_frames(codec):
    x = torch.rand(2, 3, 3, 64, 64)
    out, rates = family_of(codec).forward(codec.eval(), x, 10)
    assert out["x_hat"].shape == x.shape and rates.tolist() == [10, 10]
    with torch.no_grad():
        planes = rollouts.to_planes(x.flatten(0, 1)).view(x.shape)
        first = codec.intra(planes[:, 0], 10)
        second = codec.inter(planes[:, 1], codec.inter.start(first["x_hat"]), 18)
        third = codec.inter(planes[:, 2], second["state"], 10)
    frames = (first, second, third)
    errors = [yuv_error(frame["x_hat"], planes[:, t]) for t, frame in enumerate(frames)]
    assert torch.allclose(out["bpp"], sum(frame["bpp"] for frame in frames) / 3)
    assert torch.allclose(out["mse"], sum(errors) / 3)
    assert torch.allclose(out["distortion"], (errors[0] + 1.2 * errors[1] + 0.5 * errors[2]) / 3)
    loss, bpp, mse = rate_distortion(out, x, torch.tensor([0.01, 0.01]))
    assert loss.item() == pytest.approx((out["bpp"] + 0.01 * 255**2 * out["distortion"]).mean().item())
    assert mse.item() == pytest.approx(out["mse"].mean().item())


def test_a_picture_is_a_clip_of_one_frame(codec):
    x = torch.rand(2, 3, 64, 64)
    out, _ = family_of(codec).forward(codec.eval(), x, 3)
    alone, _ = family_of(codec.intra).forward(codec.intra, x, 3)
    assert torch.equal(out["x_hat"], alone["x_hat"]) and torch.equal(out["bpp"], alone["bpp"])


def test_each_clip_has_its_quality_and_each_frame_its_shift(codec, monkeypatch):
    seen = []
    forward = DCVCRTVideo.forward
    monkeypatch.setattr(
        DCVCRTVideo, "forward", lambda self, x, state, rate: seen.append(rate) or forward(self, x, state, rate)
    )
    _, rates = family_of(codec).forward(codec.train(), torch.rand(3, 4, 3, 64, 64))
    assert len(set(rates.tolist())) > 1
    assert [(rate - rates).tolist() for rate in seen] == [[8] * 3, [0] * 3, [4] * 3]


def test_gradients_of_the_last_frame_reach_the_first(codec, monkeypatch):
    monkeypatch.setattr(rollouts.RTVideo, "resets", 0.0)
    out, _ = family_of(codec).forward(codec.train(), torch.rand(1, 3, 3, 64, 64), 40)
    out["x_hat"][:, 2].sum().backward()
    assert codec.intra.dec.dec_2.ffn[2].weight.grad.abs().sum() > 0
    assert codec.inter.feature_adaptor_i.adaptor.weight.grad.abs().sum() > 0
    assert codec.inter.feature_adaptor_p.weight.grad.abs().sum() > 0


def test_a_reset_forgets_the_feature_and_keeps_the_picture(codec, monkeypatch):
    monkeypatch.setattr(rollouts.RTVideo, "resets", 1.0)
    x = torch.rand(1, 3, 3, 64, 64)
    out, _ = family_of(codec).forward(codec.train(), x, 40)
    out["x_hat"][:, 2].sum().backward()
    assert codec.inter.feature_adaptor_p.weight.grad is None
    assert codec.inter.recon_generation_net.head.weight.grad.abs().sum() > 0
    family_of(codec).forward(codec.eval(), x, 40)[0]["x_hat"].sum().backward()  # coding resets when the user says so
    assert codec.inter.feature_adaptor_p.weight.grad is not None


def test_an_inter_model_alone_starts_from_the_first_frame_itself(codec):
    x = torch.rand(2, 2, 3, 64, 64)
    out, _ = family_of(codec.inter).forward(codec.inter.eval(), x, 5)
    planes = rollouts.to_planes(x[:, 0])
    assert torch.equal(out["x_hat"][:, 0], planes)
    after = codec.inter(rollouts.to_planes(x[:, 1]), codec.inter.start(planes), 13)
    assert torch.allclose(out["bpp"], after["bpp"] / 2)


def test_models_that_do_not_fit_together_are_refused(codec):
    with pytest.raises(UsageError, match="intra model of 4 rates and an inter model of 64"):
        family_of(VideoCodec(EVC("tiny", "tiny"), codec.inter))


def test_all_transforms_are_counted_and_traced(codec):
    family = family_of(codec)
    shapes = family.transforms(codec, "all", 64)
    assert {path.split(".")[0] for path in shapes} == {"inter", "intra"}
    assert count(codec, shapes).macs > count(codec, family.transforms(codec, "decoder", 64)).macs > 0
    graph = trace_model(codec, list(shapes))
    tables = {f"inter.q_{name}" for name in ("encoder", "decoder", "feature", "recon")}
    assert set(graph.banks) == tables | {"intra.q_scale_enc", "intra.q_scale_dec"}


def test_tables_of_steps_are_no_filters_of_muon(codec):
    optimizer = build_optimizer(Recipe("rt", steps=1), codec)
    filters = {id(p) for group in optimizer.param_groups if group["muon"] for p in group["params"]}
    assert id(codec.inter.recon_generation_net.head.weight) in filters
    assert id(codec.inter.q_recon) not in filters and id(codec.intra.bit_estimator_z.f1.h) not in filters


def test_only_what_the_recipe_names_is_trained(codec, pictures, tmp_path):
    recipe = Recipe("rt", steps=2, batch=1, crop=64, frames=2, trains=("inter",), warmup=1)
    before = {key: value.clone() for key, value in codec.state_dict().items()}
    trainer = Trainer(recipe, codec, RandomClips(pictures, 64, 2), tmp_path)
    trained = trainer.run()
    assert codec.inter.training and not codec.intra.training
    changed = {key.split(".")[0] for key, value in trained.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"inter"}
    with pytest.raises(UsageError, match="no module 'motion' in VideoCodec; it has intra, inter"):
        Trainer(Recipe("rt", steps=1, trains=("motion",)), codec, RandomClips(pictures, 64, 2), tmp_path / "other")


def test_a_video_codec_learns(pictures, tmp_path):
    codec = small_codec()
    x = RandomClips(pictures, 64, 2).batch(99, 2)
    first = calibration_loss(codec, x)
    recipe = Recipe("rt", steps=50, batch=2, crop=64, frames=2, warmup=2, ema=0.9, log_every=1)
    trained = Trainer(recipe, codec, RandomClips(pictures, 64, 2), tmp_path).run()
    assert calibration_loss(trained, x) < 0.5 * first


def test_it_is_pruned_in_stages_and_saved(pictures, tmp_path):
    stages = [["inter.decoder", "inter.recon_generation_net"], ["inter.encoder", "inter.y_prior_fusion"]]
    settings = {"mac_reduction": 0.4, "stages": stages, "branches": False, "round_to": 4, "finetune_steps": 2}
    values = {"model": "rt", "steps": 6, "batch": 1, "crop": 64, "frames": 3, "warmup": 1, "trains": ["inter"]}
    codec = small_codec()
    family = family_of(codec)
    dense = [count(codec, {path: family.transforms(codec, "all")[path] for path in stage}).macs for stage in stages]
    recipe = Recipe.from_dict({**values, "gradient_decay": settings})
    small = run(recipe, codec, RandomClips(pictures, 64, 3), tmp_path)
    for stage, macs in zip(stages, dense, strict=True):
        assert count(small, {path: family.transforms(small, "all")[path] for path in stage}).macs <= 0.6 * macs
    log = [json.loads(line) for line in (tmp_path / "masks-2" / "log.jsonl").read_text().splitlines()]
    assert all(record["mac_reduction"] >= 0 for record in log)
    assert not any("branch:" in name for name in small.compact_config["kept"])
    sparsecodec.save(small, tmp_path / "small")
    loaded = sparsecodec.load(tmp_path / "small")
    x = torch.rand(1, 3, 3, 64, 64)
    with torch.no_grad():
        expected, _ = family.forward(small.eval(), x, 20)
        found, _ = family.forward(loaded, x, 20)
    assert torch.equal(found["x_hat"], expected["x_hat"])


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("hem", [["inter.feature_extractor", "inter.context_fusion_net"], ["inter.contextual_encoder"]]),
        ("fvc_without_fusion", [["inter.compensation"], ["inter.extraction"]]),
    ],
)
def test_coupled_stages_are_saved_as_they_were_cut(name, stages, pictures, tmp_path):
    """Traced alone, a transform has other branches than beside those that an earlier stage pruned."""
    settings = {"mac_reduction": 0.3, "stages": stages, "state": "coupled", "round_to": 1, "distillation_weight": 0.0}
    values = {"model": name, "steps": 4, "batch": 1, "crop": 64, "frames": 3, "warmup": 1, "trains": ["inter"]}
    one_rate = {} if name == "hem" else {"lambdas": [0.01]}
    codec = codec_of(name)
    recipe = Recipe.from_dict({**values, **one_rate, "gradient_decay": settings})
    small = run(recipe, codec, RandomClips(pictures, 64, 3), tmp_path)
    sparsecodec.save(small, tmp_path / "small")
    loaded, x = sparsecodec.load(tmp_path / "small"), torch.rand(1, 3, 3, 64, 64)
    with torch.no_grad():
        expected, found = (family_of(codec).forward(model.eval(), x, 0)[0] for model in (small, loaded))
    assert torch.equal(found["x_hat"], expected["x_hat"])
    described = [path for stage in loaded.compact_config["stages"] for path in stage["transforms"]]
    assert described == [path for stage in stages for path in stage]


def test_the_error_of_the_motion_joins_the_loss(pictures, tmp_path):
    torch.manual_seed(0)
    inter = DCVCHEMVideo(HEMVideoWidths(mv=8, channels=8, latent=8, decoded=8, unet=(4, 4, 8), flow=(4, 4, 4, 4)))
    x, family = torch.rand(2, 3, 3, 64, 64), family_of(inter.eval())
    out, _ = family.forward(inter, x, 1)
    with torch.no_grad():
        first = inter(x[:, 1], inter.start(x[:, 0]), 1)
        second = inter(x[:, 2], first["state"], 1)
    errors = [(frame["warped"] - x[:, t + 1]).square().mean((1, 2, 3)) for t, frame in enumerate((first, second))]
    assert torch.allclose(out["motion"], sum(errors) / 3)
    lambdas = torch.tensor([0.01, 0.02])
    more = rate_distortion(out, x, lambdas, 0.5)[0] - rate_distortion(out, x, lambdas)[0]
    assert more.item() == pytest.approx((0.5 * 255**2 * lambdas * out["motion"]).mean().item(), rel=1e-4)

    recipe = Recipe("hem", steps=1, batch=1, crop=64, frames=2, motion=1.0)
    losses = []
    for motion in (0.0, 1.0):
        trainer = Trainer(replace(recipe, motion=motion), inter, RandomClips(pictures, 64, 2), tmp_path / str(motion))
        losses.append(trainer.train_step()["loss"])
    assert losses[1] > losses[0]
    with pytest.raises(UsageError, match="motion=1.0 .needs a codec that codes motion, and clips of at least two"):
        Trainer(recipe, small_codec(), RandomClips(pictures, 64, 2), tmp_path / "rt").train_step()


REDUCTION = {"mac_reduction": 0.3, "transforms": "all", "round_to": 4}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("gradient_decay", {**REDUCTION, "branches": False}),
        ("mask_decay", REDUCTION),
        ("nm", {"transforms": "all", "min_channels": 16}),
        ("plan", {"plan": "uniform", "reduction": 0.3, "transforms": "all", "side": 64, "round_to": 4}),
        ("quantize", {"transforms": "all", "rule": "mse", "calibration_crops": 1}),
        ("feds", {"teacher": "dcvc-rt-tiny", "channel_steps": 1, "finetune_steps": 1, "calibration_batches": 1}),
    ],
)
def test_a_method_leaves_what_is_not_trained_as_it_is(method, settings, pictures, tmp_path):
    values = {"model": "rt", "steps": 2, "batch": 1, "crop": 64, "frames": 3, "warmup": 1, "trains": ["inter"]}
    codec, data = small_codec(), RandomClips(pictures, 64, 3)
    before = {key: value.clone() for key, value in codec.state_dict().items()}
    state = run(Recipe.from_dict({**values, method: settings}), codec, data, tmp_path, zoo.load).state_dict()
    intra = [key for key in before if key.startswith("intra.")]
    assert all(torch.equal(before[key], state[key]) for key in intra)
    assert any(key not in state or not torch.equal(before[key], state[key]) for key in before)
    for trains in (["inter.q_recon"], ["motion"]):
        wrong = Recipe.from_dict({**values, "trains": trains, method: settings})
        with pytest.raises(UsageError, match=r"trains=.*needs at least one of the transforms .*inter\.decoder"):
            run(wrong, small_codec(), data, tmp_path / "wrong", zoo.load)


def test_stages_and_plans_that_prune_what_rests_are_refused(pictures, tmp_path):
    values = {"model": "rt", "steps": 2, "batch": 1, "crop": 64, "frames": 2, "warmup": 1}
    data = RandomClips(pictures, 64, 2)
    stages = {"mac_reduction": 0.3, "stages": [["inter.decoder"], ["intra.dec"]]}
    with pytest.raises(UsageError, match=r"stages: intra\.dec is not trained \(needs transforms in trains=\['inter'\]"):
        run(Recipe.from_dict({**values, "trains": ["inter"], "gradient_decay": stages}), small_codec(), data, tmp_path)
    searched = {"reduction": 0.2, "transforms": "all", "side": 64, "round_to": 4, "candidates": [0.0, 0.9]}
    run(Recipe.from_dict({**values, "trains": ["intra"], "search": searched}), small_codec(), data, tmp_path / "plan")
    plan = {"plan": str(tmp_path / "plan" / "plan.json")}
    with pytest.raises(UsageError, match=r"plan\.json: intra\.\w+ is not trained"):
        run(Recipe.from_dict({**values, "trains": ["inter"], "plan": plan}), small_codec(), data, tmp_path / "cut")


@pytest.mark.parametrize("trains", [None, ("inter",), ("intra", "inter.decoder")])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("plain", {}),
        ("gradient_decay", {**REDUCTION, "distillation_weight": 0.0}),
        ("mask_decay", REDUCTION),
        ("search", {"reduction": 0.2}),
        ("quantize", {}),
    ],
)
def test_an_inter_model_that_would_never_run_is_refused(method, settings, trains, pictures, tmp_path):
    values = {"model": "rt", "steps": 1, "batch": 1, "crop": 64, "trains": trains}
    recipe = Recipe.from_dict(values if method == "plain" else {**values, method: settings})
    with pytest.raises(UsageError, match=r'frames=1 \(needs 2 or more: .*inter model of rt.*or trains=\["intra"\]'):
        run(recipe, small_codec(), RandomCrops(pictures, 64), tmp_path)
    assert not list(tmp_path.iterdir())


def test_crops_of_one_frame_train_an_intra_model_alone(codec, pictures, tmp_path):
    recipe = Recipe("rt", steps=1, batch=1, crop=64, warmup=1, trains=("intra",))
    run(recipe, codec, RandomCrops(pictures, 64), tmp_path)
    with pytest.raises(UsageError, match=r"frames=1 \(needs 2 or more: [^=]*$"):
        run(replace(recipe, trains=None), codec.inter, RandomCrops(pictures, 64), tmp_path / "inter")
