"""From a tidy results table to files: tables, figures, claims and one page that shows them all.

Files of equal results are equal to the byte: fixed order, floats that read back, no dates. A figure whose
data, code and files are unchanged is not drawn again.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

from synthlm import figures as figures_package
from synthlm.bases import judge_bases
from synthlm.claims import CONSTANTS, RULE, judge
from synthlm.config import InputError
from synthlm.figures import FIGURES, style
from synthlm.frontier import best_rates, frontiers
from synthlm.table import ordered, read_csv, write_csv
from synthlm.verdicts import CELL_HEAD, OUTCOME_TEXT, Verdict, cell_rows, signed, write_claims

Entry = dict[str, Any]


def write_report(
    study: Any, table: pd.DataFrame, out: Path, figures: Sequence[str] | None = None
) -> list[Path]:
    """Write everything about ``table`` into ``out``; returns the paths written or found up to date.

    ``results.{csv,parquet}``, ``figures/NAME.{csv,pdf,png}``, ``figures.json``, ``claims.{md,json}``,
    ``report.html``. ``study``: its ``describe()``, if it has one, opens the page. ``figures``: names, all
    when None.

    Raises:
        InputError: an unknown figure, a table without its columns or without step 0.
    """
    names = list(FIGURES) if figures is None else [name for name in FIGURES if name in set(figures)]
    for name in figures or ():
        figures_package.get(name)
    text = str(study.describe()) if hasattr(study, "describe") else ""
    table = ordered(table)
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [out / "results.csv", out / "results.parquet"]
    write_csv(table, paths[0])
    table.to_parquet(paths[1], index=False)
    entries: dict[str, Entry] = {}
    known = _known(out)
    for name in names:
        data = figures_package.data_of(name, table)
        files = [folder / f"{name}.{kind}" for kind in ("csv", "pdf", "png")]
        if data.empty:
            for path in files:
                path.unlink(missing_ok=True)
            continue
        write_csv(data, files[0])
        entries[name] = _draw(name, folder, known.get(name, {}), table)
        paths += files
    verdicts = judge(table)
    paths += write_claims(verdicts, CONSTANTS, out, text)
    paths += [_write_entries(out, entries), _write_page(out, text, table, verdicts, entries)]
    return paths


def redraw(out: Path) -> list[Path]:
    """Draw every figure in ``out/figures`` again from its CSV, and the page from ``results.csv`` if it is
    there.

    Raises:
        InputError: there is no figure's CSV, or one cannot be read.
    """
    folder = out / "figures"
    names = [name for name in FIGURES if (folder / f"{name}.csv").is_file()]
    if not names:
        raise InputError(f"{out}: no figures/NAME.csv to draw from (NAME: {', '.join(FIGURES)})")
    table = ordered(read_csv(out / "results.csv")) if (out / "results.csv").is_file() else None
    known = _known(out)
    entries = {name: _draw(name, folder, known.get(name, {}), table, always=True) for name in names}
    paths = [folder / f"{name}.{kind}" for name in names for kind in ("pdf", "png")]
    paths.append(_write_entries(out, entries))
    if table is not None:
        paths.append(_write_page(out, _study_text(out), table, judge(table), entries))
    return paths


def _draw(name: str, folder: Path, known: Entry, table: pd.DataFrame | None, always: bool = False) -> Entry:
    """Draw one figure from its CSV, unless nothing changed since ``known``; returns its entry of
    figures.json."""
    stem = folder / name
    data = figures_package.load(name, stem.with_suffix(".csv"))
    entry: Entry = {
        "jobs": known.get("jobs", []) if table is None else _jobs(name, table),
        "n": int(data["n"].max()),
        "rows": len(data),
        "data_sha256": _sha256(stem.with_suffix(".csv")),
        "code_sha256": _code_sha256(name),
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


def _jobs(name: str, table: pd.DataFrame) -> list[str]:
    """Keys of the jobs a figure rests on: finetunings, and the pretrainings that were chosen."""
    used = table["kind"].isin(FIGURES[name].KINDS) & ((table["kind"] != "pretrain") | table["chosen"])
    return sorted(set(table.loc[used, "job"]))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _code_sha256(name: str) -> str:
    """Hash of what draws a figure besides its data: its module, what the figures share, and matplotlib's
    version."""
    folder = Path(figures_package.__file__).parent
    parts = [(folder / f"{part}.py").read_bytes() for part in (name, "style", "arms")]
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
    out: Path, study: str, table: pd.DataFrame, verdicts: Sequence[Verdict], entries: dict[str, Entry]
) -> Path:
    """``report.html``: one file that needs no other, images included."""
    bases = judge_bases(table)
    found = frontiers(table)
    rates = best_rates(found)
    runs, diverged = len(found.runs), int((found.runs["status"] == "diverged").sum())
    parts = [
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>synthlm report</title>",
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>",
        "<h1>What the optimizer does to what the model knows</h1>",
        f"<pre>{escape(study)}</pre>" if study else "",
        f"<p>{table['job'].nunique()} jobs, {table['seed'].nunique()} seed(s), {runs} finetuning runs, of"
        f" which {diverged} diverged (they count up to their divergence). All numbers:"
        " <code>results.csv</code>.</p>",
        "<h2>Verdicts</h2>",
        _table(
            ["claim", "", "verdict", "kept: matched minus other", "why"],
            [
                [v.claim, v.statement, _Html(f"<span class='verdict {v.verdict}'>{v.verdict}</span>"),
                 signed(v.effect), v.reason]
                for v in verdicts
            ],
        ),
        f"<p>{escape(RULE)}</p>",
        *[_claim(verdict) for verdict in verdicts],
        "<h2>Figures</h2>",
        *[_figure(out, name, entry) for name, entry in entries.items()],
        "" if entries else "<p>No figure has data.</p>",
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
        "<p>The rate with the largest mean area under its own learning-forgetting frontier. A best rate at"
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
        "</body></html>\n",
    ]  # fmt: skip
    path = out / "report.html"
    path.write_text("\n".join(part for part in parts if part), encoding="utf-8")
    return path


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
    parts = [f"<details><summary>{verdict.claim}: cells, groups, other outcomes, caveats</summary>"]
    parts.append(
        f"<p>Source: {escape(verdict.source)}. Shown in: {escape(', '.join(verdict.artifacts))}.</p>"
    )
    parts.append(_table(CELL_HEAD, cell_rows(verdict), [not cell.counted for cell in verdict.cells]))
    estimates = [*verdict.groups, *verdict.secondary]
    if estimates:
        rows = [[OUTCOME_TEXT.get(item.name, item.name), signed(item)] for item in estimates]
        parts.append(_table(["within, or other outcome", "matched - other (positive favours matched)"], rows))
    notes = "".join(f"<li>{escape(note)}</li>" for note in verdict.caveats) or "<li>none</li>"
    return "".join(parts) + f"<p>Caveats:</p><ul>{notes}</ul></details>"


def _figure(out: Path, name: str, entry: Entry) -> str:
    image = base64.b64encode((out / "figures" / f"{name}.png").read_bytes()).decode()
    links = ", ".join(f"<a href='figures/{name}.{kind}'>{kind.upper()}</a>" for kind in ("pdf", "csv"))
    return (
        f"<figure id='{name}'><img alt='{name}' src='data:image/png;base64,{image}'>"
        f"<figcaption><b>{name}.</b> {escape(entry['caption'])} {links}.</figcaption></figure>"
    )
