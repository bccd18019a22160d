"""Small codecs of CompressAI's families, with latents worth coding, and their compiled twins."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from sparsecodec import zoo
from sparsecodec._compat import import_compressai
from sparsecodec.models import create
from sparsecodec.quant import portable
from sparsecodec.runtime import CompiledCodec, Report, compile_codec
from sparsecodec.runtime.video import CompiledVideo, VideoState, fingerprint
from sparsecodec.sparsity import ChannelMasks, compact, trace_model

CLASSES = {  # name -> class and constructor arguments
    "bmshj2018-factorized": ("FactorizedPrior", (32, 48)),
    "bmshj2018-factorized-relu": ("FactorizedPriorReLU", (32, 48)),
    "bmshj2018-hyperprior": ("ScaleHyperprior", (32, 48)),
    "mbt2018-mean": ("MeanScaleHyperprior", (32, 48)),
    "mbt2018": ("JointAutoregressiveHierarchicalPriors", (32, 48)),
    "cheng2020-anchor": ("Cheng2020Anchor", (32,)),
    "cheng2020-attn": ("Cheng2020Attention", (32,)),
}
VARIABLE = {  # those of variable rate; -steps: of the hyper-latent, too
    "bmshj2018-hyperprior-vbr": ("ScaleHyperpriorVbr", (32, 48)),
    "mbt2018-mean-vbr": ("MeanScaleHyperpriorVbr", (32, 48)),
    "bmshj2018-hyperprior-vbr-steps": ("ScaleHyperpriorVbr", (32, 48, True)),
    "mbt2018-mean-vbr-steps": ("MeanScaleHyperpriorVbr", (32, 48, True)),
    "mbt2018-vbr": ("JointAutoregressiveHierarchicalPriorsVbr", (32, 48)),
}
TRANSFORMS = ("g_a", "g_s", "h_a", "h_s", "entropy_parameters")

# Of a test with Triton's kernels on the CPU. Where there is no Triton it fails.
INTERPRETED = pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter")
TRITON = pytest.param("triton", marks=INTERPRETED)


def skip_where_torch_adds_otherwise() -> None:
    """Leaves a test that says which order of addition torch has; it was found out with torch 2.13 on AVX-512."""
    if not (torch.__version__.startswith("2.13") and torch.backends.mkl.is_available()):
        pytest.skip(f"torch {torch.__version__} (the order of its sums was found for 2.13 with MKL)")
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("no AVX-512 (other processors: other orders)")


def _last_convolution(module: nn.Module) -> nn.Conv2d:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)][-1]


def _lively(model: nn.Module) -> nn.Module:
    """Random weights give latents near zero; scaled, they fill several symbols and tables."""
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "beta", "gamma")):
                parameter += 0.05 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(2))
        for path, source in (("g_a", lambda: x), ("h_a", lambda: model.g_a(x))):
            if hasattr(model, path):
                network = model.get_submodule(path)
                _last_convolution(network).weight *= 3 / network(source()).std()
        if hasattr(model, "h_s"):  # scales from below the first table to the tenth or so
            network = getattr(model, "entropy_parameters", model.h_s)
            _last_convolution(network).weight *= 30
    return model


@cache
def build(name: str, variant: str) -> nn.Module:
    """The original, dense or compact, with its tables. Not to be changed."""
    torch.manual_seed(3)
    if name.startswith("evc-"):
        model = create(name).eval()
        transforms = ["enc", "dec", "hyper_enc", "hyper_dec", "y_prior_fusion", "y_spatial_prior"]
    else:
        class_name, widths = CLASSES[name]
        model = _lively(getattr(import_compressai().models, class_name)(*widths).eval())
        transforms = [path for path in TRANSFORMS if hasattr(model, path)]
    if variant == "compact":
        graph = trace_model(model, transforms)
        model = compact(model, ChannelMasks.random(graph, sparsity=0.4, seed=0, round_to=8), graph)
    if not name.startswith("evc-"):
        model.update()
    return model.requires_grad_(False)


@cache
def build_variable(name: str) -> nn.Module:
    """The original of a codec of variable rate, with its tables. Not to be changed."""
    torch.manual_seed(3)
    class_name, arguments = VARIABLE[name]
    model = _lively(getattr(import_compressai().models, class_name)(*arguments).eval()).requires_grad_(False)
    for layer in model.QuantABCD[::2]:
        layer.weight.mul_(0.3)
    model.update()
    return model


@pytest.fixture(params=[(isa, threads) for isa in ("scalar", "avx2", "avx512") for threads in (1, 2)], ids=str)
def any_processor(request: pytest.FixtureRequest, instruction_sets, monkeypatch) -> Iterator[None]:
    """The test runs with the kernels of each instruction set that this processor has, on one thread and on two."""
    isa, threads = request.param
    if isa not in instruction_sets:
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


@cache
def portable_model(family: str) -> nn.Module:
    """Portable, and small or trained. Not to be changed."""
    if family.startswith("evc"):
        return zoo.load({"evc": "evc-tiny-sparse-int8", "evc-float": "evc-tiny-sparse-portable"}[family])
    generator = torch.Generator().manual_seed(5)
    model = build_variable(family) if family in VARIABLE else build(family, "dense")
    return portable(model, torch.rand(1, 3, 128, 128, generator=generator))


@cache
def portable_codec(family: str) -> CompiledCodec:
    return compile_codec(portable_model(family), stream="portable", dtype=torch.float32)


@dataclass(frozen=True)
class Pair:
    """A model and what `compile_codec` makes of it."""

    name: str
    variant: str
    dtype: torch.dtype
    original: nn.Module
    compiled: CompiledCodec

    @property
    def autoregressive(self) -> bool:
        return hasattr(self.original, "context_prediction")


@cache
def pair_of(name: str, variant: str, dtype: torch.dtype) -> Pair:
    original = build(name, variant)
    return Pair(name, variant, dtype, original, compile_codec(original, dtype=dtype))


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=["dense", "compact"])
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=CLASSES)
def pair(request: pytest.FixtureRequest, variant: str, dtype: torch.dtype) -> Pair:
    return pair_of(request.param, variant, dtype)


@pytest.fixture(params=CLASSES)
def float_pair(request: pytest.FixtureRequest) -> Pair:
    """The dense model in float32."""
    return pair_of(request.param, "dense", torch.float32)


@pytest.fixture
def mean_scale() -> Pair:
    return pair_of("mbt2018-mean", "dense", torch.float32)


@pytest.fixture(scope="session")
def pictures(photo: Tensor) -> Tensor:
    """``[2, 3, 64, 128]`` from the photo."""
    return torch.cat([photo[:, :, :64, :128], photo[:, :, 64:128, 64:192]])


def both_ends(
    codec: CompiledVideo, frames: Iterable[Tensor], qps: Sequence[int], period: int
) -> Iterator[tuple[bytes, VideoState, VideoState, Tensor]]:
    """Codes a clip and decodes it: payload, state of the encoder, state of the decoder and picture of each frame."""
    ours = theirs = None
    for number, x in enumerate(frames):
        index, qp, size = number % period, qps[number % len(qps)], tuple(x.shape[2:])
        if index == 0:
            payload, ours = codec.intra_encode(x, qp)
            x_hat, theirs = codec.intra_decode(payload, *size, qp)
        else:
            payload, ours = codec.inter_encode(x, ours, qp, index)
            x_hat, theirs = codec.inter_decode(payload, theirs, *size, qp, index)
        yield payload, ours, theirs, x_hat


def code_in_step(
    codec: CompiledVideo, frames: Sequence[Tensor], qps: Sequence[int], period: int = 99
) -> list[tuple[bytes, Tensor]]:
    """(payload, picture) of each frame; both ends must be left with the same state."""
    coded = []
    for number, (payload, ours, theirs, x_hat) in enumerate(both_ends(codec, frames, qps, period)):
        assert fingerprint(ours) == fingerprint(theirs), f"frame {number}"
        assert all(map(torch.equal, ours.tensors(), theirs.tensors())), f"frame {number}"
        assert x_hat.shape == frames[number].shape and x_hat.dtype == torch.float32 and x_hat.is_contiguous()
        assert 0 <= x_hat.min() and x_hat.max() <= 1
        coded.append((payload, x_hat))
    return coded


def states_are_values(codec: CompiledVideo, frames: list[Tensor], qp: int) -> None:
    """What a frame left is not written to by later ones, of this clip or of another."""
    _, first = codec.intra_encode(frames[0], qp)
    _, second = codec.inter_encode(frames[1], first, qp, 1)
    kept = [tensor.clone() for state in (first, second) for tensor in state.tensors()]
    again, third = codec.inter_encode(frames[2], second, qp, 2)
    codec.intra_encode(frames[3], 50)
    codec.inter_encode(frames[3], third, 50, 3)
    assert all(map(torch.equal, kept, (*first.tensors(), *second.tensors())))
    assert codec.inter_encode(frames[2], second, qp, 2)[0] == again


def reports_as_in_the_codec(lone: nn.Module, codec: CompiledVideo, half: str, run: Callable[[], None]) -> None:
    """One model says of its layers what the codec says that was compiled with a frame of 64 x 64.

    Args:
        half: ``"intra"`` or ``"inter"``.
        run: codes with `lone` frames of 64 x 64, with both ends.
    """
    before = lone.report
    assert isinstance(before, Report) and before.macs == 0 and "cpu" not in {row.backend for row in before.rows}
    run()
    prefix = f"{half}." * any(row.transform.startswith(f"{half}.") for row in codec.report.rows)
    expected = [row for row in codec.report.rows if row.transform.startswith(prefix)]
    for report, dropped in ((lone.report, len(prefix)), (getattr(codec, half).report, 0)):
        rows = [replace(row, transform=row.transform[dropped:]) for row in expected]
        rows = [replace(row, paths=tuple(path[dropped:] for path in row.paths)) for row in rows]
        assert report.rows == tuple(rows)
        assert 0 < report.macs == report.dense_macs and report.buffer_bytes > 0
        assert half == "intra" or report.macs == pytest.approx(codec.report.macs)
        assert "paired" in report.notes[0] and report.rows[0].paths[0] in str(report)


class InDtype(nn.Module):
    """A transform in another precision, for references: takes and gives float32 (float64 if that is the dtype)."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        y = self.module(x.to(self.dtype))
        return y if self.dtype == torch.float64 else y.float()


def with_synthesis_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of `model` that differs in the precision of ``g_s`` only, so that strings mean the same latents."""
    model = copy.deepcopy(model)
    model.g_s = InDtype(model.g_s, dtype)
    return model
