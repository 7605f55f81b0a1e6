"""Figure: how accuracy falls around bases and finetuned models, along random, worst and finetuning directions."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import style
from synthlm.figures.arms import interval_text
from synthlm.figures.bands import STATISTICS, complete, over_seeds

NAME = "basins"
STUDY = "mechanism"
TABLE = "basins"
COLUMNS = ("panel", "base", "line", "sigma", *STATISTICS, "centre")

PANELS = {"pretrained": "around the base", "finetuned": "around the finetuned model"}
LINES: dict[str, tuple[str, str, Any]] = {
    "most": ("most case (Gaussian)", "#000000", "-"),
    "finetuning": ("finetuning case (updates)", "#CC79A7", "--"),
    "worst": ("worst case (ascent)", "#c00000", ":"),
    "old": ("old language, Gaussian", "#000000", "-"),
    "new": ("new language, Gaussian", "#56B4E9", "-"),
}
"""Line -> its text, colour and style: the cases around a base, the languages around a finetuned model."""


def data(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy, mean over goal slices, draws and models, then over seeds, by sigma; plain bases alone.

    ``panel``: what is at the centre. ``line``: the case (on the old language), or the language around a finetuned model
    (most case). ``centre``: accuracy at the centre.
    """
    rows = table[(table["row"] == "profile") & (table["variant"] == "plain")]
    frames = []
    for panel in PANELS:
        mine = rows[rows["centre"] == panel]
        if panel == "pretrained":
            mine = mine[mine["role"] == "old"]
            around = mine[(mine["scale"] == "absolute")]
            around = around.assign(line=around["case"])
            at = mine[mine["case"] == "centre"].groupby("base")["accuracy"].mean()
            centre = {(base, line): value for base, value in at.items() for line in LINES}
        else:
            around = mine[(mine["case"] == "most") & (mine["scale"] == "absolute")]
            around = around.assign(line=around["role"])
            at = mine[mine["case"] == "centre"].groupby(["base", "role"])["accuracy"].mean()
            centre = dict(at.items())
        found = complete(over_seeds(around, ["base", "line", "sigma"], "accuracy"), ["base", "line"])
        if len(found):
            values = [centre[key] for key in zip(found["base"], found["line"], strict=True)]
            frames.append(found.assign(panel=panel, centre=values))
    return (
        pd.concat(frames, ignore_index=True)[list(COLUMNS)] if frames else pd.DataFrame(columns=list(COLUMNS))
    )


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    bases = style.base_order(list(data["base"]))
    panels = [panel for panel in PANELS if (data["panel"] == panel).any()]
    side = max(0.1, (6.2 - 0.85 - 2.1 * len(bases)) / 2)
    figure, axes = style.grid_figure(
        len(panels), len(bases), (2.1, 1.75), (0.85 + side, side + 0.1, 0.3, 0.95)
    )
    for i, panel in enumerate(panels):
        for j, base in enumerate(bases):
            ax = axes[i, j]
            _draw_cell(ax, data[(data["panel"] == panel) & (data["base"] == base)])
            if i == 0:
                ax.set_title(f"{style.name(base)} base")
            if j == 0:
                ax.set_ylabel(f"{PANELS[panel]}\naccuracy", fontsize=8)
    for ax in axes[-1]:
        ax.set_xscale("log")
        ax.set_xlabel("sigma per coordinate")
    axes[0, 0].set_ylim(-0.04, 1.06)
    shown = [line for line in LINES if (data["line"] == line).any()]
    handles = [Line2D([], [], color=LINES[line][1], linestyle=LINES[line][2]) for line in shown]
    style.legend(figure, handles, [LINES[line][0] for line in shown], 3)
    return figure


def _draw_cell(ax: Axes, cell: pd.DataFrame) -> None:
    for line, rows in cell.groupby("line"):
        rows = rows.sort_values("sigma")
        _, ink, dashes = LINES[str(line)]
        ax.plot(rows["sigma"], rows["mean"], color=ink, linestyle=dashes, zorder=3)
        if rows["n"].max() > 1:
            ax.fill_between(rows["sigma"], rows["low"], rows["high"], color=ink, alpha=0.18, linewidth=0)


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds, what the bands are."""
    return (
        "Accuracy (mean over goal slices) at weights + sigma d. Top, on the old language around each base:"
        " d Gaussian, not normalized (most case, mean over draws); d the update of full finetuning,"
        " rescaled to the length that the Gaussian has on average (mean over models); and the worst point"
        " that projected ascent found in the ball of that length. Bottom, around models that were finetuned"
        " in full with the base's own optimizer: Gaussian d, on the old and on the new"
        " language. " + interval_text(int(data["n"].max()), set(data["interval"]))
    )
