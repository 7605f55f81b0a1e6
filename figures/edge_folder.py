"""The figure of ``synthlm edge``: spectrum, gap, its position and its turn over a folder's checkpoints."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from synthlm.figures import edge_style, style

MODES = 3
LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
MOST = 4


@style.styled
def draw(data: pd.DataFrame, source: str) -> Figure:
    """Draw the table of ``synthlm.edge_folder.table``; a column for each parameter set, four at most."""
    sets = list(dict.fromkeys(data["set"]))[:MOST]
    figure = style.new_figure(3.2 * len(sets) + 0.9, 6.6)
    axes = figure.subplots(4, len(sets), sharex=True, sharey="row", squeeze=False)
    for column, name in enumerate(sets):
        here = data[data["set"] == name].sort_values("step")
        _spectrum(axes[0, column], here)
        axes[1, column].plot(here["step"], here["ratio"], color="black", linewidth=1.1)
        for null in ("directions", "stationary"):
            axes[1, column].fill_between(
                here["step"], here[f"ratio/{null}/low"], here[f"ratio/{null}/high"],
                color=edge_style.NULL_COLORS[null], alpha=0.45, linewidth=0.4,
            )  # fmt: skip
        for rule, look in (
            ("k_ratio", {"marker": ".", "color": "black", "markersize": 3.5}),
            ("k_mass", {"marker": "_", "color": "#0072B2", "markersize": 5}),
        ):
            has = here[here[rule] > 0]
            axes[2, column].plot(has["step"], has[rule], linestyle="none", **look)
        axes[2, column].yaxis.set_major_locator(MaxNLocator(integer=True))
        for j in range(MODES):
            axes[3, column].plot(
                here["step"], here[f"rotation_{j + 1}"], color="black", linewidth=1.0, linestyle=LINES[j]
            )
        axes[0, column].set_title(f"{name}: {int(here['parameters'].iloc[0]):,} parameters", fontsize=8.5)
        axes[3, column].set_xlabel("step of the checkpoint")
    for ax, label in zip(
        axes[:, 0],
        ("$\\sigma_j\\,/\\,(\\sum\\sigma^2)^{1/2}$", "$R=\\max_j\\,\\sigma_j/\\sigma_{j+1}$", "gap position $k^*$",
         "turn of modes\n(degrees)"),
        strict=True,
    ):  # fmt: skip
        ax.set_ylabel(label)
    edge_style.ratio_axis(axes[1, 0], data["ratio"])
    axes[0, 0].set_ylim(0, 1.03)
    axes[2, 0].set_ylim(0.5, max(2, data[["k_ratio", "k_mass"]].to_numpy().max()) + 0.5)
    axes[3, 0].set_ylim(0, 92)
    figure.suptitle(source, fontsize=8.5)
    nulls = ("directions", "stationary")
    handles: list = [Line2D([], [], color="black", linestyle=look) for look in LINES]
    handles += [Patch(color=edge_style.NULL_COLORS[null], alpha=0.45, linewidth=0) for null in nulls]
    handles += [Line2D([], [], color="black", marker=".", linestyle="none"),
                Line2D([], [], color="#0072B2", marker="_", linestyle="none")]  # fmt: skip
    labels = ["$\\sigma_1$, mode 1", "$\\sigma_2$, modes 1-2", "$\\sigma_3$, modes 1-3"]
    labels += [edge_style.NULL_NAMES[null] for null in nulls]
    style.legend(
        figure, handles, [*labels, "$k^*$, plain", "$k^*$, weighted"], columns=3 if len(sets) < 3 else 4
    )
    return figure


def _spectrum(ax: Axes, here: pd.DataFrame) -> None:
    scale = np.sqrt(here["share"]) / here["sigma_1"]
    for j in range(MODES):
        for null in ("directions", "stationary"):
            ax.fill_between(
                here["step"], here[f"sigma_{j + 1}/{null}/low"], here[f"sigma_{j + 1}/{null}/high"],
                color=edge_style.NULL_COLORS[null], alpha=0.45, linewidth=0.4,
            )  # fmt: skip
        ax.plot(
            here["step"], here[f"sigma_{j + 1}"] * scale, color="black", linewidth=1.1, linestyle=LINES[j]
        )
