"""Verdicts on C6 and C7: planted effects are found with their sign, and what does not speak does not count."""

import math

import numpy as np
import pandas as pd
import pytest

from synthlm.claims import small_data as c6
from synthlm.claims import tendency as c7


@pytest.fixture
def generator():
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def small_data(means: dict[tuple[str, str], float], generator, seeds: int = 4, languages=("new-rule",)):
    """A table ``small_data``: (base, arm) -> mean accuracy with 64 examples; 16 examples teach nothing, 1024 all."""
    rows = []
    for language in languages:
        for examples in (16, 64, 1024):
            for (base, arm), mean in means.items():
                for seed in range(seeds):
                    level = {16: 0.03, 64: mean, 1024: 0.99}[examples]
                    for lr in (0.1, 0.2):
                        rows.append(
                            {
                                "job": f"{len(rows):012x}", "seed": seed, "base": base, "arm": arm,
                                "language": language, "examples": examples, "lr": lr, "chosen": lr == 0.2,
                                "status": "done", "step": 200, "loss": 1.0, "n": 100, "train_accuracy": 1.0,
                                "kept": 0.5,
                                "accuracy": level + 0.002 * generator.normal() if lr == 0.2 else 0.0,
                            }
                        )  # fmt: skip
    return pd.DataFrame(rows)


PAIRS = {("adamw", "adamw"): 0.6, ("muon", "muon"): 0.4, ("adamw", "muon"): 0.5, ("muon", "adamw"): 0.45}


def verdict_c6(table: pd.DataFrame):
    return c6.judge({"small_data": table})[0]


def test_c6_finds_a_planted_effect_in_cells_that_speak(generator) -> None:
    found = verdict_c6(small_data(PAIRS, generator, languages=("new-rule", "other-rule")))
    assert (found.claim, found.verdict) == ("C6", "supported")
    assert found.effect.effect == pytest.approx(0.2, abs=0.01)
    assert found.effect.n == 4
    counted = {(cell.labels["language"], cell.labels["examples"]): cell.counted for cell in found.cells}
    assert counted == {
        (name, n): n == "64" for name in ("new-rule", "other-rule") for n in ("16", "64", "1024")
    }
    assert {cell.why for cell in found.cells if not cell.counted} == {
        "neither gets to 0.1",
        "both are above 0.95",
    }
    assert {item.name for item in found.groups} == {
        f"language: {n} (supported)" for n in ("new-rule", "other-rule")
    }
    crossed = {item.name: item.effect for item in found.secondary}
    assert crossed["on the Muon base: finetuned by AdamW minus by Muon"] == pytest.approx(0.05, abs=0.01)
    assert crossed["finetuned by AdamW: AdamW base minus Muon base"] == pytest.approx(0.15, abs=0.01)


def test_c6_is_contradicted_by_the_opposite_and_by_nothing(generator) -> None:
    swapped = {**PAIRS, ("adamw", "adamw"): 0.4, ("muon", "muon"): 0.6}
    assert verdict_c6(small_data(swapped, generator)).verdict == "contradicted"
    equal = {**PAIRS, ("muon", "muon"): 0.6}
    found = verdict_c6(small_data(equal, generator))
    assert (found.verdict, abs(found.effect.effect) < 0.01) == ("contradicted", True)


def test_c6_without_a_pairing_or_with_one_seed_stays_open(generator) -> None:
    one_seed = verdict_c6(small_data(PAIRS, generator, seeds=1))
    assert (one_seed.verdict, one_seed.effect.n) == ("inconclusive", 1)
    without = verdict_c6(small_data({("adamw", "adamw"): 0.6}, generator))
    assert (without.verdict, without.effect.n) == ("inconclusive", 0)
    assert not any(cell.counted for cell in without.cells)


