"""Verdicts B1 to B4: planted truths, their reversals, nulls, and numbers that do not exist."""

import math
import secrets
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pytest

from synthlm.claims import basins as claims
from synthlm.claims.basins import half_shares, judge
from synthlm.claims.verdicts import Verdict

BASES = ("adamw", "muon")
SIGMAS = np.geomspace(0.002, 0.5, 24)
SLICES = ("facts/rote", "cipher/rule/heldout")
PARAMETERS = 10_000


@pytest.fixture
def rng() -> np.random.Generator:
    seed = secrets.randbits(48)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def head(base: str, seed: int, **more: str) -> dict[str, object]:
    return {
        "job": "0" * 12, "seed": seed, "base": base, "base_optimizer": base.partition("-")[0], "own": "max",
        "variant": "plain", "perturb": "", "centre": "pretrained", "language": "", "arm": "", "role": "old",
        "parameters": PARAMETERS, "scale": "absolute",
    } | more  # fmt: skip


def curve(power: float) -> Callable[[np.ndarray], np.ndarray]:
    """Accuracy 1 - (sigma / 0.1)^power / 2, no lower than 0: half is lost at 0.1, and 2^-power of that at half."""
    return lambda sigmas: np.maximum(0.0, 1 - (sigmas / 0.1) ** power / 2)


def profiles(
    rng: np.random.Generator, power: float, seeds: int = 5, bases: tuple[str, ...] = BASES
) -> pd.DataFrame:
    rows = []
    for base in bases:
        for seed in range(seeds):
            for name in SLICES:
                common = head(base, seed) | {"row": "profile", "slice": name}
                rows.append(
                    common | {"case": "centre", "scale": "", "draw": 0, "sigma": 0.0, "accuracy": 1.0}
                )
                for draw in range(4):
                    exponent = power * math.exp(rng.normal(0, 0.02))
                    rows += [
                        common | {"case": "most", "scale": scale, "draw": draw, "sigma": s, "accuracy": a}
                        for scale in ("absolute", "relative")
                        for s, a in zip(SIGMAS, curve(exponent)(SIGMAS), strict=True)
                    ]
    return pd.DataFrame(rows)


