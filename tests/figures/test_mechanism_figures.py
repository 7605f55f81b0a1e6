"""Figures of activations, curvature and predictors: numbers from planted tables; drawn from their CSV alone."""

import itertools
import math
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import misplaced

from synthlm import figures
from synthlm.analysis.activations import SIZES, STATISTICS
from synthlm.analysis.prediction import rank_correlation, unseen_r2
from synthlm.analysis.structure import STRUCTURE
from synthlm.figures.predictors import PREDICTORS
from synthlm.figures.spectral_density import BROADENING
from synthlm.statistics import bootstrap_interval
from synthlm.table import write_csv

OWN = {"adamw": "max", "muon": "spectral", "sgd": "frobenius", "adamw-matched": "max"}
OPTIMIZER = {"adamw": "adamw", "muon": "muon", "sgd": "sgd", "adamw-matched": "adamw"}
NAMES = [
    "activation_sizes", "activation_statistics", "sharpness_matrix", "spectral_density", "forgetting_predictors",
    "predictor_scores",
]  # fmt: skip


def head(base: str, seed: int) -> dict[str, object]:
    return {"job": "0" * 12, "seed": seed, "base": base, "base_optimizer": OPTIMIZER[base], "own": OWN[base]}


def activations_table(rng: np.random.Generator, bases: list[str], seeds: int) -> pd.DataFrame:
    rows = []
    names = (*STATISTICS, *SIZES, *(f"weight/{name}" for name in STRUCTURE))
    for base, seed, step, matrix in itertools.product(bases, range(seeds), (0, 1, 30, 500), ("a", "b")):
        for part, goal in (("all", ""), ("facts/rote", "rote"), ("cipher/rule", "rule")):
            values = {name: rng.uniform(1, 2) for name in names}
            rows.append(
                head(base, seed)
                | {"step": step, "matrix": matrix, "slice": part, "goal": goal, "n": 64}
                | values
            )
    return pd.DataFrame(rows)