def with_effects(table: pd.DataFrame, effects: dict[str, list[float]]) -> pd.DataFrame:
    """The table with exactly these differences AdamW-AdamW minus Muon-Muon at 64 examples (language -> by seed)."""
    table = table.copy()
    here = table["chosen"] & (table["examples"] == 64)
    for language, values in effects.items():
        for seed, value in enumerate(values):
            mine = here & (table["language"] == language) & (table["seed"] == seed)
            for name, sign in (("adamw", 1), ("muon", -1)):
                pair = mine & (table["base"] == name) & (table["arm"] == name)
                table.loc[pair, "accuracy"] = 0.5 + sign * value / 2
    return table


def test_a_language_is_decided_after_correction_over_languages(generator) -> None:
    """p is 0.040 by itself, and 0.079 as the smaller one of two."""
    effects = {"new-rule": [0.05, 0.05, 0.15, 0.15], "other-rule": [-0.2, 0.3, -0.3, 0.2]}
    names = tuple(effects)
    alone = verdict_c6(with_effects(small_data(PAIRS, generator), {"new-rule": effects["new-rule"]}))
    assert [item.name for item in alone.groups] == ["language: new-rule (supported)"]
    found = verdict_c6(with_effects(small_data(PAIRS, generator, languages=names), effects))
    assert found.groups[0].low > 0
    assert found.groups[0].p < 0.05 < found.groups[0].p_holm
    assert [item.name for item in found.groups] == [f"language: {name} (inconclusive)" for name in names]
    assert "Holm's correction over languages" in found.rule


def test_a_language_without_an_effect_is_contradicted_by_its_test_against_the_smallest(generator) -> None:
    nothing = [-0.001, 0.002, -0.002, 0.001]
    table = small_data(PAIRS, generator, languages=("new-rule", "other-rule"))
    found = verdict_c6(with_effects(table, {"new-rule": nothing, "other-rule": nothing}))
    assert found.groups[0].p_holm > 0.9
    assert {item.name for item in found.groups} == {
        f"language: {name} (contradicted)" for name in ("new-rule", "other-rule")
    }
    # each interval lies below 0.02 (p against it is 0.040), but not once two are corrected for
    barely = [0.02 - value / 10 for value in (0.05, 0.05, 0.15, 0.15)]
    found = verdict_c6(with_effects(table, {"new-rule": barely, "other-rule": barely}))
    assert found.groups[0].high < 0.02
    assert found.groups[0].p_holm > 0.05
    assert {item.name for item in found.groups} == {
        f"language: {name} (inconclusive)" for name in ("new-rule", "other-rule")
    }


def test_c6_is_of_cells_that_are_complete_over_seeds(generator) -> None:
    table = small_data(PAIRS, generator, languages=("new-rule", "other-rule"))
    exact = {"new-rule": [0.18, 0.2, 0.2, 0.22], "other-rule": [0.4, 0.4, 0.41, 0.39]}
    table = with_effects(table, exact)
    muon = (table["base"] == "muon") & (table["arm"] == "muon") & (table["seed"] == 3)
    one = verdict_c6(table[~(muon & (table["examples"] == 64) & (table["language"] == "other-rule"))])
    assert (one.effect.n, one.effect.effect) == (4, pytest.approx(0.2))
    assert [item.name for item in one.groups] == ["language: new-rule (supported)"]
    whys = {(cell.labels["language"], cell.labels["examples"]): cell.why for cell in one.cells}
    assert whys["other-rule", "64"] == "one of the two is missing on 1 of 4 seeds"
    assert "complete" in one.rule or "number on every seed" in one.rule
    # a seed that has nothing at all is left out of every cell alike
    none = verdict_c6(
        table[table["seed"] != 3].pipe(lambda t: pd.concat([t, table[(table["seed"] == 3) & ~muon]]))
    )
    assert (none.effect.n, none.effect.effect) == (3, pytest.approx((0.58 / 3 + 1.21 / 3) / 2))
    assert "no comparison has a number on seed 3" in none.caveats


