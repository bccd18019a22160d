"""Context models in one native call: the same symbols as the networks give, on every machine, and the original's bits.

Integer networks make every order of addition exact: with integer latents the decoded latent is the latent itself, so
all symbols and tables follow from one dense masked convolution, which is what the strings are compared with.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsecodec import BitstreamError, ResourceLimitError, UsageError
from sparsecodec.entropy import EntropyTables, encode, gaussian_tables, observing
from sparsecodec.ops import scale_table_thresholds
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.context_model import ContextModel, ContextRows

from .conftest import build, pair_of, skip_where_torch_adds_otherwise

AUTOREGRESSIVE = ("mbt2018", "cheng2020-anchor", "cheng2020-attn")
SCALES = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
# 33 x 97: waves long enough for threads; the others: one position, one row or column, narrower than the context's reach
SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (5, 7), (33, 97)]


def masked(context: nn.Conv2d) -> nn.Conv2d:
    size = context.kernel_size[0]
    mask = torch.ones(size * size)
    mask[size * size // 2 :] = 0
    context.weight.data *= mask.view(size, size)
    return context


def integers(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high + 1, shape).float()


class Networks:
    """Small networks with integer weights. 35, 33 and 18 channels: a block of 32, of 32, of oneDNN's 16 and a rest."""

    def __init__(self, latent: int = 18, prior: int = 6, size: int = 5, means: bool = True) -> None:
        torch.manual_seed(latent + size)
        self.context = nn.Conv2d(latent, 35, size, padding=size // 2)
        self.parameters = nn.Sequential(
            nn.Conv2d(prior + 35, 33, 1), nn.ReLU(), nn.Conv2d(33, latent * (2 if means else 1), 1)
        )
        self.latent, self.prior, self.means = latent, prior, means
        for layer in (self.context, self.parameters[0], self.parameters[2]):
            layer.requires_grad_(False)
            layer.weight.copy_(integers(-1, 1, *layer.weight.shape) * (torch.rand(layer.weight.shape) < 0.1))
            layer.bias.copy_(integers(-2, 2, *layer.bias.shape))
        masked(self.context)
        self.thresholds = scale_table_thresholds(torch.tensor(SCALES))
        self.tables = gaussian_tables(SCALES)

    @property
    def constants(self) -> tuple[nn.Conv2d, nn.Module, Tensor, EntropyTables]:
        """With weights where the mask hides them: they must not be used."""
        context = copy.deepcopy(self.context)
        context.weight.flatten(2)[:, :, context.kernel_size[0] ** 2 // 2 :] = 100.0
        return context, self.parameters, self.thresholds, self.tables

    def parameters_at(self, seen: Tensor, prior: Tensor) -> Tensor:
        predicted = nn.functional.conv2d(seen, self.context.weight, self.context.bias)
        return self.parameters(torch.cat((prior, predicted), 1))

    def inputs(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        return integers(-3, 3, 1, self.latent, height, width), integers(-4, 4, 1, self.prior, height, width)

    def expected(self, y: Tensor, prior: Tensor, order: Tensor) -> bytes:
        """The string with the positions, ``row * W + column``, in `order`."""
        found = self.parameters(torch.cat((prior, self.context(y)), 1))
        scales, means = found.chunk(2, 1) if self.means else (found, torch.zeros(()))
        assert torch.equal(found, found.round()) and found.abs().max() < 2**20  # exact in every order
        rows = torch.searchsorted(self.thresholds, scales.contiguous()).to(torch.int16)
        assert len(rows.unique()) > 1
        symbols = (y - means).int()
        return encode(*(x[0].flatten(1).T[order].contiguous() for x in (symbols, rows)), self.tables)


def rows_of(networks: Networks) -> ContextRows:
    """Ready to code, whether or not its bits are torch's here."""
    rows = ContextRows(*networks.constants, networks.parameters_at)
    if not rows._ways:
        pytest.skip("no native rows: they need AVX2 and a torch that shows its sgemv")
    rows.matches()
    return rows


def wave_order(height: int, width: int, reach: int) -> Tensor:
    """By wave, then by row, written down from the definition."""
    waves = {(r, c): c + (reach + 1) * r for r in range(height) for c in range(width)}
    return torch.tensor([r * width + c for r, c in sorted(waves, key=lambda at: (waves[at], at[0]))])


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(("kernel", "means"), [(5, True), (3, True), (5, False)], ids=["5x5", "3x3", "no-means"])
def test_waves_hold_the_symbols_of_the_networks(size: tuple[int, int], kernel: int, means: bool):
    networks = Networks(size=kernel, means=means)
    y, prior = networks.inputs(*size)
    model = ContextModel(*networks.constants)
    order = wave_order(*size, kernel // 2)
    string = networks.expected(y, prior, order)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            coded, decoded = model.encode(y, prior)
            assert coded == string and torch.equal(decoded, y)
            assert torch.equal(model.decode(string, prior), y)
        finally:
            torch.set_num_threads(1)


def test_observers_see_the_latents():
    networks = Networks()
    y, prior = networks.inputs(5, 7)
    model, seen = ContextModel(*networks.constants), []
    with observing(seen.append):
        model.decode(model.encode(y, prior)[0], prior)
    (values,) = seen
    assert values.dtype == np.int32 and np.array_equal(values.view(np.float32), y.numpy())


@pytest.mark.parametrize("size", SIZES[:-1], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("means", [True, False], ids=["means", "no-means"])
def test_rows_hold_the_symbols_of_the_networks(size: tuple[int, int], means: bool):
    networks = Networks(means=means)
    y, prior = networks.inputs(*size)
    model = rows_of(networks)
    string = networks.expected(y, prior, torch.arange(size[0] * size[1]))
    coded, decoded = model.encode(y, prior)
    assert coded == string and torch.equal(decoded, y)
    assert torch.equal(model.decode(string, prior), y)


def real_networks() -> Networks:
    """Weights of which sums depend on their order."""
    networks = Networks(latent=20)
    torch.manual_seed(4)
    networks.parameters[1] = nn.LeakyReLU(0.01)
    for layer in (networks.context, networks.parameters[0], networks.parameters[2]):
        layer.weight.copy_(torch.randn(layer.weight.shape) / layer.weight[0].numel() ** 0.5)
        layer.bias.copy_(torch.randn(layer.bias.shape))
    networks.parameters[2].weight *= 4
    masked(networks.context)
    return networks


def test_waves_have_the_same_bits_on_every_instruction_set_and_thread_count(monkeypatch: pytest.MonkeyPatch):
    networks = real_networks()
    torch.manual_seed(5)
    y, prior = 3 * torch.randn(1, 20, 33, 97), torch.randn(1, 6, 33, 97)
    strings, decoded = [], []
    for isa in (None, "avx2", "scalar"):
        if isa:
            monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            try:
                model = ContextModel(*networks.constants)
                strings.append(model.encode(y, prior)[0])
                decoded.append(model.decode(strings[0], prior))
            finally:
                torch.set_num_threads(1)
    assert len(set(strings)) == 1 and len(strings[0]) > 1000
    assert all(torch.equal(some, decoded[0]) for some in decoded)
    assert (decoded[0] - y).abs().max() <= 0.5 + 1e-4


def test_waves_do_not_depend_on_the_layout_of_their_inputs():
    networks = real_networks()
    y, prior = 3 * torch.randn(1, 20, 6, 5), torch.randn(1, 6, 6, 5)
    model = ContextModel(*networks.constants)
    string, _ = model.encode(y, prior)
    wide = torch.full((1, 40, 6, 9), float("nan"))
    wide[:, 5:25, :, 2:7] = y
    assert model.encode(wide[:, 5:25, :, 2:7], prior.contiguous(memory_format=torch.channels_last))[0] == string


def test_the_arithmetic_of_torch_is_known():
    """As found out with torch 2.13 on AVX-512; elsewhere the codec asks, and falls back."""
    skip_where_torch_adds_otherwise()
    networks = real_networks()
    rows = ContextRows(*networks.constants, networks.parameters_at)
    assert rows.matches() and rows._chooses((16, False))
    cpus = Path("/proc/cpuinfo")
    if cpus.exists() and "AuthenticAMD" in cpus.read_text():
        assert rows._chooses((16, True))  # MKL's order there
    for name in AUTOREGRESSIVE:
        assert pair_of(name, "dense", torch.float32).compiled._rows.matches()


def test_another_arithmetic_is_noticed(monkeypatch: pytest.MonkeyPatch):
    networks = real_networks()
    for spoil in (
        lambda found: found.nextafter(found + 1),
        lambda found: torch.cat((found[:, :-1], found[:, -1:] * (1 + 2**-23)), 1),
    ):
        rows = ContextRows(*networks.constants, lambda seen, here, s=spoil: s(networks.parameters_at(seen, here)))
        assert not rows.matches()
    monkeypatch.setattr(ContextRows, "WAYS", ((4, True), (4, False)))
    assert not ContextRows(*networks.constants, networks.parameters_at).matches()


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_strings_are_the_originals_without_the_native_rows(name: str, pictures: Tensor, monkeypatch):
    original = build(name, "dense")
    compiled = compile_codec(original, dtype=torch.float32)
    monkeypatch.setattr(compiled._rows, "matches", lambda: False)
    assert any("as torch layers" in note for note in compiled.report.notes)
    for path in compiled.ANALYSIS:
        compiled._transforms[path] = original.get_submodule(path)
    x = pictures[:, :, :, :64]
    with torch.no_grad():
        coded = original.compress(x)
        assert compiled.compress(x)["strings"] == coded["strings"]
        decoded = original.decompress(coded["strings"], coded["shape"])["x_hat"]
    assert (compiled.decompress(coded["strings"], coded["shape"])["x_hat"] - decoded).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["waves", "rows"])
def test_damaged_strings_are_refused(kind: str):
    networks = real_networks()
    model = rows_of(networks) if kind == "rows" else ContextModel(*networks.constants)
    y, prior = 3 * torch.randn(1, 20, 6, 7), torch.randn(1, 6, 6, 7)
    string, _ = model.encode(y, prior)
    for size in range(len(string)):
        with pytest.raises(BitstreamError):
            model.decode(string[:size], prior)
    for longer in (b"\0", b"\0\0\0\0", string):
        with pytest.raises(BitstreamError):
            model.decode(string + longer, prior)
    for shape in ((5, 7), (6, 8), (7, 7)):
        with pytest.raises(BitstreamError):
            model.decode(string, torch.randn(1, 6, *shape))
    random, silent = torch.Generator().manual_seed(1), 0
    for _ in range(2000):
        damaged = bytearray(string)
        for place in torch.randint(len(string), (int(torch.randint(1, 5, (1,), generator=random)),), generator=random):
            damaged[place] ^= 1 << int(torch.randint(8, (1,), generator=random))
        try:
            model.decode(bytes(damaged), prior)
            silent += bytes(damaged) != string
        except BitstreamError:
            pass
    assert silent <= 2  # digits of an escape stand in the stream uncoded


def test_infinite_and_nan_parameters_do_no_harm():
    """What damaged bytes may lead to: escapes of 2^31 drive the networks out of range."""
    networks = real_networks()
    model = ContextModel(*networks.constants)
    y, prior = torch.randn(1, 20, 4, 4), torch.randn(1, 6, 4, 4)
    for value in (float("inf"), float("nan"), 3e38):
        prior[:, :, 1, 1] = value
        y[:, 3, 2, 2] = value
        string, _ = model.encode(y, prior)
        assert model.decode(string, prior).shape == y.shape


def test_wrong_sizes_are_refused():
    networks = real_networks()
    model = ContextModel(*networks.constants)
    y, prior = torch.randn(1, 20, 4, 4), torch.randn(1, 6, 4, 4)
    with pytest.raises(UsageError, match="prior"):
        model.encode(y, prior[:, :5])
    with pytest.raises(UsageError, match=r"y: shape \[1, 20, 3, 4\]"):
        model.encode(y[:, :, :3], prior)
    with pytest.raises(UsageError, match="prior"):
        model.encode(y.expand(2, -1, -1, -1), prior.expand(2, -1, -1, -1))
    with pytest.raises(UsageError, match="float"):
        model.encode(y.double(), prior)
    networks.parameters[2] = nn.Conv2d(33, 30, 1)
    with pytest.raises(UsageError, match="30 entropy parameters for 20"):
        ContextModel(*networks.constants)
    networks.parameters[2] = nn.Conv2d(32, 40, 1)
    with pytest.raises(UsageError, match="1x1 number 1 takes 32 channels"):
        ContextModel(*networks.constants)


def test_a_context_that_sees_the_future_is_refused():
    for place in (12, 13, 24):  # the centre, right of it, the last
        model = copy.deepcopy(build("mbt2018", "dense"))
        model.context_prediction.mask.flatten(2)[:, :, place] = 1
        with pytest.raises(UsageError, match="hides the centre"):
            compile_codec(model)


@pytest.mark.parametrize("extra", [nn.Identity(), nn.Conv2d(96, 96, 3, padding=1, groups=96)], ids=["identity", "3x3"])
def test_other_networks_run_as_in_the_model(extra: nn.Module, photo: Tensor):
    torch.manual_seed(6)
    model = copy.deepcopy(build("mbt2018", "dense"))
    model.entropy_parameters.append(extra.requires_grad_(False))
    compiled = compile_codec(model, dtype=torch.float32)
    assert compiled.numerics.tag >= 0x8000
    eager = [row for row in compiled.report.rows if row.transform in compiled.ENTROPY]
    assert eager and all(row.backend == "torch" and type(extra).__name__ in row.reason for row in eager)
    x = photo[:, :, :64, :64]
    assert (compiled.decode(compiled.encode(x)) - compiled.decode(compiled.encode(x))).abs().max() == 0


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_memory_has_a_limit(name: str, photo: Tensor):
    """Whose estimate counts what the native call holds: it grows with the latent."""
    codec = compile_codec(build(name, "dense"), dtype=torch.float32)
    x = photo[:, :, :64, :64]
    blob = codec.encode(x, max_memory=10**9)
    assert codec.decode(blob, max_memory=10**9).shape == x.shape
    whole, small = codec.decode_batch([blob, blob], max_memory=10**9, on_error="status")
    assert whole.error is small.error is None
    with pytest.raises(ResourceLimitError, match="decoding 64 x 64 pixels needs about"):
        codec.decode(blob, max_memory=10**5)
    assert codec.decode_batch([blob], max_memory=10**5, on_error="status")[0].error is not None
    assert codec.bytes_per_pixel("entropy_parameters") > 0 < codec.bytes_per_pixel("context_prediction")
