"""Figures of landscapes and basins: their numbers from planted tables, and that they draw from their CSV alone."""

import itertools
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import misplaced

from synthlm import figures
from synthlm.figures.bands import complete, over_seeds
from synthlm.statistics import bootstrap_interval
from synthlm.table import write_csv

OWN = {"adamw": "max", "muon": "spectral", "sgd": "frobenius"}
NAMES = ["landscape", "plane", "basins", "basin_widths", "certificate"]
SLICES = ("facts/rote", "cipher/rule/heldout")


def head(base: str, seed: int, **more: object) -> dict[str, object]:
    return {
        "job": "0" * 12, "seed": seed, "base": base, "base_optimizer": base, "own": OWN[base], "variant": "plain",
        "perturb": "", "centre": "pretrained", "language": "", "arm": "", "of_model": "", "of_language": "",
        "of_arm": "", "of_method": "", "of_optimizer": "",
    } | more  # fmt: skip


def of(optimizer: str) -> dict[str, object]:
    return {
        "of_model": "1" * 12, "of_language": "new-rule", "of_arm": f"full-{optimizer}", "of_method": "full",
        "of_optimizer": optimizer,
    }  # fmt: skip


def each(bases: list[str], seeds: int) -> itertools.product:
    return itertools.product(bases, range(seeds))


