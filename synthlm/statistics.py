"""Intervals and tests over seeds: BCa bootstrap for what is shown, Student's t for what is decided.

With three to five seeds a bootstrap interval of the mean covers too rarely (at n = 3 it can never leave the
range of the values), so verdicts rest on the paired t interval, and figures name the interval they show.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from synthlm.seeds import numpy_generator

LEVEL = 0.95
RESAMPLES = 1999
CHUNK = 4_000_000  # resampled numbers held at once


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` seeds with an interval of confidence ``LEVEL``; ``low`` and ``high`` are NaN without
    one.

    ``method``: ``bca``, ``percentile`` (BCa undefined for these values), ``range`` (all values equal), ``t``,
    or ``none`` (fewer than two values).
    """

    mean: float
    low: float
    high: float
    n: int
    method: str


@dataclass(frozen=True)
class Paired:
    """A paired difference over seeds: its t interval, and the two-sided p of the paired t test (NaN when n <
    2)."""

    interval: Interval
    p: float


def bootstrap_interval(values: ArrayLike) -> Interval:
    """Bootstrap interval of the mean of ``values`` [seed], non-finite ones left out.

    BCa (Efron 1987, scipy) with a fixed generator, so equal values (in any order) give equal intervals.
    """
    row = bootstrap_table(np.asarray(values, dtype=float)[None, :]).iloc[0]
    return Interval(
        float(row["mean"]), float(row["low"]), float(row["high"]), int(row["n"]), str(row["interval"])
    )


def bootstrap_table(values: NDArray[np.float64]) -> pd.DataFrame:
    """Intervals of many means at once: ``values`` [cell, seed] -> columns mean, low, high, n, interval.

    Non-finite values count as missing. A row's result does not depend on the other rows or on the order of
    seeds.
    """
    finite = np.isfinite(values)
    ordered = np.sort(np.where(finite, values, np.inf), axis=1)  # missing values go last
    count = finite.sum(axis=1)
    mean, low, high = (np.full(len(values), np.nan) for _ in range(3))
    method = np.full(len(values), "none", dtype=object)
    for n in np.unique(count[count > 0]):
        rows = np.flatnonzero(count == n)
        data = ordered[rows, :n]
        mean[rows] = data.mean(axis=1)
        if n > 1:
            low[rows], high[rows], method[rows] = _bootstrap(data)
    return pd.DataFrame({"mean": mean, "low": low, "high": high, "n": count, "interval": method.astype(str)})


def _bootstrap(data: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
    """Low, high and method per row of ``data`` [cell, seed], all finite, at least two seeds."""
    low, high = data[:, 0].copy(), data[:, -1].copy()
    method = np.full(len(data), "range", dtype=object)
    spread = np.flatnonzero(high > low)
    size = max(1, CHUNK // (RESAMPLES * data.shape[1]))
    for start in range(0, len(spread), size):
        rows = spread[start : start + size]
        low[rows], high[rows] = _scipy_bootstrap(data[rows], "BCa")
        method[rows] = "bca"
        undefined = rows[~np.isfinite(low[rows] + high[rows])]
        if len(undefined):
            low[undefined], high[undefined] = _scipy_bootstrap(data[undefined], "percentile")
            method[undefined] = "percentile"
    return low, high, method


def _scipy_bootstrap(
    data: NDArray[np.float64], method: Literal["BCa", "percentile"]
) -> tuple[NDArray, NDArray]:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # undefined BCa intervals come back as NaN and are handled by the caller
        found = scipy.stats.bootstrap(
            (data,),
            # sorted, so that resamples of the same values tie exactly, whatever the rounding of a sum's order
            lambda sample, axis: np.sort(sample, axis=axis).mean(axis=axis),
            axis=-1,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            method=method,
            rng=numpy_generator(0, "bootstrap"),
        )
    return np.asarray(found.confidence_interval.low), np.asarray(found.confidence_interval.high)


def paired_difference(differences: ArrayLike) -> Paired:
    """Paired t: ``differences`` [seed] -> mean, interval mean +- t(n-1) * sd / sqrt(n), two-sided p against
    zero.

    Non-finite differences are left out. Differences that are all equal have a zero-width interval (method
    ``range``) and p = 0, or 1 when they are all zero: there is nothing to estimate a spread from.
    """
    values = np.asarray(differences, dtype=float)
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return Paired(Interval(math.nan, math.nan, math.nan, 0, "none"), math.nan)
    mean = float(values.mean())
    if n == 1:
        return Paired(Interval(mean, math.nan, math.nan, 1, "none"), math.nan)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return Paired(Interval(mean, mean, mean, n, "range"), 0.0 if abs(mean) > 1e-12 else 1.0)
    half = float(scipy.stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * error
    p = float(2 * scipy.stats.t.sf(abs(mean / error), n - 1))
    return Paired(Interval(mean, mean - half, mean + half, n, "t"), p)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979); NaN stays NaN and does not count as a test."""
    values = np.asarray(p, dtype=float)
    corrected = np.full(len(values), np.nan)
    tested = np.flatnonzero(np.isfinite(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors)) if len(order) else []
    return [float(value) for value in corrected]
