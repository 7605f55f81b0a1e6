"""Verdicts C3, C4, C5: planted truths, nulls, reversals, and numbers that do not exist."""

import math
import secrets

import numpy as np
import pandas as pd
import pytest

from synthlm.claims import mechanism
from synthlm.claims.mechanism import interactions, judge
from synthlm.geometry import GEOMETRIES

OWN = {"adamw": "max", "muon": "spectral", "sgd": "frobenius"}


@pytest.fixture
def rng():
    seed = secrets.randbits(48)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def labels(base, seed):
    optimizer = base.partition("-")[0]
    return {"job": "0" * 12, "seed": seed, "base": base, "base_optimizer": optimizer, "own": OWN[optimizer]}


def activations(rng, shrink, seeds=5, bases=tuple(OWN), noise=0.02):
    """Sizes with any effect of base and of geometry; the own one is smaller by ``shrink`` (log) at the last step."""
    of_base = {base: rng.normal(0, 0.5) for base in bases}
    of_geometry = {name: rng.normal(0, 2) for name in GEOMETRIES}
    rows = []
    for base in bases:
        for seed in range(seeds):
            for step in (0, 10, 100):
                for matrix in ("blocks.0.attn.W_Q", "blocks.0.attn.W_O", "blocks.0.mlp.W_out"):
                    for goal in ("rote", "rule", ""):
                        row = labels(base, seed) | {
                            "step": step, "matrix": matrix, "slice": f"x/{goal}", "goal": goal, "n": 64,
                        }  # fmt: skip
                        for name in GEOMETRIES:
                            own = shrink if name == row["own"] and step == 100 else 0.0
                            value = of_base[base] + of_geometry[name] - own + rng.normal(0, noise)
                            row[f"size/{name}"] = math.exp(value)
                        rows.append(row)
    return pd.DataFrame(rows)


def sharpness(rng, flatter, seeds=5, noise=0.05):
    rows = []
    scale = {name: rng.normal(0, 3) for name in GEOMETRIES}
    for base in OWN:
        height = rng.normal()
        for seed in range(seeds):
            for language in ("new-rule", "new-facts"):
                for name in GEOMETRIES:
                    value = (
                        height + scale[name] - (flatter if name == OWN[base] else 0) + rng.normal(0, noise)
                    )
                    rows.append(
                        labels(base, seed)
                        | {
                            "gradient": "new",
                            "language": language,
                            "geometry": name,
                            "kind": "native",
                            "curvature": math.exp(value),
                        }
                    )
    return pd.DataFrame(rows)


def predictors(rng, better, seeds=5, models=6):
    """Forgetting follows a hidden cause; structure sees it with noise 0.3, size with noise 0.3 + ``better``."""
    rows = []
    for base in OWN:
        for seed in range(seeds):
            for arm in ("full-adamw", "full-muon", "lora4-adamw"):
                for language in ("new-rule", "new-facts"):
                    for _ in range(models):
                        cause = rng.normal()
                        seen = cause + rng.normal(0, 0.3, size=3)
                        size = math.exp(cause + rng.normal(0, 0.3 + max(better, 0)))
                        blur = rng.normal(0, abs(min(better, 0)), size=3)
                        rows.append(
                            labels(base, seed)
                            | {
                                "arm": arm,
                                "language": language,
                                "learnt": rng.uniform(),
                                "forgetting": 1 / (1 + math.exp(-2 * cause)),
                                "distance": size,
                                "relative/frobenius": size,
                                "own/norm": math.exp(seen[0] + blur[0]),
                                "own/reach": math.exp(seen[1] + blur[1]),
                                "drift/outputs": math.exp(seen[2] + blur[2]),
                            }
                        )
    return pd.DataFrame(rows)


def only(tables):
    (verdict,) = judge(tables)
    return verdict


MAKERS = {"activations": (activations, 0.3), "sharpness": (sharpness, 0.5), "predictors": (predictors, 1.0)}


@pytest.mark.parametrize("name", MAKERS)
def test_a_planted_truth_is_supported_and_its_reverse_contradicted(name, rng):
    make, strength = MAKERS[name]
    verdict = only({name: make(rng, strength)})
    assert verdict.verdict == "supported"
    assert verdict.effect.n == 5
    assert verdict.effect.p < 0.01
    assert all(cell.counted and cell.estimate.p_holm >= cell.estimate.p for cell in verdict.cells)
    reverse = only({name: make(rng, -strength)})
    assert reverse.verdict == "contradicted"
    assert reverse.effect.effect < 0


