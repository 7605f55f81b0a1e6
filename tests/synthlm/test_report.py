"""Files of a report: complete, equal to the byte, redrawn from CSV."""

import hashlib
import json
import math

import numpy as np
import pandas as pd
import pytest
from synthetic_results import make_table

from synthlm import report
from synthlm.config import InputError
from synthlm.figures import FIGURES, style
from synthlm.report import redraw, write_report
from synthlm.table import ordered, read_csv, write_csv

SMALL = {
    "seeds": 2,
    "bases": ["adamw", "muon"],
    "arms": ["full-adamw", "full-muon"],
    "languages": ["new-rule"],
    "rates": 3,
}


CONSISTENCY = [name for name, module in FIGURES.items() if module.STUDY == "consistency"]


class Study:
    def describe(self):
        return "2 seeds <of> everything"


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    table = make_table(**SMALL)
    return out, table, write_report(Study(), {"results": table}, out)


def test_everything_is_there(written):
    out, table, paths = written
    names = {str(path.relative_to(out)) for path in paths}
    figures = {f"figures/{name}.{kind}" for name in CONSISTENCY for kind in ("csv", "pdf", "png")}
    others = {"results.csv", "results.parquet", "figures.json", "claims.md", "claims.json", "report.html"}
    assert names == figures | others == set(hashes(out))
    page = (out / "report.html").read_text()
    assert "2 seeds &lt;of&gt; everything" in page
    assert page.count("data:image/png;base64,") == len(CONSISTENCY)
    assert page.count("class='verdict ") == 2
    for name, entry in json.loads((out / "figures.json").read_text()).items():
        assert entry["n"] == 2
        assert entry["data_sha256"] == hashes(out)[f"figures/{name}.csv"]
    pretrain = table[(table["kind"] == "pretrain") & table["chosen"]]
    entries = json.loads((out / "figures.json").read_text())
    assert entries["pretraining"]["jobs"] == sorted(set(pretrain["job"]))
    used = {*pretrain["job"], *table[table["kind"] == "finetune"]["job"]}
    assert entries["frontier"]["jobs"] == sorted(used)


def test_results_read_back_to_the_same_bits(written):
    out, table, _ = written
    for found in (read_csv(out / "results.csv"), pd.read_parquet(out / "results.parquet")):
        pd.testing.assert_frame_equal(found, ordered(table), check_exact=True, check_dtype=False)


def test_csv_keeps_hard_values(tmp_path):
    rng = np.random.default_rng(0)
    bits = rng.integers(1, 2**63 - 2**53, 2000).view(np.float64)
    frame = pd.DataFrame({"x": bits, "job": ["123456789012", "12345678e123"] * 1000, "arm": [""] * 2000})
    frame["missing"] = math.nan
    frame["best"] = True
    frame.loc[0, "x"] = math.nan
    frame.loc[1, "x"] = math.inf
    write_csv(frame, tmp_path / "x.csv")
    found = read_csv(tmp_path / "x.csv")
    pd.testing.assert_frame_equal(found, frame, check_exact=True, check_dtype=False)
    assert found["missing"].dtype == float


def test_the_second_report_draws_nothing_and_is_equal_to_the_byte(written, monkeypatch):
    out, table, _ = written
    before = hashes(out)
    drawn = []
    monkeypatch.setattr(style, "save", lambda *arguments: drawn.append(arguments))
    write_report(Study(), {"results": table.sample(frac=1, random_state=3)}, out)
    assert hashes(out) == before
    assert not drawn


def test_a_damaged_or_outdated_figure_is_drawn_again(tmp_path):
    table = make_table(**SMALL)
    write_report(None, {"results": table}, tmp_path, ["pretraining"])
    before = hashes(tmp_path)
    (tmp_path / "figures" / "pretraining.pdf").write_bytes(b"")
    write_report(None, {"results": table}, tmp_path, ["pretraining"])
    assert hashes(tmp_path) == before
    (tmp_path / "figures" / "pretraining.png").unlink()
    (tmp_path / "figures.json").write_text("[broken")
    write_report(None, {"results": table}, tmp_path, ["pretraining"])
    assert hashes(tmp_path) == before
    changed = table.assign(accuracy=table["accuracy"] * 0.99)
    write_report(None, {"results": changed}, tmp_path, ["pretraining"])
    assert all(hashes(tmp_path)[f"figures/pretraining.{kind}"] != before[f"figures/pretraining.{kind}"]
               for kind in ("csv", "pdf", "png"))  # fmt: skip