def test_c6_names_best_rates_that_are_an_end(generator) -> None:
    """Of the two rates tried the higher one is chosen; with a third above it no end is."""
    table = small_data(PAIRS, generator)
    note = next(note for note in verdict_c6(table).caveats if "end of those tried" in note)
    assert "in 1 of 1 cells that count" in note
    assert "new-rule 64 adamw-adamw (0.2, the highest), new-rule 64 muon-muon (0.2, the highest)" in note
    higher = table[table["lr"] == 0.1].assign(lr=0.4)
    found = verdict_c6(pd.concat([table, higher]))
    assert not any("end of those tried" in note for note in found.caveats)
    single = verdict_c6(table[table["chosen"]])
    assert "a single learning rate was tried in 2 of 2 searches, in 1 of 1 cells that count" in single.caveats


def test_c6_names_bases_that_did_not_learn_their_language(generator) -> None:
    bases = pd.DataFrame(
        [
            {"job": "0", "seed": seed, "base": base, "lr": 0.1, "status": status, "accuracy": accuracy,
             "passed": accuracy > 0.9}
            for base, seed, status, accuracy in (
                ("adamw", 0, "done", 0.99), ("muon", 0, "done", 0.991), ("muon", 1, "done", 0.871),
                ("adamw", 1, "diverged", 0.1),
            )
        ]
    )  # fmt: skip
    found = c6.judge({"small_data": small_data(PAIRS, generator), "small_data_bases": bases})[0]
    assert (
        "bases left out, below an accuracy of 0.9 in their own language: muon of seed 1 (0.87), adamw of seed 1"
        " (diverged)" in found.caveats
    )
    assert not any("left out" in note for note in verdict_c6(small_data(PAIRS, generator)).caveats)


def test_c6_tells_when_no_cell_is_enough_by_itself(generator) -> None:
    """Two cells whose noise cancels in their mean."""
    table = small_data(PAIRS, generator, languages=("new-rule", "other-rule"))
    up, down = [0.0, 0.3, 0.0, 0.31], [0.3, 0.0, 0.3, 0.0]
    found = verdict_c6(with_effects(table, {"new-rule": up, "other-rule": down}))
    assert found.verdict == "supported"
    note = "supported over all cells, but in none of them is p below 0.05 after Holm's correction"
    assert note in found.caveats
    assert note not in verdict_c6(table).caveats


def test_a_rate_that_was_not_chosen_does_not_count(generator) -> None:
    table = small_data(PAIRS, generator)
    table.loc[~table["chosen"], "accuracy"] = 1.0
    assert verdict_c6(table).effect.effect == pytest.approx(0.2, abs=0.01)


STEPS = np.unique(np.round(np.geomspace(1, 1000, 25)))


def tendency_table(
    rule_speed: dict[str, float], generator, seeds: int = 3, top: float = 1.0, loss_of_rule=1.0
):
    """Curves that are straight in ln(1 + step): rote reaches 1 at step 1000, the rule at ``rule_speed`` times that.

    The training loss falls with rote recall, alike for all.
    """
    rows = []
    x = np.log1p(STEPS) / np.log1p(1000)
    for items in (50, 400):
        for optimizer, speed in rule_speed.items():
            for seed in range(seeds):
                rule = np.minimum(top, speed * x + 0.005 * generator.normal())
                for slice_, goal, accuracy, share in (
                    ("f/rote", "rote", x, 1.0),
                    ("c/rule/heldout", "rule", rule, 0.0),
                ):
                    for step, value in zip(STEPS, accuracy, strict=True):
                        rows.append(
                            {
                                "job": f"{len(rows):012x}"[:6] + optimizer, "seed": seed, "language": "cipher",
                                "items": items, "rote_share": 0.5, "optimizer": optimizer, "lr": 0.1, "chosen": True,
                                "status": "done", "step": int(step), "slice": slice_, "goal": goal,
                                "train_share": share, "loss": 3.0 - 2.5 * math.log1p(step) / math.log1p(1000),
                                "floor": 0.0, "accuracy": value, "exact": value, "n": 100,
                            }
                        )  # fmt: skip
    table = pd.DataFrame(rows)
    table["job"] = table.groupby(["items", "optimizer", "seed"]).ngroup().map("{:012x}".format)
    return table


def verdict_c7(table: pd.DataFrame, **others: pd.DataFrame):
    return c7.judge({"tendency": table, **others})[0]