def test_effects_are_in_the_units_they_claim(rng):
    """The planted log ratios come back, whatever bases and geometries do on their own."""
    size = only({"activations": activations(rng, 0.3)})
    assert size.effect.effect == pytest.approx(0.3, abs=0.03)
    assert {cell.labels["pair"] for cell in size.cells} == {"adamw and muon", "adamw and sgd", "muon and sgd"}
    assert only({"sharpness": sharpness(rng, 0.5)}).effect.effect == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("name", MAKERS)
def test_a_null_is_never_supported_and_a_sharp_one_is_contradicted(name, rng):
    make, _ = MAKERS[name]
    exact = {} if name == "predictors" else {"noise": 1e-4}
    verdict = only({name: make(rng, 0.0, **exact)})
    assert verdict.verdict != "supported"
    if exact:
        assert verdict.verdict == "contradicted"


@pytest.mark.parametrize("name", MAKERS)
def test_one_seed_is_inconclusive(name, rng):
    make, strength = MAKERS[name]
    verdict = only({name: make(rng, strength, seeds=1)})
    assert verdict.verdict == "inconclusive"
    assert math.isnan(verdict.effect.low)


def test_interactions_cancel_bases_and_geometries(rng):
    s = {(b, g): rng.normal() for b in OWN for g in GEOMETRIES}

    def table(shift_base, shift_geometry):
        return pd.DataFrame([
            {"seed": 0, "base": b, "own": OWN[b], "geometry": g,
             "value": value + shift_base * (b == "muon") + shift_geometry * (g == "max")}
            for (b, g), value in s.items()
        ])  # fmt: skip

    plain, shifted = interactions(table(0, 0)), interactions(table(3.0, -7.0))
    np.testing.assert_allclose(shifted["effect"], plain["effect"], atol=1e-12)
    by_pair = plain.set_index("pair")["effect"]
    expected = (s["muon", "max"] - s["muon", "spectral"] - s["adamw", "max"] + s["adamw", "spectral"]) / 2
    assert by_pair["adamw and muon"] == pytest.approx(expected)


def test_bases_of_one_geometry_are_not_compared(rng):
    table = activations(rng, 0.3, bases=("adamw", "muon"))
    twin = table[table["base"] == "adamw"].assign(base="lion", base_optimizer="lion")
    verdict = only({"activations": pd.concat([table, twin])})
    assert {cell.labels["pair"] for cell in verdict.cells} == {"adamw and muon", "lion and muon"}


def test_control_bases_do_not_count(rng):
    table = activations(rng, 0.3)
    control = table[table["base"] == "adamw"].assign(base="adamw-matched")
    control[[f"size/{name}" for name in GEOMETRIES]] *= rng.uniform(0.1, 10, size=(len(control), 3))
    alone, both = only({"activations": table}), only({"activations": pd.concat([table, control])})
    assert both.effect == alone.effect


def test_a_curvature_without_logarithm_does_not_count(rng):
    table = sharpness(rng, 0.5)
    bad = (table["base"] == "adamw") & (table["seed"] == 2) & (table["geometry"] == "max")
    table.loc[bad, "curvature"] = -1.0
    verdict = only({"sharpness": table})
    counts = {cell.labels["pair"]: cell.estimate.n for cell in verdict.cells}
    assert counts == {"adamw and muon": 4, "adamw and sgd": 4, "muon and sgd": 5}
    assert any("2 of 15 comparisons have no number" in note for note in verdict.caveats)


def test_a_baseline_near_the_ceiling_is_told(rng):
    table = predictors(rng, 1.0)
    assert not any("impossible" in note for note in only({"predictors": table}).caveats)
    table["distance"] = table["forgetting"]
    assert any("a gain above 0.00 is impossible" in n for n in only({"predictors": table}).caveats)


def test_few_models_give_no_correlation(rng):
    verdict = only({"predictors": predictors(rng, 1.0, models=1)})
    assert verdict.effect.n == 0
    assert verdict.verdict == "inconclusive"


def test_nothing_to_judge_gives_no_verdict():
    assert judge({}) == []
    assert judge({"activations": pd.DataFrame()}) == []


def test_constants_are_told():
    assert mechanism.CONSTANTS["smallest_curvature"] == 2 * mechanism.CONSTANTS["smallest_size"]
    for rule in (mechanism.RULE_C3, mechanism.RULE_C4, mechanism.RULE_C5):
        assert "{" not in rule
