"""Nulls against brute-force simulation of the updates themselves, against known facts, and on planted edges."""

import secrets

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from synthlm.analysis.edge_statistics import edge_statistics, grams, normalized
from synthlm.analysis.nulls import (
    continued,
    edge_p_values,
    first_order,
    lag_correlation,
    null_statistics,
    p_values,
    random_directions,
    stationary,
    toeplitz,
    trajectory,
    window_nulls,
    wishart,
)

STATISTICS = ("share", "ratio", "ratio_12", "ratio_23", "gap", "g23", "g23_share")


@pytest.fixture
def rng() -> np.random.Generator:
    seed = secrets.randbits(60)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def rows_of(updates: np.ndarray, window: int) -> np.ndarray:
    """``[record, param] -> [record, lag]`` by dot products one by one."""
    rows = np.full((len(updates), window + 1), np.nan)
    for t in range(len(updates)):
        for lag in range(min(window, t) + 1):
            rows[t, lag] = updates[t] @ updates[t - lag]
    return rows


def simulated(
    rng: np.random.Generator, root: np.ndarray, norms: np.ndarray | None, p: int, samples: int
) -> np.ndarray:
    """Gram matrices of updates drawn in full, ``[sample, W, W]``."""
    updates = root @ rng.standard_normal((samples, len(root), p))
    if norms is not None:
        updates *= norms[:, None] / np.linalg.norm(updates, axis=-1, keepdims=True)
    return updates @ np.swapaxes(updates, -1, -2)


@pytest.mark.parametrize("dimension", [5, 7, 60])
def test_nulls_have_the_law_of_full_simulation(rng: np.random.Generator, dimension: int) -> None:
    size, samples = 5, 4000
    norms = rng.uniform(0.2, 2.0, size)
    correlation = first_order(0.6, size)
    root = np.linalg.cholesky(scipy.linalg.toeplitz(correlation))
    pairs = {
        "wishart": (
            wishart(rng, size, dimension, (samples,)),
            simulated(rng, np.eye(size), None, dimension, samples),
        ),
        "directions": (
            random_directions(rng, norms, dimension, samples),
            simulated(rng, np.eye(size), norms, dimension, samples),
        ),
        "stationary": (
            stationary(rng, norms, correlation, dimension, samples),
            simulated(rng, root, norms, dimension, samples),
        ),
    }
    for name, (fast, full) in pairs.items():
        one, other = (null_statistics(gram, dimension) for gram in (fast, full))
        for statistic in STATISTICS:
            p = scipy.stats.ks_2samp(one[statistic], other[statistic]).pvalue
            assert p > 1e-6, (name, statistic)
        for i, j in ((0, 0), (0, 3), (2, 4)):
            if name == "wishart" or i != j:
                assert scipy.stats.ks_2samp(fast[:, i, j], full[:, i, j]).pvalue > 1e-6, (name, i, j)
    np.testing.assert_allclose(np.diagonal(pairs["stationary"][0], axis1=1, axis2=2), [norms**2] * samples)


def test_too_few_dimensions_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="5 vectors in 4 dimensions"):
        wishart(rng, 5, 4)
    with pytest.raises(ValueError, match="rho"):
        first_order(1.0, 4)


def test_measured_correlations_are_repaired_only_where_they_must_be(rng: np.random.Generator) -> None:
    good = first_order(rng.uniform(-0.9, 0.9), 8)
    np.testing.assert_allclose(toeplitz(good), scipy.linalg.toeplitz(good), atol=1e-12)
    repaired = toeplitz(np.array([1.0, 0.9, 0.0, 0.0]))  # no process has this
    assert np.linalg.eigvalsh(scipy.linalg.toeplitz([1.0, 0.9, 0.0, 0.0])).min() < -0.1
    assert np.linalg.eigvalsh(repaired).min() > -1e-12
    np.testing.assert_allclose(np.diag(repaired), 1.0)


