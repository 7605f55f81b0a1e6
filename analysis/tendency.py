"""Which comes first, rote or rule? Learning curves of both on one logarithmic axis of steps.

The coordinate is ln(1 + step), so that step 0 has a place; curves are straight between evaluations on it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVELS = (0.5, 0.9)
"""Rote recall at which the rule is read off."""


def crossing(steps: ArrayLike, curve: ArrayLike, level: float) -> float:
    """The step at which ``curve`` [step] first reaches ``level``, interpolated in ln(1 + step); NaN if it never does.

    Raises:
        ValueError: unless steps are strictly rising and as many as the curve has points.
    """
    x, y = _curve(steps, curve)
    above = np.flatnonzero(y >= level)
    if not len(above):
        return float("nan")
    first = int(above[0])
    if first == 0 or not np.isfinite(y[first - 1]):
        return float(np.expm1(x[first]))
    share = (level - y[first - 1]) / (y[first] - y[first - 1])
    return float(np.expm1(x[first - 1] + share * (x[first] - x[first - 1])))


def value_at(steps: ArrayLike, curve: ArrayLike, step: float) -> float:
    """``curve`` at a step, interpolated in ln(1 + step); NaN for a NaN step or one outside the curve.

    Raises:
        ValueError: as :func:`crossing`.
    """
    x, y = _curve(steps, curve)
    at = np.log1p(step)
    # a crossing found in floating point may lie an ulp outside
    if not x[0] - 1e-9 <= at <= x[-1] + 1e-9:
        return float("nan")
    return float(np.interp(at, x, y))


@dataclass(frozen=True)
class Tendency:
    """One run's tendency to learn by rote before it finds the rule.

    fitted: step at which rote recall reaches each level of ``LEVELS``. rule_at: held-out rule accuracy at that moment;
    smaller is more rote. area: mean over ln(1 + step) of rote recall minus rule accuracy, -1..1; larger is more rote.
    NaN where recall never reaches the level.
    """

    fitted: tuple[float, ...]
    rule_at: tuple[float, ...]
    area: float


def tendency(steps: ArrayLike, rote: ArrayLike, rule: ArrayLike) -> Tendency:
    """The tendency index of one run from its curves [step]: rote recall (training) and rule accuracy (held out).

    Our definition (science: claim C7). The area is exact for the piecewise linear curves (trapezoids) and is divided by
    the length of the axis, so runs of one length compare.

    Raises:
        ValueError: as :func:`crossing`.
    """
    x, rote_y = _curve(steps, rote)
    _, rule_y = _curve(steps, rule)
    gap = rote_y - rule_y
    area = float(np.trapezoid(gap, x) / (x[-1] - x[0])) if len(x) > 1 else float("nan")
    fitted = tuple(crossing(steps, rote, level) for level in LEVELS)
    return Tendency(fitted, tuple(value_at(steps, rule, step) for step in fitted), area)


@dataclass(frozen=True)
class Forgetting:
    """What is left of a batch that was seen once, ``steps`` after it.

    steps: since the injection, the first is 0. retained: (recall - before) / (peak - before) [step], 1 at the peak.
    peak: recall right after the injection. before: recall just before it. baseline: the smallest retained share.
    half_life: first step at which half is left, NaN if more than half is left to the end.
    """

    steps: Floats
    retained: Floats
    peak: float
    before: float
    baseline: float
    half_life: float


def forgetting(steps: ArrayLike, recall: ArrayLike, injected: float) -> Forgetting:
    """The forgetting curve of a batch injected once at step ``injected``, from its recall [step].

    The peak is read at the first evaluation at or after the injection, ``before`` at the last one before it (0 when
    there is none). Source: forgetting curves and the forgetting baseline of arXiv 2205.10770; subtracting what was
    known before is ours.

    Raises:
        ValueError: when nothing was evaluated at or after the injection, or the injection taught nothing.
    """
    at = np.asarray(steps, dtype=np.float64)
    _, y = _curve(steps, recall)
    after = np.flatnonzero(at >= injected)
    if not len(after):
        raise ValueError(f"injected: no evaluation at or after step {injected}")
    first = int(after[0])
    before = float(y[first - 1]) if first else 0.0
    peak = float(y[first])
    if not peak > before:
        raise ValueError(f"recall: {peak} after the injection is no more than {before} before it")
    retained = (y[first:] - before) / (peak - before)
    since = at[first:] - at[first]
    return Forgetting(
        since, retained, peak, before, float(retained.min()), crossing(since, 1 - retained, 0.5)
    )


@dataclass(frozen=True)
class Corruption:
    """Held-out regular items that the exceptions spoilt.

    share: items answered with something else than the rule. control: the same share of a model trained on the same
    items without exceptions. excess: share minus control. n: items.
    """

    share: float
    control: float
    excess: float
    n: int


def corruption(answer: ArrayLike, rule: ArrayLike, control: ArrayLike) -> Corruption:
    """Compare two models' answers on held-out regular items with the rule's.

    Args:
        answer: tokens ``[item, position]`` of the model that has fitted the exceptions.
        rule: the rule's answers, same shape.
        control: answers of the control, same shape. Without a control a rule only half learnt would be taken for
            corruption.

    Our definition (science section 8).

    Raises:
        ValueError: when the shapes differ or there is no item.
    """
    given, truth, other = (np.asarray(each) for each in (answer, rule, control))
    if not given.shape == truth.shape == other.shape or given.ndim != 2 or not len(given):
        raise ValueError(
            f"answers {given.shape}, rule {truth.shape}, control {other.shape}: all must be [item, position]"
        )
    share, base = (float((each != truth).any(1).mean()) for each in (given, other))
    return Corruption(share, base, share - base, len(given))


def regularized(answer: ArrayLike, rule: ArrayLike) -> Floats:
    """``[..., item]`` 1 where an exception is answered as the rule would (over-regularization), else 0.

    ``answer [..., item, position]``, ``rule [item, position]``: what the rule, without exceptions, says.
    """
    return (np.asarray(answer) == np.asarray(rule)).all(-1).astype(np.float64)


def _curve(steps: ArrayLike, curve: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(curve, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"steps {x.shape} and curve {y.shape} must be two equally long lists")
    if (x < 0).any() or (np.diff(x) <= 0).any():
        raise ValueError("steps must be at least 0 and strictly rising")
    return np.log1p(x), y
