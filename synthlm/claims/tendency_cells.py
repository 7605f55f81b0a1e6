"""What the verdicts on rote against rule share: which cells count, their means over seeds, languages, caveats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from synthlm.claims.verdicts import Cell, Estimate, complete_cells, decide, estimate, few_seeds, with_holm
from synthlm.tendency import CELL

CORRECTED = 0.05
"""A language's verdict needs a Holm-corrected p below this."""
SHOWN = 8
"""So many learning rates at an end are named."""
ONE, OTHER = "muon", "adamw"

COMPLETE = (
    "Only cells with a number on every seed count (every seed that has a number in any cell), so that every seed's"
    " number is of the same cells."
)
LANGUAGES = (
    "A language is decided alike from its own cells, but supported or contradicted only when the test that this rests"
    " on (paired t against 0, or against the smallest effect where the interval lies below that alone) has p below"
    f" {CORRECTED:g} after Holm's correction over languages. p values of cells are Holm-corrected too."
)


def told_cells(
    found: pd.DataFrame, keys: list[str], why: Callable[[pd.DataFrame], str]
) -> tuple[tuple[Cell, ...], pd.DataFrame]:
    """Every cell, told whether it counts; and the rows (one a cell and seed) of those that do."""
    groups = [(key, rows) for key, rows in found.groupby(keys)] if len(found) else []
    reasons = [why(rows) for _, rows in groups]
    estimates = [estimate("effect", rows["effect"]) for _, rows in groups]
    corrected = iter(with_holm([item for item, no in zip(estimates, reasons, strict=True) if not no]))
    cells = tuple(
        Cell(
            {
                name: f"{value:g}" if isinstance(value, float) else str(value)
                for name, value in zip(keys, key, strict=True)
            },
            item if no else next(corrected),
            not no,
            no,
        )
        for (key, _), item, no in zip(groups, estimates, reasons, strict=True)
    )
    kept = [rows for (_, rows), no in zip(groups, reasons, strict=True) if not no]
    return cells, pd.concat(kept, ignore_index=True) if kept else found.iloc[:0]


def paired_seeds(found: pd.DataFrame, *columns: str) -> list[int]:
    """The seeds that have a number in any cell, in every one of ``columns``."""
    return sorted({int(seed) for seed in found.loc[found[list(columns)].notna().all(axis=1), "seed"]})


def _by_seed(rows: pd.DataFrame, seeds: Sequence[int]) -> np.ndarray:
    """The mean of ``effect`` over a language's cells, then over languages, a number a seed; of the cells that have one
    on every seed. Empty without such a cell."""
    keys = [name for name in (*CELL, "examples") if name in rows]
    if rows.empty:
        return np.empty(0)
    complete = complete_cells(rows, keys, rows["effect"], seeds)
    if complete.empty:
        return np.empty(0)
    return complete.groupby(level="language").mean().mean(axis=0).to_numpy(float)


def headline(name: str, rows: pd.DataFrame, seeds: Sequence[int]) -> Estimate:
    """Over seeds: the mean over a language's cells, then over languages; of the cells complete over seeds."""
    return estimate(name, _by_seed(rows, seeds))


def by_language(
    rows: pd.DataFrame,
    smallest: float,
    seeds: Sequence[int],
    others: Mapping[str, pd.DataFrame] | None = None,
) -> tuple[Estimate, ...]:
    """Estimates of each language, under every reading, its verdict in the name of the first.

    Verdicts are corrected over languages, and ``others`` (name -> the same rows under another reading) have to say the
    same.
    """
    languages = sorted(set(rows["language"]))
    readings = {"": rows, **(others or {})}
    found, verdicts = {}, {}
    for name, read in readings.items():
        values = [_by_seed(read[read["language"] == language], seeds) for language in languages]
        found[name] = with_holm([estimate("", one) for one in values])
        below = with_holm([estimate("", one - smallest) for one in values])
        verdicts[name] = [
            _corrected(item, against, smallest) for item, against in zip(found[name], below, strict=True)
        ]
    out = []
    for place, language in enumerate(languages):
        said = {name: told[place] for name, told in verdicts.items()}
        verdict = said[""] if len(set(said.values())) == 1 else "inconclusive"
        for name, items in found.items():
            text = (
                f"language: {language}, {name} (there {said[name]})"
                if name
                else f"language: {language} ({verdict})"
            )
            out.append(replace(items[place], name=text))
    return tuple(out)


def _corrected(item: Estimate, against: Estimate, smallest: float) -> str:
    """The verdict of one among several; ``against``: the estimate less ``smallest``. Both have corrected p values."""
    verdict, _ = decide(item, smallest)
    test = item if verdict == "supported" or item.high < 0 else against
    return verdict if verdict == "inconclusive" or test.p_holm < CORRECTED else "inconclusive"


def caveats(found: pd.DataFrame, counted: pd.DataFrame, seeds: Sequence[int]) -> Sequence[str]:
    if counted.empty:
        return ["no cell counts"]
    notes = few_seeds(len(seeds))
    without = sorted(set(found["seed"]) - set(seeds))
    if without:
        notes.append(f"no comparison has a number on seed {', '.join(map(str, without))}")
    if len(counted) < len(found):
        notes.append(
            f"{len(found) - len(counted)} of {len(found)} comparisons are of cells that do not count"
        )
    return notes


def at_ends(rates: pd.DataFrame, keys: list[str], who: str, counted: pd.DataFrame) -> list[str]:
    """Names the best learning rates that are an end of those tried; ``rates``: keys, ``who`` tuned, lr, edge."""
    cells = counted[keys].drop_duplicates()
    rates = rates.merge(cells, on=keys)
    notes = []
    ends = rates[rates["edge"].isin(["low", "high"])]
    if len(ends):
        ways = {"low": "lowest", "high": "highest"}
        named = [
            f"{' '.join(f'{row[key]}' for key in keys)} {row[who]} ({row['lr']:g}, the {ways[row['edge']]})"
            for row in ends.to_dict("records")
        ]
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        notes.append(
            f"best learning rates that are an end of those tried, in {len(ends[keys].drop_duplicates())} of"
            f" {len(cells)} cells that count: {', '.join(named[:SHOWN])}{more}"
        )
    single = rates[rates["edge"] == "only"]
    if len(single):
        notes.append(
            f"a single learning rate was tried in {len(single)} of {len(rates)} searches, in"
            f" {len(single[keys].drop_duplicates())} of {len(cells)} cells that count"
        )
    return notes


def none_alone(verdict: str, cells: Sequence[Cell]) -> list[str]:
    """Tells of a support that no cell shows by itself."""
    if verdict != "supported" or any(cell.counted and cell.estimate.p_holm < CORRECTED for cell in cells):
        return []
    return [f"supported over all cells, but in none of them is p below {CORRECTED:g} after Holm's correction"]