def sharpness_table(rng: np.random.Generator, bases: list[str], seeds: int) -> pd.DataFrame:
    rows = []
    for base, seed, geometry, kind in itertools.product(
        bases, range(seeds), ("max", "spectral", "frobenius"), ("native", "relative")
    ):
        for gradient, language in (("new", "new-rule"), ("new", "new-facts"), ("old", "")):
            rows.append(
                head(base, seed)
                | {
                    "gradient": gradient, "language": language, "geometry": geometry, "kind": kind,
                    "curvature": rng.lognormal(), "critical": rng.lognormal(3), "slope": -1.0, "rayleigh": 0.1,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def spectrum_table(rng: np.random.Generator, bases: list[str], seeds: int) -> pd.DataFrame:
    rows = []
    for base, seed, probe in itertools.product(bases, range(seeds), range(2)):
        nodes = np.concatenate([rng.lognormal(0, 2, size=20), -rng.lognormal(-2, 1, size=10)])
        weights = rng.dirichlet(np.ones(30))
        for node, weight in zip(nodes, weights, strict=True):
            rows.append(
                head(base, seed) | {"what": "node", "probe": probe, "eigenvalue": node, "weight": weight}
            )
        rows.append(head(base, seed) | {"what": "density", "probe": -1, "eigenvalue": 0.0, "weight": 9.0})
    return pd.DataFrame(rows)


def predictors_table(rng: np.random.Generator, bases: list[str], seeds: int) -> pd.DataFrame:
    rows = []
    arms = {
        "full-adamw": ("full", "adamw", 0), "full-muon": ("full", "muon", 0), "lora4-adamw": ("lora", "adamw", 4),
    }  # fmt: skip
    for base, seed, (arm, (method, optimizer, rank)), rate in itertools.product(
        bases, range(seeds), arms.items(), range(6)
    ):
        cause = 2.0**rate * rng.lognormal(0, 0.2)
        rows.append(
            head(base, seed)
            | {
                "language": "new-rule", "arm": arm, "method": method, "optimizer": optimizer, "rank": rank,
                "lr": 1e-3 * 2**rate, "learnt": rate / 6, "forgetting": cause / (cause + 8),
            }
            | {name: cause * rng.lognormal(0, 0.3) for name in PREDICTORS}
        )  # fmt: skip
    return pd.DataFrame(rows)


MAKERS: dict[str, Callable[[np.random.Generator, list[str], int], pd.DataFrame]] = {
    "activations": activations_table, "sharpness": sharpness_table, "spectrum": spectrum_table,
    "predictors": predictors_table,
}  # fmt: skip


@pytest.fixture
def rng() -> np.random.Generator:
    seed = secrets.randbits(48)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("bases", "seeds"), [(list(OWN), 3), (["muon"], 1)])
def test_drawn_from_csv_alone_with_no_text_outside(
    name: str, bases: list[str], seeds: int, rng: np.random.Generator, tmp_path: Path
) -> None:
    module = figures.get(name)
    data = module.data(MAKERS[module.TABLE](rng, bases, seeds))
    assert tuple(data.columns) == module.COLUMNS
    write_csv(data, tmp_path / "data.csv")
    again = figures.load(name, tmp_path / "data.csv")
    assert module.caption(again) == module.caption(data)
    assert "n = " in module.caption(data)
    assert not misplaced(module.draw(again))


def test_sizes_are_means_over_matrices_with_intervals_over_seeds(rng: np.random.Generator) -> None:
    table = activations_table(rng, ["adamw", "muon"], 3)
    found = figures.get("activation_sizes").data(table)
    rows = table[(table["base"] == "muon") & (table["goal"] == "rule") & (table["step"] == 30)]
    per_seed = rows.groupby("seed")["size/max"].mean()
    cell = found[
        (found["base"] == "muon") & (found["goal"] == "rule") & (found["step"] == 30) & (found["geometry"] == "max")
    ].sort_values("seed")  # fmt: skip
    assert cell["value"].tolist() == pytest.approx(per_seed.tolist())
    wanted = bootstrap_interval(per_seed)
    assert (cell["low"].iloc[0], cell["high"].iloc[0]) == (wanted.low, wanted.high)
    assert (cell["n"] == 3).all()
    whole = figures.get("activation_statistics").data(table)
    rows = table[(table["base"] == "adamw") & (table["slice"] == "all") & (table["step"] == 0)]
    cell = whole[(whole["base"] == "adamw") & (whole["step"] == 0) & (whole["name"] == "kurtosis")]
    assert cell.sort_values("seed")["value"].tolist() == pytest.approx(
        rows.groupby("seed")["kurtosis"].mean().tolist()
    )


def test_relative_sharpness_is_free_of_bases_and_geometries(rng: np.random.Generator) -> None:
    table = sharpness_table(rng, ["adamw", "muon", "sgd"], 3)
    scaled = table.copy()
    scaled.loc[scaled["base"] == "muon", "curvature"] *= 1000
    scaled.loc[scaled["geometry"] == "max", "curvature"] *= 0.01
    keys = ["panel", "base", "geometry"]
    one, two = (figures.get("sharpness_matrix").data(t).set_index(keys) for t in (table, scaled))
    np.testing.assert_allclose(one["relative"], two["relative"], atol=1e-10)
    for axis in ("base", "geometry"):
        sums = one["relative"].groupby(["panel", axis]).sum()
        np.testing.assert_allclose(sums, 0, atol=1e-10)
    rows = table[
        (table["base"] == "sgd") & (table["geometry"] == "max") & (table["kind"] == "native")
        & (table["gradient"] == "new")
    ]  # fmt: skip
    means = rows.groupby("seed")["curvature"].mean()
    assert one.loc[("unit", "sgd", "max"), "value"] == pytest.approx(math.exp(np.log(means).mean()))


def test_a_curvature_that_is_not_positive_is_left_out_and_counted(rng: np.random.Generator) -> None:
    table = sharpness_table(rng, ["adamw", "muon"], 3)
    bad = (
        (table["base"] == "adamw")
        & (table["seed"] == 1)
        & (table["geometry"] == "max")
        & (table["kind"] == "native")
    )
    table.loc[bad, "curvature"] = -1.0
    module = figures.get("sharpness_matrix")
    data = module.data(table)
    cell = data.set_index(["panel", "base", "geometry"]).loc[("unit", "adamw", "max")]
    assert (cell["n"], cell["missing"]) == (2, 1)
    assert "In 1 cells of single seeds" in module.caption(data)


def test_densities_hold_the_weight_of_each_sign(rng: np.random.Generator) -> None:
    table = spectrum_table(rng, ["adamw"], 1)
    nodes = table[table["what"] == "node"]
    found = figures.get("spectral_density").data(table)
    for sign in (1, -1):
        half = found[found["sign"] == sign].sort_values("eigenvalue")
        mass = np.trapezoid(half["density"], np.log10(half["eigenvalue"]))
        mine = nodes[nodes["eigenvalue"] * sign > 0]
        seen = mine[mine["eigenvalue"].abs() > half["eigenvalue"].min() * 10 ** (3 * BROADENING)]
        assert mass >= seen["weight"].sum() / 2 * 0.99
        assert mass <= mine["weight"].sum() / 2 * 1.01
    assert found["largest"].iloc[0] == nodes["eigenvalue"].max()


def test_scores_are_those_of_the_predictors(rng: np.random.Generator) -> None:
    kept = ("distance", "overlap", "kl")
    table = predictors_table(rng, ["adamw", "muon"], 3).drop(columns=[n for n in PREDICTORS if n not in kept])
    found = figures.get("predictor_scores").data(table).set_index(["predictor", "score"])
    assert set(found.index.get_level_values("predictor")) == set(kept)
    rank = rank_correlation(table["distance"], table["forgetting"])
    assert found.loc[("distance", "spearman"), "value"] == pytest.approx(rank)
    r2 = unseen_r2(table["kl"], table["forgetting"], table["arm"])
    assert found.loc[("kl", "r2"), "value"] == pytest.approx(r2)
    assert (found["clusters"] == 6).all()
    assert (found["low"] <= found["high"]).all()
