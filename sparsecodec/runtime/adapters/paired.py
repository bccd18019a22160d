"""What the adapters of video codecs share whose both ends run the same compiled networks."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import get_num_threads, nn

from sparsecodec.models.video import VideoCodec
from sparsecodec.nn.routine import Host, Routine, eagerly
from sparsecodec.runtime.executor import Executor
from sparsecodec.runtime.numerics import Numerics, eager_numerics
from sparsecodec.runtime.precision import KeepsPrecision
from sparsecodec.runtime.report import Report
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.runtime.uncopied import KeepsWeights
from sparsecodec.runtime.video import CompiledVideo
from sparsecodec.runtime.video_networks import VideoNetworks

Model = TypeVar("Model", bound=nn.Module)
ORIGINAL = "original: every layer is the model's own, in float32"


class OneModel(KeepsWeights, KeepsPrecision):
    """One compiled model of a video codec: it answers the model's calls, alone or in the codec.

    Attributes:
        SCALE: a network that both ends run, and how many pixels of a frame a position of its first argument stands for.
        FIRST: the network that predicted frames run behind frames that stand alone only.
    """

    SCALE: ClassVar[tuple[str, int]]
    FIRST: ClassVar[str] = ""

    _networks: VideoNetworks  # of the whole codec
    _prefix: str = ""  # of the paths of this model's networks there

    def decoder_paths(self) -> list[str]:
        """The networks that decoding runs, of a predicted frame behind another one, by their paths in the codec."""
        raise NotImplementedError

    @property
    def report(self) -> Report:
        """Each layer with its op, backend and MACs, or the reason why it stayed a torch layer.

        Kernels are chosen, and MACs known, when the first frame is coded.
        """
        path, pixels = self.SCALE
        pixels *= self._networks.positions(self._prefix + path)
        return self._networks.report(pixels or math.inf, self.decoder_paths(), self._notes(), self._prefix)

    def _notes(self) -> tuple[str, ...]:
        return (
            "paired: streams open where both ends are compiled alike; calls of one model alone do not check that",
            "MACs are per pixel of the first frame; what has not run yet has none",
            *self._networks.capture_notes(),
        )


class PairedVideo(CompiledVideo):
    """A video codec on `VideoNetworks`, or on the model's own layers.

    Args:
        model_hash, device: as for `CompiledVideo`.
        dtype: of the networks that are not `FLOAT32`.
        networks: None: the model's own layers in float32 run.

    Attributes:
        FLOAT32: which networks compute in float32, for people.
        inter: the model of predicted frames: `OneModel`, or the model itself.
    """

    FLOAT32: ClassVar[str]
    inter: nn.Module

    def __init__(
        self, model_hash: bytes, device: torch.device, dtype: torch.dtype, networks: VideoNetworks | None
    ) -> None:
        super().__init__(model_hash, device)
        self.dtype = torch.float32 if networks is None else dtype
        self._networks = networks

    def _run(self, routine: Callable[..., Routine], *inputs: Any, host: Host) -> Any:
        """Runs a routine of the inter model."""
        run = eagerly if self._networks is None else self._networks.run
        return run(routine, *inputs, host=host)

    @property
    def keepers(self) -> list[CompiledTransform | Executor]:
        return [] if self._networks is None else [*self._networks.transforms, self._networks.executor]

    def notes(self) -> tuple[str, ...]:
        """What the report says beside the layers."""
        if self._networks is None:
            return (ORIGINAL,)
        return (
            f"networks in {str(self.dtype).removeprefix('torch.')}; {self.FLOAT32} in float32",
            f"both ends: {self.numerics.name}",
            "paired: the state after each frame is fingerprinted; where it drifts, decoding stops and says so",
            *self._networks.capture_notes(),
        )

    @property
    def report(self) -> Report:
        """Each layer with its op, backend and MACs, or the reason why it stayed a torch layer."""
        if self._networks is None:
            return Report((), self.notes(), (), 0)
        return self._networks.report(self._warm_pixels, self.inter.decoder_paths(), self.notes())


class TwoModels(PairedVideo):
    """A family whose two models both are its own: of frames that stand alone, and of predicted ones.

    Args:
        model: a `VideoCodec` of both models of the family.
        device: where to run.
        dtype: see `PairedVideo`.
        strict: raise if a layer with a rule finds no kernel although its device has kernels.
        original: the model's own layers in float32 instead, as the published software runs them: it opens streams
            that were made so on the same kind of machine.

    Attributes:
        intra, inter: both models; they answer the published software's calls.
        MODELS, COMPILED: classes of both, and what compiles them: (model, networks, prefix of paths, dtype).
        REDUCES: whether torch reduces or multiplies matrices in it, so that the bits depend on its threads.
    """

    MODELS: ClassVar[tuple[type[nn.Module], type[nn.Module]]]
    COMPILED: ClassVar[tuple[type[OneModel], type[OneModel]]]
    REDUCES: ClassVar[bool] = False

    def __init__(
        self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool, original: bool = False
    ) -> None:
        digest = self.identity(model)
        model = self.own_copy(model, device, original)
        super().__init__(digest, device, dtype, None if original else VideoNetworks(model, strict))
        self.intra, self.inter = model.intra, model.inter
        if not original:
            intra, inter = self.COMPILED
            self.intra = intra(model.intra, self._networks, "intra.", dtype)
            self.inter = inter(model.inter, self._networks, "inter.", dtype)

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether `model` is both models of this family, or one of them."""
        if isinstance(model, VideoCodec):
            return all(map(isinstance, (model.intra, model.inter), cls.MODELS))
        return isinstance(model, cls.MODELS)

    @classmethod
    def half(
        cls, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool, original: bool
    ) -> nn.Module:
        """One model of the family alone: it answers the published software's calls; arguments as for the codec."""
        model = cls.own_copy(model, device, original)
        if original:
            return reporting(model)
        compiled = cls.COMPILED[not isinstance(model, cls.MODELS[0])]
        return compiled(model, VideoNetworks(model, strict), "", dtype)

    @classmethod
    def own_copy(cls, model: nn.Module, device: torch.device, original: bool) -> nn.Module:
        """A copy to compile or, if `original`, to use as it is."""
        return copied(model, device)

    @staticmethod
    @abstractmethod
    def identity(model: nn.Module) -> bytes:
        """8 bytes that differ between models whose streams do."""

    @property
    def numerics(self) -> Numerics:
        if self._networks is None:
            return eager_numerics(self.device)
        return self._networks.numerics_of(get_num_threads() if self.REDUCES else None)


def copied(model: Model, device: torch.device) -> Model:
    """A float32 copy of `model` on `device`, for inference."""
    return copy.deepcopy(model).to(device).float().eval().requires_grad_(False)


def reporting(model: Model) -> Model:
    """`model`, whose own layers run: it has the `report` that compiled models have."""
    model.report = Report((), (ORIGINAL,), (), 0)
    return model
