"""When a series moves, and when a model groks: onsets by fixed rules, each looking at the past alone.

The rules are ours; the definition of grokking is the usual one (held-out accuracy of 0.95 that stays).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FACTOR = 2.0
"""A series has moved when it is this factor from its extreme so far."""

HOLD = 3
"""... in so many windows on end."""

GROK_ACCURACY = 0.95
GROK_STAYS = 5
"""Held-out accuracy that counts as grokked, and in how many evaluations on end."""

RISEN = 0.1
"""Held-out accuracy above chance from which generalization has begun."""


def depth(series: ArrayLike, falling: bool = True) -> NDArray[np.float64]:
    """``[..., window]``: how far a positive series has fallen below its maximum so far (or risen above its minimum),
    log10.

    Windows whose value is missing or not positive are skipped (NaN).
    """
    values = np.asarray(series, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.where(values > 0, np.log10(np.where(values > 0, values, 1.0)), np.nan)
    logs = logs if falling else -logs
    highest = np.maximum.accumulate(np.where(np.isnan(logs), -np.inf, logs), axis=-1)
    return np.where(np.isnan(logs), np.nan, highest - logs)


def first_held(condition: ArrayLike, hold: int) -> NDArray[np.int64]:
    """``[..., time] -> [...]``: the first place from which ``condition`` holds ``hold`` times on end; -1 where it never
    does."""
    flags = np.asarray(condition, dtype=bool)
    if flags.shape[-1] < hold:
        return np.full(flags.shape[:-1], -1)
    runs = np.lib.stride_tricks.sliding_window_view(flags, hold, axis=-1).all(-1)
    return np.where(runs.any(-1), runs.argmax(-1), -1)


def onset(
    series: ArrayLike, falling: bool = True, factor: float = FACTOR, hold: int = HOLD
) -> NDArray[np.int64]:
    """``[..., window] -> [...]``: the window at which a move is first known, -1 where there is none.

    That is the last of the first ``hold`` windows on end that lie a ``factor`` from the extreme so far.
    """
    with np.errstate(invalid="ignore"):
        start = first_held(depth(series, falling) >= np.log10(factor), hold)
    return np.where(start >= 0, start + hold - 1, -1)


def grok_step(
    steps: ArrayLike, accuracy: ArrayLike, threshold: float = GROK_ACCURACY, stays: int = GROK_STAYS
) -> float:
    """The first step with held-out accuracy at ``threshold`` that stays for ``stays`` evaluations; NaN when there is
    none."""
    steps, accuracy = np.asarray(steps), np.asarray(accuracy, dtype=float)
    at = int(first_held(accuracy >= threshold, stays))
    return float(steps[at]) if at >= 0 else float("nan")


def rise_step(steps: ArrayLike, accuracy: ArrayLike, chance: float, grokked: float) -> float:
    """The last step before ``grokked`` with held-out accuracy no more than ``RISEN`` above chance; NaN without one.

    What a signal knows by then, it knows before generalization is to be seen.
    """
    steps, accuracy = np.asarray(steps), np.asarray(accuracy, dtype=float)
    low = (accuracy <= chance + RISEN) & (steps < grokked)
    return float(steps[np.flatnonzero(low)[-1]]) if low.any() else float("nan")
