"""What the figures of the spectral edge share: which runs are shown, their lines, and words of captions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from synthlm.figures import style
from synthlm.figures.bands import plain_log
from synthlm.statistics import LEVEL, RESAMPLES

CONDITIONS = ("main", "control")
CONDITION_NAMES = {"main": "main run", "control": "control"}
NULL_COLORS = {"directions": "#9a9a9a", "stationary": "#CC79A7"}
NULL_NAMES = {
    "directions": "null: same norms, random directions",
    "stationary": "null: same norms and lag correlation",
}
RISE_COLOR = "#f3e3a8"


def cells(data: pd.DataFrame, most: int) -> list[tuple[str, str]]:
    """(task, arm) in the order shown, at most so many: every arm of the task that most main runs generalized in, then
    the best arm of each other task, then the rest."""
    main = data[data["condition"] == "main"].drop_duplicates(["task", "arm", "seed"])
    made_it = np.isfinite(main["grokked"].astype(float)).groupby([main["task"], main["arm"]]).sum()
    by_task = made_it.groupby("task").sum()
    first, *others = sorted(by_task.index, key=lambda task: (-by_task[task], str(task)))
    ranked = {task: made_it[task].sort_index().sort_values(ascending=False, kind="stable") for task in others}
    shown = [(first, arm) for arm in sorted(made_it[first].index)]
    shown += [(task, arms.index[0]) for task, arms in ranked.items()]
    shown += [(task, arm) for task, arms in ranked.items() for arm in arms.index[1:]]
    return [(str(task), str(arm)) for task, arm in shown[:most]]


def title(task: str, arm: str) -> str:
    """``subtraction, AdamW``."""
    return f"{task}, {style.name(arm)}"


def line(arm: str, condition: str) -> dict[str, Any]:
    """Colour and dashes of a run's line: main runs in their optimizer's colour, controls grey and broken."""
    if condition == "main":
        return {"color": style.color(arm), "linestyle": "-"}
    return {"color": style.GREY, "linestyle": (0, (3.2, 1.6))}


def ratio_axis(ax: Axes, observed: pd.Series) -> None:
    """A logarithmic axis y for ratios from 1 up to the largest observed: nulls may leave it."""
    finite = observed[np.isfinite(observed)]
    highest = float(finite.max()) if len(finite) else 2.0
    ax.set_yscale("log")
    ax.set_ylim(1, 1.15 * max(highest, 1.5))
    plain_log(ax.yaxis, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if highest < 8 else (1.0, 2.0, 5.0))


def mark_rise(ax: Axes, data: pd.DataFrame) -> None:
    """Shade from where the first main run begins to rise to where the last has generalized."""
    main = data[data["condition"] == "main"]
    start, stop = main["rise"].min(), main["grokked"].max()
    if np.isfinite(start) and np.isfinite(stop):
        ax.axvspan(start, stop, color=RISE_COLOR, linewidth=0, alpha=0.8, zorder=0)


def rise_handle() -> Patch:
    """The legend's entry of ``mark_rise``."""
    return Patch(color=RISE_COLOR, alpha=0.8, linewidth=0)


def seed_text(n: int) -> str:
    """``n = 3 seeds.`` with a word of warning when they are few."""
    text = f"n = {n} seed{'s' if n != 1 else ''}."
    return (
        text if n >= 5 else text + f" {n} seed{'s' if n != 1 else ''} show a tendency at best; 5 are wanted."
    )


def interval_text(n: int) -> str:
    """How many seeds, and what intervals are."""
    return (
        f"{seed_text(n)} Intervals: {LEVEL:.0%} BCa bootstrap of the mean over seeds ({RESAMPLES} resamples)."
    )


def fewer(data: pd.DataFrame, names: Sequence[str]) -> str:
    """A sentence on points (rows of the same ``names``) that rest on fewer seeds than the others, or nothing."""
    points = data.drop_duplicates([*names, "n"])
    short = points[points["n"] < data["n"].max()].drop_duplicates(list(names))
    if short.empty:
        return ""
    told = [
        f"{', '.join(style.name(str(row[name])) for name in names)} {int(row['n'])}"
        for _, row in short.iterrows()
    ]
    return f" Fewer seeds behind: {'; '.join(told)}."


def left_out(data: pd.DataFrame) -> str:
    """A sentence on main runs that did not generalize, or nothing; from columns task, arm, seed, condition, grokked."""
    main = data[data["condition"] == "main"].drop_duplicates(["task", "arm", "seed"])
    failed = main[~np.isfinite(main["grokked"].astype(float))]
    if failed.empty:
        return ""
    parts = [
        f"{title(str(task), str(arm))} (seed {', '.join(map(str, sorted(rows['seed'])))})"
        for (task, arm), rows in failed.groupby(["task", "arm"])
    ]
    return f" Main runs that did not generalize: {'; '.join(parts)}."


def thinned(data: pd.DataFrame, keys: Sequence[str], most: int = 400) -> pd.DataFrame:
    """At most so many steps of each group, evenly spaced, the last included."""

    def some(rows: pd.DataFrame) -> pd.DataFrame:
        rows = rows.sort_values("step", kind="stable")
        if len(rows) <= most:
            return rows
        return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))]

    return pd.concat([some(rows) for _, rows in data.groupby(list(keys), sort=True)], ignore_index=True)
