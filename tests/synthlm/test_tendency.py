"""What is read off the table of rote and rule, against curves whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from synthetic_tendency import STEPS, logistic, make_tendency

from synthlm.tendency import (
    AT_RECALL,
    CELL,
    FITTED,
    READINGS,
    curves,
    differences,
    matched,
    outcomes,
    searches,
    significance,
)


def test_curves_leave_out_swept_rates_and_weight_the_training_loss() -> None:
    table = make_tendency(languages=("cipher",), items=(128,), seeds=2)
    traces = curves(table)
    assert (traces["lr"] == 0.01).all()
    assert len(traces) == (2 * 3 + 3) * 2 * len(STEPS), "two shares and zipf, three optimizers, two seeds"
    one = traces[(traces["rote_share"] == 0.25) & (traces["optimizer"] == "adamw") & (traces["seed"] == 1)]
    for row in one.itertuples():
        rote, train = logistic(row.step, 30, 1.0), logistic(row.step, 20, 1.0)
        expected = 0.25 * 3 * (1.001 - rote) + 0.75 * 3 * (1.001 - train)
        assert row.train_loss == pytest.approx(expected)
        assert row.rote == pytest.approx(rote)
        assert row.rule == pytest.approx(logistic(row.step, 60, 0.9 * np.log(128) / np.log(512)))
    alone = traces[traces["language"] == "zipf-facts"]
    assert alone["rule"].isna().all()
    assert alone["rote"].notna().all()


def test_outcomes_are_read_at_the_moment_of_recall() -> None:
    ends = outcomes(curves(make_tendency(noise=0.02)))
    assert set(ends["language"]) == {"cipher", "routing"}
    assert len(ends) == 2 * 3 * 2 * 3 * 3
    x = np.log1p(STEPS)
    rote = np.array([logistic(step, 30, 1.0) for step in STEPS])
    for level, fitted, at in zip((0.5, 0.9), FITTED, AT_RECALL, strict=True):
        # by bisection on the piecewise linear curve
        low, high = x[0], x[-1]
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if np.interp(middle, x, rote) >= level else (middle, high)
        np.testing.assert_allclose(np.log1p(ends[fitted]), high, atol=1e-9)
        for row in ends.itertuples():
            top = row.rule / logistic(300, 60, 1.0)
            rule = [logistic(step, 60, top) for step in STEPS]
            assert getattr(row, at) == pytest.approx(np.interp(high, x, rule), abs=1e-9)
    np.testing.assert_allclose(
        ends["area"], [(np.trapezoid(rote - [logistic(s, 60, r / logistic(300, 60, 1.0)) for s in STEPS], x)) / x[-1]
                       for r in ends["rule"]]
    )  # fmt: skip


def test_searches_tell_whether_the_chosen_rate_is_an_end() -> None:
    found = searches(make_tendency())
    assert len(found) == 2 * 3 * 2 * 3 + 3
    assert set(found["rates"]) == {2}
    assert set(found["edge"]) == {"low"}
    table = make_tendency(zipf=False)
    below = table[~table["chosen"]].assign(lr=0.001)
    assert set(searches(pd.concat([table, below]))["edge"]) == {""}
    assert set(searches(table[table["chosen"]])["edge"]) == {"only"}


def test_matched_reads_both_at_the_lowest_loss_that_both_reach() -> None:
    table = make_tendency(languages=("cipher",), zipf=False)
    slow = table["optimizer"] == "adamw"
    table.loc[slow & (table["train_share"] > 0), "loss"] += 0.5  # AdamW fits worse
    pairs = matched(curves(table), "muon", "adamw")
    assert len(pairs) == 3 * 2 * 3
    traces = curves(table)
    for row in pairs.itertuples():
        runs = {
            name: traces[
                (traces[CELL] == [row.language, row.items, row.rote_share]).all(axis=1)
                & (traces["seed"] == row.seed)
                & (traces["optimizer"] == name)
            ]
            for name in ("muon", "adamw")
        }
        assert row.level == pytest.approx(runs["adamw"]["train_loss"].min())
        assert row.second == pytest.approx(runs["adamw"]["rule"].iloc[-1]), "AdamW gets there at its end"
        x = np.log1p(runs["muon"]["step"].to_numpy())
        at = np.interp(-row.level, -runs["muon"]["train_loss"].to_numpy(), x)
        assert np.log1p(row.first_step) == pytest.approx(at)
        assert row.first == pytest.approx(np.interp(at, x, runs["muon"]["rule"]))
        assert row.first_step < row.second_step
    assert matched(curves(table), "muon", "lion").empty


def test_pairs_of_which_one_diverged_have_no_equal_loss() -> None:
    traces = curves(make_tendency(zipf=False, diverged=(("muon", 1),)))
    pairs = matched(traces, "muon", "adamw")
    assert set(pairs["seed"]) == {0, 2}
    assert len(pairs) == 2 * 3 * 2 * 2
    read = differences(traces, "muon", "adamw")
    read = read[read["reading"] == "matched"]
    assert len(read) == 2 * 3 * 2 * 3
    assert set(read.loc[read["difference"].isna(), "seed"]) == {1}
    assert set(read.loc[read["difference"].notna(), "seed"]) == {0, 2}
    assert set(matched(traces, "adamw", "sgd")["seed"]) == {0, 1, 2}


def test_differences_and_their_tests() -> None:
    pairs = differences(curves(make_tendency(lead=0.1, noise=0.01)), "muon", "adamw")
    assert set(pairs["reading"]) == set(READINGS)
    found = significance(pairs, [*CELL, "reading"])
    assert len(found) == 2 * 3 * 2 * 3
    end = found[(found["reading"] == "rule") & (found["items"] < 512)]
    np.testing.assert_allclose(end["mean"], 0.1 * logistic(300, 60, 1.0), atol=0.03)
    assert (end["low"] > 0).mean() > 0.6
    assert (found["p_holm"] >= found["p"] - 1e-12).all()
    ragged = pd.concat([make_tendency(shares=(0.5,)), make_tendency(items=(50,), languages=("odd",))])
    assert (
        len(significance(differences(curves(ragged), "muon", "adamw"), [*CELL, "reading"])) == (2 * 3 + 2) * 3
    )
    none = significance(differences(curves(make_tendency(seeds=1)), "muon", "adamw"), [*CELL, "reading"])
    assert (none["n"] == 1).all()
    assert none["p"].isna().all()


def test_a_diverged_run_counts_up_to_its_divergence() -> None:
    traces = curves(make_tendency(diverged=(("muon", 1),)))
    ends = outcomes(traces)
    broken = ends[(ends["optimizer"] == "muon") & (ends["seed"] == 1)]
    assert (broken["status"] == "diverged").all()
    assert broken[AT_RECALL[0]].isna().all()
    np.testing.assert_allclose(broken["rote"], logistic(10, 30, 1.0))
    assert (
        traces[(traces["optimizer"] == "muon") & (traces["seed"] == 1)].query("items < 256")["step"].max()
        == 10
    )
