"""Scores and verdicts of the edge study on tables with planted effects, and by their own definitions."""

import math
import secrets

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import synthetic_edge

from synthlm.claims import edge
from synthlm.edge_scores import auc, depth_at, depths, gap_positions, leads, pairs


@pytest.fixture
def rng() -> np.random.Generator:
    seed = secrets.randbits(60)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def test_a_falling_step_norm_passes_for_a_precursor_but_not_against_the_nulls(
    rng: np.random.Generator,
) -> None:
    """The published evidence in small: g23 falls before grokking and not in controls, by step norms alone."""
    tables = synthetic_edge.tables(rng, seeds=3, fall=3.0, tasks=("subtraction",))
    first, second, third = edge.judge(tables)
    assert (first.claim, second.claim, third.claim) == ("S1", "S2", "S3")
    assert first.verdict == "supported"
    area = next(item for item in first.secondary if item.name.startswith("AUC, g23 (observed)"))
    assert area.effect > 0.95
    against = {cell.labels["against"]: cell for cell in third.cells}
    for name in ("S1, norm-normalized updates", "S1, over updates of the same norms and lag correlation"):
        assert abs(against[name].estimate.effect) < 0.12
    assert third.verdict == "contradicted"
    hits = {
        item.name.rsplit(": ")[1]: item.effect
        for item in first.secondary
        if item.name.startswith("share with")
    }
    assert hits["main runs"] == 1.0
    assert hits["trajectories of the same norms and lag correlation"] > 0.9
    assert hits["controls, by the deadline of their main runs"] < 0.5


def test_without_any_effect_nothing_is_supported(rng: np.random.Generator) -> None:
    first, _, third = edge.judge(synthetic_edge.tables(rng, seeds=3, tasks=("subtraction",)))
    assert first.verdict != "supported"
    assert third.verdict != "supported"


def test_the_gap_position_by_optimizer(rng: np.random.Generator) -> None:
    """AdamW's updates are planted with correlation 0.5 (k* 2), Muon's with 0.9 (k* 1)."""
    tables = synthetic_edge.tables(rng, seeds=3, tasks=("subtraction",))
    _, second, third = edge.judge(tables)
    found = gap_positions(tables["edge_windows"], ("k_ratio",)).groupby("arm")["k"].mean()
    assert second.effect.effect == pytest.approx(found["adamw"] - found["muon"])
    assert second.effect.effect > 0.2
    beyond = next(cell for cell in third.cells if cell.labels["against"].startswith("S2"))
    assert abs(beyond.estimate.effect) < abs(second.effect.effect) / 2 + 0.15


def test_runs_that_do_not_count(rng: np.random.Generator) -> None:
    runs = synthetic_edge.tables(rng, seeds=4, tasks=("a",), arms=("adamw",))["edge_runs"]
    runs.loc[(runs["seed"] == 0) & (runs["condition"] == "main"), "grokked"] = math.nan
    runs.loc[(runs["seed"] == 1) & (runs["condition"] == "main"), "rise"] = math.nan
    runs.loc[(runs["seed"] == 2) & (runs["condition"] == "control"), "grokked"] = 1.0
    runs = runs[(runs["seed"] != 3) | (runs["condition"] == "main")]
    why = pairs(runs).set_index("seed")["why"]
    assert why[0] == "the main run did not generalize"
    assert why[1] == "no evaluation before the rise"
    assert why[2] == "the control generalized no later"
    assert why[3] == "a run is missing"


def test_nothing_is_judged_without_tables_and_little_with_a_single_seed(rng: np.random.Generator) -> None:
    assert edge.judge({}) == []
    assert edge.judge({"edge_runs": pd.DataFrame(), "edge_windows": pd.DataFrame()}) == []
    verdicts = edge.judge(synthetic_edge.tables(rng, seeds=1, fall=3.0, tasks=("a",), arms=("adamw",)))
    assert [item.verdict for item in verdicts] == ["inconclusive"] * 3
    verdicts = edge.judge(synthetic_edge.tables(rng, seeds=2, grokked=False, tasks=("a",), arms=("adamw",)))
    assert [item.verdict for item in verdicts] == ["inconclusive"] * 3
    assert verdicts[0].caveats[0] == "2 of 2 pairs do not count"
    assert verdicts[0].cells[0].why == "0 of 2 seeds: the main run did not generalize"


