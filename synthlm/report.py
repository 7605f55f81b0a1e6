"""From a tidy results table to files: tables, figures, claims and one page that shows them all.

Files of equal results are equal to the byte: fixed order, floats that read back, no dates. A figure whose
data, code and files are unchanged is not drawn again.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

from synthlm import figures as figures_package
from synthlm.bases import judge_bases
from synthlm.claims import CONSTANTS, judge
from synthlm.claims.verdicts import Verdict, cell_head, cell_rows, signed, write_claims
from synthlm.config import InputError
from synthlm.figures import FIGURES, style
from synthlm.frontier import best_rates, frontiers
from synthlm.table import ordered, read_csv, write_csv

Entry = dict[str, Any]

MAIN = "results"
"""The table that lies in the results folder itself: the learning-forgetting study."""


def write_report(
    study: Any, tables: Mapping[str, pd.DataFrame], out: Path, figures: Sequence[str] | None = None
) -> list[Path]:
    """Write everything about a study's tables into ``out``; returns the paths written or found up to date.

    ``results.{csv,parquet}``, other tables as ``tables/NAME.{csv,parquet}``, ``figures/NAME.{csv,pdf,png}``,
    ``figures.json``, ``claims.{md,json}``, ``report.html``. ``study``: its ``describe()``, if it has one, opens
    the page. ``figures``: names, all when None.

    Raises:
        InputError: an unknown figure, a table without its columns or without step 0.
    """
    for name in figures or ():
        figures_package.get(name)
    names = [name for name in FIGURES if figures is None or name in figures]
    text = str(study.describe()) if hasattr(study, "describe") else ""
    tables = {name: ordered(table) if name == MAIN else table for name, table in tables.items()}
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = _write_tables(tables, out)
    entries: dict[str, Entry] = {}
    known = _known(out)
    for name in names:
        data = figures_package.data_of(name, tables)
        files = [folder / f"{name}.{kind}" for kind in ("csv", "pdf", "png")]
        if data.empty:
            for path in files:
                path.unlink(missing_ok=True)
            continue
        write_csv(data, files[0])
        entries[name] = _draw(name, folder, known.get(name, {}), tables)
        paths += files
    verdicts = _judged(tables, entries)
    paths += write_claims(verdicts, CONSTANTS, out, text)
    paths += [_write_entries(out, entries), _write_page(out, text, tables, verdicts, entries)]
    return paths


def _write_tables(tables: Mapping[str, pd.DataFrame], out: Path) -> list[Path]:
    paths = []
    for name, table in tables.items():
        stem = out / "results" if name == MAIN else out / "tables" / name
        stem.parent.mkdir(exist_ok=True)
        paths += [stem.with_suffix(".csv"), stem.with_suffix(".parquet")]
        write_csv(table, paths[-2])
        table.to_parquet(paths[-1], index=False)
    return paths


def _read_tables(out: Path) -> dict[str, pd.DataFrame]:
    """The tables of a results folder, as far as they are there."""
    found = {path.stem: read_csv(path) for path in sorted((out / "tables").glob("*.csv"))}
    if (out / "results.csv").is_file():
        found[MAIN] = ordered(read_csv(out / "results.csv"))
    return found


def _judged(tables: Mapping[str, pd.DataFrame], entries: Mapping[str, Entry]) -> list[Verdict]:
    """Verdicts, each naming the files behind it that are there: figures, and tables (``*.csv``)."""
    return [
        replace(
            verdict, artifacts=tuple(name for name in verdict.artifacts if name in entries or "." in name)
        )
        for verdict in judge(tables)
    ]


def redraw(out: Path) -> list[Path]:
    """Draw every figure in ``out/figures`` again from its CSV, and the page if there are tables.

    Raises:
        InputError: there is no figure's CSV, or one cannot be read.
    """
    folder = out / "figures"
    names = [name for name in FIGURES if (folder / f"{name}.csv").is_file()]
    if not names:
        raise InputError(f"{out}: no figures/NAME.csv to draw from (NAME: {', '.join(FIGURES)})")
    tables = _read_tables(out)
    known = _known(out)
    entries = {name: _draw(name, folder, known.get(name, {}), tables, always=True) for name in names}
    paths = [folder / f"{name}.{kind}" for name in names for kind in ("pdf", "png")]
    paths.append(_write_entries(out, entries))
    if tables:
        paths.append(_write_page(out, _study_text(out), tables, _judged(tables, entries), entries))
    return paths


def _draw(
    name: str, folder: Path, known: Entry, tables: Mapping[str, pd.DataFrame], always: bool = False
) -> Entry:
    """Draw one figure from its CSV, unless nothing changed since ``known``; returns its entry of
    figures.json."""
    stem = folder / name
    data = figures_package.load(name, stem.with_suffix(".csv"))
    entry: Entry = {
        "jobs": figures_package.jobs_of(name, tables) or known.get("jobs", []),
        "n": int(data["n"].max()),
        "rows": len(data),
        "data_sha256": _sha256(stem.with_suffix(".csv")),
        "code_sha256": _code_sha256(),
    }
    files = known.get("files_sha256", {})
    fresh = (
        not always
        and all(known.get(key) == entry[key] for key in ("data_sha256", "code_sha256"))
        and all(_sha256(stem.with_suffix(end)) == files.get(end) for end in (".pdf", ".png"))
    )
    if not fresh:
        style.save(FIGURES[name].draw(data), stem)
    entry["files_sha256"] = {end: _sha256(stem.with_suffix(end)) for end in (".pdf", ".png")}
    entry["caption"] = FIGURES[name].caption(data)
    return entry


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


@lru_cache(maxsize=1)
def _code_sha256() -> str:
    """Hash of what draws figures besides their data: the modules of ``figures`` and matplotlib's version."""
    folder = Path(figures_package.__file__).parent
    parts = [path.read_bytes() for path in sorted(folder.glob("*.py"))]
    return hashlib.sha256(b"\0".join([*parts, matplotlib.__version__.encode()])).hexdigest()


