"""Verdicts on tables whose truth is known."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from synthetic_results import make_table

from synthlm.bases import judge_bases
from synthlm.claims import CONSTANTS
from synthlm.claims import judge as judge_all
from synthlm.claims.consistency import OUTCOME_TEXT, SMALLEST_EFFECT
from synthlm.claims.verdicts import Estimate, decide, to_json, to_markdown, write_claims
from synthlm.frontier import LEVELS


def judge(table):
    return judge_all({"results": table})


def verdict_of(claim, **settings):
    return next(verdict for verdict in judge(make_table(**settings)) if verdict.claim == claim)


@pytest.mark.parametrize("claim", ["C1", "C2"])
def test_a_planted_advantage_is_supported_and_measured(claim):
    found = verdict_of(claim, advantage=0.1)
    assert found.verdict == "supported"
    assert found.effect.effect == pytest.approx(0.1 * LEVELS.mean(), abs=0.01)
    assert found.effect.low <= 0.1 * LEVELS.mean() <= found.effect.high
    assert found.effect.n == 3
    secondary = {item.name: item.effect for item in found.secondary}
    assert secondary[OUTCOME_TEXT["rote"]] == pytest.approx(found.effect.effect, abs=1e-9)
    assert secondary[OUTCOME_TEXT["loss"]] == pytest.approx(3 * found.effect.effect, abs=1e-9)
    assert secondary[OUTCOME_TEXT["kl"]] == pytest.approx(2 * found.effect.effect, abs=1e-9)
    assert secondary[OUTCOME_TEXT["area"]] == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("claim", ["C1", "C2"])
def test_a_reversed_effect_is_contradicted(claim):
    found = verdict_of(claim, advantage=-0.1)
    assert found.verdict == "contradicted"
    assert "reversed" in found.reason


def test_no_effect_is_contradicted_when_measured_well_and_else_inconclusive():
    sharp = verdict_of("C1", advantage=0.0, noise=0.004, seeds=5)
    assert sharp.verdict == "contradicted"
    assert "excludes" in sharp.reason
    # one noise term shared by all cells of a seed, so that averaging over cells does not remove it
    table = make_table(advantage=0.0, noise=0.0)
    shift = {0: -0.1, 1: 0.12, 2: 0.02}
    matched = (table["method"] == "full") & (table["optimizer"] == table["base"]) & (table["role"] == "old")
    table["accuracy"] += matched * table["seed"].map(shift) * (table["step"] > 0)
    assert next(iter(judge(table))).verdict == "inconclusive"


def test_false_support_is_rare_under_the_null():
    verdicts = [
        judge(make_table(advantage=0.0, noise=0.08, seeds=3, rates=3, languages=["new-rule"], arms=[
            "full-adamw", "full-muon"], bases=["adamw", "muon"], generator=generator))[0].verdict
        for generator in range(25)
    ]  # fmt: skip
    assert verdicts.count("supported") <= 3


def test_a_single_seed_has_no_verdict_and_says_so():
    found = verdict_of("C1", seeds=1, rates=1)
    assert found.verdict == "inconclusive"
    assert "single seed" in found.reason
    assert math.isnan(found.effect.low)
    assert any("1 paired seed:" in note for note in found.caveats)
    assert any("only one swept" in note for note in found.caveats)


@pytest.mark.parametrize(
    ("effect", "low", "high", "n", "expected"),
    [
        (0.05, 0.01, 0.09, 3, "supported"),
        (0.015, 0.005, 0.025, 3, "inconclusive"),
        (0.015, 0.011, 0.019, 3, "contradicted"),
        (0.05, -0.01, 0.11, 3, "inconclusive"),
        (-0.05, -0.09, -0.01, 3, "contradicted"),
        (SMALLEST_EFFECT, 0.01, 0.03, 3, "supported"),
        (0.05, math.nan, math.nan, 1, "inconclusive"),
        (math.nan, math.nan, math.nan, 0, "inconclusive"),
    ],
)
def test_rule(effect, low, high, n, expected):
    assert decide(Estimate("x", effect, low, high, n, 0.5), SMALLEST_EFFECT)[0] == expected


def test_a_failed_base_is_left_out_and_named():
    # the failed seed would reverse the verdict of its base
    table = make_table(failed=[("sgd", 1)])
    spoiled = (
        (table["base"] == "sgd")
        & (table["seed"] == 1)
        & (table["arm"] == "full-sgd")
        & (table["role"] == "old")
    )
    table.loc[spoiled & (table["step"] > 0), "accuracy"] = 0.0
    found = judge(table)[0]
    assert found.verdict == "supported"
    assert {cell.details["seeds"] for cell in found.cells if cell.labels["base"] == "sgd"} == {(0, 2)}
    assert any("base sgd failed pretraining (seed 1: accuracy 0.60" in note for note in found.caveats)
    assert any("do not have the same cells" in note for note in found.caveats)
    bases = judge_bases(table)
    assert bases[~bases["passed"]][["base", "seed"]].to_numpy().tolist() == [["sgd", 1]]


def test_a_base_that_failed_in_every_seed_does_not_count():
    found = judge(make_table(failed=[("sgd", seed) for seed in range(3)]))[0]
    sgd = [cell for cell in found.cells if cell.labels["base"] == "sgd"]
    assert sgd
    assert not any(cell.counted for cell in sgd)
    assert {cell.why for cell in sgd} == {"the base failed pretraining"}


def test_bases_are_judged_by_the_chosen_run_at_its_last_step():
    table = make_table(seeds=1, bases=["adamw"])
    assert judge_bases(table)["passed"].all()
    assert judge_bases(table)["lr"].tolist() == [0.003]
    assert judge_bases(table)["steps"].tolist() == [1024]
    earlier = table[(table["kind"] == "finetune") | (table["step"] < 1024)]
    assert not judge_bases(earlier)["passed"].any()
    broken = table.assign(status=table["status"].where(table["kind"] == "finetune", "diverged"))
    assert judge_bases(broken)["why"].tolist() == ["diverged"]
    lost = table.assign(accuracy=table["accuracy"].where(table["goal"] != "rule"))
    assert not judge_bases(lost)["passed"].any()
    none = judge_bases(table[table["kind"] == "finetune"])
    assert none["why"].tolist() == ["no pretraining run was chosen"]


def test_an_arm_that_never_learns_has_no_common_learning():
    found = verdict_of("C2", never=["lora4-adamw"])
    out = [cell for cell in found.cells if cell.labels["other arm"] == "lora4-adamw"]
    assert out
    assert all(cell.why == "no common learning" and not cell.counted for cell in out)
    assert all(cell.details["other_top"] == pytest.approx(0.15) for cell in out)
    assert "other: lora4-adamw" not in {group.name for group in found.groups}
    assert sum("no common learning" in note for note in found.caveats) == len(out)


def test_a_control_base_is_shown_but_does_not_count():
    found = verdict_of("C1", bases=["adamw", "adamw-matched", "muon"])
    control = [cell for cell in found.cells if cell.labels["base"] == "adamw-matched"]
    assert {cell.why for cell in control} == {"control base"}
    assert {cell.labels["matched arm"] for cell in control} == {"full-adamw"}
    assert all(cell.estimate.effect > 0.03 for cell in control)


def test_claims_set_the_right_arms_against_each_other():
    first, second = judge(make_table())
    assert {(c.labels["base"], c.labels["other arm"]) for c in first.cells} == {
        (base, f"full-{other}") for base, other in itertools.permutations(("adamw", "muon", "sgd"), 2)
    }  # fmt: skip
    assert {c.labels["other arm"] for c in second.cells} == {"lora4-adamw", "lora16-adamw", "lora16-muon"}
    assert {c.labels["matched arm"] for c in second.cells if c.labels["base"] == "muon"} == {"full-muon"}


def test_verdict_pairs_by_seed():
    """Seeds differ by far more than the effect; only pairing can see it."""
    table = make_table(advantage=0.1, noise=0.0)
    table.loc[table["role"] == "old", "accuracy"] -= table["seed"] * 0.2
    found = judge(table.assign(accuracy=table["accuracy"].where(table["kind"] == "finetune", 0.95)))[0]
    assert found.verdict == "supported"
    assert found.effect.high - found.effect.low < 1e-6


def test_effect_is_a_mean_over_cells_within_a_seed():
    table = make_table(noise=0.02)
    found = judge(table)[0]
    per_cell = np.mean([cell.estimate.effect for cell in found.cells])
    assert found.effect.effect == pytest.approx(per_cell, abs=1e-12)
    p = sorted(cell.estimate.p for cell in found.cells)
    assert min(cell.estimate.p_holm for cell in found.cells) == pytest.approx(min(1, p[0] * len(p)))


def test_order_of_rows_does_not_matter_and_files_parse(tmp_path):
    table = make_table(seeds=1, never=["full-sgd"])
    first = to_json(judge(table), CONSTANTS, "text")
    assert first == to_json(judge(table.sample(frac=1, random_state=0)), CONSTANTS, "text")
    data = json.loads(first)
    assert data["constants"]["consistency"]["smallest_effect"] == 0.02
    assert [claim["claim"] for claim in data["claims"]] == ["C1", "C2"]
    assert data["claims"][0]["effect"]["low"] is None
    paths = write_claims(judge(table), CONSTANTS, tmp_path)
    assert [path.name for path in paths] == ["claims.json", "claims.md"]
    assert "## C1: inconclusive" in to_markdown(judge(table))


def test_nothing_finished_is_inconclusive():
    table = make_table(seeds=1)
    for part in (table[table["kind"] == "pretrain"], table.iloc[:0]):
        assert [found.verdict for found in judge(pd.DataFrame(part))] == ["inconclusive"] * 2
