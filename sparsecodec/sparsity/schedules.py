"""Settings and schedules of the trained masks."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from sparsecodec.errors import UsageError


class Method(enum.Enum):
    """What a masked filter receives of its gradient."""

    GRADIENT_DECAY = "gradient_decay"  # 1 up to t0, then down to 0 at t1
    STE = "ste"  # all of it until the masks are frozen
    HARD = "hard"  # nothing


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
        penalty: weight of ``max(0, target - S)^2``.
        temperature: of the sigmoid that makes the sparsity differentiable, in units of a space's mean score.
        theta: initial threshold, as a fraction of a space's largest score.
        round_to: kept widths are multiples of it once frozen.
        p: norm of the scores.
        schedule: "cosine" or "linear".
    """

    sparsity: float
    t0: int
    t1: int
    ramp: int = 0
    penalty: float = 10.0
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
        for name, value, accepted in (
            ("method", self.method, [m.value for m in Method]),
            ("apply_to", self.apply_to, [a.value for a in ApplyTo]),
            ("schedule", self.schedule, ["cosine", "linear"]),
        ):
            if value not in accepted:
                raise UsageError(f"{name}={value!r} (needs one of {', '.join(accepted)})")

    def beta(self, step: int) -> float:
        """Share of its gradient that a masked filter receives at `step`."""
        if step >= self.t1 or self.method == Method.HARD.value:
            return 0.0
        if step <= self.t0 or self.method == Method.STE.value:
            return 1.0
        done = (step - self.t0) / (self.t1 - self.t0)
        return 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    def target(self, step: int) -> float:
        """MAC reduction asked for at `step`."""
        left = 1 - step / self.ramp if step < self.ramp else 0.0
        return self.sparsity * (1 - left**3)
