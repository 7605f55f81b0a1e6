"""Binomial intervals against scipy, and the certificate against a linear rule solved by hand."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from synthlm.analysis.certificate import Certificate, certify, clopper_pearson
from synthlm.weights import Entry, Layout

PHI = scipy.stats.norm


def test_intervals_are_scipys_exact_ones() -> None:
    rng = np.random.default_rng()
    for _ in range(200):
        trials = int(rng.integers(1, 400))
        successes = int(rng.choice([0, trials, rng.integers(0, trials + 1)]))
        gamma = float(rng.uniform(0.001, 0.3))
        wanted = scipy.stats.binomtest(successes, trials).proportion_ci(1 - gamma, method="exact")
        assert clopper_pearson(successes, trials, gamma) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes in {trials} trials"):
        clopper_pearson(successes, trials)


class Halfspaces:
    """A position x is right when x . w > 0: under noise its chance is Phi(x . w / (sigma |x|)), exactly."""

    slices = ("all",)

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.layout = Layout([Entry("w", (x.shape[1],), "aux")])
        self.counts = (len(x),)
        self.position_slice = torch.zeros(len(x), dtype=torch.int64)
        self.position_item = torch.arange(len(x))
        self.seen: list[Tensor] = []

    def trials(self, flat: Tensor) -> Tensor:
        self.seen.append(flat)
        return flat @ self.x.T > 0

    def chance(self, flat: Tensor, sigma: float) -> float:
        """E over noise and positions."""
        return float(PHI.cdf((self.x @ flat / self.x.norm(dim=1) / sigma).numpy()).mean())

    def losses(self, flat: Tensor) -> Tensor:
        raise AssertionError("not asked for")

    loss = accuracies = accuracy = scores = log_probabilities = losses

    def inputs(self, flat: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        raise AssertionError("not asked for")


def test_trials_have_their_own_noise_and_example_and_estimate_the_chance(generator: torch.Generator) -> None:
    x = torch.randn(7, 5, generator=generator)
    base = torch.randn(5, generator=generator)
    objective = Halfspaces(x)
    found = certify(objective, base, 0.8, 6000, generator, gamma=1e-6, width=64)
    truth = objective.chance(base, 0.8)
    assert found.low <= truth <= found.high
    assert found.estimate == pytest.approx(truth, abs=0.05)
    noise = torch.cat(objective.seen) - base
    assert len(noise) == 6000
    assert len(noise.unique(dim=0)) == 6000
    assert noise.std().item() == pytest.approx(0.8, rel=0.05)


def test_the_bound_is_attained_by_one_halfspace_and_kept_by_all_others(generator: torch.Generator) -> None:
    """For one half-space the worst move is against x: there the exact certificate is an equality."""
    x = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    base = torch.randn(6, generator=generator, dtype=torch.float64) + x[0]
    objective, sigma = Halfspaces(x), 0.7
    p = objective.chance(base, sigma)
    exact = Certificate(sigma, 0, 1, p, p)
    away = -x[0] / x[0].norm()
    for distance in (0.1, 1.0, 3.0):
        bound = exact.bound(distance)
        assert objective.chance(base + distance * away, sigma) == pytest.approx(bound, rel=1e-9)
        for _ in range(50):
            step = torch.randn(6, generator=generator, dtype=torch.float64)
            moved = base + distance * step / step.norm()
            assert objective.chance(moved, sigma) >= bound - 1e-12
        assert exact.weak_bound(distance) <= bound + 1e-12
        assert exact.radius(bound) == pytest.approx(distance)


def test_the_certificate_holds_for_a_mixture_of_examples(generator: torch.Generator) -> None:
    """Averaging examples with different chances does not break it (Phi o Phi^-1 - c is not convex)."""
    for _ in range(20):
        x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        base = 2 * torch.randn(3, generator=generator, dtype=torch.float64)
        objective, sigma = Halfspaces(x), 0.5
        p = objective.chance(base, sigma)
        exact = Certificate(sigma, 0, 1, p, p)
        for distance in (0.2, 1.0):
            steps = torch.randn(50, 3, generator=generator, dtype=torch.float64)
            for step in steps:
                moved = base + distance * step / step.norm()
                assert objective.chance(moved, sigma) >= exact.bound(distance) - 1e-9


def test_radii_and_bounds_are_inverse_and_weak_ones_weaker() -> None:
    rng = np.random.default_rng()
    for _ in range(100):
        low = float(rng.uniform(0.3, 0.999))
        found = Certificate(float(rng.uniform(0.01, 3)), 0, 1, low, 1.0)
        least = float(rng.uniform(0.05, low))
        assert found.bound(found.radius(least)) == pytest.approx(least)
        assert found.weak_bound(found.weak_radius(least)) == pytest.approx(least)
        assert found.weak_radius(least) <= found.radius(least) * (1 + 1e-12)
    assert found.bound(0) == pytest.approx(found.low)
    assert found.radius(0.9999) == 0
    assert found.weak_bound(1e9) == 0


def test_no_success_certifies_nothing() -> None:
    nothing = Certificate(1.0, 0, 10, *clopper_pearson(0, 10))
    assert nothing.bound(0.1) == 0
    assert nothing.radius(0.5) == 0
    assert math.isfinite(nothing.weak_radius(0.5))
