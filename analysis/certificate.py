"""What a score under Gaussian weight noise guarantees for every model within a distance (randomized smoothing).

With ``p = E S(w + noise)`` for a 0/1 score S and noise N(0, sigma^2 I), every v obeys
``E S(v + noise) >= Phi(Phi^-1(p) - ||v - w|| / sigma)`` (Cohen et al. 2019, arXiv 1902.02918, by Neyman-Pearson;
applied to weights after arXiv 2505.17646). The expectation is over examples too: the likelihood ratio depends on the
noise alone. It speaks of the *noised* model v, not of v itself.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import scipy.stats
import torch
from torch import Tensor

from synthlm.analysis.objective import Objective, evaluate_many


def clopper_pearson(successes: int, trials: int, gamma: float = 0.05) -> tuple[float, float]:
    """The exact two-sided interval of a binomial's p at confidence ``1 - gamma`` (Clopper and Pearson 1934).

    Raises:
        ValueError: when there are no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials")
    beta = scipy.stats.beta
    low = float(beta.ppf(gamma / 2, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.isf(gamma / 2, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


@dataclass(frozen=True)
class Certificate:
    """Successes of independent trials at noise ``sigma``; ``low`` and ``high`` bound p with confidence 1 - gamma."""

    sigma: float
    successes: int
    trials: int
    low: float
    high: float

    @property
    def estimate(self) -> float:
        """Share of successes."""
        return self.successes / self.trials

    def bound(self, distance: float) -> float:
        """The least noised score of any model at this l2 distance."""
        return float(scipy.stats.norm.cdf(scipy.stats.norm.ppf(self.low) - distance / self.sigma))

    def radius(self, least: float) -> float:
        """The distance up to which the noised score is at least ``least``; 0 where not even here."""
        apart = scipy.stats.norm.ppf(self.low) - scipy.stats.norm.ppf(least)
        return max(0.0, self.sigma * float(apart))

    def weak_bound(self, distance: float) -> float:
        """As :meth:`bound`, by the largest slope of Phi alone: change <= distance / (sqrt(2 pi) sigma)."""
        return max(0.0, self.low - distance / (math.sqrt(2 * math.pi) * self.sigma))

    def weak_radius(self, least: float) -> float:
        """As :meth:`radius`, from :meth:`weak_bound`."""
        return max(0.0, (self.low - least) * math.sqrt(2 * math.pi) * self.sigma)


def certify(
    objective: Objective,
    base: Tensor,
    sigma: float,
    trials: int,
    generator: torch.Generator,
    gamma: float = 0.05,
    width: int = 8,
) -> Certificate:
    """Estimate p at ``base [param]``: every trial draws its own noise and its own scored position, all independent."""
    positions = torch.randint(len(objective.position_slice), (trials,), generator=generator)

    def noised() -> Iterator[Tensor]:
        for _ in range(trials):
            noise = torch.randn(len(base), generator=generator, dtype=base.dtype).to(base.device)
            yield base + sigma * noise

    done = 0

    def one_each(flat: Tensor) -> Tensor:
        nonlocal done
        chosen = positions[done : done + len(flat)].to(flat.device)
        done += len(flat)
        return objective.trials(flat).gather(1, chosen[:, None])[:, 0].cpu()

    successes = int(evaluate_many(one_each, noised(), width).sum())
    return Certificate(sigma, successes, trials, *clopper_pearson(successes, trials, gamma))
