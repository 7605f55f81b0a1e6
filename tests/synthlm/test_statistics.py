"""Intervals and tests against formulas written out here, and their coverage on simulated seeds."""

import math

import numpy as np
import pytest
from scipy.special import ndtr, ndtri, stdtrit

from synthlm.statistics import LEVEL, bootstrap_interval, bootstrap_table, holm, paired_difference


def bca_by_hand(values: np.ndarray, resamples: np.ndarray) -> tuple[float, float]:
    """Efron's BCa interval of the mean from given resampled means (Efron and Tibshirani 1993, eq. 14.10-14.15)."""
    mean, n = values.mean(), len(values)
    below = (np.sum(resamples < mean) + 0.5 * np.sum(resamples == mean)) / len(resamples)
    z0 = ndtri(below)
    jack = np.array([np.delete(values, i).mean() for i in range(n)])
    spread = jack.mean() - jack
    a = np.sum(spread**3) / (6 * np.sum(spread**2) ** 1.5)
    ends = []
    for z in (ndtri((1 - LEVEL) / 2), ndtri((1 + LEVEL) / 2)):
        ends.append(np.quantile(resamples, ndtr(z0 + (z0 + z) / (1 - a * (z0 + z)))))
    return ends[0], ends[1]


@pytest.mark.parametrize("n", [8, 20])
def test_bootstrap_is_bca(n):
    rng = np.random.default_rng(n)
    values = rng.exponential(size=n)
    resamples = rng.choice(values, size=(200_000, n)).mean(axis=1)
    low, high = bca_by_hand(values, resamples)
    found = bootstrap_interval(values)
    width = high - low
    assert found.method == "bca"
    assert found.n == n
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    # 1999 resamples: the ends have a Monte Carlo error of a few per cent of the width
    assert found.low == pytest.approx(low, abs=0.05 * width)
    assert found.high == pytest.approx(high, abs=0.08 * width)


def test_bootstrap_is_skewed_where_the_normal_interval_is_not():
    values = np.random.default_rng(5).exponential(size=12) ** 2
    found = bootstrap_interval(values)
    assert found.high - found.mean > 1.2 * (found.mean - found.low)


def test_bootstrap_says_when_it_is_degenerate():
    assert bootstrap_interval([0.3]).method == "none"
    assert math.isnan(bootstrap_interval([0.3]).low)
    assert bootstrap_interval([]).n == 0
    same = bootstrap_interval([0.25, 0.25, 0.25])
    assert (same.method, same.low, same.high) == ("range", 0.25, 0.25)
    assert bootstrap_interval([0.1, math.nan, 0.2, math.inf, 0.4]).n == 3


def test_a_row_depends_on_its_own_values_alone():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 5))
    values[3, 2] = np.nan
    values[7] = 1.0
    table = bootstrap_table(values)
    for row in (0, 3, 7, 39):
        alone = bootstrap_interval(rng.permutation(values[row]))
        found = table.iloc[row]
        assert (found["low"], found["high"], found["n"], found["interval"]) == (
            alone.low, alone.high, alone.n, alone.method,
        )  # fmt: skip
    assert (table["low"] <= table["mean"]).all()
    assert (table["high"] >= table["mean"]).all()


def test_paired_t_against_its_formula():
    values = np.random.default_rng(1).normal(0.3, 1.0, size=7)
    mean, error = values.mean(), math.sqrt(values.var(ddof=1) / 7)
    found = paired_difference(values)
    half = stdtrit(6, 0.975) * error
    assert found.interval.low == pytest.approx(mean - half, rel=1e-12)
    assert found.interval.high == pytest.approx(mean + half, rel=1e-12)
    # p from simulation of the null: t statistics of normal samples
    null = np.random.default_rng(2).normal(size=(200_000, 7))
    statistics = null.mean(axis=1) / (null.std(axis=1, ddof=1) / math.sqrt(7))
    assert found.p == pytest.approx(np.mean(np.abs(statistics) >= abs(mean / error)), abs=0.005)


def test_paired_t_of_few_or_equal_values():
    assert math.isnan(paired_difference([]).interval.mean)
    one = paired_difference([0.1])
    assert one.interval.n == 1
    assert math.isnan(one.p)
    assert math.isnan(one.interval.low)
    assert paired_difference([0.1, 0.1, 0.1]).p == 0.0
    assert paired_difference([0.0, 0.0]).p == 1.0


def test_coverage_at_three_seeds_is_why_verdicts_use_t():
    rng = np.random.default_rng(3)
    samples = rng.normal(0.7, 1.0, size=(1500, 3))
    t = [paired_difference(row).interval for row in samples]
    covered = np.mean([interval.low <= 0.7 <= interval.high for interval in t])
    boot = bootstrap_table(samples)
    covered_boot = np.mean((boot["low"] <= 0.7) & (boot["high"] >= 0.7))
    assert covered == pytest.approx(0.95, abs=0.02)
    assert covered_boot < 0.85


def test_bootstrap_covers_with_many_seeds():
    samples = np.random.default_rng(4).normal(0.7, 1.0, size=(800, 40))
    table = bootstrap_table(samples)
    assert np.mean((table["low"] <= 0.7) & (table["high"] >= 0.7)) == pytest.approx(0.94, abs=0.03)


def holm_by_hand(p: list[float]) -> list[bool]:
    """Rejections at 0.05 by the step-down procedure as Holm states it."""
    rejected = [False] * len(p)
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[index] > 0.05 / (len(p) - rank):
            break
        rejected[index] = True
    return rejected


def test_holm_rejects_what_the_procedure_rejects():
    rng = np.random.default_rng(6)
    for _ in range(300):
        p = list(rng.beta(0.3, 3, size=rng.integers(1, 9)))
        assert [value <= 0.05 for value in holm(p)] == holm_by_hand(p)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_holm_leaves_out_missing_tests():
    corrected = holm([0.01, math.nan, 0.04])
    assert corrected[0] == pytest.approx(0.02)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.04)


def test_holm_controls_the_familywise_error():
    p = np.random.default_rng(7).uniform(size=(4000, 6))
    assert np.mean([min(holm(row)) <= 0.05 for row in p]) == pytest.approx(0.05, abs=0.012)
