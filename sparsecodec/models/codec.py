"""What every codec of ours is: a module that can be described, and that takes weights only where they fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.models.checkpoint import unwrap_state_dict


class Codec(nn.Module, ABC):
    """Base of all models of this package.

    Attributes:
        family: name in descriptions.
    """

    family: ClassVar[str]

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What `from_config` needs to build the same architecture; JSON-able."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Codec:
        """Builds the architecture that `config` describes, with random weights."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """Loads weights; wrappers (``state_dict``, ``net``) and ``module.`` prefixes are removed first.

        Raises:
            UsageError: keys are missing, unknown or of another shape; the message names them.
        """
        try:
            return super().load_state_dict(unwrap_state_dict(state_dict), strict=strict, assign=assign)
        except RuntimeError as error:
            raise UsageError(f"the checkpoint does not fit {self.config}: {error}") from error


def rates_of(x: Tensor, **bits: Tensor) -> dict[str, Tensor]:
    """What a `forward` returns of the rate of the pictures ``x [N, C, H, W]``.

    Args:
        bits: ``[N]`` each, by the name of what they are of, such as ``y``.

    Returns:
        ``bpp`` and its parts ``bpp_<name>``, each ``[N]``, in bits per pixel; ``bit``: of all pictures together.
    """
    pixels = x.shape[-2] * x.shape[-1]
    parts = {f"bpp_{name}": value / pixels for name, value in bits.items()}
    bpp = sum(parts.values())
    return {"bpp": bpp, **parts, "bit": bpp.sum() * pixels}