def test_a_floor_keeps_the_null_as_noisy_as_the_window(rng: np.random.Generator) -> None:
    """Updates that swing have a mean cosine by lag that no process has; a null without noise would beat any edge."""
    swing = np.cos(np.arange(10) * np.pi)[:, None] * rng.normal(size=50) * 3
    swing[rng.integers(3, 7)] *= -1
    rows = rows_of(swing + rng.normal(size=(10, 50)), 10)
    correlation = lag_correlation(rows)
    assert np.linalg.eigvalsh(scipy.linalg.toeplitz(correlation[0])).min() < 0
    gram = grams(normalized(rows))
    least = np.linalg.eigvalsh(gram[0]).min()
    assert least > 1e-3
    floored = np.linalg.eigvalsh(toeplitz(correlation, [least])[0])
    assert floored.min() > 0.2 * least
    np.testing.assert_allclose(np.diag(toeplitz(correlation, [least])[0]), 1.0)
    drawn = null_statistics(window_nulls(rows, 50, 200, rng)["stationary"], 50)["ratio"]
    assert (
        np.median(drawn)
        < 20
        < np.median(null_statistics(stationary(rng, np.ones((1, 10)), correlation, 50, 200), 50)["ratio"])
    )


@pytest.mark.parametrize(
    "measured", [[1.0, *[0.8] * 9], (0.95 ** np.arange(10)).tolist(), [1.0, 0.9, 0.2, 0.1]]
)
def test_whole_trajectories_keep_the_correlation(rng: np.random.Generator, measured: list[float]) -> None:
    """Also a strong one, and one that no process has in full."""
    window = len(measured)
    rows = np.stack([trajectory(rng, np.ones(120), measured, 50_000, window) for _ in range(6)])
    found = np.nanmean(rows, axis=(0, 1))[:window]
    expected = continued(measured, 120)
    np.testing.assert_allclose(found, expected[:window], atol=0.02)
    assert np.linalg.eigvalsh(scipy.linalg.toeplitz(expected)).min() > 0
    assert np.abs(expected).max() == 1.0
    if window == 10:
        np.testing.assert_allclose(expected[:window], measured, atol=1e-12)


def test_a_first_order_correlation_is_continued_as_its_powers(rng: np.random.Generator) -> None:
    rho = rng.uniform(-0.9, 0.9)
    np.testing.assert_allclose(continued(first_order(rho, 4), 12), first_order(rho, 12), atol=1e-12)


def test_lag_correlation_is_the_mean_cosine_by_lag(rng: np.random.Generator) -> None:
    updates = rng.normal(size=(7, 30)) * rng.uniform(0.1, 9, size=(7, 1)) + 1.0
    unit = updates / np.linalg.norm(updates, axis=1, keepdims=True)
    found = lag_correlation(rows_of(updates, 4))
    assert found.shape == (4, 4)
    for start in range(4):
        for lag in range(4):
            cosines = [unit[start + i] @ unit[start + i + lag] for i in range(4 - lag)]
            assert found[start, lag] == pytest.approx(np.mean(cosines))


@pytest.mark.parametrize("window", [5, 10])
def test_known_facts_of_the_gap_position(rng: np.random.Generator, window: int) -> None:
    """Without any edge the weighted k* is 1 in three windows of four, and always when updates are correlated."""
    p, samples = 20_000, 2000
    free = null_statistics(random_directions(rng, np.ones(window), p, samples), p)
    assert 0.68 < (free["k_mass"] == 1).mean() < 0.92
    tied = null_statistics(stationary(rng, np.ones(window), first_order(0.7, window), p, samples), p)
    assert (tied["k_mass"] == 1).mean() > 0.999


def test_the_plain_gap_position_follows_from_the_lag_correlation(rng: np.random.Generator) -> None:
    """In many dimensions a first-order process has its plain k* at 1, 2 or 3 by its correlation alone."""
    for rho, k in ((0.9, 1), (0.5, 2), (0.3, 3)):
        found = null_statistics(stationary(rng, np.ones(10), first_order(rho, 10), 10**6, 400), 10**6)
        assert (found["k_ratio"] == k).mean() > 0.7


def test_a_falling_step_norm_alone_makes_g23_decline(rng: np.random.Generator) -> None:
    norms = np.geomspace(1, 10**-0.5, 300)
    found = [edge_statistics(trajectory(rng, norms, [1.0], 3000, 10), 3000)["g23"] for _ in range(12)]
    early, late = np.mean(found, 0)[:30].mean(), np.mean(found, 0)[-30:].mean()
    assert 5 < early / late < 14
    shares = [edge_statistics(trajectory(rng, norms, [1.0], 3000, 10), 3000)["g23_share"] for _ in range(12)]
    early, late = np.mean(shares, 0)[:30].mean(), np.mean(shares, 0)[-30:].mean()
    assert 0.7 < early / late < 1.4