def width_rows(
    rng: np.random.Generator, logs: Mapping[tuple[str, ...], float], seeds: int = 5, **more: str
) -> pd.DataFrame:
    """``logs``: (case, role, centre) -> mean log width."""
    rows = []
    for base in BASES:
        shift = rng.normal(0, 0.5)
        for seed in range(seeds):
            of_seed = rng.normal(0, 0.3)
            for (case, role, centre), value in logs.items():
                for measure in ("loss", "accuracy"):
                    rows.append(
                        head(base, seed, **more) | {
                            "row": "width", "case": case, "role": role, "centre": centre, "slice": "all",
                            "language": "new-rule" if centre == "finetuned" else "", "measure": measure,
                            "tolerance": 0.05, "bound": "",
                            "width": math.exp(value + shift + of_seed + rng.normal(0, 0.02)),
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def verdicts(*frames: pd.DataFrame, **tables: pd.DataFrame) -> dict[str, Verdict]:
    return {v.claim: v for v in judge({"basins": pd.concat(frames, ignore_index=True), **tables})}


BASE = ("most", "old", "pretrained")
WORST = ("worst", "old", "pretrained")
NEW = ("most", "new", "finetuned")


def test_nothing_is_judged_without_a_table() -> None:
    assert judge({}) == []
    assert judge({"basins": pd.DataFrame()}) == []


@pytest.mark.parametrize(
    ("power", "verdict"), [(6.0, "supported"), (2.0, "contradicted"), (1.0, "contradicted")]
)
def test_a_plateau_is_flatter_than_a_parabola(rng: np.random.Generator, power: float, verdict: str) -> None:
    found = verdicts(profiles(rng, power), width_rows(rng, {BASE: 0, WORST: -3}))["B1"]
    assert found.verdict == verdict
    assert found.effect.effect == pytest.approx(0.25 - 2**-power, abs=0.02)
    assert found.effect.n == 5
    assert {cell.labels["base"] for cell in found.cells} == set(BASES)


def test_half_shares_of_a_power_are_exact_on_a_fine_grid() -> None:
    sigmas = np.geomspace(1e-3, 1, 4000)
    for power in (1.0, 2.0, 5.0):
        table = pd.DataFrame({"base": "a", "seed": 0, "sigma": sigmas, "accuracy": curve(power)(sigmas)})
        table = pd.concat([table, pd.DataFrame([{"base": "a", "seed": 0, "sigma": 0.0, "accuracy": 1.0}])])
        row = half_shares(table).iloc[0]
        assert row["half"] == pytest.approx(0.1, rel=1e-3)
        assert row["share"] == pytest.approx(2**-power, rel=1e-2)
    still = pd.DataFrame({"base": "a", "seed": 0, "sigma": [0.0, 0.1, 0.2], "accuracy": [1, 0.9, 0.8]})
    assert math.isnan(half_shares(still).iloc[0]["share"])


@pytest.mark.parametrize(
    ("worst", "verdict"), [(-2.0, "supported"), (-0.2, "contradicted"), (0.5, "contradicted")]
)
def test_the_worst_case_must_be_much_narrower(rng: np.random.Generator, worst: float, verdict: str) -> None:
    found = verdicts(profiles(rng, 4), width_rows(rng, {BASE: 0, WORST: worst}))["B2"]
    assert found.verdict == verdict
    assert found.effect.effect == pytest.approx(-worst, abs=0.05)


@pytest.mark.parametrize(("new", "verdict"), [(-0.5, "supported"), (0.4, "contradicted")])
def test_a_finetuned_ability_has_its_own_basin(rng: np.random.Generator, new: float, verdict: str) -> None:
    found = verdicts(profiles(rng, 4), width_rows(rng, {BASE: 0, WORST: -2, NEW: new}))["B1b"]
    assert found.verdict == verdict
    assert found.effect.effect == pytest.approx(-new, abs=0.05)
    assert found.cells[0].labels == {"base": "adamw", "language": "new-rule"}


def predictors(rng: np.random.Generator, inside: float, outside: float, learnt: float = 0.9) -> pd.DataFrame:
    """Models at a tenth and ten times of the width 1 (all seeds), which lost so much."""
    rows = [
        {
            "seed": seed, "base": base, "relative": learnt, "distance": factor * math.sqrt(PARAMETERS),
            "forgetting": lost + rng.normal(0, 0.003),
        }
        for base in BASES for seed in range(5) for factor, lost in ((0.1, inside), (10, outside))
        for _ in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def unit_widths(rng: np.random.Generator) -> pd.DataFrame:
    rows = width_rows(rng, {BASE: 0, WORST: -2})
    return rows.assign(width=np.where(rows["case"] == "most", 1.0, 0.1))


@pytest.mark.parametrize(("lost", "verdict"), [(0.01, "supported"), (0.3, "contradicted")])
def test_models_inside_the_basin_must_keep_within_its_tolerance(
    rng: np.random.Generator, lost: float, verdict: str
) -> None:
    found = verdicts(profiles(rng, 4), unit_widths(rng), predictors=predictors(rng, lost, 0.5))["B3"]
    assert found.verdict == verdict
    assert found.effect.effect == pytest.approx(0.05 - lost, abs=0.01)
    contrast = next(item for item in found.secondary if "outside" in item.name)
    assert contrast.effect == pytest.approx(0.5 - lost, abs=0.01)
    assert "40 of 80 models that learnt lie inside" in found.caveats


def test_models_that_learnt_nothing_do_not_count(rng: np.random.Generator) -> None:
    found = verdicts(profiles(rng, 4), unit_widths(rng), predictors=predictors(rng, 0.0, 0.0, learnt=0.2))
    assert found["B3"].verdict == "inconclusive"
    assert found["B3"].effect.n == 0


def noise_table(rng: np.random.Generator, gain: float) -> pd.DataFrame:
    """A results table of variants: each learns fully while its old accuracy falls from 1, by 0.5 less ``gain``."""
    rows = []
    for base in ("plain", "go", "double"):
        for seed in range(5):
            lost = 0.5 - (gain if base == "go" else 0.0) + rng.normal(0, 0.003)
            for step, share in ((0, 0.0), (10, 0.5), (20, 1.0)):
                for role, value in (("new", share), ("old", 1 - lost * share)):
                    rows.append({
                        "job": f"{base}{seed}", "kind": "finetune", "seed": seed, "base": base, "arm": "full-adamw",
                        "method": "full", "optimizer": "adamw", "rank": 0, "language": "new-rule", "lr": 0.1,
                        "steps_total": 20, "status": "done", "chosen": False, "step": step, "role": role,
                        "slice": f"{role}/rule", "goal": "rule", "loss": 1 - value, "floor": 0.0,
                        "accuracy": value, "exact": value, "kl": 0.0, "n": 10,
                    })  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("gain", "verdict"), [(0.3, "supported"), (-0.3, "contradicted")])
def test_noise_is_set_against_the_plain_base_and_controls_stand_apart(
    rng: np.random.Generator, gain: float, verdict: str
) -> None:
    plain = width_rows(rng, {BASE: 0, WORST: -2})
    plain = plain[plain["base"] == "adamw"]
    go = plain.assign(variant="go", perturb="noise 0.01", width=plain["width"] * math.exp(gain))
    double = plain.assign(variant="double", width=plain["width"] * math.exp(2 * gain))
    found = verdicts(profiles(rng, 4), plain, go, double, noise=noise_table(rng, gain))
    wider, forgets = found["B4"], found["B4b"]
    assert wider.verdict == forgets.verdict == verdict
    assert wider.effect.effect == pytest.approx(gain)
    assert {cell.labels["variant"] for cell in wider.cells} == {"go"}
    control = next(item for item in wider.secondary if item.name == "control: double")
    assert control.effect == pytest.approx(2 * gain)
    # at relative learning l an arm has kept 1 - lost * l: the gain is weighed by the mean level
    assert forgets.effect.effect == pytest.approx(gain * claims.LEVELS.mean(), abs=0.02)
    assert next(item for item in forgets.secondary).effect == pytest.approx(0, abs=0.01)


def test_control_bases_do_not_count_and_few_seeds_are_said(rng: np.random.Generator) -> None:
    matched = profiles(rng, 1, seeds=2, bases=("adamw-matched",))
    widths = width_rows(rng, {BASE: 0, WORST: -2}, seeds=2)
    found = verdicts(profiles(rng, 6, seeds=2), matched, widths)
    assert {cell.labels["base"] for cell in found["B1"].cells} == set(BASES)
    assert "2 paired seeds: fewer than the 5 a headline asks for" in found["B1"].caveats


def test_widths_beyond_the_grid_are_told(rng: np.random.Generator) -> None:
    widths = width_rows(rng, {BASE: 0, WORST: -2})
    widths.loc[widths["case"] == "worst", "bound"] = "at most"
    found = verdicts(profiles(rng, 6), widths)["B2"]
    assert "10 of 20 widths lie beyond the grid and count as its end" in found.caveats
