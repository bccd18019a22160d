"""Compiled CompressAI codecs against the originals: the same strings, the same pictures."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sparsecodec import BitstreamError, UsageError
from sparsecodec._compat import import_compressai
from sparsecodec.errors import ModelMismatchError, ResourceLimitError, SparseCodecError
from sparsecodec.runtime import compile_codec
from sparsecodec.sparsity import ScatterConv2d, count

from .conftest import CLASSES, Pair, build, pair_of, with_synthesis_in


def strings_of(model, x: Tensor) -> dict:
    with torch.no_grad():
        return model.compress(x)


def picture(model, coded: dict) -> Tensor:
    with torch.no_grad():
        return model.decompress(coded["strings"], coded["shape"])["x_hat"]


def assert_close(pair: Pair, coded: dict) -> None:
    """The compiled picture errs, against float64 from the same latents, not much more than torch in the same dtype."""
    exact = picture(with_synthesis_in(pair.original, torch.float64), coded)
    eager = picture(with_synthesis_in(pair.original, pair.dtype), coded).double()
    ours = picture(pair.compiled, coded)
    assert ours.shape == eager.shape and ours.dtype == torch.float32 and ours.is_contiguous()
    assert exact.std() > 0.01  # a picture, not a constant
    for norm in (lambda e: e.abs().max(), lambda e: e.square().mean().sqrt()):
        assert norm(ours.double() - exact) <= 2 * norm(eager - exact) + 1e-6


@pytest.mark.parametrize("batch", [1, 2])
def test_strings_interchange(pair: Pair, pictures: Tensor, batch: int):
    x = pictures[:batch]
    original, ours = strings_of(pair.original, x), strings_of(pair.compiled, x)
    assert [len(some) for some in ours["strings"]] == [batch] * len(original["strings"])
    assert ours["shape"] == original["shape"]
    assert sum(map(len, original["strings"][0])) > 100 * batch
    assert_close(pair, original)
    assert_close(pair, ours)


def test_strings_are_the_originals_byte_for_byte(pair: Pair, pictures: Tensor):
    """In bfloat16 given the same latents: the compiled analysis may round one to the other side."""
    compiled = pair.compiled
    if pair.dtype != torch.float32:
        compiled = compile_codec(pair.original, dtype=pair.dtype)
        for path in compiled.ANALYSIS:
            compiled._transforms[path] = pair.original.get_submodule(path)
    assert strings_of(compiled, pictures)["strings"] == strings_of(pair.original, pictures)["strings"]


@pytest.mark.parametrize(("batch", "size"), [(3, (50, 119)), (1, (128, 49))], ids=["3x50x119", "1x128x49"])
def test_strings_of_odd_sizes_and_batches(float_pair: Pair, photo: Tensor, batch: int, size: tuple[int, int]):
    x = torch.cat([photo[:, :, 7 * i : 7 * i + size[0], 5 * i : 5 * i + size[1]] for i in range(batch)])
    original = strings_of(float_pair.original, x)
    assert strings_of(float_pair.compiled, x) == original
    assert_close(float_pair, original)


def test_latents_survive_the_strings(mean_scale: Pair, pictures: Tensor):
    """The decoder's latent is the encoder's, rounded around the means."""
    seen = []
    compiled = compile_codec(mean_scale.original, dtype=torch.float32)
    synthesis = compiled._transforms["g_s"]
    compiled._transforms["g_s"] = lambda y: (seen.append(y.clone()), synthesis(y))[1]
    picture(compiled, strings_of(compiled, pictures))
    with torch.no_grad():
        y = mean_scale.original.g_a(pictures)
    assert (seen[0] - y).abs().max() <= 0.5 + 1e-4
    assert (seen[0] - seen[0].round()).abs().max() > 0.1  # means are no integers


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (65, 63), (40, 130)])
def test_encode_takes_any_size(float_pair: Pair, photo: Tensor, size: tuple[int, int]):
    x = photo[:, :, : size[0], : size[1]]
    compiled = float_pair.compiled
    data = compiled.encode(x)
    x_hat = compiled.decode(data)
    assert x_hat.shape == x.shape and x_hat.dtype == torch.float32
    assert 0 <= x_hat.min() and x_hat.max() <= 1
    stride = compiled.STRIDE
    padded = nn.functional.pad(x, (0, -size[1] % stride, 0, -size[0] % stride), mode="replicate")
    coded = strings_of(float_pair.original, padded)
    assert len(data) < sum(len(some[0]) for some in coded["strings"]) + 64
    # The tables may differ in a bit of a scale, so a latent may round to the other side: close on average.
    assert (x_hat - picture(float_pair.original, coded)[:, :, : size[0], : size[1]]).abs().mean() < 1e-3


def test_encode_and_decode_are_stable(pair: Pair, photo: Tensor):
    """Buffers are reused between calls and sizes, and results handed out must not change with them."""
    x, wide = photo[:, :, :64, :64], photo[:, :, :64, :130]
    compiled = pair.compiled
    data, other = compiled.encode(x), compiled.encode(wide)
    first = compiled.decode(data)
    copied = first.clone()
    assert compiled.decode(other).shape == wide.shape
    assert compiled.encode(x) == data
    assert torch.equal(compiled.decode(data), copied) and torch.equal(first, copied)


def test_factorized_strings_of_any_size(photo: Tensor):
    pair = pair_of("bmshj2018-factorized", "dense", torch.float32)
    x = photo[:, :, :50, :70]
    coded = strings_of(pair.compiled, x)
    assert coded["shape"] == (4, 5) and coded["strings"] == strings_of(pair.original, x)["strings"]
    assert_close(pair, coded)


def test_report_names_every_layer_once(pair: Pair):
    report = pair.compiled.report
    transforms = (*pair.compiled.ANALYSIS, *pair.compiled.ENTROPY, *pair.compiled.SYNTHESIS)
    expected = []
    for path in transforms:
        network = pair.original.get_submodule(path)
        scattered = [module for module in network.modules() if isinstance(module, ScatterConv2d)]
        inside = {id(child) for module in scattered for child in module.modules() if child is not module}
        for name, layer in network.named_modules(prefix=path):
            # a parameter-free child of GDN only transforms its weights
            parent = pair.original.get_submodule(name.rpartition(".")[0])
            is_leaf = layer in scattered or hasattr(layer, "gamma") or not list(layer.children())
            if is_leaf and id(layer) not in inside and "_reparam" not in name and not hasattr(parent, "gamma"):
                expected.append(name)
    named = [path for row in report.rows for path in row.paths]
    assert set(named) == set(expected)
    repeated = {path for path in named if named.count(path) > 1}  # cheng2020 calls an activation twice
    assert not any(list(pair.original.get_submodule(path).parameters()) for path in repeated)
    eager = set(pair.compiled.EAGER)
    for row in report.rows:
        # attention blocks in the other transforms may keep torch layers, and say why
        kept = pair.name == "cheng2020-attn" and row.transform not in pair.compiled.ENTROPY and row.backend == "torch"
        plain = kept or row.transform in eager
        assert row.backend == ("torch" if plain else "cpu"), row
        assert bool(row.reason) == plain, row
    assert report.buffer_bytes > 0
    side = 8 * pair.compiled.STRIDE
    shapes = pair.compiled.input_shapes(side, side)
    decoder = {path: shapes[path] for path in (*pair.compiled.ENTROPY, *pair.compiled.SYNTHESIS)}
    assert report.macs == pytest.approx(count(pair.original, decoder).macs / side**2)
    dense = count(build(pair.name, "dense"), decoder).macs / side**2
    assert report.dense_macs == pytest.approx(dense)
    assert report.macs < 0.8 * dense if pair.variant == "compact" else report.macs == pytest.approx(dense)
    assert all(path in str(report) for path in ("g_s.0", "decoder"))


def test_a_new_model_is_updated_in_the_copy_only(pictures: Tensor):
    name, widths = CLASSES["mbt2018-mean"]
    torch.manual_seed(5)
    model = getattr(import_compressai().models, name)(*widths).train()
    before = copy.deepcopy(model.state_dict())
    compiled = compile_codec(model, dtype=torch.float32)
    coded = strings_of(compiled, pictures)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert model.training and all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.gaussian_conditional._offset.numel() == 0
    model.update()
    assert picture(model.eval(), coded).shape == pictures.shape
    # The same file opens whether or not the caller had updated the model.
    data = compiled.encode(pictures[:1])
    assert torch.equal(compile_codec(model, dtype=torch.float32).decode(data), compiled.decode(data))


def test_tables_are_frozen(mean_scale: Pair, pictures: Tensor):
    model = copy.deepcopy(mean_scale.original)
    compiled = compile_codec(model, dtype=torch.float32)
    before = strings_of(compiled, pictures)["strings"]
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    assert strings_of(compiled, pictures)["strings"] == before


def test_the_hash_of_an_autoregressive_model_does_not_depend_on_its_history(pictures: Tensor):
    """The masked convolution masks its weight when it first runs."""
    model = copy.deepcopy(build("mbt2018", "dense"))
    fresh = compile_codec(model, dtype=torch.float32)
    with torch.no_grad():
        model(pictures)
    used = compile_codec(model, dtype=torch.float32)
    assert not torch.equal(model.context_prediction.weight, build("mbt2018", "dense").context_prediction.weight)
    assert fresh.model_hash == used.model_hash


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 64, 64),
        torch.zeros(0, 3, 64, 64),
        torch.zeros(1, 3, 0, 64),
        torch.zeros(1, 1, 64, 64),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        torch.full((1, 3, 64, 64), float("nan")),
        torch.zeros(1, 3, 64, 65),
        torch.zeros(1, 3, 1, 1),
        "picture",
    ],
    ids=["3-d", "batch-0", "no-rows", "grey", "uint8", "nan", "65-wide", "1x1", "string"],
)
def test_compress_refuses_bad_pictures(mean_scale: Pair, x):
    with pytest.raises(UsageError, match="picture"):
        mean_scale.compiled.compress(x)


def test_decompress_refuses_bad_arguments(mean_scale: Pair, pictures: Tensor):
    coded = strings_of(mean_scale.compiled, pictures)
    (y, z), shape = coded["strings"], coded["shape"]
    decompress = mean_scale.compiled.decompress
    for strings in ([], [y], [y, z, z], [y, z[:1]], [[], []]):
        with pytest.raises(UsageError, match="lists"):
            decompress(strings, shape)
    for bad in ((1,), (1, 2, 1), (0, 2), (-1, 2)):
        with pytest.raises(UsageError, match="shape"):
            decompress([y, z], bad)
    with pytest.raises(ResourceLimitError, match="pixels"):
        decompress([y, z], (2**20, 2**20))
    with pytest.raises(BitstreamError):
        decompress([y, z], (1, 1))
    with pytest.raises(UsageError, match="quality=50"):
        mean_scale.compiled.encode(pictures[:1], quality=50)


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "mbt2018-mean", "mbt2018"])
def test_truncated_strings_are_refused(name: str, photo: Tensor):
    compiled = pair_of(name, "dense", torch.float32).compiled
    coded = strings_of(compiled, photo[:, :, :64, :64])
    for latent, (string,) in enumerate(coded["strings"]):
        for size in range(0, len(string), 41 if name == "mbt2018" and latent == 0 else 1):
            strings = [list(some) for some in coded["strings"]]
            strings[latent] = [string[:size]]
            with pytest.raises(BitstreamError):
                compiled.decompress(strings, coded["shape"])
        strings[latent] = [string + b"\0\0\0\0"]
        with pytest.raises(BitstreamError):
            compiled.decompress(strings, coded["shape"])


def test_damaged_files_are_refused(mean_scale: Pair, photo: Tensor):
    compiled = mean_scale.compiled
    data = compiled.encode(photo[:, :, :64, :64])
    for size in range(len(data)):
        with pytest.raises(BitstreamError):
            compiled.decode(data[:size])
    with pytest.raises(BitstreamError):
        compiled.decode(data + b"\0")
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(SparseCodecError):
            compiled.decode(bytes(damaged))


def test_files_of_another_model_are_refused(photo: Tensor):
    x = photo[:, :, :64, :64]
    dense, small, other = (
        pair_of(*which, torch.float32).compiled
        for which in (("mbt2018-mean", "dense"), ("mbt2018-mean", "compact"), ("bmshj2018-hyperprior", "dense"))
    )
    for stranger in (small, other):
        with pytest.raises(ModelMismatchError, match=dense.model_hash.hex()):
            stranger.decode(dense.encode(x))


def test_files_carry_the_arithmetic_of_the_entropy_networks(photo: Tensor):
    x = photo[:, :, :64, :64]
    pinned = pair_of("mbt2018", "dense", torch.float32).compiled
    model = copy.deepcopy(build("mbt2018", "dense"))
    model.entropy_parameters.append(nn.Identity())  # not what the native loop knows
    eager = compile_codec(model, dtype=torch.float32)
    assert pinned.numerics.tag == 1 and eager.numerics.tag >= 0x8000
    data = eager.encode(x)
    torch.set_num_threads(2)
    try:
        assert pinned.decode(pinned.encode(x)).shape == x.shape
        with pytest.raises(ModelMismatchError, match="2 threads"):
            eager.decode(data)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["mbt2018-mean", "mbt2018", "cheng2020-attn"])
def test_files_do_not_depend_on_threads_or_transforms(name: str, photo: Tensor):
    """The pinned entropy networks give the tables; the other transforms only move the latent and the picture."""
    x = photo[:, :, :64, :128]
    codecs = [pair_of(name, "compact", dtype).compiled for dtype in (torch.float32, torch.bfloat16)]
    data = codecs[0].encode(x)
    torch.set_num_threads(2)
    try:
        crossed = codecs[1].decode(data)
    finally:
        torch.set_num_threads(1)
    assert (crossed - codecs[0].decode(data)).abs().mean() < 2e-3


def test_a_structure_that_only_resembles_the_family_is_refused():
    model = copy.deepcopy(build("mbt2018-mean", "dense"))
    model.g_a[6] = nn.Conv2d(32, 48, 5, stride=1, padding=2)
    with pytest.raises(UsageError, match="g_a maps 64 x 64 to"):
        compile_codec(model)
    model = copy.deepcopy(build("mbt2018-mean", "dense"))
    model.h_s[4] = nn.Conv2d(72, 60, 3, padding=1)
    with pytest.raises(UsageError, match="60 entropy parameters for 48"):
        compile_codec(model)
    model = copy.deepcopy(build("mbt2018-mean", "dense"))
    model.extra = nn.Conv2d(3, 3, 1)
    with pytest.raises(UsageError, match="no known family"):
        compile_codec(model)