def planted(
    rng: np.random.Generator, rank: int, strength: float, records: int = 60, p: int = 2000
) -> np.ndarray:
    """Rows of a drift in ``rank`` directions, its coefficients changing from step to step, plus independent noise."""
    basis = np.linalg.qr(rng.normal(size=(p, rank)))[0].T
    drift = strength * np.sqrt(p) * rng.choice([-1.0, 1.0], size=(records, rank)) @ basis
    return rows_of(drift + rng.normal(size=(records, p)), 10)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_planted_edge_is_found(rng: np.random.Generator, rank: int) -> None:
    rows = planted(rng, rank, 1.0, records=160)
    found = edge_statistics(rows, 2000)
    p = edge_p_values(rows, 2000, 199, rng)
    assert (p <= 0.01).mean() > 0.97
    # windows share updates, so a trajectory's share of hits varies: at rank 3 by 0.04 about 0.94
    assert (found["k_ratio"] == rank).mean() > 0.7
    assert (found["k_bulk"] == rank).mean() > 0.7
    assert np.nanmedian(found[f"rotation_{rank}"]) < 35


def test_noise_has_an_edge_at_the_stated_rate_only(rng: np.random.Generator) -> None:
    """1000 windows that share no update: the share with p <= a is a, within five standard errors."""
    updates = rng.normal(size=(1000, 10, 500)) * rng.uniform(0.2, 2, size=(1000, 10, 1))
    rows = np.stack([rows_of(window, 10) for window in updates])
    p = edge_p_values(rows, 500, 99, rng)
    for level in (0.05, 0.1, 0.5):
        assert abs((p <= level).mean() - level) < 5 * np.sqrt(level * (1 - level) / 1000)


def test_correlated_noise_is_no_edge_under_the_stationary_null(rng: np.random.Generator) -> None:
    """It looks like one against random directions; against updates of its own lag correlation it does not."""
    rows = np.stack(
        [trajectory(rng, rng.uniform(0.5, 1, 10), first_order(0.6, 10), 2000, 10) for _ in range(400)]
    )
    assert (edge_p_values(rows, 2000, 99, rng) <= 0.05).mean() > 0.9
    gram = window_nulls(rows, 2000, 99, rng)["stationary"]
    observed = null_statistics(grams(rows), 2000)["share"]
    p = p_values(observed, null_statistics(gram, 2000)["share"])
    assert (p <= 0.05).mean() < 0.1


def test_window_nulls_keep_the_norms_and_skip_broken_windows(rng: np.random.Generator) -> None:
    updates = rng.normal(size=(14, 50))
    updates[9:] = np.nan
    rows = rows_of(updates, 4)
    for gram in window_nulls(rows, 50, 7, rng).values():
        assert gram.shape == (7, 11, 4, 4)
        expected = np.stack([np.sum(updates[i : i + 4] ** 2, axis=1) for i in range(6)])
        np.testing.assert_allclose(
            np.diagonal(gram[:, :6], axis1=2, axis2=3), np.broadcast_to(expected, (7, 6, 4))
        )
        assert np.isnan(gram[:, 6:]).all()


def test_whole_trajectories_have_the_law_of_their_windows(rng: np.random.Generator) -> None:
    norms, correlation = rng.uniform(0.5, 2, 12), first_order(0.5, 12)
    rows = np.stack([trajectory(rng, norms, correlation, 40, 4) for _ in range(3000)])
    assert np.isnan(rows[0, :4]).sum() == 10
    np.testing.assert_allclose(rows[:, :, 0], [norms**2] * 3000)
    windows = null_statistics(grams(rows)[:, 5], 40)
    direct = null_statistics(stationary(rng, norms[5:9], correlation[:4], 40, 3000), 40)
    for statistic in STATISTICS:
        assert scipy.stats.ks_2samp(windows[statistic], direct[statistic]).pvalue > 1e-6
    free = trajectory(rng, norms, [1.0], 10**6, 4)
    assert abs(normalized(free)[5:, 1:]).max() < 0.01


def test_p_values(rng: np.random.Generator) -> None:
    null = rng.normal(size=(99, 2))
    found = p_values([null[:, 0].max() + 1, null[:, 1].min() - 1], null)
    np.testing.assert_allclose(found, [0.01, 1.0])
    assert np.isnan(p_values([np.nan], null[:, :1])).all()
