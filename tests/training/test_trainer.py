"""The training loop: it learns, it resumes bit for bit, and its pruned codec is what it trained."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
import torch

from sparsecodec._compat import import_compressai
from sparsecodec.data import RandomCrops
from sparsecodec.errors import GraphError, SparseCodecError, UsageError
from sparsecodec.models import create
from sparsecodec.sparsity import apply_compact_config, count
from sparsecodec.training import Recipe, Trainer, family_of, rate_distortion, run
from sparsecodec.training.methods.gradient_decay import LearntMasks
from sparsecodec.training.muon import orthogonalize
from sparsecodec.training.optimizers import trained_by_gradient
from sparsecodec.zoo import load, save

from .conftest import resumed

PLAIN = {"model": "evc-tiny", "batch": 2, "crop": 64, "warmup": 2, "save_every": 2, "log_every": 1}
PRUNING = {"mac_reduction": 0.5, "decay_start": 0.25, "decay_end": 0.75, "round_to": 8, "finetune_steps": 2}


def _trainer(values, pictures, folder):
    recipe = Recipe.from_dict({key: value for key, value in values.items() if value is not None})
    torch.manual_seed(recipe.seed)
    model = create(recipe.model)
    method = LearntMasks(model, recipe.settings, recipe.steps) if recipe.settings else None
    return Trainer(recipe, model, RandomCrops(pictures, recipe.crop, recipe.seed), folder, method)


def _losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_loss_falls(pictures, tmp_path):
    _trainer({**PLAIN, "steps": 30, "save_every": 100}, pictures, tmp_path).run()
    losses = _losses(tmp_path)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.parametrize("pruning", [None, PRUNING], ids=["dense", "pruned"])
def test_resumed_run_equals_an_uninterrupted_one(pruning, pictures, tmp_path):
    values = {**PLAIN, "steps": 4, "gradient_decay": pruning}
    resumed(lambda folder: _trainer(values, pictures, folder), tmp_path)


def test_a_run_has_its_folder_to_itself(pictures, tmp_path):
    recipe = Recipe.from_dict({**PLAIN, "steps": 2})

    class Crowded(RandomCrops):
        refusals = 0

        def batch(self, *args):
            with pytest.raises(UsageError, match="another run works in .*out"):
                run(recipe, create("evc-tiny"), RandomCrops(pictures, recipe.crop), tmp_path / "out")
            self.refusals += 1
            return super().batch(*args)

    data = Crowded(pictures, recipe.crop)
    run(recipe, create("evc-tiny"), data, tmp_path / "out")
    assert data.refusals >= 2
    run(recipe, create("evc-tiny"), RandomCrops(pictures, recipe.crop), tmp_path / "out")  # done: given again
    with pytest.raises(UsageError, match="crop=65|missing"):
        run(Recipe.from_dict({**PLAIN, "steps": 2, "crop": 65}), create("evc-tiny"), data, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_pruning_meets_its_target_and_rebuilds_from_json(pictures, tmp_path):
    recipe = Recipe.from_dict({**PLAIN, "steps": 8, "gradient_decay": PRUNING})
    model = create("evc-tiny")
    shapes = family_of(model).transforms(model, "decoder")
    dense = count(model, shapes).macs
    small = run(recipe, model, RandomCrops(pictures, recipe.crop), tmp_path)
    left = count(small, shapes).macs / dense
    assert 0.4 < left <= 0.5
    assert set(small.compact_config["transforms"]) == set(shapes)
    rebuilt = apply_compact_config(create("evc-tiny"), json.loads(json.dumps(small.compact_config))).eval()
    rebuilt.load_state_dict(small.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(rebuilt(x, 1.0)["x_hat"], small(x, 1.0)["x_hat"])


def test_stages_prune_their_own_transforms_and_join(pictures, tmp_path):
    stages = [["hyper_dec", "y_prior_fusion", "y_spatial_prior"], ["dec"]]
    settings = {**PRUNING, "stages": stages, "finetune_steps": 0}
    recipe = Recipe.from_dict({**PLAIN, "steps": 4, "gradient_decay": settings})
    model = create("evc-tiny")
    shapes = family_of(model).transforms(model, "decoder")
    dense = {path: count(model, {path: shape}).macs for path, shape in shapes.items()}
    small = run(recipe, model, RandomCrops(pictures, recipe.crop), tmp_path)
    for stage in stages:
        left = sum(count(small, {path: shapes[path]}).macs for path in stage) / sum(dense[path] for path in stage)
        assert 0.35 < left <= 0.5
    save(small, tmp_path / "staged")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "staged")(x, 1.0)["x_hat"], small(x, 1.0)["x_hat"])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["masks-1", "masks-2"]


@pytest.mark.parametrize("stages", [[["dec"], ["dec"]], [[]], [["decoder"]]])
def test_wrong_stages_are_named(stages, pictures, tmp_path):
    with pytest.raises(UsageError, match="stage"):
        values = {**PLAIN, "steps": 4, "gradient_decay": {**PRUNING, "stages": stages}}
        run(Recipe.from_dict(values), create("evc-tiny"), RandomCrops(pictures, 64), tmp_path)


def test_loss_that_is_not_finite_stops_with_its_step(pictures, tmp_path):
    trainer = _trainer({**PLAIN, "steps": 4}, pictures, tmp_path)
    with torch.no_grad():
        trainer.model.dec[0].block[0].conv1[0].weight.fill_(float("nan"))
    with pytest.raises(SparseCodecError, match=r"step 0.*weight dec\.0\.block\.0\.conv1\.0\.weight is not finite"):
        trainer.run()


def test_layer_that_overflows_is_named(pictures, tmp_path):
    trainer = _trainer({**PLAIN, "steps": 4}, pictures, tmp_path)
    with torch.no_grad():
        trainer.model.enc[2].conv1.weight.fill_(1e38)
    with pytest.raises(SparseCodecError, match=r"step 0.*output of enc\.2\.conv1 is not finite"):
        trainer.run()


def test_layer_of_the_largest_gradient_is_named_when_the_norm_overflows(pictures, tmp_path):
    """Every gradient is finite, and so is the loss."""
    trainer = _trainer({**PLAIN, "steps": 4}, pictures, tmp_path)
    for layer, factor in (("enc.2.conv1", 1e25), ("dec.0.block.0.conv1.0", 1e30)):
        trainer.model.get_submodule(layer).weight.register_hook(lambda grad, factor=factor: factor * grad)
    message = r"step 0: the loss is [\d.]+, but the norm of the gradient is not finite: the gradient of "
    message += r"dec\.0\.block\.0\.conv1\.0 is the largest, its norm [\d.]+e\+\d\d; lower"
    with pytest.raises(SparseCodecError, match=message):
        trainer.run()


def test_killed_while_saving_leaves_the_old_checkpoint(pictures, tmp_path, monkeypatch):
    trainer = _trainer({**PLAIN, "steps": 4}, pictures, tmp_path)
    trainer.save()
    before = trainer.checkpoint_path.read_bytes()
    monkeypatch.setattr("os.replace", _fail)
    trainer.train_step()
    with pytest.raises(OSError, match="disk"):
        trainer.save()
    assert trainer.checkpoint_path.read_bytes() == before


def _fail(*_):
    raise OSError("disk full")


def test_checkpoint_of_another_method_is_refused(pictures, tmp_path):
    _trainer({**PLAIN, "steps": 4, "gradient_decay": PRUNING}, pictures, tmp_path).save()
    with pytest.raises(UsageError, match="method='gradient_decay', now 'plain'"):
        _trainer({**PLAIN, "steps": 4}, pictures, tmp_path)


def test_checkpoint_of_another_recipe_is_refused(pictures, tmp_path):
    _trainer({**PLAIN, "steps": 4}, pictures, tmp_path).save()
    with pytest.raises(UsageError, match="steps=4, now 5"):
        _trainer({**PLAIN, "steps": 5}, pictures, tmp_path)
    assert _trainer({**PLAIN, "steps": 4, "log_every": 3}, pictures, tmp_path).step == 0
    _trainer({**PLAIN, "steps": 4, "gradient_decay": PRUNING}, pictures, tmp_path / "pruned").save()
    with pytest.raises(UsageError, match="gradient_decay.round_to=8, now 16"):
        settings = {**PRUNING, "round_to": 16}
        _trainer({**PLAIN, "steps": 4, "gradient_decay": settings}, pictures, tmp_path / "pruned")


def test_full_disk_is_an_error_and_keeps_the_old_checkpoint(pictures, tmp_path, monkeypatch):
    trainer = _trainer({**PLAIN, "steps": 4}, pictures, tmp_path)
    trainer.save()
    before = trainer.checkpoint_path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match=r"checkpoint\.safetensors cannot be written: No space left on device$"):
        trainer.save()
    assert trainer.checkpoint_path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_checkpoint_is_as_readable_as_any_file(pictures, tmp_path):
    """A folder of runs is shared, and the codec beside it is readable, too."""
    trainer = _trainer({**PLAIN, "steps": 4}, pictures, tmp_path)
    trainer.save()
    (tmp_path / "other").touch()
    assert trainer.checkpoint_path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_damaged_checkpoint_is_refused(pictures, tmp_path):
    trainer = _trainer({**PLAIN, "steps": 4}, pictures, tmp_path)
    trainer.checkpoint_path.write_bytes(b"\x00" * 100)
    with pytest.raises(UsageError, match="not a training checkpoint"):
        trainer.resume()


def test_a_file_that_is_no_text_is_no_recipe(tmp_path):
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"recipe\.toml cannot be read"):
        Recipe.load(tmp_path / "recipe.toml")


def test_learning_rate_rises_and_falls_along_a_cosine_to_a_hundredth(pictures, tmp_path):
    trainer = _trainer({**PLAIN, "steps": 12, "warmup": 4}, pictures, tmp_path)
    rates = [trainer.schedule(step) for step in (0, 1, 3, 4, 8, 12)]
    assert rates == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.505, 0.01])


def test_the_average_follows_fast_at_first_and_every_step_has_its_own_noise(pictures, tmp_path):
    trainer = _trainer({**PLAIN, "steps": 4, "ema": 0.999}, pictures, tmp_path)
    drawn = []
    trainer.method.record = lambda: drawn.append(torch.rand(3)) or {}
    path = "dec.0.block.0.conv1.0"
    average, weight = trainer.average.get_submodule(path).weight, trainer.model.get_submodule(path).weight
    for step in range(3):
        before = average.clone()
        trainer.train_step()
        trainer.step += 1
        keep = (1 + step) / (10 + step)
        torch.testing.assert_close(average, keep * before + (1 - keep) * weight.detach())
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_a_seed_beyond_what_torch_takes_trains(pictures, tmp_path):
    _trainer({**PLAIN, "model": "evc-nano", "steps": 1, "seed": 18_500_000_000}, pictures, tmp_path).run()
    assert len(_losses(tmp_path)) == 1


def test_modules_without_parameters_are_not_trained(pictures, tmp_path):
    values = {**PLAIN, "model": "evc-nano", "steps": 1, "trains": ["enc.0.leaky_relu"]}
    with pytest.raises(UsageError, match=r"trains: 'enc\.0\.leaky_relu' has nothing to train: LeakyReLU"):
        _trainer(values, pictures, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_average_keeps_what_the_recipe_says_and_copies_buffers(pictures, tmp_path):
    trainer = _hyperprior({"steps": 200, "ema": 0.5}, pictures, tmp_path)
    trainer.step = 100  # long after the average's own warm-up
    average, weight = trainer.average.g_s[0].weight, trainer.model.g_s[0].weight
    before = average.clone()
    trainer.model.seen.fill_(7.0)
    trainer.train_step()
    assert not torch.equal(weight, before)
    torch.testing.assert_close(average, (before + weight.detach()) / 2)
    assert trainer.average.seen.tolist() == [7.0, 7.0]


def _hyperprior(values, pictures, folder):
    """A codec of CompressAI with a buffer of its own, about to train."""
    recipe = Recipe.from_dict({**PLAIN, "model": "mbt2018-mean", "lambdas": [0.013], "batch": 1, **values})
    torch.manual_seed(0)
    model = import_compressai().models.MeanScaleHyperprior(8, 12)
    model.register_buffer("seen", torch.zeros(2))
    return Trainer(recipe, model, RandomCrops(pictures, recipe.crop), folder)


def _at_update(trainer, look):
    """What `look()` gives when the gradients of a step are there and the optimiser has not moved yet."""
    seen, update = [], trainer.method.update
    trainer.method.update = lambda optimizer: (seen.append(look()), update(optimizer))
    return seen


def test_every_rate_is_weighed_by_its_own_lambda(pictures, tmp_path, monkeypatch):
    lambdas = [0.1, 0.2, 0.3, 0.4]
    trainer = _trainer({**PLAIN, "steps": 1, "batch": 3, "lambdas": lambdas}, pictures, tmp_path)
    forward, rates, seen = trainer.method.forward, torch.tensor([2, 0, 3]), []
    trainer.method.forward = lambda model, x: (forward(model, x)[0], rates)

    def weighed(out, x, lambdas, motion):
        seen.append(lambdas.tolist())
        return rate_distortion(out, x, lambdas, motion)

    monkeypatch.setattr("sparsecodec.training.trainer.rate_distortion", weighed)
    trainer.train_step()
    assert seen == [pytest.approx([0.3, 0.1, 0.4])]


def test_every_group_learns_at_the_rate_of_the_schedule(pictures, tmp_path):
    trainer = _hyperprior({"steps": 12, "warmup": 4}, pictures, tmp_path)
    groups = trainer.optimizer.param_groups
    rates = _at_update(trainer, lambda: [group["lr"] / group["peak"] for group in groups])
    for trainer.step in (0, 8):
        trainer.train_step()
    assert len(groups) > 2 and rates == [pytest.approx([share] * len(groups)) for share in (0.25, 0.505)]


def test_gradients_are_clipped_before_the_optimiser_sees_them(pictures, tmp_path):
    trainer = _hyperprior({"steps": 1, "gradient_clip": 1e-3}, pictures, tmp_path)
    weights = trained_by_gradient(trainer.model)
    norms = _at_update(trainer, lambda: torch.cat([w.grad.flatten() for w in weights if w.grad is not None]).norm())
    assert trainer.train_step()["gradient_norm"] > 0.01  # the log has it unclipped
    assert norms[0].item() == pytest.approx(1e-3, rel=0.01)


def test_quantiles_of_compressai_follow_their_own_loss(pictures, tmp_path):
    trainer = _hyperprior({"steps": 3}, pictures, tmp_path)
    quantiles = trainer.model.entropy_bottleneck.quantiles
    before, loss = quantiles.detach().clone(), trainer.model.aux_loss().item()
    for trainer.step in range(3):
        trainer.train_step()
    assert (quantiles != before)[..., [0, 2]].all() and trainer.model.aux_loss() < loss


@pytest.mark.parametrize("bfloat16, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_networks_run_in_the_precision_of_the_recipe(bfloat16, dtype, pictures, tmp_path):
    trainer = _hyperprior({"steps": 1, "bfloat16": bfloat16}, pictures, tmp_path)
    seen = []
    trainer.model.g_s[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer.train_step()
    assert set(seen) == {dtype} and trainer.model.g_s[0].weight.dtype == torch.float32


def test_processes_share_the_means_that_weigh_the_distillation(pictures, tmp_path, monkeypatch):
    """One checkpoint holds them for all: a process that resumes must find what it had."""
    trainer = _trainer({**PLAIN, "steps": 4, "gradient_decay": PRUNING}, pictures, tmp_path)
    means, shared = trainer.method.distillation.average, []
    monkeypatch.setattr("sparsecodec.training.distributed.average", lambda tensors: shared.extend(tensors))
    trainer.train_step()
    assert any(tensor is means for tensor in shared)


def test_shipped_recipes_load(pytestconfig):
    recipes = sorted((pytestconfig.rootpath / "recipes").rglob("*.toml"))
    assert recipes
    for path in recipes:
        Recipe.load(path)


@pytest.mark.parametrize("shape", [(2, 16, 40), (1, 40, 16), (3, 8, 8)])
def test_orthogonalize_flattens_the_spectrum(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert values.min() > 0.4 and values.max() < 1.4


def test_no_phase_draws_what_an_earlier_one_drew(pictures, tmp_path):
    class Watched(RandomCrops):
        steps = ()

        def batch(self, step, size, start=0):
            self.steps += (step,)
            return super().batch(step, size, start)

    stages = [["dec"], ["y_spatial_prior"]]
    pruning = PRUNING | {"mac_reduction": 0.3, "stages": stages, "distillation_weight": 0.0}
    recipe = Recipe.from_dict({**PLAIN, "steps": 4, "gradient_decay": pruning})
    data = Watched(pictures, recipe.crop)
    run(recipe, create("evc-tiny"), data, tmp_path)
    calibrating = data.steps.index(1) - 1  # the crops of step 0, looked at before
    assert data.steps[calibrating:] == (0, *range(1, 10))


def test_a_run_goes_on_from_the_weights_that_it_began_with(pictures, tmp_path):
    recipe = Recipe.from_dict({**PLAIN, "steps": 2, "start_from": "evc-tiny"})
    data, model = RandomCrops(pictures, recipe.crop), load("evc-tiny")
    expected = run(recipe, model, data, tmp_path).state_dict()
    again = run(recipe, load("evc-tiny"), data, tmp_path).state_dict()
    assert all(map(torch.equal, expected.values(), again.values()))
    other = load("evc-tiny")
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(UsageError, match="evc-tiny has other weights than when"):
        run(recipe, other, data, tmp_path)


def test_a_refused_run_is_none_that_began(pictures, tmp_path):
    table = {"student": "evc-nano", "transforms": "all", "finetune_steps": 1}  # whose latent has other channels
    recipe = Recipe.from_dict({**PLAIN, "steps": 2, "start_from": "evc-tiny", "mask_decay": table})
    data = RandomCrops(pictures, recipe.crop)
    with pytest.raises(GraphError, match="student cannot be cut"):
        run(recipe, load("evc-tiny"), data, tmp_path / "run")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    run(Recipe.from_dict({**PLAIN, "steps": 2, "start_from": "other"}), create("evc-tiny"), data, tmp_path / "run")


@pytest.mark.parametrize("table", [{}, {"gradient_decay": PRUNING}, {"nm": {}}], ids=["train", "prune", "nm"])
def test_a_codec_on_integers_is_no_start(table, pictures, tmp_path):
    name = "evc-tiny-sparse-int8"
    recipe = Recipe.from_dict({**PLAIN, "model": "evc-tiny-sparse", "steps": 2, "start_from": name, **table})
    with pytest.raises(UsageError, match=f"{name} holds frozen integers, which do not learn .start from the float"):
        run(recipe, load(name), RandomCrops(pictures, 64), tmp_path)
