"""`compress` of a compiled CompressAI codec in float32 against the model's own, nothing replaced: the same bytes.

The latents are wide, so that the compiled analysis, which differs in the last bits, would round some to the other side.
"""

from __future__ import annotations

from importlib.resources import files

import pytest
import torch
from torch import Tensor, nn

from sparsecodec._compat import import_compressai
from sparsecodec.data import read_image
from sparsecodec.runtime import CompiledCodec, compile_codec

from .conftest import CLASSES

VARIABLE = {"mbt2018-mean-vbr-steps": ("MeanScaleHyperpriorVbr", (32, 48, True))}
NAMES = ("bmshj2018-factorized", "mbt2018-mean", "mbt2018", "cheng2020-anchor", *VARIABLE)
WIDTH = (
    200  # standard deviation of the latents: more roundings are close than in trained models, whose codecs are wider
)


@pytest.fixture(scope="module")
def shipped() -> list[Tensor]:
    """A part of each photo that ships with the package, ``[1, 3, 256, 320]``."""
    folder = files("sparsecodec") / "data/pictures"
    return [read_image(str(path))[:, :, :256, :320] for path in folder.iterdir() if path.name.endswith(".png")]


@pytest.fixture(params=NAMES)
def original(request: pytest.FixtureRequest, shipped: list[Tensor]) -> nn.Module:
    models = import_compressai().models
    if request.param in VARIABLE:
        from compressai.models import vbr as models
    name, arguments = {**CLASSES, **VARIABLE}[request.param]
    torch.manual_seed(0)
    model = getattr(models, name)(*arguments).eval().requires_grad_(False)
    last = [layer for layer in model.g_a.modules() if isinstance(layer, nn.Conv2d)][-1]
    scale = WIDTH / model.g_a(shipped[0]).std()
    last.weight *= scale
    last.bias *= scale
    model.update()
    return model


def moved(original: nn.Module, compiled: CompiledCodec, x: Tensor) -> int:
    """How many latents the compiled analysis rounds to the other side."""
    return int((original.g_a(x).round() != compiled._transforms["g_a"](x).float().round()).sum())


def test_strings_are_the_originals_where_roundings_are_close(original: nn.Module, shipped: list[Tensor]):
    compiled = compile_codec(original, dtype=torch.float32)
    assert len(shipped) == 3 and sum(moved(original, compiled, x) for x in shipped) > 0
    for x in shipped:
        assert compiled.compress(x) == original.compress(x)


@pytest.mark.parametrize("original", ["mbt2018-mean", "mbt2018-mean-vbr-steps"], indirect=True)
def test_only_compress_in_float32_runs_the_models_own_analysis(original: nn.Module, shipped: list[Tensor]):
    for dtype, own in ((torch.float32, True), (torch.bfloat16, False)):
        compiled, calls = compile_codec(original, dtype=dtype), []
        for path in compiled.ANALYSIS:
            compiled._model.get_submodule(path).register_forward_hook(
                lambda *_, path=path, calls=calls: calls.append(path)
            )
        compiled.encode(shipped[0])
        assert not calls
        coded = compiled.compress(shipped[0])
        assert calls == (["g_a", "h_a"] if own else [])
        original.decompress(coded["strings"], coded["shape"])
        said = "own layers: its strings are the original's bytes" in str(compiled.report)
        assert said == own
