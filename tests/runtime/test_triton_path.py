"""What a GPU would run, without one: a whole codec on Triton kernels alone, in Triton's interpreter."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsecodec.ops import use_backend, why_unavailable
from sparsecodec.runtime import CompiledCodec, compile_codec

from ..toy_video import moving
from .conftest import build
from .test_video_graphs import rt

pytestmark = [
    pytest.mark.skipif(why_unavailable("triton") is not None, reason=str(why_unavailable("triton"))),
    pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter"),
]


class Launches(TorchDispatchMode):
    """Counts kernels: Triton's, and torch operations that would be one (all that are no views and no allocations)."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        from triton.runtime.interpreter import GridExecutor

        self.triton, self.torch, inner = [], [], GridExecutor.__call__
        self._inside = False

        def counted(executor, *args, **kwargs):
            self.triton.append(executor.fn.__name__)
            self._inside = True  # the interpreter works with torch and NumPy
            try:
                return inner(executor, *args, **kwargs)
            finally:
                self._inside = False

        monkeypatch.setattr(GridExecutor, "__call__", counted)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        read = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        written = any(a.alias_info is not None and a.alias_info.is_write for a in function._schema.arguments)
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.numel()]
        new = [t for t in made if t.untyped_storage().data_ptr() not in read]
        nothing = "empty" in function.name() or function.name() == "aten::arange"  # table rows, made on the host
        if not self._inside and (new or written) and not nothing:
            self.torch.append(function.name())
        return out


def test_a_codec_runs_on_triton_alone(monkeypatch):
    model = build("evc-nano", "compact")  # the others' layers; a pass takes seconds here
    x = F.interpolate(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3)), (64, 64), mode="bilinear")
    on_cpu = compile_codec(model, dtype=torch.float32)
    expected = on_cpu.decode(on_cpu.encode(x))
    monkeypatch.setattr(CompiledCodec, "warm_up", lambda self, sample: None)
    with use_backend("triton"):
        codec = compile_codec(copy.deepcopy(model), dtype=torch.float16)
        blob = codec.encode(x)
        decoded = codec.decode(blob)  # binds, packs and plans
        with Launches(monkeypatch) as launches:
            assert torch.equal(codec.decode(blob), decoded)
        assert {row.backend for row in codec.report.rows} == {"triton"}
    assert (decoded - expected).abs().max() < 0.02
    assert len(launches.triton) > 20
    assert len(launches.triton) + len(launches.torch) < 60, (launches.triton, launches.torch)


def test_a_predicted_frame_runs_on_triton_alone(monkeypatch):
    """DCVC-RT of narrow widths: both ends end in the same state, near that of float32 on the CPU's kernels."""
    model, (x, after), sps = rt().inter, moving(2, 32, 32), {"height": 32, "width": 32, "ec_part": 0}
    plain = compile_codec(model, dtype=torch.float32)
    plain.update()
    with torch.inference_mode():
        _, right = plain.compress_frame(after, plain.start(x), 20)
        with use_backend("triton"):
            half = compile_codec(model, dtype=torch.float16)
            half.update()
            state = half.start(x)
            payload, ours = half.compress_frame(after, state, 20)
            half.decompress_frame(payload, state, sps, 20)  # binds and plans
            with Launches(monkeypatch) as launches:
                _, theirs = half.decompress_frame(payload, state, sps, 20)
    assert torch.equal(ours.feature, theirs.feature)
    assert (ours.feature.float() - right.feature).abs().mean() < 0.02 * right.feature.abs().mean()
    assert {row.backend for row in half.report.rows if row.macs} == {"triton"}
    assert len(launches.triton) > 20
    assert len(launches.triton) + len(launches.torch) < 90, (launches.triton, launches.torch)