def test_scores_look_no_further_than_the_horizon(rng: np.random.Generator) -> None:
    tables = synthetic_edge.tables(rng, seeds=2, fall=2.0, tasks=("a",), arms=("adamw",))
    windows = tables["edge_windows"]
    before = depths(tables["edge_runs"], windows, {"g23": True})
    later = windows["step"] > 400
    windows.loc[later, "g23"] = rng.uniform(1e-9, 1e-8, later.sum())
    pd.testing.assert_frame_equal(before, depths(tables["edge_runs"], windows, {"g23": True}))
    one = windows[(windows["set"] == "all") & (windows["job"] == windows["job"].iloc[0])].sort_values("step")
    early = one[one["step"] <= 400]["g23"].to_numpy()
    falls = [math.log10(early[: i + 1].max() / early[i]) for i in range(len(early))]
    row = before[(before["variant"] == "observed") & (before["seed"] == 0)].iloc[0]
    assert row["main"] == pytest.approx(np.median(falls[-3:]))
    assert math.isnan(depth_at(np.array([1.0, 2.0]), np.array([1.0, 1.0]), 5.0))


def test_leads_are_shares_of_the_way(rng: np.random.Generator) -> None:
    onsets = synthetic_edge.tables(rng, seeds=2, fall=2.0, tasks=("a",), arms=("adamw",))["edge_onsets"]
    onsets["onset"] = np.where(onsets["condition"] == "main", 125.0, 10_000.0)
    onsets["deadline"] = 500.0
    found = leads(onsets, "g23")
    assert (found[found["condition"] == "main"]["lead"] == 0.75).all()
    assert found[found["condition"] == "control"]["lead"].isna().all()


def test_the_area_under_the_curve_has_an_interval_over_seeds(rng: np.random.Generator) -> None:
    drawn = {"main": rng.normal(0.7, 1, 18), "control": rng.normal(0, 1, 18)}
    scores = pd.DataFrame({"seed": np.repeat(range(6), 3), "task": ["a", "b", "c"] * 6, "arm": "x"} | drawn)

    def area(rows: pd.DataFrame) -> float:
        each = [scipy.stats.mannwhitneyu(cell["main"], cell["control"]).statistic / len(cell) ** 2
                for _, cell in rows.groupby("task")]  # fmt: skip
        return float(np.mean(each))

    value, low, high = auc(scores)
    assert value == pytest.approx(area(scores))
    assert low < value < high
    assert auc(scores) == (value, low, high)
    slow = []
    for _ in range(1500):
        chosen = rng.integers(6, size=6)
        slow.append(area(pd.concat([scores[scores["seed"] == s] for s in chosen])))
    assert [low, high] == pytest.approx(np.quantile(slow, [0.025, 0.975]).tolist(), abs=0.05)
    few = auc(scores[scores["seed"] < 4])
    assert few[0] == pytest.approx(area(scores[scores["seed"] < 4]))
    assert math.isnan(few[1])


def test_main_runs_are_compared_with_controls_of_their_own_task(rng: np.random.Generator) -> None:
    """Two tasks of different levels, each with main runs below their controls."""
    noise = rng.normal(0, 0.1, 12)
    scores = pd.DataFrame({"seed": list(range(6)) * 2, "task": ["a"] * 6 + ["b"] * 6, "arm": "x"})
    scores["main"] = np.where(scores["task"] == "a", 10.0, 0.0) + noise
    scores["control"] = scores["main"].groupby(scores["task"]).transform("max") + 1.0
    assert auc(scores)[0] == 0.0


def test_a_cell_counts_when_it_has_every_seed(rng: np.random.Generator) -> None:
    """The effect of a task that lacks a seed must not move the others' mean."""
    tables = synthetic_edge.tables(rng, seeds=3, fall=3.0, tasks=("a", "b"), arms=("adamw", "muon"))
    runs = tables["edge_runs"]
    whole = edge.judge({**tables, "edge_runs": runs[runs["task"] == "a"]})[0].effect
    lost = (runs["task"] == "b") & (runs["seed"] == 1) & (runs["condition"] == "main")
    runs.loc[lost, ["rise", "grokked"]] = math.nan
    first = edge.judge(tables)[0]
    assert first.effect.effect == pytest.approx(whole.effect)
    assert first.effect.n == 3
    assert {cell.labels["task"]: cell.counted for cell in first.cells} == {"a": True, "b": False}
    assert "2 of 3 seeds: the main run did not generalize" in {cell.why for cell in first.cells}


def test_what_is_removed_is_compared_up_to_grokking(rng: np.random.Generator) -> None:
    tables = synthetic_edge.tables(rng, seeds=3, fall=3.0, tasks=("a",), arms=("adamw",))
    modes = tables["edge_modes"]
    chosen = (modes["origin"] == "update") & (modes["mode"] == 1) & (modes["condition"] == "main")
    assert chosen.any()
    modes.loc[chosen & (modes["kind"] == "mode"), "loss"] = 3.0
    modes.loc[chosen & (modes["kind"] == "matched"), "loss"] = 1.0
    modes.loc[chosen & (modes["step"] > modes["grokked"]), "loss"] = 99.0
    item = edge.judge(tables)[2].secondary[0]
    assert (item.effect, item.n) == (2.0, 3)
