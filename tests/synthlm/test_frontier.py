"""Frontiers against a plain loop over points, on planted results."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from synthetic_results import ARMS, make_table

from synthlm.config import InputError
from synthlm.frontier import (
    GRID,
    LEVELS,
    ON_GRID,
    best_rates,
    frontiers,
    frontiers_of,
    matched_levels,
    points,
    run_area,
)


def slow_frontier(table, seed, base, arm, language, attained=False):
    """kept*(level) by loops: for every run, walk densely along its polyline."""
    rows = table[
        (table["kind"] == "finetune") & (table["seed"] == seed) & (table["base"] == base)
        & (table["arm"] == arm) & (table["language"] == language) & (table["goal"] != "")
    ]  # fmt: skip
    best = np.full(len(GRID), -np.inf)
    start = None
    for _, run in rows.groupby("job"):
        path = []
        for _, at in run.groupby("step"):
            if np.isfinite(at["loss"]).all():
                new, old = at[at["role"] == "new"], at[at["role"] == "old"]
                path.append((new["accuracy"].mean(), old["accuracy"].mean()))
        start = path[0][0]
        walked = [path[0]]
        for (x0, y0), (x1, y1) in itertools.pairwise(path):
            for share in [1.0] if attained else np.linspace(0, 1, 2001)[1:]:
                walked.append((x0 + share * (x1 - x0), y0 + share * (y1 - y0)))
        for x, y in walked:
            reached = (x - start) / (1 - start) >= GRID - 1e-9
            best[reached] = np.maximum(best[reached], y)
    return np.where(np.isfinite(best), best, np.nan)


def wiggly(table, generator):
    """The table with noise on every accuracy, so that runs go back and forth."""
    rng = np.random.default_rng(generator)
    noise = np.where(table["step"] > 0, rng.normal(0, 0.06, len(table)), 0)
    return table.assign(accuracy=np.clip(table["accuracy"] + noise, 0, 0.999))


@pytest.mark.parametrize("generator", [0, 1])
def test_frontier_is_that_of_a_plain_loop(generator):
    table = make_table(
        seeds=2, bases=["adamw"], arms=["full-adamw", "lora4-adamw"], languages=["new-rule"], rates=3
    )
    table = wiggly(table, generator).sample(frac=1, random_state=generator)
    found = frontiers(table)
    for index, cell in found.cells.iterrows():
        where = (table, cell["seed"], cell["base"], cell["arm"], cell["language"])
        slow = slow_frontier(*where)
        assert (np.isnan(slow) == np.isnan(found.curves["kept"][index])).all()
        np.testing.assert_allclose(found.curves["kept"][index], slow, atol=3e-4)
        np.testing.assert_allclose(
            found.curves["attained:kept"][index], slow_frontier(*where, attained=True), atol=1e-12
        )


def test_frontier_falls_with_learning_and_interpolation_only_adds():
    found = frontiers(wiggly(make_table(seeds=1), 3))
    for curve in found.curves.values():
        finite = np.nan_to_num(curve, nan=-1e9)
        assert (np.diff(finite, axis=1) <= 1e-12).all()
    assert (found.curves["kept"] >= found.curves["attained:kept"])[np.isfinite(found.curves["kept"])].all()


def test_planted_forgetting_is_found_at_matched_learning():
    found = frontiers(make_table(noise=0.0, advantage=0.1))
    for index, cell in found.cells.iterrows():
        matched = cell["method"] == "full" and cell["optimizer"] == cell["base"]
        forget = 0.4 if matched else 0.5
        np.testing.assert_allclose(found.curves["kept"][index][ON_GRID], 0.95 - forget * LEVELS, atol=1e-9)
        np.testing.assert_allclose(
            found.curves["rote"][index][ON_GRID], 0.95 - (forget + 0.05) * LEVELS, atol=1e-9
        )
        np.testing.assert_allclose(
            found.curves["rule"][index][ON_GRID], 0.95 - (forget - 0.05) * LEVELS, atol=1e-9
        )
        np.testing.assert_allclose(found.curves["loss"][index][ON_GRID], -3 * forget * LEVELS, atol=1e-9)
        np.testing.assert_allclose(found.curves["kl"][index][ON_GRID], -2 * forget * LEVELS, atol=1e-9)
    line = 0.95 - np.where(found.cells["optimizer"] == found.cells["base"], 0.4, 0.5) / 2
    full = found.cells["method"] == "full"
    np.testing.assert_allclose(found.area()[full], line[full], atol=1e-9)


def test_a_diverged_run_counts_up_to_its_divergence():
    arms = ["full-adamw"]
    table = make_table(
        seeds=1, bases=["adamw"], arms=arms, languages=["new-rule"], rates=1, diverged=[("full-adamw", 0)]
    )
    traces = points(table)
    assert len(traces) == 5
    found = frontiers_of(traces)
    top = found.cells["top"].iloc[0]
    assert top == pytest.approx(4 / 9)
    curve = found.curves["kept"][0]
    assert np.isfinite(curve[top >= GRID]).all()
    assert np.isnan(curve[top < GRID]).all()
    assert found.cells["diverged"].iloc[0] == 1


def test_one_non_finite_slice_is_enough_to_leave_a_point_out():
    table = make_table(seeds=1, bases=["adamw"], arms=["full-adamw"], languages=["new-rule"], rates=1)
    broken = (table["kind"] == "finetune") & (table["step"] == 8) & (table["slice"] == "old0/rule")
    table.loc[broken, "loss"] = math.inf
    assert broken.sum() == 1
    assert points(table)["step"].tolist() == [0, 1, 2, 4, 16, 32, 64, 128, 256]


def test_common_levels():
    curves = np.full((3, len(GRID)), 0.5)
    assert matched_levels(curves).all()
    curves[1, GRID > 0.72] = np.nan
    assert LEVELS[matched_levels(curves)].max() == 0.7
    curves[2, GRID > 0.49] = np.nan
    assert not matched_levels(curves).any()
    assert not matched_levels(curves[:0]).any()
    curves[2] = 0.5
    curves[2, GRID > 0.5] = np.nan
    assert LEVELS[matched_levels(curves)].max() == 0.5


def test_no_learning_when_the_base_knows_the_language():
    table = make_table(seeds=1, bases=["adamw"], languages=["new-rule"])
    table.loc[table["role"] == "new", "accuracy"] = 1.0
    assert np.isnan(frontiers(table).curves["kept"][:, 1:]).all()


def test_step_zero_is_required():
    table = make_table(seeds=1)
    with pytest.raises(InputError, match="step 0 for base adamw, language new-facts, seed 0"):
        points(table[(table["kind"] == "pretrain") | (table["step"] > 0)])


def test_one_job_may_serve_two_bases():
    table = make_table(seeds=1, bases=["adamw"], arms=["full-adamw"])
    twice = frontiers(pd.concat([table, table.assign(base="adamw-matched")]))
    assert sorted(twice.cells["base"].unique()) == ["adamw", "adamw-matched"]
    np.testing.assert_array_equal(twice.curves["kept"][:2], twice.curves["kept"][2:])


def test_best_rate_and_edges():
    rates = best_rates(frontiers(make_table(rates=7)))
    assert set(rates["lr"]) == {0.0027}
    assert (rates["edge"] == "").all()
    assert (rates["agree"] == 3).all()
    assert (rates["rates"] == 7).all()
    table = make_table(rates=7)
    low = best_rates(frontiers(table[(table["kind"] == "pretrain") | (table["lr"] >= 0.0027)]))
    assert set(low["edge"]) == {"low"}
    high = best_rates(frontiers(table[(table["kind"] == "pretrain") | (table["lr"] <= 0.0027)]))
    assert set(high["edge"]) == {"high"}
    assert set(best_rates(frontiers(make_table(rates=1)))["edge"]) == {"only"}
    broken = best_rates(frontiers(make_table(rates=3, diverged=[("full-sgd", 1)])))
    assert set(broken[broken["arm"] == "full-sgd"]["diverged"]) == {3}
    assert len(broken) == 3 * 2 * (len(ARMS) - 1)


def test_run_area_is_that_of_the_table():
    table = wiggly(make_table(seeds=1, rates=3, diverged=[("full-sgd", 1)]), 5)
    found = frontiers(table)
    areas = found.run_area()
    rows = table[(table["kind"] == "finetune") & (table["goal"] != "")]
    for index in np.random.default_rng(0).choice(len(found.runs), 25, replace=False):
        run = rows[rows["job"] == found.runs["job"][index]].sort_values("step")
        run = run.assign(accuracy=run["accuracy"].where(np.isfinite(run["loss"])))
        new = run[run["role"] == "new"].groupby("step")["accuracy"].mean()
        old = run[run["role"] == "old"].groupby("step")["accuracy"].mean()
        assert run_area(new.to_numpy(), old.to_numpy()) == pytest.approx(areas[index], abs=1e-12)
    assert run_area(np.array([math.nan, 0.5]), np.array([0.9, 0.8])) == 0.0
