"""The integers that a portable codec stores beside its layers, so that no decoder computes them from floats."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables
from sparsecodec.errors import UsageError

FRACTION_BITS = 16  # of fixed-point scales, means, steps and medians
NEVER = -(2**31)  # a threshold below every scale: its table is never chosen


class IntegerTables(nn.Module):
    """Factorised tables, medians and thresholds as integer buffers; empty until filled or loaded (docs/portable.md).

    Attributes:
        z_cdf: ``[C, L]`` int32. A row of cumulative frequencies per channel of what is coded first.
        z_lengths: ``[C]`` int32.
        z_offsets: ``[C]`` int32.
        z_medians: ``[C]`` int32, in 2^-16. What a channel's symbol stands for is itself plus this.
        thresholds: ``[R - 1]`` int32, ascending, in 2^-16. A scale's row is the number of thresholds below it.
    """

    NAMES = ("z_cdf", "z_lengths", "z_offsets", "z_medians", "thresholds")
    TABLES = ("z_cdf",)  # those that have two dimensions

    z_cdf: Tensor
    z_lengths: Tensor
    z_offsets: Tensor
    z_medians: Tensor
    thresholds: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in self.NAMES:
            shape = (0, 0) if name in self.TABLES else (0,)
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int32))

    def fill(self, tables: EntropyTables, medians: Tensor, thresholds: Tensor) -> None:
        """Takes what a float codec would compute.

        Args:
            tables: a row per channel.
            medians: ``[C]`` float32.
            thresholds: ``[R - 1]`` float32, as `evc_scale_thresholds` or `scale_table_thresholds` give them; of
                `RateTables` ``[S, R - 1]`` float64.
        """
        self.z_cdf, self.z_lengths, self.z_offsets = (
            torch.from_numpy(values.copy()) for values in (tables.cdf, tables.lengths, tables.offsets)
        )
        self.z_medians = in_fixed_point(medians)
        self.thresholds = in_fixed_point(thresholds)

    def tables(self) -> EntropyTables:
        """Of what is coded first, a row per channel; checked."""
        return EntropyTables(self.z_cdf, self.z_lengths, self.z_offsets)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        found = {name: state_dict.get(prefix + name) for name in self.NAMES}
        errors = args[-1]
        for name, value in found.items():
            if value is None:
                continue  # the base class says so
            if value.dtype != torch.int32 or value.ndim != (2 if name in self.TABLES else 1):
                errors.append(f"{prefix}{name} is {tuple(value.shape)} {value.dtype} (needs int32 of one shape)")
                return
            setattr(self, name, torch.empty_like(value, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if all(value is not None for value in found.values()):
            errors += [f"{prefix}{reason}" for reason in self._faults()]

    def _faults(self) -> list[str]:
        """What is wrong with the values."""
        try:
            rows = self.tables().rows
        except UsageError as error:
            return [str(error)]
        faults = []
        if self.z_medians.shape != (rows,):
            faults.append(f"z_medians: {len(self.z_medians)} values for {rows} rows")
        if bool((self.thresholds.long().diff() < 0).any()):
            faults.append("thresholds: not ascending")
        return faults


class RateTables(IntegerTables):
    """`IntegerTables` of a codec that multiplies its latents by a gain that is chosen per picture.

    No decoder multiplies scales by it: what they are compared with was divided by it, once.

    Args:
        rates: how many gains the codec has.

    Attributes:
        thresholds: ``[S, R - 1]`` int32, a row per rate, each ascending, in 2^-16.
    """

    TABLES = (*IntegerTables.TABLES, "thresholds")

    def __init__(self, rates: int) -> None:
        super().__init__()
        self._rates = rates

    def _faults(self) -> list[str]:
        faults = super()._faults()
        if len(self.thresholds) != self._rates:
            faults.append(f"thresholds: {len(self.thresholds)} rows for {self._rates} rates")
        return faults


class VideoTables(IntegerTables):
    """`IntegerTables` of one model of a video codec, and exponents that no layer's scale gives.

    Attributes:
        z_cdf: ``[Q * C, L]`` int32; row = rate * C + channel. The medians are zeros.
        thresholds: ``[R]`` int32: first the scale up to which nothing is coded, or `NEVER`.
        exponents: ``[E]`` int32, of what the factors of a rate multiply: an intra model's synthesis; an inter model's
            decoder and the network that makes its picture.
    """

    NAMES = (*IntegerTables.NAMES, "exponents")

    exponents: Tensor


class SteppedTables(IntegerTables):
    """`IntegerTables` of one model of a video codec whose qualities are global quantisation steps, and these.

    Attributes:
        z_cdf: a row per channel; of predicted frames those of the motion's hyper-latent come before the other's.
        steps: ``[Q, S]`` int32, in 1/100: of each quality that of the latent; of predicted frames that of the motion's
            latent, then that of the latent.
    """

    NAMES = (*IntegerTables.NAMES, "steps")
    TABLES = (*IntegerTables.TABLES, "steps")

    steps: Tensor

    def _faults(self) -> list[str]:
        faults = super()._faults()
        if self.steps.numel() == 0 or not bool((self.steps > 0).all()):
            faults.append("steps: not all positive, or none")
        return faults


def empty_tables(model: nn.Module) -> IntegerTables:
    """What a picture codec stores, yet to be filled or loaded."""
    return RateTables(len(model.Gain)) if hasattr(model, "Gain") else IntegerTables()


def in_fixed_point(values: Tensor) -> Tensor:
    """``floor(65536 x)`` as int32, exactly; what int32 does not hold becomes its end, minus infinity so `NEVER`.

    A fixed-point number, all of which are in [-2^30, 2^30), is above x if and only if it is above this.

    Args:
        values: float32 or float64, no NaN.
    """
    scaled = (values.detach().cpu().double() * 2**FRACTION_BITS).floor()
    return scaled.clamp(NEVER, 2**31 - 1).to(torch.int32)
