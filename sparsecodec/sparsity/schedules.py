"""Settings and schedules of the trained masks."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from torch import Tensor

from sparsecodec.errors import UsageError

STEEPNESS = 10.0  # of the sigmoid of `Method.AUTOSPARSE`


class Method(enum.Enum):
    """What a masked filter receives of its gradient."""

    GRADIENT_DECAY = "gradient_decay"  # 1 up to t0, then down to 0 at t1
    STE = "ste"  # all of it until the masks are frozen
    AUTOSPARSE = "autosparse"  # from the first step on less, along a sigmoid, to 0 at t1 (after arXiv 2304.06941)
    HARD = "hard"  # nothing


class Penalty(enum.Enum):
    """What drives the smallest masks of a group to zero, per channel; see `MaskDecay`."""

    PSI = "psi"  # m^2 / (m^2 + e): strong on small masks, nothing on large ones
    L1 = "l1"  # |m|
    L2 = "l2"  # m^2
    GROUP_LASSO = "group_lasso"  # L2 norm of the masked filters, in units of the group's mean


class ApplyTo(enum.Enum):
    """Where beta acts. Adam divides a constant factor out of a gradient: with it only `UPDATE` follows the schedule."""

    GRADIENT = "gradient"
    UPDATE = "update"


@dataclass(frozen=True)
class DecayConfig:
    """Settings of `GradientDecay`; JSON-able values.

    Attributes:
        sparsity: fraction of the counted MACs to remove.
        t0: step from which beta decays.
        t1: step at which beta is 0 and the masks are frozen.
        ramp: steps over which the target rises to `sparsity` (cubic, fast at first); 0 = at once.
        temperature: of the sigmoid that makes the sparsity differentiable, in units of a space's mean score.
        theta: initial threshold, as a fraction of a space's largest score; less where the smallest score lies below.
        round_to: kept widths are multiples of it in the second half of beta's decay, and once frozen.
        p: norm of the scores.
        schedule: "cosine" or "linear".
    """

    sparsity: float
    t0: int
    t1: int
    ramp: int = 0
    temperature: float = 0.4
    theta: float = 0.1
    round_to: int = 1
    p: float = 2.0
    schedule: str = "cosine"
    method: str = Method.GRADIENT_DECAY.value
    apply_to: str = ApplyTo.UPDATE.value

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise UsageError(f"sparsity={self.sparsity} (needs a fraction between 0 and 1)")
        if not 0 <= self.t0 < self.t1 or not 0 <= self.ramp <= self.t1:
            raise UsageError(f"t0={self.t0}, t1={self.t1}, ramp={self.ramp} (needs 0 <= t0 < t1 and ramp <= t1)")
        if self.round_to < 1:
            raise UsageError(f"round_to={self.round_to} (needs at least 1)")
        for name in ("temperature", "p"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}={getattr(self, name)} (needs a positive number)")
        if not 0 <= self.theta < 1:
            raise UsageError(f"theta={self.theta} (needs 0 <= theta < 1)")
        for name, value, accepted in (
            ("method", self.method, [m.value for m in Method]),
            ("apply_to", self.apply_to, [a.value for a in ApplyTo]),
            ("schedule", self.schedule, ["cosine", "linear"]),
        ):
            if value not in accepted:
                raise UsageError(f"{name}={value!r} (needs one of {', '.join(accepted)})")

    @property
    def rounding(self) -> int:
        """Step from which kept widths are whole tiles; masked filters still learn, and the thresholds see the MACs."""
        return (self.t0 + self.t1 + 1) // 2

    def beta(self, step: int) -> float:
        """Share of its gradient that a masked filter receives at `step`."""
        if step >= self.t1 or self.method == Method.HARD.value:
            return 0.0
        if self.method == Method.AUTOSPARSE.value:
            return _sigmoid_decay(step / self.t1)
        if step <= self.t0 or self.method == Method.STE.value:
            return 1.0
        done = (step - self.t0) / (self.t1 - self.t0)
        return 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    def target(self, step: int) -> float:
        """MAC reduction asked for at `step`."""
        left = 1 - step / self.ramp if step < self.ramp else 0.0
        return self.sparsity * (1 - left**3)


@dataclass(frozen=True)
class MaskDecayConfig:
    """Settings of `MaskDecay`; JSON-able values.

    Attributes:
        t1: step at which every group has its target width, if need be by force.
        weight: of the penalty at `t1`; it rises linearly from 0.
        penalty: a value of `Penalty`.
        e_start, e_end: width of psi at step 0 and at `t1`, linear in between. psi pushes a mask of 1 only while e is
            large: with 0.165 at e = 0.1, and with 0.002 at e = 0.001. That is why it shrinks no faster at first.
    """

    t1: int
    weight: float = 0.2
    penalty: str = Penalty.PSI.value
    e_start: float = 0.1
    e_end: float = 1e-3

    def __post_init__(self) -> None:
        if self.t1 < 1:
            raise UsageError(f"t1={self.t1} (needs at least 1)")
        if not self.weight > 0:
            raise UsageError(f"weight={self.weight} (needs a positive number)")
        if not 0 < self.e_end <= self.e_start:
            raise UsageError(f"e_start={self.e_start}, e_end={self.e_end} (needs 0 < e_end <= e_start)")
        if self.penalty not in (accepted := [p.value for p in Penalty]):
            raise UsageError(f"penalty={self.penalty!r} (needs one of {', '.join(accepted)})")

    def mu(self, step: int) -> float:
        """Weight of the penalty at `step`."""
        return self.weight * min((step + 1) / self.t1, 1.0)

    def e(self, step: int) -> float:
        """Width of psi at `step`."""
        return self.e_start + (self.e_end - self.e_start) * min(step / self.t1, 1.0)


def psi(m: Tensor, e: float) -> Tensor:
    """``m^2 / (m^2 + e)``, elementwise, in [0, 1); its slope is odd and at most ``0.65 / sqrt(e)``, at ``sqrt(e / 3)``.

    Args:
        m: any shape, floating point.
        e: > 0.
    """
    return m.square() / (m.square() + e)


def _sigmoid_decay(done: float) -> float:
    """1 at 0 and 0 at 1, along a sigmoid around 1/2."""
    first, last, here = (1 / (1 + math.exp(STEEPNESS * (u - 0.5))) for u in (0.0, 1.0, done))
    return (here - last) / (first - last)
