"""Figure: accuracy, loss and the spectral gap on one time axis, main runs beside their controls."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import edge_style, style

NAME = "edge_timeline"
STUDY = "edge"
TABLE = "edge_windows"
COLUMNS = (
    "task", "arm", "condition", "seed", "step", "train", "heldout", "train_loss", "heldout_loss", "g23", "ratio",
    "g23_null", "ratio_null", "memorized", "rise", "grokked", "n",
)  # fmt: skip
MOST = 5
PANELS = (
    ("accuracy", "accuracy", "linear"),
    ("loss", "loss (nats/token)", "log"),
    ("g23", "$g_{23}=\\sigma_2^2-\\sigma_3^2$", "log"),
    ("ratio", "$R=\\max_j\\,\\sigma_j/\\sigma_{j+1}$", "log"),
)


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per run and window of all parameters; ``_null``: the median under updates of the same norms and lag
    correlation; ``n``: seeds of the cell."""
    rows = table[(table["set"] == "all") & table["condition"].isin(edge_style.CONDITIONS)].copy()
    rows["g23_null"], rows["ratio_null"] = rows["g23/stationary/mid"], rows["ratio/stationary/mid"]
    rows["n"] = rows.groupby(["task", "arm"])["seed"].transform("nunique")
    keys = ["task", "arm", "condition", "seed"]
    return edge_style.thinned(rows, keys)[list(COLUMNS)].sort_values(
        [*keys, "step"], kind="stable", ignore_index=True
    )


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    cells = edge_style.cells(data, MOST)
    figure = style.new_figure(max(2.55 * len(cells) + 0.7, 6.6), 1.55 * len(PANELS) + 0.9)
    axes = figure.subplots(len(PANELS), len(cells), sharex="col", sharey="row", squeeze=False)
    for column, (task, arm) in enumerate(cells):
        here = data[(data["task"] == task) & (data["arm"] == arm)]
        for row, (kind, label, scale) in enumerate(PANELS):
            ax = axes[row, column]
            edge_style.mark_rise(ax, here)
            _draw_panel(ax, here, kind, arm)
            ax.set_yscale(scale)
            if column == 0:
                ax.set_ylabel(label)
        axes[0, column].set_title(edge_style.title(task, arm))
        axes[-1, column].set_xlabel("training step")
        axes[-1, column].set_xlim(0, here["step"].max())
    axes[0, 0].set_ylim(-0.03, 1.04)
    edge_style.ratio_axis(axes[-1, 0], data["ratio"])
    handles = [
        Line2D([], [], color="black", linestyle="-"), Line2D([], [], color="black", linestyle=(0, (1, 1.4))),
        Line2D([], [], **edge_style.line("adamw", "control")), Line2D([], [], color="#CC79A7", linewidth=1.0),
        edge_style.rise_handle(),
    ]  # fmt: skip
    labels = [
        "main run, held out", "main run, training items", "control, held out",
        "main run, median of the null with its lag correlation", "generalization rises",
    ]  # fmt: skip
    style.legend(figure, handles, labels, columns=3 if len(cells) > 2 else 2)
    return figure


def _draw_panel(ax: Axes, here: pd.DataFrame, kind: str, arm: str) -> None:
    for (condition, _), run in here.groupby(["condition", "seed"]):
        look = edge_style.line(arm, str(condition))
        if kind in ("accuracy", "loss"):
            suffix = "" if kind == "accuracy" else "_loss"
            ax.plot(run["step"], run[f"heldout{suffix}"], linewidth=1.1, **look)
            if condition == "main":
                ax.plot(
                    run["step"],
                    run[f"train{suffix}"],
                    linewidth=0.9,
                    color=look["color"],
                    linestyle=(0, (1, 1.4)),
                )
            continue
        positive = run[kind].where(run[kind] > 0, np.nan)
        if condition == "main":
            ax.plot(run["step"], run[f"{kind}_null"], linewidth=0.7, color="#CC79A7", alpha=0.8, zorder=2)
        ax.plot(run["step"], positive, linewidth=0.9, zorder=3, **look)


def caption(data: pd.DataFrame) -> str:
    """What is shown and how many seeds."""
    shown = edge_style.cells(data, MOST)
    n = int(data["n"].max()) if len(data) else 0
    more = data[["task", "arm"]].drop_duplicates().shape[0] - len(shown)
    text = (
        "Accuracy, loss and two statistics of the spectrum of the last W recorded updates (all"
        " parameters) on one time axis. Each line is one run; controls lack weight decay, or layers where"
        " decay plays no part. The window's statistics are placed at its last step. Shaded: from the last"
        " evaluation near chance of the first main run to the grokking of the last."
        f" {edge_style.seed_text(n)}"
    )
    if more > 0:
        text += f" {more} more pairs of task and optimizer are in the figure's CSV."
    return text + edge_style.left_out(data)
