"""Basin widths against the closed forms of a quadratic loss, and interpolation against brute force."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from quadratics import LAYOUT, Quadratic

from synthlm.analysis import basins, directions
from synthlm.analysis.basins import Profile, crossing, width
from synthlm.analysis.landscape import Scores

GRID = [0.01 * 1.3**i for i in range(25)]


def at_minimum(generator: torch.Generator) -> tuple[Quadratic, torch.Tensor]:
    objective = Quadratic(generator)
    objective.centres[1] = objective.centres[0]
    return objective, objective.centres[0]


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# -- most case -------------------------------------------------------------------------------------------------------


def test_a_quadratic_rises_by_half_sigma_squared_trace(generator: torch.Generator) -> None:
    """E L(w + sigma z) - L(w) = sigma^2 tr(H) / 2, away from the minimum too: within five standard errors."""
    objective = Quadratic(generator)
    base = normal(generator, LAYOUT.size)
    draws = directions.gaussian(LAYOUT, 4000, generator, torch.float64)
    profile = basins.random_profile(objective, base, draws, [0.5, 0.1], width=500)
    assert profile.sigmas == (0.1, 0.5)
    rise = profile.falls("loss")
    for k, sigma in enumerate(profile.sigmas):
        for s in range(2):
            wanted = sigma**2 * objective.hessians[s].trace().item() / 2
            error = rise[:, k, s].std(ddof=1) / math.sqrt(len(draws))
            assert abs(rise[:, k, s].mean() - wanted) < 5 * error


def test_the_width_of_a_quadratic_basin_is_exact_for_its_directions(generator: torch.Generator) -> None:
    """At a minimum each direction rises by sigma^2 z^T H z / 2, and a power law is interpolated exactly."""
    objective, base = at_minimum(generator)
    draws = directions.gaussian(LAYOUT, 12, generator, torch.float64)
    profile = basins.random_profile(objective, base, draws, GRID)
    for s in range(2):
        energy = torch.einsum("di,ij,dj->d", draws, objective.hessians[s], draws).mean().item()
        found = width(profile.sigmas, profile.falls("loss")[..., s], tolerance=0.3)
        assert found.value == pytest.approx(math.sqrt(2 * 0.3 / energy), rel=1e-9)
        assert found.low <= found.value <= found.high
        assert found.bound == ""
        assert found.n == 12


def test_the_interval_over_directions_covers_the_width_of_all_directions(generator: torch.Generator) -> None:
    """The true width is sqrt(2 tau / tr H); a 95% interval from 30 directions holds it in about 95% of trials."""
    objective, _ = at_minimum(generator)
    truth = math.sqrt(2 * 0.3 / objective.hessians[0].trace().item())
    hits, spread = 0, 0.0
    for _ in range(60):
        draws = directions.gaussian(LAYOUT, 30, generator, torch.float64)
        energy = torch.einsum("di,ij,dj->d", draws, objective.hessians[0], draws).numpy()
        falls = np.array(GRID) ** 2 * energy[:, None] / 2
        found = width(GRID, falls, 0.3)
        hits += found.low <= truth <= found.high
        spread += (found.high - found.low) / truth / 60
    assert scipy.stats.binom.cdf(hits, 60, 0.93) > 1e-4  # a bootstrap of 30 covers a little under 95%
    assert spread < 0.3


def test_a_relative_sigma_does_not_see_the_scale_of_a_tensor(generator: torch.Generator) -> None:
    objective, base = at_minimum(generator)
    draws = directions.gaussian(LAYOUT, 5, generator, torch.float64)
    plain = basins.random_profile(objective, base, directions.times_rms(LAYOUT, draws, base), GRID)
    stretch = torch.ones(LAYOUT.size, dtype=torch.float64)
    stretch[LAYOUT.slices["b"]] = 7.0
    stretch[LAYOUT.slices["g"]] = 0.1
    objective.centres = objective.centres * stretch
    objective.hessians = objective.hessians / stretch[:, None] / stretch
    base = base * stretch
    scaled = basins.random_profile(objective, base, directions.times_rms(LAYOUT, draws, base), GRID)
    torch.testing.assert_close(scaled.scores.loss, plain.scores.loss)
    absolute = basins.random_profile(objective, base, draws, GRID)
    assert not torch.allclose(absolute.scores.loss, plain.scores.loss)


# -- worst and finetuning case ---------------------------------------------------------------------------------------


def test_the_worst_width_of_a_quadratic_follows_from_its_top_eigenvalue(generator: torch.Generator) -> None:
    objective, base = at_minimum(generator)
    objective.hessians[1] = objective.hessians[0]  # one loss, so that the slices are the total
    objective.spike(generator)
    profile = basins.worst_profile(objective, base, GRID, generator, steps=200, starts=2)
    top = torch.linalg.eigvalsh(objective.hessian)[-1].item()
    found = width(profile.sigmas, profile.falls("loss")[..., 0], 0.3)
    assert found.value == pytest.approx(math.sqrt(2 * 0.3 / (top * LAYOUT.size)), rel=1e-3)
    assert found.n == 1
    assert math.isnan(found.low)
    draws = directions.gaussian(LAYOUT, 8, generator, torch.float64)
    random = basins.random_profile(objective, base, draws, GRID)
    assert found.value < width(random.sigmas, random.falls("loss")[..., 0], 0.3).value


def test_worst_scores_never_recover_as_the_ball_grows(generator: torch.Generator) -> None:
    objective = Quadratic(generator)
    profile = basins.worst_profile(objective, normal(generator, LAYOUT.size), GRID, generator, steps=2)
    assert (np.diff(profile.falls("loss")[0], axis=0) >= 0).all()
    assert (np.diff(profile.falls("accuracy")[0], axis=0) >= 0).all()


def test_an_update_of_the_length_of_noise_reaches_the_finetuned_model(generator: torch.Generator) -> None:
    objective = Quadratic(generator)
    base, tuned = normal(generator, 2, LAYOUT.size)
    ray = directions.of_length((tuned - base)[None], math.sqrt(LAYOUT.size))
    sigma = (tuned - base).norm().item() / math.sqrt(LAYOUT.size)
    profile = basins.random_profile(objective, base, ray, [sigma])
    torch.testing.assert_close(profile.scores.loss[0, 0], objective.losses(tuned[None])[0])
    assert profile.falls("accuracy")[0, 0] == pytest.approx(
        (objective.accuracies(base[None]) - objective.accuracies(tuned[None]))[0].numpy()
    )


# -- crossings -------------------------------------------------------------------------------------------------------


def test_the_first_crossing_is_taken_and_lies_between_its_neighbours() -> None:
    rng = np.random.default_rng()
    sigmas = np.sort(rng.uniform(0.01, 5, 12))
    falls = np.cumsum(rng.normal(0.1, 0.2, (200, 12)), axis=1)
    found = crossing(sigmas, falls, 0.4)
    for row, value in zip(falls, found, strict=True):
        over = [k for k in range(12) if row[k] > 0.4]
        if not over:
            assert value == sigmas[-1]
        elif over[0] == 0:
            assert value == sigmas[0]
        else:
            assert sigmas[over[0] - 1] <= value <= sigmas[over[0]]


def test_a_power_law_is_interpolated_exactly_and_a_negative_fall_linearly_in_log() -> None:
    power, factor = np.random.default_rng().uniform(0.5, 4, 2)
    sigmas = np.array([0.1, 0.4, 0.9, 2.0])
    tolerance = factor * 0.7**power
    assert crossing(sigmas, factor * sigmas**power, tolerance) == pytest.approx(0.7)
    falls = np.array([-0.2, -0.1, 0.3, 0.5])
    assert crossing(sigmas, falls, 0.1) == pytest.approx(math.sqrt(0.4 * 0.9))


def test_widths_off_the_grid_are_bounds() -> None:
    falls = np.array([[0.2, 0.3], [0.4, 0.5]])
    assert width([1.0, 2.0], falls, 0.1).bound == "at most"
    assert width([1.0, 2.0], falls, 0.1).value == 1.0
    assert width([1.0, 2.0], falls, 0.9).bound == "at least"
    assert width([1.0, 2.0], falls, 0.9).value == 2.0


def test_equal_directions_have_an_interval_of_no_length() -> None:
    falls = np.array([[0.0, 0.2, 0.6]] * 5)
    found = width([1.0, 2.0, 3.0], falls, 0.4)
    assert found.low == found.value == found.high


def made(sigmas: list[float]) -> Profile:
    s = torch.tensor(sorted(sigmas), dtype=torch.float64)
    loss = (s**2)[None, :, None]
    zero = torch.zeros(1, dtype=torch.float64)
    return Profile(tuple(s.tolist()), Scores(zero, zero + 1), Scores(loss, 1 - loss))


@pytest.mark.parametrize("tolerance", [1e-6, 0.05, 1e4])
def test_a_grid_is_lengthened_until_the_width_is_inside(tolerance: float) -> None:
    asked: list[float] = []

    def profile(sigmas: list[float]) -> Profile:
        asked.extend(sigmas)
        return made(sigmas)

    def fallen(found: Profile) -> tuple[bool, bool]:
        rise = found.falls("loss")[0, :, 0]
        return bool(rise[0] > tolerance), bool(rise[-1] > tolerance)

    found = basins.bracketed(profile, [0.1, 0.2, 0.4], fallen, rounds=5)
    assert list(found.sigmas) == sorted(asked)
    assert len(set(asked)) == len(asked)
    assert np.allclose(np.diff(np.log(found.sigmas)), np.log(2))
    exact = width(found.sigmas, found.falls("loss")[..., 0], tolerance)
    assert exact.bound == ""
    assert exact.value == pytest.approx(math.sqrt(tolerance))


def test_a_score_that_never_falls_is_given_up_on() -> None:
    found = basins.bracketed(made, [0.1, 0.2], lambda found: (False, False), rounds=2)
    assert len(found.sigmas) == 6
