"""The learning rate: up, level, down. When the clock says that most of the time is spent, the way down begins.

The clock decides one number only, the step at which the rate starts to fall; it is part of the checkpoint. So a run
that was interrupted goes on to the same weights as one that was not.

Source: warm-up, stable, decay with 1 - sqrt: Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond
Fixed Training Durations".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

FALLING: Final = 0.3  # of the time is spent on the way down
OVERTIME: Final = 1.1  # times the minutes asked for: then the run ends, wherever it is


@dataclass(frozen=True, slots=True)
class Plan:
    """``fall_from`` and ``steps`` (all of them) are None until the way down has begun."""

    peak: float
    warmup: int
    fall_from: int | None = None
    steps: int | None = None

    def rate(self, step: int) -> float:
        """For step number ``step``, the first being 0."""
        rising = self.peak * min(1.0, (step + 1) / self.warmup)
        if self.fall_from is None or self.steps is None or step < self.fall_from:
            return rising
        return rising * (1 - math.sqrt((step - self.fall_from) / (self.steps - self.fall_from)))

    def done(self, step: int) -> bool:
        return self.steps is not None and step >= self.steps

    def of(self, steps: int) -> Plan:
        """The same for a number of steps that is known beforehand."""
        return replace(self, fall_from=round(steps * (1 - FALLING)), steps=steps)

    def told(self, step: int, spent_s: float, minutes: float) -> Plan:
        """The plan at ``step``, after ``spent_s`` seconds of training."""
        share = spent_s / (60 * minutes)
        if share >= OVERTIME:
            return replace(self, fall_from=self.fall_from or step, steps=step)
        if self.fall_from is None and share >= 1 - FALLING:
            return replace(self, fall_from=step, steps=step + max(1, round(step * FALLING / (1 - FALLING))))
        return self
