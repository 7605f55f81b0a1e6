"""Each figure: its data, that it draws from its CSV, that nothing is clipped, that its caption tells n and interval."""

import numpy as np
import pandas as pd
import pytest
from drawn import misplaced
from synthetic_results import make_table

from synthlm import figures
from synthlm.config import InputError
from synthlm.figures import FIGURES, style
from synthlm.frontier import LEVELS, MINIMUM_TOP
from synthlm.table import ordered, write_csv

OWN = [name for name, module in FIGURES.items() if module.STUDY == "consistency"]

TABLES = {
    "full": {"noise": 0.03, "failed": [("sgd", 1)], "never": ["lora4-adamw"], "diverged": [("full-sgd", 6)]},
    "one seed": {"seeds": 1, "rates": 2},
    "one cell": {"seeds": 1, "rates": 1, "bases": ["adamw"], "arms": ["full-adamw"], "languages": ["new-rule"]},
    "failed": {"seeds": 2, "rates": 2, "failed": [("sgd", 0), ("sgd", 1), ("muon", 0)]},
    "controls": {"seeds": 2, "rates": 2, "bases": ["adamw", "adamw-matched", "muon"], "arms": [
        "full-adamw", "full-muon", "full-sgd", "lora4-adamw", "lora16-adamw", "lora64-adamw", "lora16-muon"]},
}  # fmt: skip


@pytest.fixture(scope="module", params=list(TABLES))
def table(request):
    return ordered(make_table(**TABLES[request.param]))


@pytest.mark.parametrize("name", OWN)
def test_drawn_from_csv_alone_and_nothing_clipped(name, table, tmp_path):
    module = figures.get(name)
    data = module.data(table)
    assert tuple(data.columns) == module.COLUMNS
    write_csv(data, tmp_path / "data.csv")
    again = figures.load(name, tmp_path / "data.csv")
    pd.testing.assert_frame_equal(again, data, check_exact=True, check_dtype=False)
    assert module.caption(again) == module.caption(data)
    assert not misplaced(module.draw(again))


@pytest.mark.parametrize("name", OWN)
def test_caption_tells_n_and_interval(name):
    many = figures.get(name).caption(figures.get(name).data(ordered(make_table())))
    assert "n = 3" in many
    assert "95% BCa bootstrap" in many
    assert "t interval" in many
    single = figures.get(name).caption(figures.get(name).data(ordered(make_table(seeds=1, rates=2))))
    assert "n = 1 seed: no interval" in single
    failed = figures.get(name).caption(figures.get(name).data(ordered(make_table(failed=[("sgd", 1)]))))
    assert "SGD (" in failed


def test_the_caller_s_style_is_neither_used_nor_changed():
    import matplotlib as mpl

    data = figures.get("frontier").data(ordered(make_table(seeds=1, rates=2)))
    with mpl.rc_context({"font.size": 40}):
        figure = figures.get("frontier").draw(data)
        assert mpl.rcParams["font.size"] == 40
    assert figure.axes[0].title.get_fontsize() == style.RC["axes.titlesize"]


def test_frontier_means_are_over_the_same_seeds_all_along():
    table = ordered(make_table(seeds=3, rates=1, noise=0.0))
    # seed 2 of one cell stops learning early
    short = (table["arm"] == "full-adamw") & (table["seed"] == 2) & (table["step"] > 8)
    data = figures.get("frontier").data(table[~short])
    cell = data[(data["base"] == "adamw") & (data["arm"] == "full-adamw") & (data["language"] == "new-rule")]
    top = cell[cell["seed"] == 2]["level"].max()
    assert 0.3 < top < 0.6
    assert set(cell[cell["level"] <= top]["n"]) == {3}
    assert set(cell[cell["level"] > top]["n"]) == {0}
    assert cell[cell["level"] > top]["mean"].isna().all()
    at = cell[np.isclose(cell["level"], 0.3)]
    assert at["mean"].iloc[0] == pytest.approx(at["kept"].mean())


