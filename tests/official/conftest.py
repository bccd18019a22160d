"""The published Python classes of the DCVC family on our coder, as judges of ours.

``SPARSECODEC_DCVC_CHECKOUT`` names a checkout of their repository; without it these tests are skipped. A test module
says ``FAMILY = "rt"`` and takes `official`, which imports from that family's package:
``official("models.image_model").DMCI()``. All families call their package ``src`` and import lazily while they run, so
that a family is importable as long as its test module runs, and only one at a time.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sparsecodec.entropy import dropin

FOLDERS = {
    "dcvc": "DCVC-family/DCVC",
    "hem": "DCVC-family/DCVC-HEM",
    "evc": "DCVC-family/EVC",
    "dc": "DCVC-family/DCVC-DC",
    "fm": "DCVC-family/DCVC-FM",
    "rt": "DCVC-family/DCVC-RT",
    "uf": ".",
}
CHECKOUT = os.environ.get("SPARSECODEC_DCVC_CHECKOUT")
Importer = Callable[[str], ModuleType]

# torch imports it at the first inference of shapes and then asks every module for its file, which one family's `src`
# cannot say where another family's stood.
importlib.import_module("torch._dynamo")


class _Idle:
    """Answers what CUDA's streams and events are asked for, on a machine without CUDA."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> _Idle:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def record(self, *_: object) -> None:
        pass

    wait = synchronize = wait_event = wait_stream = record


def _forget(package: str) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in (package, "MLCodec_extensions_cpp"):
            del sys.modules[name]


@contextlib.contextmanager
def importing(family: str, root: Path) -> Iterator[Importer]:
    """Within the block the classes of one family can be imported and run, on the CPU and on our coder."""
    folder = root / FOLDERS[family]
    if not (folder / "src").is_dir():
        pytest.fail(f"SPARSECODEC_DCVC_CHECKOUT: no folder src in {folder}")
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(folder))
    if not torch.cuda.is_available():
        for name in ("Stream", "Event", "stream", "current_stream", "synchronize"):
            patch.setattr(torch.cuda, name, _Idle)
    # Only their reading and writing of pictures uses it; it must match the build of torch, which is not our business.
    transforms = ModuleType("torchvision.transforms")
    transforms.ToPILImage = transforms.ToTensor = None
    patch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    patch.setitem(sys.modules, "torchvision.transforms", transforms)
    _forget("src")
    dropin.install(family)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield lambda module: importlib.import_module(f"src.{module}")
    finally:
        _forget("src")
        patch.undo()


@pytest.fixture(scope="module")
def official(request: pytest.FixtureRequest) -> Iterator[Importer]:
    """module name without ``src.`` -> the module, of the family that the test module names, or else its parameter."""
    if CHECKOUT is None:
        pytest.skip("SPARSECODEC_DCVC_CHECKOUT is not set")
    family = request.param if hasattr(request, "param") else request.module.FAMILY
    with importing(family, Path(CHECKOUT)) as importer:
        yield importer


@pytest.fixture
def bare(monkeypatch):
    """Neither a coder to import nor a GPU to wait for."""

    def no_gpu(*_, **__):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "synchronize", no_gpu)
    for name in [name for name in sys.modules if ".MLCodec_" in name]:
        monkeypatch.delitem(sys.modules, name)