def _known(out: Path) -> dict[str, Entry]:
    """The entries of an earlier figures.json; none if it is missing or damaged."""
    try:
        found = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    good = isinstance(found, dict) and all(isinstance(entry, dict) for entry in found.values())
    return found if good else {}


def _study_text(out: Path) -> str:
    """The study's own words, as kept in claims.json; nothing if it is missing or damaged."""
    try:
        found = json.loads((out / "claims.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(found.get("study", "")) if isinstance(found, dict) else ""


def _write_entries(out: Path, entries: dict[str, Entry]) -> Path:
    path = out / "figures.json"
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 74rem; margin: 2rem auto; padding: 0
1.2rem; } h1 { font-size: 1.7rem; } h2 { font-size: 1.3rem; margin-top: 2.4rem; border-bottom: 1px solid #ddd;
} pre { white-space: pre-wrap; background: #f6f6f6; padding: .8rem; font-size: .85rem; } table {
border-collapse: collapse; font-size: .85rem; margin: .8rem 0; } .wide { overflow-x: auto; } th, td {
text-align: left; padding: .25rem .7rem; border-bottom: 1px solid #e4e4e4; vertical-align: top; } th {
background: #f6f6f6; } tr.bad td { background: #fdf0ea; } figure { margin: 1.6rem 0; } figure img { max-width:
100%; height: auto; } figcaption { font-size: .9rem; color: #444; max-width: 60rem; } .verdict { font-weight:
700; } .supported { color: #00694a; } .contradicted { color: #a33a00; } .inconclusive { color: #666; } details
{ margin: .6rem 0; } summary { cursor: pointer; }
"""


def _write_page(
    out: Path,
    study: str,
    tables: Mapping[str, pd.DataFrame],
    verdicts: Sequence[Verdict],
    entries: Mapping[str, Entry],
) -> Path:
    """``report.html``: one file that needs no other, images included."""
    jobs = {job for table in tables.values() if "job" in table for job in table["job"]}
    parts = [
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>synthlm report</title>",
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>",
        "<h1>What the optimizer does to what the model knows</h1>",
        *[f"<p>{escape(paragraph)}</p>" for paragraph in study.split("\n\n") if paragraph],
        f"<p>{len(jobs)} jobs. All numbers: <code>results.csv</code> and the CSV files"
        " of <code>tables/</code>.</p>",
        "<h2>Verdicts</h2>",
        _table(
            ["claim", "", "verdict", "effect", "of", "why"],
            [
                [v.claim, v.statement, _Html(f"<span class='verdict {v.verdict}'>{v.verdict}</span>"),
                 signed(v.effect), v.unit, v.reason]
                for v in verdicts
            ],
        ) if verdicts else "<p>None: these tables speak of no claim.</p>",
        *[_claim(verdict) for verdict in verdicts],
        *_figures(out, entries),
        *(_consistency_parts(tables[MAIN]) if MAIN in tables else ()),
        *_edge_parts(tables.get("edge_search", pd.DataFrame())),
        "</body></html>\n",
    ]  # fmt: skip
    path = out / "report.html"
    path.write_text("\n".join(part for part in parts if part), encoding="utf-8")
    return path


def _consistency_parts(table: pd.DataFrame) -> list[str]:
    """Bases that passed or failed, and the learning rate of each cell."""
    bases = judge_bases(table)
    found = frontiers(table)
    rates = best_rates(found)
    runs, diverged = len(found.runs), int((found.runs["status"] == "diverged").sum())
    return [
        "<h2>Bases</h2>",
        _table(
            ["base", "optimizer", "seed", "learning rate", "steps", "worst goal slice", "accuracy", "passed"],
            [
                [r.base, r.optimizer, r.seed, f"{r.lr:g}", r.steps, r.worst_slice, f"{r.accuracy:.3f}",
                 "yes" if r.passed else f"NO: {r.why}"]
                for r in bases.itertuples()
            ],
            [not passed for passed in bases["passed"]],
        ),
        "<h2>Best learning rates</h2>",
        f"<p>Of {runs} finetuning runs {diverged} diverged; they count up to their divergence. The best is the"
        " rate with the largest mean area under its own learning-forgetting frontier. A best rate at"
        " an end of its sweep means that the sweep did not bracket it.</p>",
        _table(
            ["base", "language", "arm", "best rate", "swept", "rates", "at the edge", "area", "agreeing",
             "diverged"],
            [
                [r.base, r.language, r.arm, f"{r.lr:g}", f"{r.lowest:g} to {r.highest:g}", r.rates,
                 {"": "no", "only": "only one rate"}.get(str(r.edge), f"YES: {r.edge} end"), f"{r.area:.3f}",
                 f"{r.agree} of {r.seeds}", f"{r.diverged} of {r.runs}"]
                for r in rates.itertuples()
            ],
            [edge != "" for edge in rates["edge"]],
        ),
    ]  # fmt: skip


def _edge_parts(trials: pd.DataFrame) -> list[str]:
    """The search of the edge study: what was chosen for each task and optimizer, and whether it groks."""
    if trials.empty:
        return []
    rows, bad = [], []
    for (task, arm), tried in trials.groupby(["task", "arm"], sort=False):
        settings = tried[["lr", "weight_decay"]].drop_duplicates()
        chosen = tried[tried["chosen"]]
        if chosen.empty:
            continue
        grokked = int(chosen["grokked"].notna().sum())
        others = tried[tried["grokked"].notna()][["lr", "weight_decay"]].drop_duplicates()
        first = chosen.iloc[0]
        rows.append(
            [task, arm, f"{first['lr']:g}", f"{first['weight_decay']:g}", f"{grokked} of {len(chosen)}",
             f"{chosen['heldout'].mean():.2f}", len(settings), len(others)]
        )  # fmt: skip
        bad.append(grokked == 0)
    return [
        "<h2>Settings of the edge study</h2>",
        "<p>Each setting was tried on seeds that the study does not use; the best generalizes late (after it has"
        " memorized) on most of them, then on most at all, then soonest, then furthest. Tinted: it grokked on"
        " none.</p>",
        _table(
            ["task", "optimizer", "learning rate", "weight decay", "grokked", "held-out accuracy at the end",
             "settings tried", "of them grokked"],
            rows,
            bad,
        ),
    ]  # fmt: skip


class _Html(str):
    """Text that is markup already."""


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], bad: Sequence[bool] = ()) -> str:
    """An HTML table; rows marked ``bad`` are tinted."""
    marks = [*bad, *[False] * (len(rows) - len(bad))]
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for row, mark in zip(rows, marks, strict=True):
        cells = "".join(f"<td>{cell if isinstance(cell, _Html) else escape(str(cell))}</td>" for cell in row)
        lines.append(f"<tr{' class=bad' if mark else ''}>{cells}</tr>")
    return "<div class='wide'><table>" + "\n".join(lines) + "</table></div>"


def _claim(verdict: Verdict) -> str:
    parts = [f"<details><summary>{verdict.claim}: rule, cells, groups, other outcomes, caveats</summary>"]
    parts.append(f"<p>Rule. {escape(verdict.rule)}</p>")
    parts.append(
        f"<p>Source: {escape(verdict.source)}. Shown in: {escape(', '.join(verdict.artifacts))}.</p>"
    )
    if verdict.cells:
        bad = [not cell.counted for cell in verdict.cells]
        parts.append(_table(cell_head(verdict), cell_rows(verdict), bad))
    estimates = [*verdict.groups, *verdict.secondary]
    if estimates:
        rows = [[item.name, signed(item)] for item in estimates]
        parts.append(_table(["within, or other outcome", "effect (positive: as predicted)"], rows))
    notes = "".join(f"<li>{escape(note)}</li>" for note in verdict.caveats) or "<li>none</li>"
    return "".join(parts) + f"<p>Caveats:</p><ul>{notes}</ul></details>"


def _figures(out: Path, entries: Mapping[str, Entry]) -> list[str]:
    """Figures with their captions, under the name of their study."""
    parts = []
    for study in dict.fromkeys(FIGURES[name].STUDY for name in entries):
        parts.append(f"<h2>Figures: {escape(study)}</h2>")
        parts += [
            _figure(out, name, entry) for name, entry in entries.items() if study == FIGURES[name].STUDY
        ]
    return parts or ["<h2>Figures</h2>", "<p>No figure has data.</p>"]


def _figure(out: Path, name: str, entry: Entry) -> str:
    image = base64.b64encode((out / "figures" / f"{name}.png").read_bytes()).decode()
    links = ", ".join(f"<a href='figures/{name}.{kind}'>{kind.upper()}</a>" for kind in ("pdf", "csv"))
    return (
        f"<figure id='{name}'><img alt='{name}' src='data:image/png;base64,{image}'>"
        f"<figcaption><b>{name}.</b> {escape(entry['caption'])} {links}.</figcaption></figure>"
    )