def test_frontier_leaves_failed_seeds_out_of_the_mean_but_shows_them():
    data = figures.get("frontier").data(ordered(make_table(failed=[("sgd", 1)])))
    sgd = data[data["base"] == "sgd"]
    assert set(sgd[sgd["seed"] == 1]["passed"]) == {False}
    cell = sgd[(sgd["arm"] == "full-sgd") & (sgd["language"] == "new-rule") & np.isclose(sgd["level"], 0.5)]
    assert cell["n"].tolist() == [2] * 3
    assert cell["mean"].iloc[0] == pytest.approx(cell[cell["seed"] != 1]["kept"].mean())


@pytest.mark.parametrize("name", ["frontier", "forgetting_matrix", "lr_sensitivity"])
def test_a_base_that_was_never_finetuned_is_shown_as_failed(name):
    table = ordered(make_table(seeds=2, rates=2, failed=[("sgd", 0), ("sgd", 1)]))
    table = table[(table["kind"] == "pretrain") | (table["base"] != "sgd")]
    data = figures.get(name).data(table)
    assert "sgd" in set(data["base"])
    figures.get(name).draw(data)
    assert "SGD" in figures.get(name).caption(data)


def test_matrix_holds_planted_forgetting():
    data = figures.get("forgetting_matrix").data(ordered(make_table(noise=0.0, never=["full-sgd"])))
    ok = data[data["state"] == "ok"]
    expected = np.where(ok["matched"], 0.4, 0.5) * LEVELS.mean()
    np.testing.assert_allclose(ok["forgetting"], expected, atol=1e-9)
    never = data[data["arm"] == "full-sgd"]
    assert set(never["state"]) == {"not learnt"}
    assert (never["top"] < MINIMUM_TOP).all()
    assert never["forgetting"].isna().all()
    assert set(data[data["matched"]]["arm"] + data[data["matched"]]["base"]) == {
        "full-adamwadamw", "full-muonmuon", "full-sgdsgd",
    }  # fmt: skip


def test_matrix_compares_a_row_at_common_levels():
    table = ordered(make_table(seeds=2, rates=1, noise=0.0, bases=["adamw"], languages=["new-rule"]))
    short = (table["arm"] == "lora4-adamw") & (table["step"] > 64)  # stops at 7/9 of the learning
    data = figures.get("forgetting_matrix").data(table[~short])
    assert set(data["highest_level"]) == {0.75}
    levels = LEVELS[LEVELS <= 0.76]
    np.testing.assert_allclose(
        data["forgetting"], np.where(data["matched"], 0.4, 0.5) * levels.mean(), atol=1e-9
    )


def test_lr_sensitivity_marks_best_and_diverged():
    data = figures.get("lr_sensitivity").data(ordered(make_table(noise=0.0, diverged=[("full-sgd", 6)])))
    best = data[data["best"]].drop_duplicates(["base", "language", "arm"])
    assert set(best["lr"]) == {0.0027}
    broken = data[data["status"] == "diverged"]
    assert len(broken) == 18
    assert (broken["n"] == 0).all()
    done = data[data["status"] == "done"]
    top = done[done["best"]]
    assert top["learnt"].to_numpy() == pytest.approx(1.0)
    np.testing.assert_allclose(top["kept"], 0.95 - np.where(top["matched"], 0.4, 0.5))


def test_pretraining_shows_chosen_runs_only():
    data = figures.get("pretraining").data(ordered(make_table(seeds=2)))
    assert set(data["lr"]) == {0.003}
    assert (data["low"] <= data["mean"]).all()


def test_colours_and_lines_are_fixed():
    assert style.color("adamw") == style.arm_style("lora", "adamw", 4)["color"] == "#0072B2"
    looks = {str(style.arm_style(*arm)) for arm in [
        ("full", "adamw", 0), ("lora", "adamw", 4), ("lora", "adamw", 16), ("lora", "adamw", 64), ("full", "muon", 0),
    ]}  # fmt: skip
    assert len(looks) == 5
    assert style.color("some-new-rule") in style.OTHER_COLORS


def test_names_are_checked(tmp_path):
    with pytest.raises(InputError, match="did you mean 'frontier'"):
        figures.get("frontir")
    with pytest.raises(InputError, match="not a readable table"):
        figures.load("frontier", tmp_path / "absent.csv")
