"""The end state of a lesson as a figure and its table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.demo.lesson import Frame
from synthlm.demo.turns import HELDOUT, REGULARIZED, ROTE, TRAINED, Nouns
from synthlm.figures import style
from synthlm.table import write_csv

COLORS = {TRAINED: "#0072B2", HELDOUT: "#009E73", ROTE: "#CC79A7", REGULARIZED: "#E69F00"}
LINES: dict[str, Any] = {TRAINED: (0, (3.2, 1.6)), HELDOUT: "-", ROTE: "-", REGULARIZED: (0, (1, 1.4))}


def data(frame: Frame, counts: Mapping[str, int]) -> pd.DataFrame:
    """Tidy: learner, series, step, share (of items right in every token), n (items)."""
    rows = [
        (learner.name, series, step, value, counts[series])
        for learner in frame.learners
        for series, values in learner.curves.items()
        for step, value in zip(frame.steps, values, strict=True)
    ]
    return pd.DataFrame(rows, columns=["learner", "series", "step", "share", "n"])


@style.styled
def draw(table: pd.DataFrame, nouns: Nouns, title: str) -> Figure:
    """One panel a learner, its curves on a logarithmic axis of steps."""
    names = list(dict.fromkeys(table["learner"]))
    figure = style.new_figure(max(3.4 * len(names), 4.2), 3.3)
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, names, strict=True):
        for series, rows in table[table["learner"] == name].groupby("series", sort=False):
            ax.plot(rows["step"], rows["share"], color=COLORS[series], linestyle=LINES[series], linewidth=1.6)
        ax.set_title(name)
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, table["step"].max() * 1.05)
        ax.set_xlabel("training step")
        ax.set_ylim(-0.02, 1.03)
    axes[0].set_ylabel("share of items right in every token")
    shown = list(dict.fromkeys(table["series"]))
    told = {series: f"{_noun(series, nouns)} (n = {_count(table, series)})" for series in shown}
    handles = [
        Line2D([], [], color=COLORS[series], linestyle=LINES[series], linewidth=1.6) for series in shown
    ]
    style.legend(figure, handles, [told[series] for series in shown], columns=2)
    figure.suptitle(f"{title}; one seed", fontsize=9)
    return figure


def save(folder: Path, frame: Frame, counts: Mapping[str, int], nouns: Nouns, title: str) -> list[Path]:
    """Write ``demo.pdf``, ``demo.png`` and ``demo.csv`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    table = data(frame, counts)
    write_csv(table, folder / "demo.csv")
    return [*style.save(draw(table, nouns, title), folder / "demo"), folder / "demo.csv"]


def _noun(series: str, nouns: Nouns) -> str:
    return f"{nouns.rote}, answered as the rule would" if series == REGULARIZED else getattr(nouns, series)


def _count(table: pd.DataFrame, series: str) -> int:
    return int(table.loc[table["series"] == series, "n"].iloc[0])