def test_c7_in_closed_form(generator) -> None:
    """At 50% and 90% recall the rule is at 0.5 and 0.9 times its speed; at the last common loss at its speed."""
    found = verdict_c7(tendency_table({"adamw": 0.9, "muon": 0.6, "sgd": 0.1}, generator))
    assert (found.claim, found.verdict) == ("C7", "supported")
    assert found.effect.effect == pytest.approx(0.7 * 0.3, abs=0.01)
    secondary = {item.name: item.effect for item in found.secondary}
    assert secondary["at matched training loss"] == pytest.approx(0.3, abs=0.02)
    assert secondary["rule accuracy at the end, AdamW minus Muon"] == pytest.approx(0.3, abs=0.02)
    assert secondary["rote fitted sooner by Muon, ln of the ratio of steps"] == pytest.approx(0, abs=1e-9)
    assert len(found.cells) == 2
    assert all(cell.counted for cell in found.cells)
    assert math.isfinite(found.cells[0].estimate.p_holm)
    reversed_ = verdict_c7(tendency_table({"adamw": 0.6, "muon": 0.9}, generator))
    assert reversed_.verdict == "contradicted"
    assert "language: cipher (contradicted)" in [item.name for item in reversed_.groups]


def test_c7_tells_of_runs_that_diverged(generator) -> None:
    """At its divergence the run's loss is that of the start, where nobody has the rule."""
    table = tendency_table({"adamw": 0.9, "muon": 0.6}, generator)
    broken = (table["optimizer"] == "muon") & (table["seed"] == 1) & (table["items"] == 400)
    table.loc[broken, "status"] = "diverged"
    table.loc[broken & (table["step"] > 800), "loss"] = math.nan
    found = verdict_c7(table)
    assert {cell.labels["items"]: cell.counted for cell in found.cells} == {"50": True, "400": False}
    assert "one of the two diverged" in found.cells[1].why
    assert any(note.startswith("1 of 6 comparisons have a run that diverged") for note in found.caveats)
    secondary = {item.name: item for item in found.secondary}
    assert secondary["at matched training loss"].effect == pytest.approx(0.3, abs=0.02)
    assert secondary["at matched training loss"].n == found.effect.n == 3
    assert "mid-schedule" in found.rule
    # a seed that diverged in every cell is left out of all of them
    broken = (table["optimizer"] == "muon") & (table["seed"] == 1)
    found = verdict_c7(table.assign(status=table["status"].mask(broken, "diverged")))
    assert (found.effect.n, [cell.counted for cell in found.cells]) == (2, [True, True])
    assert "no comparison has a number on seed 1" in found.caveats
    found = verdict_c7(table.assign(status="diverged"))
    assert {cell.why for cell in found.cells} == {"one of the two diverged on every seed"}
    assert found.verdict == "inconclusive"


def test_c7_names_best_rates_that_are_an_end_and_counts_without_the_seed_they_are_chosen_on(
    generator,
) -> None:
    table = tendency_table({"adamw": 0.9, "muon": 0.6, "sgd": 0.5}, generator)
    rule = (table["optimizer"] == "adamw") & (table["seed"] == 0) & (table["goal"] == "rule")
    table.loc[rule, "accuracy"] = (table["accuracy"] * 1.1).clip(upper=1)
    swept = table[table["seed"] == 0].assign(chosen=False)
    tried = [
        swept[~((swept["optimizer"] == "muon") & (swept["items"] == 50))].assign(lr=0.2),
        swept[swept["optimizer"] == "adamw"].assign(lr=0.05),
    ]
    found = verdict_c7(pd.concat([table, *tried]))
    note = next(note for note in found.caveats if "end of those tried" in note)
    assert note.endswith("in 1 of 2 cells that count: cipher 400 0.5 muon (0.1, the lowest)")
    assert "a single learning rate was tried in 1 of 4 searches, in 1 of 2 cells that count" in found.caveats
    without = next(item for item in found.secondary if "without seed 0" in item.name)
    assert (without.n, found.effect.n) == (2, 3)
    assert without.effect == pytest.approx(0.7 * 0.3, abs=0.01) != found.effect.effect
    assert any("held-out items of seed 0, which counts too" in note for note in found.caveats)


