"""Figure: what removing a leading mode does to the loss, with controls of the same norm; and the commutator defect."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import edge_style, style
from synthlm.statistics import bootstrap_table

NAME = "edge_removal"
STUDY = "edge"
TABLE = "edge_modes"
WAYS = {
    "mode": ("the mode itself", "#D55E00", "o"),
    "matched": ("random direction, as much removed", "#0072B2", "s"),
    "projected": ("random direction, projected out", "#9a9a9a", "^"),
}
ORIGINS = {"update": "removed from the update since the start", "weights": "removed from the weights"}
PROGRESS = (0.0, 0.34, 0.67, 1.0, 1.5, np.inf)
PROGRESS_NAMES = ("first third", "second third", "up to grokking", "to 1.5 times", "later")
COLUMNS = (
    "panel", "kind", "condition", "progress", "seed", "value", "mean", "low", "high", "n", "interval",
)  # fmt: skip


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per panel (an origin, or defect), kind, condition, stretch of the way to grokking and seed: the mean rise
    of the held-out and training loss on removing one of the modes (nats per scored token), or the commutator defect."""
    rows = table[np.isfinite(table["deadline"].astype(float))].copy()
    if rows.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    place = np.digitize(rows["step"] / rows["deadline"], PROGRESS) - 1
    rows["progress"] = np.array(PROGRESS_NAMES)[np.minimum(place, len(PROGRESS_NAMES) - 1)]
    whole = rows[rows["kind"] == "none"].set_index(["job", "step"])["loss"].rename("whole")
    taken = rows[rows["kind"].isin(list(WAYS))].join(whole, on=["job", "step"])
    taken = taken.assign(panel=taken["origin"], value=taken["loss"] - taken["whole"])
    defect = rows[rows["kind"] == "defect"].assign(panel="defect")
    keys = ["panel", "kind", "condition", "progress"]
    found = pd.concat([taken, defect]).groupby([*keys, "seed"])["value"].mean().reset_index()
    wide = found.pivot_table(index=keys, columns="seed", values="value", dropna=False)
    wide = wide[wide.notna().any(axis=1)]
    summary = bootstrap_table(wide.to_numpy(float)).set_index(wide.index)
    return found.join(summary, on=keys)[list(COLUMNS)]


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    figure = style.new_figure(10.2, 3.7)
    axes = figure.subplots(1, 3, squeeze=False)[0]
    for ax, (origin, label) in zip(axes, ORIGINS.items(), strict=False):
        here = data[(data["panel"] == origin) & (data["condition"] == "main")]
        for index, (kind, (_, color, marker)) in enumerate(WAYS.items()):
            _draw_series(ax, here[here["kind"] == kind], (index - 1) * 0.17, color, marker)
        ax.set_yscale("symlog", linthresh=1e-3)
        ax.set_title(label)
        ax.axhline(0, color=style.GREY, linewidth=0.7)
    axes[0].set_ylabel("rise of the loss (nats per scored token)")
    defect = data[data["panel"] == "defect"]
    for shift, condition, color, marker in (
        (-0.1, "main", "#D55E00", "o"),
        (0.1, "control", style.GREY, "s"),
    ):
        _draw_series(axes[2], defect[defect["condition"] == condition], shift, color, marker)
    axes[2].set_yscale("log")
    axes[2].set_title("commutator defect (median of 9)")
    axes[2].set_ylabel("$\\|w_{AB}-w_{BA}\\|/(\\|\\eta g_A\\|\\|\\eta g_B\\|)$")
    for ax in axes:
        ax.set_xticks(
            range(len(PROGRESS_NAMES)), PROGRESS_NAMES, rotation=30, ha="right", rotation_mode="anchor"
        )
        ax.set_xlim(-0.5, len(PROGRESS_NAMES) - 0.5)
    handles = [Line2D([], [], color=color, marker=marker, markersize=4) for _, color, marker in WAYS.values()]
    handles += [Line2D([], [], color=style.GREY, marker="s", markersize=4)]
    style.legend(
        figure, handles, [*(text for text, _, _ in WAYS.values()), "control runs (defect)"], columns=4
    )
    return figure


def _draw_series(ax: Axes, here: pd.DataFrame, shift: float, color: str, marker: str) -> None:
    for place, name in enumerate(PROGRESS_NAMES):
        rows = here[here["progress"] == name]
        if rows.empty:
            continue
        ax.plot([place + shift] * len(rows), rows["value"], ".", color=color, markersize=3, alpha=0.5)
        first = rows.iloc[0]
        error = None
        if np.isfinite(first["low"]):
            error = [[max(0.0, first["mean"] - first["low"])], [max(0.0, first["high"] - first["mean"])]]
        ax.errorbar(
            place + shift,
            first["mean"],
            error,
            fmt=marker,
            color=color,
            markersize=4.5,
            capsize=2,
            linewidth=1.1,
        )


def caption(data: pd.DataFrame) -> str:
    """What is shown, n, what the intervals are."""
    n = int(data["n"].max()) if len(data) else 0
    return (
        "Left and middle: rise of the loss when one of the leading modes of the update window is projected"
        " out of the weights' update or of the weights (mean over modes, tasks and checkpoints of main"
        " runs), against random directions: as much removed, and projected out (which removes far less,"
        " and is the usual control). Right: commutator defect of two mini-batch steps, main runs and"
        " controls. The loss is that of the items the model is evaluated on. By share of the main run's steps to"
        f" grokking. {edge_style.interval_text(n)}{edge_style.fewer(data, ('condition', 'progress'))}"
    )