def test_a_new_folder_gives_equal_files(written, tmp_path):
    out, table, _ = written
    names = ["frontier", "forgetting_matrix"]
    write_report(Study(), {"results": table}, tmp_path / "again", names)
    found, before = hashes(tmp_path / "again"), hashes(out)
    assert {name for name in found if name.startswith("figures/")} == {
        f"figures/{name}.{kind}" for name in names for kind in ("csv", "pdf", "png")
    }
    others = ("figures.json", "report.html", "claims.json", "claims.md")
    assert all(found[name] == before[name] for name in found if name not in others)
    claims = json.loads((tmp_path / "again" / "claims.json").read_text())["claims"]
    assert [claim["artifacts"] for claim in claims] == [[*names, "results.csv"]] * 2


def test_redraw_needs_the_csv_files_alone(written, tmp_path):
    out = written[0]
    before = hashes(out)
    (tmp_path / "figures").mkdir()
    for name in CONSISTENCY:
        (tmp_path / "figures" / f"{name}.csv").write_bytes((out / "figures" / f"{name}.csv").read_bytes())
    redraw(tmp_path)
    found = hashes(tmp_path)
    assert {name for name in found if name.startswith("figures/")} == {
        n for n in before if n.startswith("figures/")
    }
    assert all(found[name] == before[name] for name in found if name.startswith("figures/"))
    assert not (tmp_path / "report.html").exists()
    for name in CONSISTENCY:
        (out / "figures" / f"{name}.png").unlink()
    (out / "report.html").unlink()
    redraw(out)
    assert hashes(out) == before


def test_redraw_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(InputError, match=r"no figures/NAME\.csv"):
        redraw(tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "frontier.csv").write_text("base,arm\nx,y\n")
    with pytest.raises(InputError, match="columns language"):
        redraw(tmp_path)
    (tmp_path / "figures" / "frontier.csv").write_text("")
    with pytest.raises(InputError, match="not a readable table"):
        redraw(tmp_path)


def test_a_choice_of_figures(tmp_path):
    table = make_table(**SMALL)
    paths = write_report(None, {"results": table}, tmp_path, ["pretraining"])
    assert {path.name for path in paths if path.parent.name == "figures"} == {
        "pretraining.csv", "pretraining.pdf", "pretraining.png",
    }  # fmt: skip
    with pytest.raises(InputError, match="did you mean 'frontier'"):
        write_report(None, {"results": table}, tmp_path, ["frontiers"])


@pytest.mark.parametrize("which", ["none", "pretraining only"])
def test_unfinished_studies_are_reported(tmp_path, which):
    table = make_table(**SMALL)
    part = pd.DataFrame() if which == "none" else table[table["kind"] == "pretrain"]
    write_report(None, {"results": part}, tmp_path)
    assert "inconclusive" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "figures" / "pretraining.png").exists() == (which != "none")
    assert not (tmp_path / "figures" / "frontier.png").exists()


def test_a_figure_without_data_leaves_no_old_files(tmp_path):
    table = make_table(**SMALL)
    write_report(None, {"results": table}, tmp_path, ["frontier"])
    write_report(None, {"results": table[table["kind"] == "pretrain"]}, tmp_path, ["frontier"])
    assert not list((tmp_path / "figures").iterdir())


def test_missing_columns_are_named():
    with pytest.raises(InputError, match="columns kl, n are missing"):
        ordered(make_table(**SMALL).drop(columns=["kl", "n"]))


def test_the_code_is_part_of_what_makes_a_figure_fresh(written, monkeypatch):
    out, table, _ = written
    drawn = []
    real = style.save
    monkeypatch.setattr(report, "_code_sha256", lambda: "other code")
    monkeypatch.setattr(style, "save", lambda figure, stem: drawn.append(stem.name) or real(figure, stem))
    write_report(Study(), {"results": table}, out, ["frontier"])
    assert drawn == ["frontier"]


def test_the_page_tells_what_the_edge_study_chose(tmp_path):
    trials = pd.DataFrame(
        {
            "job": [f"{place:012x}" for place in range(4)],
            "task": "addition",
            "arm": ["adamw", "adamw", "muon", "muon"],
            "lr": [0.004, 0.006, 0.02, 0.04],
            "weight_decay": [1.5, 1.25, 0.3, 0.15],
            "seed": 1000,
            "status": "done",
            "grokked": [1375.0, math.nan, math.nan, math.nan],
            "heldout": [1.0, 0.5, 0.375, 0.25],
            "chosen": [True, False, True, False],
        }
    )
    write_report(None, {"edge_search": trials}, tmp_path, [])
    page = (tmp_path / "report.html").read_text()
    rows = [line for line in page.splitlines() if "<td>addition</td>" in line]
    cells = [line.replace("</td>", "").split("<td>")[1:] for line in rows]
    assert [[cell.split("<")[0] for cell in row] for row in cells] == [
        ["addition", "adamw", "0.004", "1.5", "1 of 1", "1.00", "2", "1"],
        ["addition", "muon", "0.02", "0.3", "0 of 1", "0.38", "2", "0"],
    ]
    assert ["class=bad" in row for row in rows] == [False, True]
