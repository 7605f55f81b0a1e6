"""The figures of the spectral edge: drawn from their CSV alone, nothing clipped, n and failures in the captions."""

import secrets

import numpy as np
import pandas as pd
import pytest
import synthetic_edge
from drawn import misplaced

from synthlm import figures
from synthlm.figures import edge_folder
from synthlm.table import write_csv

NAMES = ["edge_timeline", "edge_spectra", "edge_leads", "edge_positions", "edge_adiabatic", "edge_removal"]
KINDS = {
    "usual": {"seeds": 3, "fall": 1.0, "arms": ("adamw", "muon", "sgd"), "tasks": ("subtraction",)},
    "one seed": {"seeds": 1, "arms": ("adamw",), "tasks": ("subtraction", "recall")},
    "nobody generalized": {"seeds": 2, "grokked": False, "arms": ("adamw",), "tasks": ("subtraction",)},
}


@pytest.fixture(scope="module", params=list(KINDS))
def tables(request: pytest.FixtureRequest) -> dict[str, pd.DataFrame]:
    seed = secrets.randbits(60)
    print(f"seed {seed}")
    return synthetic_edge.tables(np.random.default_rng(seed), **KINDS[request.param])


@pytest.mark.parametrize("name", NAMES)
def test_drawn_from_csv_alone_and_nothing_clipped(name, tables, tmp_path) -> None:
    module = figures.get(name)
    assert module.STUDY == "edge"
    data = figures.data_of(name, tables)
    assert tuple(data.columns) == module.COLUMNS
    assert "n" in module.COLUMNS
    if data.empty:
        assert name in ("edge_leads", "edge_removal")
        assert not np.isfinite(tables["edge_runs"]["grokked"]).any()
        return
    write_csv(data, tmp_path / "data.csv")
    again = figures.load(name, tmp_path / "data.csv")
    pd.testing.assert_frame_equal(again, data, check_exact=True, check_dtype=False)
    assert module.caption(again) == module.caption(data)
    assert misplaced(module.draw(again)) == set()
    n = tables["edge_runs"]["seed"].nunique()
    assert f"{n} seed" in module.caption(data)
    assert figures.jobs_of(name, tables)


def test_captions_name_runs_that_did_not_generalize() -> None:
    tables = synthetic_edge.tables(
        np.random.default_rng(1), seeds=2, grokked=False, arms=("adamw",), tasks=("subtraction",)
    )
    for name in ("edge_timeline", "edge_spectra"):
        data = figures.data_of(name, tables)
        assert "did not generalize: subtraction, AdamW (seed 0" in figures.get(name).caption(data)


def test_the_figure_of_a_folder() -> None:
    windows = synthetic_edge.tables(np.random.default_rng(2), seeds=1, arms=("adamw",), tasks=("a",))[
        "edge_windows"
    ]
    assert misplaced(edge_folder.draw(windows[windows["condition"] == "main"], "somewhere")) == set()
