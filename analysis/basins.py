"""Basins: how far weights can move before a score falls, along random, worst and finetuning directions.

Sizes are per coordinate: at ``sigma`` a direction d of length sqrt(number of parameters) is walked to ``w + sigma d``.
So the three cases of arXiv 2505.17646 lie on one axis: most-case d ~ N(0, I), not normalized (its code); worst-case
``||d||^2 = `` number of parameters, here sought by projected ascent over the whole ball (a secondary account of the
paper); finetuning-case the update rescaled to that length (its code). A noise of one sigma for all parameters is not
invariant to rescaling them; ``directions.times_rms`` gives draws whose sigma is relative to each tensor's own size.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthlm.analysis import landscape
from synthlm.analysis.ascent import EuclideanBall, worst_case
from synthlm.analysis.landscape import Scores
from synthlm.analysis.objective import Objective
from synthlm.seeds import numpy_generator

LEVEL = 0.95
RESAMPLES = 999

Bound = Literal["", "at least", "at most"]


@dataclass(frozen=True)
class Profile:
    """Scores at ``centre`` ([slice]) and around it ([direction, sigma, slice]), ``sigmas`` ascending."""

    sigmas: tuple[float, ...]
    centre: Scores
    scores: Scores

    def falls(self, measure: Literal["loss", "accuracy"]) -> NDArray[np.float64]:
        """``[direction, sigma, slice]``: rise of the loss, or fall of the accuracy, from the centre."""
        here = self.scores.loss if measure == "loss" else -self.scores.accuracy
        there = self.centre.loss if measure == "loss" else -self.centre.accuracy
        return (here - there).numpy()


@dataclass(frozen=True)
class Width:
    """A basin's width with a bootstrap interval over ``n`` directions (NaN ends for one direction).

    ``bound``: ``at least`` when the score never fell by the tolerance on the grid (the value is the last sigma), ``at
    most`` when it had at the first sigma (the value is that one), else empty. The ends of the interval are cut off at
    the grid alike.
    """

    value: float
    low: float
    high: float
    n: int
    bound: Bound


def random_profile(
    objective: Objective, base: Tensor, draws: Tensor, sigmas: Sequence[float], width: int = 8
) -> Profile:
    """Scores at ``base + sigma * draw`` for each of ``draws [direction, param]``: the most-case basin.

    Also the finetuning case, with updates of length sqrt(param) (``directions.of_length``) for draws.
    """
    sigmas = sorted(sigmas)
    return Profile(
        tuple(sigmas),
        _centre(objective, base),
        landscape.lines(objective, base, draws, sigmas, width),
    )


def worst_profile(
    objective: Objective,
    base: Tensor,
    sigmas: Sequence[float],
    generator: torch.Generator,
    steps: int = 10,
    starts: int = 1,
    width: int = 8,
) -> Profile:
    """Scores at the worst point found within the l2 ball of radius ``sigma * sqrt(param)``, one direction.

    Ascent climbs the mean loss over all scored positions. A smaller ball lies within a larger one, so what is given for
    a sigma is the highest loss, and apart from it the lowest accuracy, found up to there.
    """
    sigmas = sorted(sigmas)
    radii = torch.tensor(sigmas, dtype=base.dtype, device=base.device) * math.sqrt(len(base))
    found, _ = worst_case(objective, base, EuclideanBall(radii), len(sigmas), generator, steps, starts, width)
    scores = landscape.score(objective, base + found, width)
    worst = Scores(scores.loss.cummax(0).values[None], scores.accuracy.cummin(0).values[None])
    return Profile(tuple(sigmas), _centre(objective, base), worst)


def _centre(objective: Objective, base: Tensor) -> Scores:
    one = landscape.score(objective, base[None])
    return Scores(one.loss[0], one.accuracy[0])


def bracketed(
    profile: Callable[[Sequence[float]], Profile],
    sigmas: Sequence[float],
    fallen: Callable[[Profile], tuple[bool, bool]],
    rounds: int = 4,
) -> Profile:
    """A profile on a geometric grid that is lengthened until it holds what is sought.

    Args:
        profile: gives the profile at any sigmas.
        sigmas: the first grid, at least two; it is lengthened by its own length and ratio.
        fallen: whether a profile's scores have fallen enough at its first sigma, and at its last.
        rounds: how often the grid is lengthened at most.

    Returns:
        The profile on every sigma that was tried.
    """
    grid = sorted(sigmas)
    ratio, count = grid[1] / grid[0], len(grid)
    found = profile(grid)
    for _ in range(rounds):
        first, last = fallen(found)
        if last and not first:
            break
        start = found.sigmas[0] * ratio**-count if first else found.sigmas[-1] * ratio
        found = joined(found, profile([start * ratio**i for i in range(count)]))
    return found


def joined(a: Profile, b: Profile) -> Profile:
    """Two profiles of the same directions around one centre, as one."""
    sigmas = [*a.sigmas, *b.sigmas]
    order = torch.tensor(sorted(range(len(sigmas)), key=lambda i: sigmas[i]))
    loss = torch.cat([a.scores.loss, b.scores.loss], dim=1)[:, order]
    accuracy = torch.cat([a.scores.accuracy, b.scores.accuracy], dim=1)[:, order]
    return Profile(tuple(sorted(sigmas)), a.centre, Scores(loss, accuracy))


def width(sigmas: Sequence[float], falls: NDArray[np.float64], tolerance: float) -> Width:
    """The largest sigma up to which the mean over directions falls by at most ``tolerance``: the first crossing.

    Args:
        sigmas: ``[sigma]`` ascending.
        falls: ``[direction, sigma]`` fall of a score from the centre, as of :meth:`Profile.falls`.

    Returns:
        The crossing, interpolated between neighbouring sigmas (as a power law where both falls are positive: exact for
        a quadratic), and its interval over directions: BCa bootstrap with a fixed generator, or percentile where BCa is
        undefined.
    """
    grid = np.asarray(sigmas, dtype=float)
    n = len(falls)
    value = float(crossing(grid, falls.mean(0), tolerance))
    mean = falls.mean(0)
    bound: Bound = "at most" if mean[0] > tolerance else "at least" if not (mean > tolerance).any() else ""
    if n < 2:
        return Width(value, math.nan, math.nan, n, bound)

    def of(index: NDArray, axis: int = -1) -> NDArray:
        return crossing(grid, falls[np.moveaxis(index.astype(int), axis, -1)].mean(-2), tolerance)

    low, high = math.nan, math.nan
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an undefined BCa interval comes back as NaN
            interval = scipy.stats.bootstrap(
                (np.arange(n),), of, n_resamples=RESAMPLES, confidence_level=LEVEL, method=method,
                vectorized=True, rng=numpy_generator(0, "basin width"),
            ).confidence_interval  # fmt: skip
        low, high = float(interval.low), float(interval.high)
        if math.isfinite(low + high):
            break
    return Width(value, low, high, n, bound)


def crossing(
    sigmas: NDArray[np.float64], falls: NDArray[np.float64], tolerance: float
) -> NDArray[np.float64]:
    """``[...]``: where each of ``falls [..., sigma]`` first exceeds ``tolerance``; cut off at the ends of the grid."""
    above = falls > tolerance
    right = np.where(above.any(-1), above.argmax(-1), len(sigmas) - 1)
    left = np.maximum(right - 1, 0)

    def at(index: NDArray) -> NDArray:
        return np.take_along_axis(falls, index[..., None], -1)[..., 0]

    below, over = at(left), at(right)
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.log(tolerance / below) / np.log(over / below)
        linear = (tolerance - below) / (over - below)
    share = np.where(below > 0, power, linear)
    inside = sigmas[left] * (sigmas[right] / sigmas[left]) ** share
    return np.where(above[..., 0], sigmas[0], np.where(above.any(-1), inside, sigmas[-1]))