def test_c7_does_not_count_cells_in_which_nobody_finds_the_rule(generator) -> None:
    found = verdict_c7(tendency_table({"adamw": 0.4, "muon": 0.1}, generator))
    assert (found.verdict, found.effect.n) == ("inconclusive", 0)
    assert found.caveats == ("no cell counts",)
    assert {cell.why for cell in found.cells} == {"neither ends with 0.5 of the rule"}


def test_c7_needs_both_readings_to_agree(generator) -> None:
    """The rule is late under Muon at the same recall, but not at the same loss: its loss is ahead of its recall."""
    table = tendency_table({"adamw": 0.9, "muon": 0.6}, generator)
    muon = table["optimizer"] == "muon"
    table.loc[muon & (table["goal"] == "rule") & (table["step"] > 990), "accuracy"] = 0.9
    found = verdict_c7(table)
    assert found.verdict == "inconclusive"
    assert "at own best rates supported" in found.reason
    assert "at matched loss contradicted" in found.reason
    assert [item.name for item in found.groups] == [
        "language: cipher (inconclusive)",
        "language: cipher, at matched training loss (there contradicted)",
    ]


def test_c7_is_of_cells_and_levels_that_are_complete_over_seeds(generator) -> None:
    table = tendency_table({"adamw": 0.9, "muon": 0.6}, generator)
    rote = (table["optimizer"] == "muon") & (table["seed"] == 2) & (table["goal"] == "rote")
    # the larger cell: no moment of recall on one seed; the smaller: none of 90% recall
    table.loc[rote & (table["items"] == 400), "accuracy"] *= 0.4
    table.loc[rote & (table["items"] == 50), "accuracy"] = table["accuracy"].clip(upper=0.8)
    found = verdict_c7(table)
    assert {cell.labels["items"]: cell.why for cell in found.cells} == {
        "50": "",
        "400": "rote recall does not reach 50% in both on 1 of 3 seeds",
    }
    assert (found.effect.n, found.effect.effect) == (3, pytest.approx(0.5 * 0.3, abs=0.01))
    missing = table[~((table["optimizer"] == "adamw") & (table["seed"] == 1) & (table["items"] == 400))]
    why = verdict_c7(missing).cells[1].why
    assert why.startswith("one of the two is missing on 1 of 3 seeds; rote recall does not")


def test_c7_tells_of_single_items_too(generator) -> None:
    scores = pd.DataFrame(
        [
            {"optimizer": name, "seed": seed, "slice": slice_, "score": value + 0.001 * seed}
            for name, base in (("adamw", 0.1), ("muon", 0.3))
            for seed in range(3)
            for slice_, value in (("exceptions/rule/train", base), ("exceptions/exception", 0.9))
        ]
    )
    spoilt = pd.DataFrame(
        [
            {"optimizer": name, "seed": seed, "exceptions": count, "excess": 0.0 if count == 1 else value}
            for name, value in (("adamw", 0.05), ("muon", 0.15))
            for seed in range(3)
            for count in (1, 40)
        ]
    )
    others = {"counterfactual": scores, "corruption": spoilt}
    found = verdict_c7(tendency_table({"adamw": 0.9, "muon": 0.6}, generator), **others)
    secondary = {item.name: item.effect for item in found.secondary}
    assert secondary["held-out regular items spoilt by exceptions, Muon minus AdamW"] == pytest.approx(0.1)
    assert secondary["counterfactual score of rule items, Muon minus AdamW"] == pytest.approx(0.2)
    assert secondary["counterfactual score of what must be memorized, Muon minus AdamW"] == pytest.approx(0)


def test_nothing_to_judge_without_tables(generator) -> None:
    assert c6.judge({}) == c7.judge({}) == []
    only_adamw = verdict_c7(tendency_table({"adamw": 0.9}, generator))
    assert (only_adamw.verdict, only_adamw.reason) == ("inconclusive", "nothing to compare")