def landscape_table(rng: np.random.Generator, bases: list[str], seeds: int) -> pd.DataFrame:
    rows = []
    for base, seed in each(bases, seeds):
        lines: list[tuple[str, str, dict[str, object]]] = [("gaussian", "", {})]
        lines += [(d, g, {}) for d in ("gradient", "worst") for g in OWN.values()]
        lines += [("update", "", of(o)) for o in bases]
        for name in SLICES:
            at = head(base, seed, slice=name, accuracy=1.0, draw=0)
            rows.append(at | {"direction": "centre", "kind": "", "geometry": "", "radius": 0.0, "loss": 0.01})
            for (direction, geometry, more), kind, radius in itertools.product(
                lines, ("relative", "native"), (0.02, 0.2)
            ):
                rows.append(
                    at | more | {
                        "direction": direction, "kind": kind, "geometry": geometry, "radius": radius,
                        "loss": 0.01 + radius * rng.uniform(1, 2),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def plane_table(rng: np.random.Generator, bases: list[str], seeds: int) -> pd.DataFrame:
    rows = []
    for base, role, name in itertools.product(bases, ("old", "new"), SLICES):
        at = head(base, 0, role=role, slice=name, loss=0.5)
        for x, y in itertools.product(np.linspace(-1, 3, 5), repeat=2):
            rows.append(at | {"what": "grid", "x": x, "y": y, "accuracy": rng.uniform()})
        for x, y, more in ((0.0, 0.0, {}), (2.0, 0.0, of(base)), (1.0, 1.5, of("muon"))):
            rows.append(at | more | {"what": "model", "x": x, "y": y, "accuracy": rng.uniform()})
    return pd.DataFrame(rows)


def basins_table(rng: np.random.Generator, bases: list[str], seeds: int) -> pd.DataFrame:
    rows = []
    for base, seed in each(bases, seeds):
        for centre, role in (("pretrained", "old"), ("finetuned", "old"), ("finetuned", "new")):
            for name in SLICES:
                at = head(base, seed, centre=centre, role=role, slice=name, row="profile", loss=0.5, draw=0)
                rows.append(at | {"case": "centre", "scale": "", "sigma": 0.0, "accuracy": 0.9})
                for case in ("most", "worst", "finetuning"):
                    for sigma in (0.01, 0.1, *((0.3,) if seed == 0 else ())):
                        accuracy = 0.9 * np.exp(-5 * sigma) + rng.normal(0, 0.01)
                        rows.append(
                            at | {"case": case, "scale": "absolute", "sigma": sigma, "accuracy": accuracy}
                        )
        for variant, case, scale in itertools.product(
            ("plain", "noise-2"), ("most", "worst"), ("absolute", "relative")
        ):
            if base == "adamw" or variant == "plain":
                perturb = "" if variant == "plain" else "noise 0.02"
                rows.append(
                    head(base, seed, variant=variant, perturb=perturb) | {
                        "row": "width", "role": "old", "slice": "all", "case": case, "scale": scale,
                        "measure": "accuracy", "tolerance": 0.05, "width": rng.uniform(0.01, 0.02), "low": 0.01,
                        "high": 0.02, "n": 8, "bound": "at least" if seed == 1 else "",
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def certificate_table(rng: np.random.Generator, bases: list[str], seeds: int) -> pd.DataFrame:
    rows = []
    for base, seed in each(bases, seeds):
        for sigma, radius in ((0.01, 0.02), (0.02, 0.03)):
            for more in ({}, *(of(optimizer) for optimizer in bases)):
                distance = rng.uniform(2, 5) if more else 0.0
                rows.append(
                    head(base, seed) | more | {
                        "sigma": sigma, "distance": distance, "fall": 0.1, "accuracy": 0.8, "noised": 0.7,
                        "trials": 500, "successes": 495, "low": 0.98, "high": 0.999, "radius": radius,
                        "weak_radius": radius / 2, "bound": 0.0 if more else 0.98, "weak_bound": 0.0,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


MAKERS: dict[str, Callable[[np.random.Generator, list[str], int], pd.DataFrame]] = {
    "landscape": landscape_table, "plane": plane_table, "basins": basins_table, "certificate": certificate_table,
}  # fmt: skip


@pytest.fixture
def rng() -> np.random.Generator:
    seed = secrets.randbits(48)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def data_of(name: str, rng: np.random.Generator, bases: list[str], seeds: int) -> pd.DataFrame:
    module = figures.get(name)
    data = module.data(MAKERS[module.TABLE](rng, bases, seeds))
    assert tuple(data.columns) == module.COLUMNS
    return data


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("bases", "seeds"), [(["adamw", "muon", "sgd"], 3), (["muon"], 1)])
def test_drawn_from_csv_alone_with_no_text_outside(
    name: str, bases: list[str], seeds: int, rng: np.random.Generator, tmp_path: Path
) -> None:
    module, data = figures.get(name), data_of(name, rng, bases, seeds)
    write_csv(data, tmp_path / "data.csv")
    again = figures.load(name, tmp_path / "data.csv")
    assert module.caption(again) == module.caption(data)
    assert "n = 3" in module.caption(data) or "n = 1" in module.caption(data)
    assert not misplaced(module.draw(again))


def test_means_are_over_seeds_and_intervals_bootstrap_them(rng: np.random.Generator) -> None:
    table = pd.DataFrame({
        "line": ["a"] * 6 + ["b"] * 3, "seed": [0, 0, 1, 1, 2, 2, 0, 1, 2], "value": rng.normal(size=9),
    })  # fmt: skip
    found = over_seeds(table, ["line"], "value").set_index("line")
    per_seed = table[table["line"] == "a"].groupby("seed")["value"].mean()
    wanted = bootstrap_interval(per_seed)
    assert found.loc["a", "mean"] == pytest.approx(per_seed.mean())
    assert (found.loc["a", "low"], found.loc["a", "high"]) == (wanted.low, wanted.high)
    assert found.loc["a", "n"] == 3
    assert over_seeds(table.iloc[:0], ["line"], "value").empty


def test_a_line_does_not_change_its_seeds_midway(rng: np.random.Generator) -> None:
    found = data_of("basins", rng, ["adamw"], 3)
    assert set(found["sigma"]) == {0.01, 0.1}  # 0.3 is there in one seed alone
    assert (found["n"] == 3).all()
    one = pd.DataFrame({"line": ["a", "a", "b"], "n": [3, 2, 1]})
    assert len(complete(one, ["line"])) == 2


def test_landscape_panels_hold_their_lines(rng: np.random.Generator) -> None:
    table = landscape_table(rng, ["adamw", "muon"], 2)
    found = figures.get("landscape").data(table)
    assert set(found[found["panel"] == "update"]["line"]) == {"adamw", "muon", "gaussian"}
    assert set(found[found["panel"] == "worst"]["line"]) == {*OWN.values(), "gaussian"}
    row = found[
        (found["panel"] == "gradient") & (found["base"] == "muon") & (found["line"] == "max") & (found["radius"] == 0.2)
    ].iloc[0]  # fmt: skip
    rows = table[
        (table["direction"] == "gradient") & (table["base"] == "muon") & (table["geometry"] == "max")
        & (table["radius"] == 0.2) & (table["kind"] == "relative")
    ]  # fmt: skip
    assert row["mean"] == pytest.approx(rows.groupby("seed")["loss"].mean().mean())
    assert row["centre"] == pytest.approx(0.01)


def test_the_certificate_at_the_largest_radius_is_shown_and_its_share_told(rng: np.random.Generator) -> None:
    found = data_of("certificate", rng, ["adamw"], 2)
    assert set(found[found["best"].astype(bool)]["sigma"]) == {0.02}
    tuned = found[found["best"].astype(bool) & (found["arm"] != "")]
    text = figures.get("certificate").caption(found)
    assert f"(median {(0.03 / tuned['distance']).median():.2g})" in text
    assert "the guarantee is empty" in text
    assert "0 of 2 models lie below" in text


def test_widths_keep_every_seed_and_its_bound(rng: np.random.Generator) -> None:
    found = data_of("basin_widths", rng, ["adamw", "muon"], 3)
    cell = found[
        (found["panel"] == "most/absolute") & (found["base"] == "adamw") & (found["variant"] == "noise-2")
    ]
    assert sorted(cell["seed"]) == [0, 1, 2]
    assert cell["mean"].iloc[0] == pytest.approx(cell["width"].mean())
    assert list(cell.sort_values("seed")["bound"]) == ["", "at least", ""]
