"""The figures of rote and rule: their data, that they draw from their CSV, that nothing is clipped, their captions."""

import numpy as np
import pandas as pd
import pytest
from drawn import misplaced
from synthetic_tendency import STEPS, logistic, make_tendency

from synthlm import figures
from synthlm.figures import data_needed, tail_recall
from synthlm.table import write_csv

NAMES = ["rote_rule_curves", "rule_at_recall", "tendency_map", "data_needed", "tail_recall"]

TABLES = {
    "full": {"noise": 0.05, "diverged": (("sgd", 1),), "items": (32, 512)},
    "one seed": {"seeds": 1},
    "one cell": {
        "items": (128,),
        "shares": (0.5,),
        "languages": ("cipher",),
        "optimizers": ("adamw", "muon"),
    },
    "many": {
        "languages": ("cipher", "modular", "routing", "automaton", "exceptions"),
        "optimizers": ("adamw", "muon", "sgd", "lion", "soap"),
        "items": (32, 512),
        "shares": (0.5,),
        "noise": 0.1,
    },
}


@pytest.fixture(scope="module", params=list(TABLES))
def table(request: pytest.FixtureRequest) -> pd.DataFrame:
    table = make_tendency(**TABLES[request.param])
    if request.param == "full":  # languages need not have the same sizes and shares
        more = make_tendency(languages=("odd",), items=(50, 60), shares=(0.5,), zipf=False)
        return pd.concat([table, more.assign(job="e" * 12)], ignore_index=True)
    return table


@pytest.mark.parametrize("name", NAMES)
def test_drawn_from_csv_alone_and_nothing_clipped(name, table, tmp_path):
    module = figures.get(name)
    data = figures.data_of(name, {"tendency": table})
    assert tuple(data.columns) == module.COLUMNS
    write_csv(data, tmp_path / "data.csv")
    again = figures.load(name, tmp_path / "data.csv")
    pd.testing.assert_frame_equal(again, data, check_exact=True, check_dtype=False)
    assert module.caption(again) == module.caption(data)
    assert not misplaced(module.draw(again))


@pytest.mark.parametrize("name", NAMES)
def test_captions_tell_how_many_seeds(name):
    for seeds in (1, 3):
        data = figures.data_of(
            name, {"tendency": make_tendency(seeds=seeds, items=(128,), languages=("cipher",))}
        )
        assert f"n = {seeds}" in figures.get(name).caption(data)


def test_examples_needed_are_where_accuracy_crosses():
    table = make_tendency(seeds=2, shares=(0.5,), languages=("cipher",), lead=0.05, zipf=False)
    data = data_needed.data(table)
    reach = logistic(300, 60, 1.0)  # accuracy at the end of training per unit of top
    muon = data[data["optimizer"] == "muon"]["needed"].to_numpy()
    tops = [0.9 * np.log(n) / np.log(512) + 0.05 for n in (128, 512)]
    share = (0.9 - reach * tops[0]) / (reach * (tops[1] - tops[0]))
    np.testing.assert_allclose(muon, np.exp(np.log(128) + share * np.log(4)))
    assert data[data["optimizer"] != "muon"]["needed"].isna().all()
    needed = data_needed.needed
    items = np.array([1.0, 10.0, 100.0])
    assert needed(items, np.array([0.95, 0.9, 1.0])) == 1
    assert needed(items, np.array([0.95, 0.8, 1.0])) == pytest.approx(np.sqrt(1000))
    assert np.isnan(needed(items, np.array([0.95, 1.0, 0.8])))


def test_tails_are_apart_from_heads():
    data = tail_recall.data(make_tendency())
    assert set(data["language"]) == {"zipf-facts"}
    for part, half in (("head", 30), ("tail", 100)):
        run = data[(data["part"] == part) & (data["optimizer"] == "sgd") & (data["seed"] == 2)]
        np.testing.assert_allclose(run["recall"], [logistic(step, half, 1.0) for step in STEPS])
    assert tail_recall.data(make_tendency(zipf=False)).empty


def test_the_map_tells_who_is_best_and_by_how_much():
    data = figures.data_of("tendency_map", {"tendency": make_tendency(lead=0.08, noise=0.002)})
    best = data[(data["reading"] == "best") & (data["items"] < 512)]
    assert set(best["first"]) == {"muon"}
    assert set(best["second"]) == {"adamw"}
    end = data[(data["reading"] == "rule") & (data["items"] < 512)]
    np.testing.assert_allclose(best["mean"].to_numpy(), end["mean"].to_numpy())
    np.testing.assert_allclose(end["mean"], 0.08 * logistic(300, 60, 1.0), atol=0.01)


def test_captions_tell_what_numbers_rest_on():
    whole = figures.data_of("tendency_map", {"tendency": make_tendency(items=(128,))})
    broken = figures.data_of(
        "tendency_map", {"tendency": make_tendency(items=(128,), diverged=(("muon", 1),))}
    )
    caption = figures.get("tendency_map").caption
    assert "n = 3 paired seeds" in caption(whole)
    one = make_tendency(items=(128,), diverged=(("muon", 0), ("adamw", 1), ("muon", 2)))
    gone = figures.data_of("tendency_map", {"tendency": one}).query("reading == 'matched'")
    assert (gone["n"] == 0).all()
    assert len(gone) == 4, "crossed out rather than missing"
    assert "n = 2 to 3 (by cell and reading) paired seeds" in caption(broken)
    for text in (
        "annealed end",
        "in mid-schedule",
        "one diverged are left out",
        "picked by the very numbers tested",
    ):
        assert text in caption(whole)
    for name in ("tendency_map", "data_needed", "rule_at_recall", "rote_rule_curves"):
        data = figures.data_of(name, {"tendency": make_tendency(items=(128,))})
        assert "exceptions to the rule itself, they are among the rule examples" in figures.get(name).caption(
            data
        )
