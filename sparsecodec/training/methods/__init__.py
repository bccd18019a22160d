"""The methods, one module each. A module has:

* ``COMMAND``: the subcommand of ``sparsecodec`` that runs it;
* ``Settings``: a frozen dataclass, the recipe's table of the module's name;
* ``run(recipe, settings, model, data, folder, load)``: all phases, each in a folder of its own below `folder`. Returns
  the codec in eval mode; what is no plain architecture says so in its attributes ``compact_config`` (see
  `sparsecodec.sparsity.compact_config`) and ``quantization``. `load` gives other codecs by name or path.
"""

from __future__ import annotations

import importlib
from types import ModuleType

PLAIN = "plain"
MAY_TRAIN_NOTHING = ("search", "quantize")
NAMES = ("gradient_decay", "mask_decay", "plan", "nm", "feds", "search", "quantize", "scalable")


def module_of(name: str) -> ModuleType:
    """The module of a method."""
    return importlib.import_module(f"{__name__}.{name}")


def settings_of(name: str) -> type:
    """The class of a method's settings."""
    return module_of(name).Settings


def command_of(name: str) -> str:
    """``train`` for plain training, else what the method's module says."""
    return "train" if name == PLAIN else module_of(name).COMMAND
