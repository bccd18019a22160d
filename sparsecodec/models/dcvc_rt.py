"""What the two models of DCVC-RT share (arXiv 2502.20762)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.entropy import Decoder32, Encoder32, EntropyTables, dcvc_gaussian16_tables
from sparsecodec.errors import UsageError
from sparsecodec.models.codec import Codec, rates_of
from sparsecodec.models.inputs import check_size, whole
from sparsecodec.nn import rate_factorized_tables
from sparsecodec.nn.likelihood import Estimate
from sparsecodec.nn.part_coder import PartCoder
from sparsecodec.nn.part_prior import PartPrior
from sparsecodec.nn.routine import Host, Routine, eagerly, pulling, pushing
from sparsecodec.ops import rt_scale_thresholds

RESET_INTERVAL = 32  # P frames from one that starts from the picture to the next, as the published script has it
STRIDE = 16  # of the latent: pictures are padded to multiples of it
HYPER = 4  # positions of the latent per position of the hyper-latent, per side
QUALITIES = 64
SHIFTS = (0, 8, 4)  # of the quality of predicted frames, by feature adaptor
SHIFT_OF_FRAME = (0, 1, 0, 2, 0, 2, 0, 2)  # which of them a frame has, by frame index mod 8
INTER_QUALITIES = QUALITIES + max(SHIFTS)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def quality_bank(rates: int, channels: int, spread: float) -> nn.Parameter:
    """``[rates, C, 1, 1]``: ``exp(-spread) .. exp(spread)`` from the lowest to the highest quality, log-spaced."""
    gains = torch.linspace(-spread, spread, rates).exp().view(-1, 1, 1, 1)
    return nn.Parameter(gains.expand(-1, channels, -1, -1).clone())


def pad_latent(y: Tensor) -> Tensor:
    """Replicates the last rows and columns until both sides are multiples of 4: ``[N, C, H, W]``."""
    bottom, right = -y.shape[2] % HYPER, -y.shape[3] % HYPER
    return F.pad(y, (0, right, 0, bottom), mode="replicate")


class RTModel(Codec):
    """Base of both models.

    Attributes:
        rates: how many rows the banks of qualities have.
        widths: of the networks.
        banks: the table of steps that an argument of a transform is a row of; pruning the transform shrinks both.
        force_zero_thres: predicted scales up to here are not coded; None: all are. Streams do not say it.
    """

    rates: ClassVar[int]
    widths_class: ClassVar[type]
    banks: ClassVar[Mapping[str, str]]

    def __init__(self, widths: Any) -> None:
        super().__init__()
        self.widths = widths
        self.force_zero_thres: float | None = None
        self._two_streams = False
        self._y_tables = dcvc_gaussian16_tables()
        self._z_tables: EntropyTables | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {"family": self.family, **asdict(self.widths)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]):
        return cls(cls.widths_class(**{field.name: config[field.name] for field in fields(cls.widths_class)}))

    @property
    @abstractmethod
    def prior(self) -> PartPrior:
        """The networks between the hyper-latent and the tables."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """As `Codec.load_state_dict`; coding tables of the weights before are dropped: call `update` again."""
        self._z_tables = None
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    # --- what the published software calls ------------------------------------------------------------------------

    @staticmethod
    def get_qp_num() -> int:
        """How many qualities a user chooses from."""
        return QUALITIES

    @staticmethod
    def get_padding_size(height: int, width: int, p: int = 64) -> tuple[int, int]:
        """Columns and rows to pad so that both sides are multiples of `p`: (right, bottom)."""
        return -width % p, -height % p

    def update(self, force_zero_thres: float | None = None) -> None:
        """Computes the coding tables of the present weights, in float32; call it before coding and before `half`.

        Args:
            force_zero_thres: predicted scales up to here are not coded, where 0.12 is the published setting. Both ends
                must know it: streams do not say it.

        Raises:
            UsageError: not positive.
        """
        if force_zero_thres is not None and not force_zero_thres > 0:
            raise UsageError(f"force_zero_thres={force_zero_thres} (needs a positive scale, or None)")
        self.force_zero_thres = force_zero_thres
        self._z_tables = rate_factorized_tables(self.bit_estimator_z)

    def set_use_two_entropy_coders(self, use_two_entropy_coders: bool) -> None:
        """Whether `compress` writes two streams side by side (``ec_part`` of the parameter set) instead of one."""
        self._two_streams = bool(use_two_entropy_coders)

    @property
    def uses_two_entropy_coders(self) -> bool:
        """As `set_use_two_entropy_coders` was told last."""
        return self._two_streams

    # --- coding ---------------------------------------------------------------------------------------------------

    def coder(self) -> PartCoder:
        """The routines that turn latents into coding calls, on the device of the weights.

        Raises:
            UsageError: `update` was not called.
        """
        if self._z_tables is None:
            raise UsageError(f"{self.family} has no coding tables yet: call update()")
        weight, skip = self.bit_estimator_z.f1.h, self.force_zero_thres
        if skip is not None:
            skip = float(torch.tensor(skip, dtype=weight.dtype))  # as the published comparison rounds it
        tables = self._y_tables, self._z_tables
        return PartCoder(self.prior, *tables, rt_scale_thresholds(weight.dtype), skip, weight.device)

    @property
    def hyper_channels(self) -> int:
        """Channels of the hyper-latent, also of a pruned model."""
        return self.bit_estimator_z.f1.h.shape[1]

    @property
    def y_tables(self) -> EntropyTables:
        """Of the latent: the stored rows, or those of the foreign model that this one was made of."""
        return self._y_tables

    @property
    def z_tables(self) -> EntropyTables | None:
        """Of the hyper-latent, as `update` computed them."""
        return self._z_tables

    def take_tables(self, y_tables: EntropyTables) -> None:
        """Codes the latent with other rows than the stored ones, as another machine may have computed them."""
        self._y_tables = y_tables

    def adopt(self, foreign: nn.Module) -> None:
        """Takes over the threshold of a model of the published software, and its tables if it has computed them.

        Where such a model computed tables itself, a machine's exponential may have moved a value of them by one.
        """
        coder = getattr(foreign, "gaussian_encoder", None)
        skip = getattr(coder, "force_zero_thres", None)
        self.force_zero_thres = None if skip is None else float(skip)
        for name, source in (("_y_tables", coder), ("_z_tables", foreign.bit_estimator_z)):
            rows = tuple(getattr(source, field, None) for field in ("_quantized_cdf", "_cdf_length", "_offset"))
            if all(value is not None for value in rows):
                setattr(self, name, EntropyTables(*(np.asarray(value, np.int32) for value in rows)))

    def _run(self, routine: Callable[..., Routine], *inputs: Any, host: Host) -> Any:
        """Runs ``routine(*inputs)``; a model whose routines are captured does it in its own way."""
        return eagerly(routine, *inputs, host=host)

    def _write(self, routine: Callable[..., Routine], *inputs: Any) -> tuple[bytes, Any]:
        """Runs an encoding routine: (payload, what it returns)."""
        encoder = Encoder32(1 + self._two_streams)
        result = self._run(routine, *inputs, host=pushing(encoder))
        return encoder.finish(), result

    def _read(
        self, payload: bytes, size: tuple[int, int, int], qp: int, routine: Callable[..., Routine], *inputs: Any
    ) -> Any:
        """Runs a decoding routine on all of `payload`.

        Args:
            size: height and width of the latent, and the number of streams.
            qp: of the hyper-latent's tables.
            routine: asks for the hyper-latent as a `Known`, once.
        """
        height, width, streams = size
        decoder = Decoder32(payload, streams)
        hyper = self.coder().z_request(self._hyper_shape(height, width), qp)
        result = self._run(routine, *inputs, host=pulling(decoder, hyper))
        decoder.finish()
        return result

    def _hyper_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Of the hyper-latent of a latent of that size."""
        return 1, self.hyper_channels, -(-height // HYPER), -(-width // HYPER)

    def _rate(self, qp: int) -> Tensor | int:
        """`qp` as routines take it; where those are captured it is data, ``[1]`` int64 on the device."""
        return qp

    # --- checks ---------------------------------------------------------------------------------------------------

    @staticmethod
    def check_parameter_set(sps: Mapping[str, int]) -> tuple[int, int, int]:
        """Height and width of the latent, and the number of streams, of a parameter set of the family.

        Raises:
            UsageError: a field is missing or has no meaning.
            ResourceLimitError: a picture of more than 2^28 pixels.
        """
        try:
            height, width, parts = (sps[name] for name in ("height", "width", "ec_part"))
        except (KeyError, TypeError) as error:
            raise UsageError(f"sps={sps!r} (needs height, width and ec_part)") from error
        check_size(height, width)
        if parts not in (0, 1):
            raise UsageError(f"ec_part={parts!r} (needs 0, one stream, or 1, two)")
        return -(-height // STRIDE), -(-width // STRIDE), 1 + int(parts)

    def check_rate(self, rate: Tensor | int, batch: int) -> Tensor | int:
        """`rate` of a `forward` as `rate_rows` takes it.

        Raises:
            UsageError: out of range, or not one per picture.
        """
        if not isinstance(rate, Tensor) or rate.ndim == 0:
            return whole(rate, "qp", self.rates)
        fits = rate.ndim == 1 and len(rate) in (1, batch) and rate.dtype in _INTEGERS
        if not fits or int(rate.min()) < 0 or int(rate.max()) >= self.rates:
            raise UsageError(f"qp={rate} for {batch} pictures (needs 0 .. {self.rates - 1}, an int or an [N] tensor)")
        return rate

    def check_quality(self, qp: int) -> int:
        """The row of the banks for one frame that is coded.

        Raises:
            UsageError: no whole number, or out of range.
        """
        return whole(qp, "qp", self.rates)

    @staticmethod
    def outcome(x: Tensor, x_hat: Tensor, coded: Estimate) -> dict[str, Any]:
        """What both `forward`s return of a picture, its reconstruction and what `estimate` gave."""
        return {"x_hat": x_hat, **rates_of(x, y=coded.bits_y, z=coded.bits_z), "latents": {"y": coded.latent}}
