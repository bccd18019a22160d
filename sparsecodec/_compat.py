"""CompressAI, imported on request and without what it does not need here."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from sparsecodec.errors import UsageError


class _Placeholder:
    """Base class or value standing in for an attribute that CompressAI touches at import only."""


def _forget(name: str) -> None:
    for loaded in [module for module in sys.modules if module == name or module.startswith(name + ".")]:
        del sys.modules[loaded]


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError):
        # RuntimeError, OSError: torchvision wheels built for CUDA beside a torch for the CPU (torchvision 0.28.0).
        _forget(name)
        return False
    return True


def _pretend(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    # torch.compile asks find_spec about modules by name, which fails on a module without a spec.
    module.__spec__ = ModuleSpec(name, loader=None, is_package=True)
    module.__path__ = []
    vars(module).update(attributes)
    sys.modules[name] = module
    return module


def _pretend_torchvision() -> None:
    _pretend("torchvision", transforms=_pretend("torchvision.transforms"))


def _pretend_torch_geometric() -> None:
    datapipes = _pretend("torch_geometric.data.datapipes", functional_transform=lambda name: lambda cls: cls)
    data = _pretend("torch_geometric.data", Data=_Placeholder, datapipes=datapipes)
    transforms = _pretend("torch_geometric.transforms", BaseTransform=_Placeholder, Center=_Placeholder)
    _pretend("torch_geometric", data=data, transforms=transforms)


def import_compressai() -> ModuleType:
    """The module ``compressai`` with its ``zoo``, also where torchvision, torch-geometric or pandas do not import.

    CompressAI needs those three for data sets and transforms only. Look-alikes stand in for the absent ones during the
    import and are gone afterwards, so that other code sees what is really installed.

    Raises:
        UsageError: CompressAI is not installed.
    """
    if "compressai.zoo" in sys.modules:
        return sys.modules["compressai"]
    stand_ins = {
        "torchvision": _pretend_torchvision,
        "torch_geometric": _pretend_torch_geometric,
        "pandas": lambda: _pretend("pandas"),
    }
    missing = [name for name in stand_ins if not _imports(name)]
    for name in missing:
        stand_ins[name]()
    try:
        module = importlib.import_module("compressai")
        importlib.import_module("compressai.zoo")
    except ImportError as error:
        _forget("compressai")
        raise UsageError(f"CompressAI does not import ({error}); pip install 'sparsecodec[compressai]'") from error
    finally:
        for name in missing:
            _forget(name)
    return module
