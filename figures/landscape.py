"""Figure: the old language's loss along directions around each base, a line per geometry or finetuning optimizer."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import style
from synthlm.figures.arms import interval_text
from synthlm.figures.bands import STATISTICS, complete, over_seeds, plain_log

NAME = "landscape"
STUDY = "mechanism"
TABLE = "landscape"
COLUMNS = ("panel", "base", "base_optimizer", "line", "radius", *STATISTICS, "centre")

PANELS = {
    "gradient": "steepest step of the\nfinetuning gradient",
    "worst": "worst case in the ball\nof the geometry",
    "update": "actual finetuning\nupdate (full)",
}
STEPPERS = {"max": "adamw", "spectral": "muon", "frobenius": "sgd"}
"""Geometry -> the optimizer whose colour it has: the one nearest to steepest descent in it."""


def data(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over slices, draws and languages, then over seeds; radii relative to each matrix's Frobenius norm.

    ``line``: a geometry, a finetuning optimizer (panel ``update``), or ``gaussian``. ``centre``: the loss at the base.
    """
    keys = ["base", "base_optimizer"]
    at = over_seeds(table[table["direction"] == "centre"], keys, "loss")[[*keys, "mean"]]
    rows = table[table["kind"] == "relative"]
    gaussian = rows[rows["direction"] == "gaussian"]
    frames = []
    for panel in PANELS:
        mine = rows[rows["direction"] == panel]
        lines = mine["of_optimizer"] if panel == "update" else mine["geometry"]
        both = pd.concat([mine.assign(line=lines), gaussian.assign(line="gaussian")])
        found = over_seeds(both, [*keys, "line", "radius"], "loss")
        if len(mine):
            frames.append(complete(found, [*keys, "line"]).assign(panel=panel))
    if not frames:
        return pd.DataFrame(columns=list(COLUMNS))
    found = pd.concat(frames, ignore_index=True)
    return found.merge(at.rename(columns={"mean": "centre"}), on=keys, how="left")[list(COLUMNS)]


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    bases = style.base_order(list(data["base"]))
    panels = [panel for panel in PANELS if (data["panel"] == panel).any()]
    side = max(0.1, (6.2 - 0.95 - 2.1 * len(bases)) / 2)
    figure, axes = style.grid_figure(
        len(panels), len(bases), (2.1, 1.75), (0.95 + side, side + 0.1, 0.3, 0.95)
    )
    for i, panel in enumerate(panels):
        for j, base in enumerate(bases):
            ax = axes[i, j]
            _draw_cell(ax, data[(data["panel"] == panel) & (data["base"] == base)])
            plain_log(ax.xaxis)
            if i == 0:
                ax.set_title(f"{style.name(base)} base")
            if i == len(panels) - 1:
                ax.set_xlabel("relative radius")
            if j == 0:
                ax.set_ylabel(f"{PANELS[panel]}\nold loss (nats)", fontsize=8)
    axes[0, 0].set_yscale("log")
    low = data["mean"].min()
    axes[0, 0].set_ylim(max(low * 0.6, 1e-4), data["mean"].max() * 1.6)
    handles = [_line(name) for name in (*STEPPERS, "gaussian")]
    labels = [f"{geometry} ({style.name(optimizer)})" for geometry, optimizer in STEPPERS.items()]
    own = Line2D([], [], color="#555555", linewidth=2.4)
    centre = Line2D([], [], color="#b0b0b0", linewidth=0.8)
    style.legend(
        figure, [*handles, own, centre], [*labels, "Gaussian", "the base's own", "loss of the base"], 3
    )
    return figure


def _line(name: str) -> Line2D:
    return Line2D([], [], color=_ink(name), linestyle=":" if name == "gaussian" else "-")


def _ink(line: str) -> str:
    return style.GREY if line == "gaussian" else style.color(STEPPERS.get(line, line))


def _draw_cell(ax: Axes, cell: pd.DataFrame) -> None:
    for line, rows in cell.groupby("line"):
        rows = rows.sort_values("radius")
        own = STEPPERS.get(str(line), str(line)) == rows["base_optimizer"].iloc[0]
        ax.plot(
            rows["radius"], rows["mean"], color=_ink(str(line)), zorder=3 + own,
            linestyle=":" if line == "gaussian" else "-", linewidth=2.4 if own else 1.2,
        )  # fmt: skip
        if rows["n"].max() > 1:
            ax.fill_between(
                rows["radius"], rows["low"], rows["high"], color=_ink(str(line)), alpha=0.18, linewidth=0
            )
    if len(cell):
        ax.axhline(cell["centre"].iloc[0], color="#b0b0b0", linewidth=0.8, zorder=1)
    ax.set_xscale("log")


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds, what the bands are."""
    return (
        "Loss on the pretraining language (mean over its goal slices) at a distance from the base, along"
        " directions that move every hidden matrix by the same share of its own Frobenius norm (the"
        " radius). Top: the unit step that descends the finetuning loss steepest in each geometry (max:"
        " sign of the gradient; spectral: its polar factor; frobenius: the gradient), mean over finetuning"
        " languages. Middle: the highest loss that projected ascent found in each geometry's ball within"
        " that Frobenius ball. Bottom: the update of full finetuning by each optimizer, rescaled. Dotted:"
        " Gaussian directions, mean over draws. Thick: the geometry or optimizer of the base itself. "
        + interval_text(int(data["n"].max()), set(data["interval"]))
    )
