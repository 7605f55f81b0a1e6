"""Scores of predictors: scipy, brute force, planted relations, resampling of clusters."""

import itertools
import math
import secrets

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from synthlm.analysis.prediction import (
    SCORES,
    isotonic,
    partial_rank_correlation,
    rank_correlation,
    ranks,
    score_predictors,
    unseen_r2,
)


@pytest.fixture
def rng():
    seed = secrets.randbits(48)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def test_ranks_are_scipys(rng):
    for values in (rng.integers(0, 5, size=40), rng.normal(size=7), np.ones(4), np.zeros(0)):
        np.testing.assert_array_equal(ranks(values), scipy.stats.rankdata(values))


def test_rank_correlation_is_spearmans(rng):
    x, y = rng.integers(0, 8, size=50), rng.normal(size=50)
    assert rank_correlation(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, rel=1e-12)
    assert rank_correlation(y, np.exp(3 * y)) == pytest.approx(1)
    assert math.isnan(rank_correlation(np.ones(5), y[:5]))


def test_partial_rank_correlation_follows_the_three_correlations(rng):
    z = rng.normal(size=80)
    x, y = z + rng.normal(size=80), z + rng.normal(size=80)
    xy, xz, yz = (scipy.stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_rank_correlation(x, y, z) == pytest.approx(expected, rel=1e-10)
    assert partial_rank_correlation(x, y, np.ones(80)) == pytest.approx(xy, rel=1e-12)
    assert math.isnan(partial_rank_correlation(z, y, z))


def test_isotonic_is_the_best_of_all_monotone_curves(rng):
    """Against brute force over all partitions into constant pieces; ties in x are one point."""
    x = np.array([0.0, 1.0, 1.0, 2.0, 3.0, 5.0])
    y = rng.normal(size=6)
    fitted = isotonic(x, y)(x)
    places = np.unique(x)
    best = math.inf
    for cuts in itertools.product([False, True], repeat=len(places) - 1):
        piece = np.concatenate([[0], np.cumsum(cuts)])[np.searchsorted(places, x)]
        means = np.array([y[piece == p].mean() for p in range(piece.max() + 1)])
        if (np.diff(means) >= 0).all():
            best = min(best, np.square(y - means[piece]).sum())
    assert np.square(y - fitted).sum() == pytest.approx(best, rel=1e-10)
    assert (np.diff(fitted) >= -1e-12).all()
    curve = isotonic(x, y)
    assert curve(np.array([-9.0, 9.0])).tolist() == pytest.approx([fitted[0], fitted[-1]])
    assert curve(np.array([4.0])) == pytest.approx((fitted[4] + fitted[5]) / 2)


def test_unseen_r2_of_planted_relations(rng):
    group = np.repeat(list("abcd"), 40)
    x = rng.uniform(size=160)
    assert unseen_r2(x, np.tanh(4 * x), group) > 0.98
    assert unseen_r2(np.exp(9 * x), np.tanh(4 * x), group) > 0.95  # the scale of x does not matter much
    assert unseen_r2(rng.uniform(size=160), np.tanh(4 * x), group) < 0.15
    assert math.isnan(unseen_r2(x, x, np.zeros(160)))
    # a relation that holds within each group but shifts between them helps with no unseen group
    shift = np.repeat([0.0, 5.0, 10.0, 15.0], 40)
    assert unseen_r2(x + shift, x, group) < 0.5 < unseen_r2(x, x, group)


def test_unseen_r2_is_that_of_the_definition(rng):
    group = rng.integers(0, 3, size=30)
    group[:3] = [0, 1, 2]
    x, y = rng.normal(size=30), rng.normal(size=30)
    error = blind = 0.0
    for g in range(3):
        curve = isotonic(x[group != g], y[group != g])
        for a, b in zip(x[group == g], y[group == g], strict=True):
            error += (b - curve(np.array([a]))[0]) ** 2
            blind += (b - y[group != g].mean()) ** 2
    assert unseen_r2(x, y, group) == pytest.approx(1 - error / blind, rel=1e-10)


def planted(rng, clusters=9, arms=4, rates=6):
    rows = []
    for cluster in range(clusters):
        offset = rng.normal(0, 0.03)
        for arm in range(arms):
            for rate in range(rates):
                cause = 2.0 ** (rate + arm / 2)
                rows.append({
                    "base": f"b{cluster % 3}", "seed": cluster // 3, "arm": f"arm{arm}",
                    "learnt": rate / rates + rng.normal(0, 0.1),
                    "cause": cause * np.exp(rng.normal(0, 0.1)), "noise": rng.normal(),
                    "forgetting": cause / (8 + cause) + offset + rng.normal(0, 0.02),
                })  # fmt: skip
    return pd.DataFrame(rows)


def score(models, predictors, **options):
    found = score_predictors(
        models, predictors, "forgetting", given="learnt", group="arm", cluster=["base", "seed"], **options
    )
    return found.set_index(["predictor", "score"])


def test_planted_causes_score_high_and_noise_does_not(rng):
    found = score(planted(rng), ["cause", "noise"])
    for name in SCORES:
        cause, noise = found.loc[("cause", name)], found.loc[("noise", name)]
        assert cause["value"] > 0.8
        assert cause["low"] <= cause["value"] + 1e-9
        assert cause["low"] > noise["high"]
        assert noise["low"] < 0.2
        assert cause["clusters"] == 9
        assert cause["n"] == 9 * 24


def test_intervals_resample_clusters_not_models(rng):
    """Copies of every model within its cluster tell nothing new: intervals stay as wide."""
    models = planted(rng)
    models["forgetting"] += models.groupby(["base", "seed"]).ngroup() * 0.1  # clusters differ
    one, many = score(models, ["cause"]), score(pd.concat([models] * 5), ["cause"])
    row, copied = one.loc[("cause", "spearman")], many.loc[("cause", "spearman")]
    assert copied["value"] == pytest.approx(row["value"], rel=1e-9)
    assert copied["high"] - copied["low"] == pytest.approx(row["high"] - row["low"], rel=1e-6)


def test_missing_values_and_single_clusters(rng):
    models = planted(rng)
    models.loc[models.index[:5], "cause"] = math.inf
    models.loc[models.index[5:8], "forgetting"] = math.nan
    found = score(models, ["cause", "noise"])
    assert found.loc[("cause", "spearman"), "n"] == len(models) - 8
    assert found.loc[("noise", "spearman"), "n"] == len(models) - 3
    alone = score(planted(rng, clusters=1), ["cause"])
    assert alone["low"].isna().all()
    assert np.isfinite(alone["value"]).all()
    pd.testing.assert_frame_equal(score(models, ["cause"]), score(models, ["cause"]))
