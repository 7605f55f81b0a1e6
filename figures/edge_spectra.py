"""Figure: the leading singular values of the update window over training, with the nulls as bands."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from synthlm.figures import edge_style, style

NAME = "edge_spectra"
STUDY = "edge"
TABLE = "edge_windows"
MODES = (1, 2, 3)
NULLS = ("directions", "stationary")
COLUMNS = (
    "task", "arm", "condition", "seed", "step", "mode", "value", "directions_low", "directions_high", "stationary_low",
    "stationary_high", "rise", "grokked", "n",
)  # fmt: skip
MODE_LINES: dict[int, Any] = {1: "-", 2: (0, (4, 1.5)), 3: (0, (1, 1.2))}
MOST = 5


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per run, window and mode: sigma_j over the root of the sum of squares, and the 95% band of each null. Of
    every task and optimizer the first seed whose main run generalized, or else the first; ``n``: seeds that there
    are."""
    rows = table[(table["set"] == "all") & table["condition"].isin(edge_style.CONDITIONS)].copy()
    n = rows.groupby(["task", "arm"])["seed"].transform("nunique")
    rows = rows.assign(n=n)
    main = rows[(rows["condition"] == "main") & np.isfinite(rows["grokked"].astype(float))]
    cell = [rows["task"], rows["arm"]]
    first = rows["seed"].where(rows.index.isin(main.index)).groupby(cell).transform("min")
    rows = rows[rows["seed"] == first.fillna(rows["seed"].groupby(cell).transform("min"))]
    rows = edge_style.thinned(rows, ["task", "arm", "condition"], 200)
    scale = rows["sigma_1"] / rows["share"] ** 0.5
    labels = rows[[name for name in COLUMNS if name in rows]]
    frames = []
    for mode in MODES:
        values = {"mode": mode, "value": rows[f"sigma_{mode}"] / scale}
        bands = {
            f"{null}_{end}": rows[f"sigma_{mode}/{null}/{end}"] for null in NULLS for end in ("low", "high")
        }
        frames.append(labels.assign(**values, **bands)[list(COLUMNS)])
    keys = ["task", "arm", "condition", "seed", "step", "mode"]
    return pd.concat(frames).sort_values(keys, kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    cells = edge_style.cells(data, MOST)
    figure = style.new_figure(max(2.55 * len(cells) + 0.7, 6.6), 5.2)
    axes = figure.subplots(2, len(cells), sharex="col", sharey=True, squeeze=False)
    for column, (task, arm) in enumerate(cells):
        here = data[(data["task"] == task) & (data["arm"] == arm)]
        for row, condition in enumerate(edge_style.CONDITIONS):
            ax = axes[row, column]
            if condition == "main":
                edge_style.mark_rise(ax, here)
            _draw_run(ax, here[here["condition"] == condition], arm)
            if column == 0:
                ax.set_ylabel(
                    f"{edge_style.CONDITION_NAMES[condition]}\n$\\sigma_j\\,/\\,(\\sum\\sigma^2)^{{1/2}}$"
                )
        axes[0, column].set_title(edge_style.title(task, arm))
        axes[1, column].set_xlabel("training step")
        axes[1, column].set_xlim(0, here["step"].max())
    axes[0, 0].set_ylim(0, 1.03)
    handles: list = [Line2D([], [], color="black", linestyle=MODE_LINES[mode]) for mode in MODES]
    handles += [Patch(color=edge_style.NULL_COLORS[null], alpha=0.45, linewidth=0) for null in NULLS]
    labels = [f"$\\sigma_{mode}$" for mode in MODES] + [edge_style.NULL_NAMES[null] for null in NULLS]
    style.legend(
        figure,
        [*handles, edge_style.rise_handle()],
        [*labels, "generalization rises"],
        columns=3 if len(cells) > 2 else 2,
    )
    return figure


def _draw_run(ax: Axes, here: pd.DataFrame, arm: str) -> None:
    for mode, rows in here.groupby("mode"):
        for null in NULLS:
            ax.fill_between(
                rows["step"], rows[f"{null}_low"], rows[f"{null}_high"], color=edge_style.NULL_COLORS[null],
                alpha=0.45, linewidth=0.4, zorder=1,
            )  # fmt: skip
        ax.plot(
            rows["step"],
            rows["value"],
            color=style.color(arm),
            linestyle=MODE_LINES[int(mode)],
            linewidth=1.0,
        )


def caption(data: pd.DataFrame) -> str:
    """What is shown."""
    n = int(data["n"].max()) if len(data) else 0
    return (
        "The three leading singular values of the last W recorded updates (all parameters), as shares of"
        f" the window's total, in main runs (above) and controls (below); one of {n}"
        f" seed{'s' if n != 1 else ''} of each, the first that generalized. Bands: 95% of what updates of the"
        " same norms give in random directions, and with each window's own correlation by lag. In so many"
        " dimensions the bands are narrow: a spectrum that lies on the second band says no more than how long"
        " updates stay alike." + edge_style.left_out(data)
    )
