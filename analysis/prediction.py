"""How well a number told of each model predicts an outcome: rank correlation, R^2 on unseen arms, intervals.

All functions take numpy arrays over ``model``. A predictor is any monotone cause: it is used through its ranks, or
through the best non-decreasing curve (isotonic regression), so that its scale never matters.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.optimize
from numpy.typing import ArrayLike, NDArray

from synthlm.seeds import numpy_generator
from synthlm.statistics import LEVEL

Floats = NDArray[np.float64]

RESAMPLES = 200
SCORES = ("spearman", "partial", "r2")
"""Names of the scores: :func:`rank_correlation`, :func:`partial_rank_correlation`, :func:`unseen_r2`."""


def ranks(values: ArrayLike) -> Floats:
    """Ranks from 1, ties at their mean rank (as scipy's, many times faster on short arrays)."""
    listed = np.asarray(values, dtype=float)
    order = np.argsort(listed, kind="stable")
    first, count = _runs(listed[order])
    out = np.empty(len(listed))
    out[order] = np.repeat(first + (count + 1) / 2, count)
    return out


def _runs(ascending: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each distinct value begins, and how often it occurs."""
    new = np.empty(len(ascending), dtype=bool)
    new[:1] = True
    np.greater(ascending[1:], ascending[:-1], out=new[1:])
    first = np.flatnonzero(new)
    return first, np.diff(first, append=len(ascending))


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN when either does not vary."""
    return _correlation(ranks(x), ranks(y))


def partial_rank_correlation(x: ArrayLike, y: ArrayLike, given: ArrayLike) -> float:
    """Spearman's correlation of x and y with the ranks of ``given`` regressed out of both (ordinary least squares)."""
    return _partial(ranks(x), ranks(y), ranks(given))


def _partial(x: Floats, y: Floats, given: Floats) -> float:
    held = given - given.mean()
    spread = float(held @ held)

    def residual(values: Floats) -> Floats:
        values = values - values.mean()
        left = values - (float(held @ values) / spread) * held if spread > 0 else values
        # what ``given`` explains to the last digit leaves nothing to correlate
        return left if float(left @ left) > 1e-12 * float(values @ values) else np.zeros_like(left)

    return _correlation(residual(x), residual(y))


def _correlation(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size > 0 else math.nan


def isotonic(x: Floats, y: Floats) -> Callable[[Floats], Floats]:
    """The non-decreasing curve through (x, y) of least squared error: linear between the x seen, flat beyond them.

    Equal x count as one point at their mean. Solved by scipy (pool adjacent violators).
    """
    order = np.argsort(x, kind="stable")
    places, fitted = _isotonic_of_sorted(x[order], y[order])
    return lambda new: np.interp(new, places, fitted)


def _isotonic_of_sorted(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Distinct values of ascending x, and the curve there."""
    first, count = _runs(x)
    means = np.add.reduceat(y, first) / count
    return x[first], scipy.optimize.isotonic_regression(means, weights=count).x


def unseen_r2(x: ArrayLike, y: ArrayLike, group: ArrayLike) -> float:
    """R^2 on groups left out: 1 - squared error of the isotonic curve fitted to all other groups over that of
    their mean.

    1 is perfect, 0 no better than the other groups' mean, below 0 worse than it. NaN with fewer than two groups,
    or when the mean has no error.
    """
    order = np.argsort(x, kind="stable")
    x, y = np.asarray(x, dtype=float)[order], np.asarray(y, dtype=float)[order]
    codes = np.unique(np.asarray(group)[order], return_inverse=True)[1].ravel()
    groups = int(codes.max(initial=-1)) + 1
    if groups < 2:
        return math.nan
    error = blind = 0.0
    for left_out in range(groups):
        out = codes == left_out
        fit = np.interp(x[out], *_isotonic_of_sorted(x[~out], y[~out]))
        error += float(np.square(y[out] - fit).sum())
        blind += float(np.square(y[out] - y[~out].mean()).sum())
    return 1 - error / blind if blind > 0 else math.nan


def scores(x: ArrayLike, y: ArrayLike, given: ArrayLike, group: ArrayLike) -> dict[str, float]:
    """All SCORES of one predictor x for the outcome y. ``given``: what is held constant in ``partial``."""
    a, b = ranks(x), ranks(y)
    return {
        "spearman": _correlation(a, b),
        "partial": _partial(a, b, ranks(given)),
        "r2": unseen_r2(x, y, group),
    }


def score_predictors(
    models: pd.DataFrame,
    predictors: Sequence[str],
    outcome: str,
    *,
    given: str,
    group: str,
    cluster: Sequence[str],
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Scores of each predictor over ``models`` (one row a model), with bootstrap intervals over clusters.

    Models of one cluster (say one base and seed) share their past, so whole clusters are resampled: intervals are
    percentile intervals of confidence ``statistics.LEVEL``; all predictors see the same resamples. Models where
    the outcome, ``given`` or the predictor is missing or not finite are left out for that predictor.

    Returns:
        Columns predictor, score, value, low, high (NaN with fewer than two clusters), n (models), clusters.
    """
    clusters = models.groupby(list(cluster), sort=True).ngroup().to_numpy()
    count = int(clusters.max(initial=-1)) + 1
    generator = numpy_generator(0, "clusters")
    draws = [generator.integers(count, size=count) for _ in range(resamples)] if count > 1 else []
    records = []
    for predictor in predictors:
        wanted = [predictor, outcome, given]
        finite = np.isfinite(models[wanted].to_numpy(dtype=float)).all(1)
        used = models[finite]
        rows_of = [np.flatnonzero(clusters[finite] == i) for i in range(count)]
        columns = [used[name].to_numpy(dtype=float) for name in wanted]
        groups = pd.factorize(used[group])[0]

        def at(
            rows: NDArray[np.int64], columns: list[Floats] = columns, groups: NDArray = groups
        ) -> Mapping[str, float]:
            x, y, held = (values[rows] for values in columns)
            return scores(x, y, held, groups[rows]) if len(rows) > 2 else dict.fromkeys(SCORES, math.nan)

        value = at(np.arange(len(used)))
        found = [at(np.concatenate([rows_of[i] for i in draw])) for draw in draws]
        tail = (1 - LEVEL) / 2
        for score in SCORES:
            spread = np.array([one[score] for one in found])
            spread = spread[np.isfinite(spread)]
            low, high = np.quantile(spread, [tail, 1 - tail]) if len(spread) else (math.nan, math.nan)
            records.append({
                "predictor": predictor, "score": score, "value": value[score], "low": float(low),
                "high": float(high), "n": len(used), "clusters": sum(len(rows) > 0 for rows in rows_of),
            })  # fmt: skip
    columns = ["predictor", "score", "value", "low", "high", "n", "clusters"]
    return pd.DataFrame(records, columns=columns)
