"""Learning-rate schedules: a factor of the peak rate, as a pure function of the step."""

import math
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from synthlm.config import Config


class ScheduleConfig(Config):
    """Shape of the learning rate over a training run.

    Attributes:
        shape: after the warmup, ``constant``; ``linear`` or half a ``cosine`` down to ``final``; or ``wsd``:
            stable, then linear down to ``final`` over the last ``decay_fraction`` of the run
            (warmup-stable-decay).
        warmup_fraction: share of all steps over which the factor grows linearly to 1.
        decay_fraction: share of all steps that ``wsd`` decays over; other shapes do not use it.
        final: the factor at the last step; ``constant`` does not use it.
    """

    shape: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    decay_fraction: float = Field(0.2, gt=0, le=1)
    final: float = Field(0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> "ScheduleConfig":
        if self.shape == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"warmup_fraction {self.warmup_fraction} + decay_fraction {self.decay_fraction} is above 1"
            )
        return self


def factor(step: int, total: int, config: ScheduleConfig) -> float:
    """What the peak learning rate is multiplied by at ``step``, in (0, 1].

    With ``w`` warmup steps the factor is ``(step + 1) / (w + 1)`` before step w and 1 at step w; the shapes
    that decay are at ``final`` at the last step, ``total - 1``.

    Args:
        step: from 0 to ``total - 1``.
        total: number of steps of the run.

    Raises:
        ValueError: when the step lies outside the run.
    """
    if not 0 <= step < total:
        raise ValueError(f"step {step} lies outside a run of {total} steps")
    last = total - 1
    warm = min(round(config.warmup_fraction * total), last)
    if step < warm:
        return (step + 1) / (warm + 1)
    if config.shape == "constant":
        return 1.0
    start = warm
    if config.shape == "wsd":
        start = max(warm, last - max(1, round(config.decay_fraction * total)))
    if step <= start < last:
        return 1.0
    progress = (step - start) / (last - start) if last > start else 1.0
    if config.shape == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    # In this form both ends are exact: 1 at progress 0 and `final` at progress 1.
    return (1 - progress) + config.final * progress


def log_spaced(count: int, steps: int) -> list[int]:
    """At most ``count`` distinct steps from 1 to ``steps``, evenly spaced in log scale, the last included."""
    if count == 0:
        return []
    if count == 1:
        return [steps]
    return sorted({round(step) for step in np.geomspace(1, steps, count)})
