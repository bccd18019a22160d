"""Saving and loading codecs."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsecodec import ModelMismatchError, UsageError, zoo
from sparsecodec._compat import import_compressai
from sparsecodec.models import create
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.quant import Precision, find_layers, freeze, quantize_layers, quantized_layers
from sparsecodec.sparsity import ChannelMasks, compact, compact_config, trace_model


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    return create("evc-tiny").eval()


@pytest.fixture(scope="module")
def compacted(dense):
    graph = trace_model(dense, ["dec", "y_prior_fusion"])
    masks = ChannelMasks.random(graph, sparsity=0.5, seed=0, round_to=8)
    return compact(dense, masks, graph), compact_config(masks, graph)


@pytest.fixture
def saved(dense, tmp_path):
    zoo.save(dense, tmp_path / "codec", info={"steps": 3})
    return tmp_path / "codec"


def assert_equal_weights(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".json"])
def test_dense_roundtrip(dense, saved, suffix):
    assert_equal_weights(zoo.load(f"{saved}{suffix}"), dense)
    assert json.loads(saved.with_suffix(".json").read_text())["info"] == {"steps": 3}


def test_compact_roundtrip_and_saving_what_was_loaded(compacted, tmp_path):
    model, config = compacted
    zoo.save(model, tmp_path / "a", compact=config)
    loaded = zoo.load(tmp_path / "a")
    assert_equal_weights(loaded, model)
    assert sum(p.numel() for p in loaded.parameters()) < 0.8 * sum(p.numel() for p in create("evc-tiny").parameters())
    zoo.save(loaded, tmp_path / "b")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.fixture(scope="module")
def quantised(compacted):
    model, config = compacted
    precisions = dict.fromkeys(find_layers(model, ["dec"])[0], Precision())
    precisions["dec.7.0"] = Precision(4, 8)
    small = freeze(quantize_layers(model, precisions))
    small.compact_config = config
    return small


def test_quantised_roundtrip_is_exact_and_stores_integers(quantised, compacted, photo, tmp_path):
    zoo.save(quantised, tmp_path / "a")
    loaded = zoo.load(tmp_path / "a")
    assert_equal_weights(loaded, quantised)
    ours, theirs = (model.compress(photo[:, :, :64, :64], 1.0) for model in (loaded, quantised))
    assert ours["bit_stream"] == theirs["bit_stream"] and torch.equal(ours["x_hat"], theirs["x_hat"])
    stored = load_file(tmp_path / "a.safetensors")
    assert stored["dec.0.block.0.conv1.0.weight"].dtype == torch.int8
    zoo.save(compacted[0], tmp_path / "float", compact=compacted[1])
    weights = sum(layer.weight.numel() for layer in quantized_layers(loaded).values())
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("float", "a")]
    assert sizes[0] - sizes[1] > 2.7 * weights
    zoo.save(loaded, tmp_path / "b")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_half_precision_leaves_the_scales_of_integers_alone(quantised, tmp_path):
    zoo.save(quantised, tmp_path / "a", dtype=torch.float16)
    loaded = zoo.load(tmp_path / "a")
    for name, layer in quantized_layers(quantised).items():
        assert torch.equal(loaded.get_submodule(name).weight_scale, layer.weight_scale)
    assert load_file(tmp_path / "a.safetensors")["enc.0.conv1.weight"].dtype == torch.float16


def test_quantised_codec_that_still_trains_is_refused(dense, tmp_path):
    with pytest.raises(UsageError, match="not frozen"):
        zoo.save(quantize_layers(dense, {"dec.7.0": Precision()}), tmp_path / "a")


def test_float_description_has_no_quantisation(saved):
    assert "quantization" not in json.loads(saved.with_suffix(".json").read_text())


def test_compact_model_without_its_configuration_is_refused(compacted, tmp_path):
    with pytest.raises(UsageError, match="compact"):
        zoo.save(compacted[0], tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("FactorizedPrior", (16, 24)),
        ("FactorizedPriorReLU", (16, 24)),
        ("ScaleHyperprior", (16, 24)),
        ("MeanScaleHyperprior", (16, 24)),
        ("Cheng2020Anchor", (16,)),
    ],
)
def test_compressai_roundtrip(name, sizes, photo, tmp_path):
    torch.manual_seed(0)
    model = getattr(import_compressai().models, name)(*sizes).eval()
    model.update()
    graph = trace_model(model, ["g_a", "g_s"])
    masks = ChannelMasks.random(graph, sparsity=0.5, seed=0)
    small = compact(model, masks, graph)
    zoo.save(small, tmp_path / "codec", compact=compact_config(masks, graph))
    loaded = zoo.load(tmp_path / "codec")
    x = photo[:, :, :64, :64]
    assert loaded.compress(x) == small.compress(x)
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "name", ["ScaleHyperpriorVbr", "MeanScaleHyperpriorVbr", "JointAutoregressiveHierarchicalPriorsVbr"]
)
def test_variable_rate_roundtrip(name, photo, tmp_path):
    torch.manual_seed(0)
    model = getattr(import_compressai().models, name)(16, 24).eval()
    model.update()
    zoo.save(model, tmp_path / "codec")
    x, rate = photo[:, :, :64, :64], {"stage": 2, "s": 3}
    assert zoo.load(tmp_path / "codec").compress(x, **rate) == model.compress(x, **rate)


@pytest.mark.parametrize("plain", [True, False])
def test_whether_symbols_are_taken_as_they_are_is_saved(plain, tmp_path):
    torch.manual_seed(0)
    model = import_compressai().models.ScaleHyperpriorVbr(16, 24).eval()
    model.update()
    model.no_quantoffset = plain
    zoo.save(model, tmp_path / "codec")
    assert zoo.load(tmp_path / "codec").no_quantoffset is plain


def test_unknown_classes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="Linear is no codec"):
        zoo.save(torch.nn.Linear(2, 2), tmp_path / "x")


def test_half_precision_files_load_as_float32(dense, tmp_path):
    zoo.save(dense, tmp_path / "half", dtype=torch.float16)
    loaded = zoo.load(tmp_path / "half")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    assert torch.equal(loaded.enc.state_dict()["0.conv1.weight"], dense.enc[0].conv1.weight.half().float())
    assert (tmp_path / "half.safetensors").stat().st_size < 2.1 * sum(p.numel() for p in dense.parameters())


def test_overflow_in_half_precision_is_refused(dense, tmp_path):
    model = create("evc-tiny")
    model.load_state_dict(dense.state_dict())
    with torch.no_grad():
        model.q_basic[0, 0] = 1e6
    with pytest.raises(UsageError, match="q_basic is not finite in torch.float16"):
        zoo.save(model, tmp_path / "half", dtype=torch.float16)


def test_module_prefixes_are_removed(saved, dense):
    weights = saved.with_suffix(".safetensors")
    save_file({f"module.{key}": value for key, value in load_file(weights).items()}, weights)
    assert_equal_weights(zoo.load(saved), dense)


def test_loading_leaves_the_random_numbers_alone(saved):
    torch.manual_seed(1)
    zoo.load(saved)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize("name", ["nonexistent", "evc-gigantic", "folder/codec"])
def test_missing_model_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=name):
        zoo.load(name)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_missing_half_is_named(saved, suffix):
    saved.with_suffix(suffix).unlink()
    with pytest.raises(UsageError, match=f"codec{suffix} is missing"):
        zoo.load(saved)


def test_mismatched_shape_is_named(saved):
    weights = saved.with_suffix(".safetensors")
    tensors = load_file(weights)
    tensors["q_basic"] = torch.ones(1, 7, 1, 1)
    save_file(tensors, weights)
    with pytest.raises(UsageError, match="q_basic"):
        zoo.load(saved)


def test_missing_weight_is_named(saved):
    weights = saved.with_suffix(".safetensors")
    tensors = load_file(weights)
    del tensors["q_scale"]
    save_file(tensors, weights)
    with pytest.raises(UsageError, match="q_scale"):
        zoo.load(saved)


def test_weights_of_another_model_are_refused(saved):
    weights = saved.with_suffix(".safetensors")
    tensors = load_file(weights)
    tensors["q_basic"][0, 0] += 1e-3
    save_file(tensors, weights)
    with pytest.raises(ModelMismatchError, match="codec"):
        zoo.load(saved)


@pytest.mark.parametrize("cut", [0, 7, 1000])
def test_truncated_weights_are_refused(saved, cut):
    weights = saved.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:cut])
    with pytest.raises(UsageError, match="codec.safetensors"):
        zoo.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        "not json",
        "[]",
        {"format": 99},
        {"architecture": None},
        {"architecture": {}},
        {"architecture": {"family": "vvc"}},
        {"architecture": {"family": "evc", "encoder": "tiny"}},
        {"architecture": {"family": "evc", "encoder": "huge", "decoder": "tiny"}},
        {"compact": "all"},
        {"compact": {}},
        {"compact": {"format": 1, "transforms": ["dec"], "kept": {}}},
        {"sha256": 3},
        {"quantization": 8},
        {"quantization": {"format": 1, "layers": {"dec.7.0": {}}}},
        {"quantization": {"format": 1, "layers": {"dec.99.0": {"weight_bits": 8, "activation_bits": 16}}}},
    ],
    ids=str,
)
def test_wrong_description_is_an_error_of_ours(saved, change):
    path = saved.with_suffix(".json")
    text = change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change)
    path.write_text(text)
    with pytest.raises((UsageError, ModelMismatchError)):
        zoo.load(saved)


def test_failed_save_leaves_the_old_files(saved, dense, monkeypatch):
    before = saved.with_suffix(".safetensors").read_bytes()

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("sparsecodec._files.os.replace", fail)
    with pytest.raises(UsageError, match="disk full"):
        zoo.save(dense, saved)
    assert saved.with_suffix(".safetensors").read_bytes() == before
    assert sorted(path.name for path in saved.parent.iterdir()) == ["codec.json", "codec.safetensors"]


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_full_disk_names_the_file(saved, dense, monkeypatch, suffix):
    write = Path.write_bytes

    def full(path, data):
        if path.suffix == suffix:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match=rf"codec\{suffix} cannot be written: No space left on device$"):
        zoo.save(dense, saved)


KILLED_SAVE = """
import os, signal, sys
from pathlib import Path
from sparsecodec import zoo
new, path, survived = zoo.load(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
replace = os.replace
def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def counted(source, target):
    global survived
    replace(source, target) if survived else killed()
    survived -= 1
os.replace = counted
zoo.save(new, path, info={"steps": 4})
killed()
"""


@pytest.mark.parametrize("survived", [0, 1, 2])
@pytest.mark.parametrize("change", ["weights", "widths"])
def test_a_kill_while_saving_leaves_the_old_codec_or_the_new_one(saved, dense, compacted, tmp_path, change, survived):
    if change == "widths":
        new = compacted[0]
        zoo.save(new, tmp_path / "new", compact=compacted[1])
    else:
        new = copy.deepcopy(dense)
        new.q_basic.data += 0.1
        zoo.save(new, tmp_path / "new")
    code = [sys.executable, "-c", KILLED_SAVE, str(tmp_path / "new"), str(saved), str(survived)]
    result = subprocess.run(code, capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert_equal_weights(zoo.load(saved), new if survived else dense)
    assert model_hash(zoo.load(saved)) == model_hash(new if survived else dense)
    abandoned = [path.name for path in tmp_path.iterdir() if ".partial" in path.name]
    assert len(abandoned) == 2 - survived
    zoo.save(dense, saved)
    assert_equal_weights(zoo.load(saved), dense)
    assert not [path.name for path in tmp_path.iterdir() if ".partial" in path.name]


def test_what_a_running_process_writes_is_left_alone(saved, dense):
    others = [saved.with_name(f"codec.{os.getppid()}.partial.json"), saved.with_name("codec.mine.partial.json")]
    for other in others:
        other.touch()
    zoo.save(dense, saved)
    assert all(other.exists() for other in others)


def test_saving_over_a_codec_leaves_no_way_to_mix_files(saved, compacted, dense, tmp_path):
    """Weights that were saved over others are taken with that description alone, or with their own."""
    model, config = compacted
    zoo.save(model, saved, compact=config)
    assert_equal_weights(zoo.load(saved), model)
    zoo.save(dense, tmp_path / "third", info={"steps": 5})
    saved.with_suffix(".json").write_bytes((tmp_path / "third.json").read_bytes())
    with pytest.raises(UsageError, match=r"codec\.safetensors does not fit codec\.json"):
        zoo.load(saved)


def test_the_same_codec_saved_again_is_the_same_file(saved, dense):
    before = saved.with_suffix(".safetensors").read_bytes()
    zoo.save(dense, saved, info={"steps": 3})
    assert saved.with_suffix(".safetensors").read_bytes() == before


def test_hash_sees_every_weight(dense):
    model = create("evc-tiny")
    model.load_state_dict(dense.state_dict())
    assert model_hash(model) == model_hash(dense)
    with torch.no_grad():
        model.q_basic[0, -1] += 1e-6
    assert model_hash(model) != model_hash(dense)


def test_shipped_codecs_load():
    for name in zoo.names():
        model = zoo.load(name)
        assert zoo.find(model_hash(model)[:8]) == name
    assert zoo.find(b"\0" * 8) is None
