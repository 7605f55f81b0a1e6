"""Figure: old and new accuracy on the plane through a base and two models finetuned from it."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from synthlm.figures import style

NAME = "plane"
STUDY = "mechanism"
TABLE = "plane"
COLUMNS = (
    "base", "role", "what", "label", "optimizer", "x", "y", "accuracy", "loss", "language", "seed", "n",
)  # fmt: skip

ROLES = {"old": "old language", "new": "new language"}
LEVELS = np.linspace(0, 1, 11)


def data(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over goal slices, of each base's first seed; n = 1. ``label``: of a model."""
    first = table[table["seed"] == table.groupby("base")["seed"].transform("min")]
    keys = ["base", "role", "what", "of_arm", "of_optimizer", "x", "y", "seed"]
    found = first.groupby(keys, as_index=False)[["accuracy", "loss"]].mean()
    languages = first[first["of_language"] != ""].groupby("base")["of_language"].first()
    label = found["of_arm"].where(found["of_arm"] != "", "base").where(found["what"] == "model", "")
    found = found.assign(label=label, n=1, language=found["base"].map(languages))
    return found.rename(columns={"of_optimizer": "optimizer"})[list(COLUMNS)]


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    bases = style.base_order(list(data["base"]))
    figure = style.new_figure(max(5.0, 1.0 + 2.35 * len(bases)), 4.7)
    axes = figure.subplots(2, len(bases), squeeze=False)
    image = None
    for i, role in enumerate(ROLES):
        for j, base in enumerate(bases):
            ax = axes[i, j]
            image = _draw_cell(ax, data[(data["base"] == base) & (data["role"] == role)])
            if i == 0:
                ax.set_title(f"{style.name(base)} base")
            else:
                ax.set_xlabel("distance to the first (l2)")
            if j == 0:
                ax.set_ylabel(f"{ROLES[role]}\ndistance across (l2)")
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.75, aspect=30, pad=0.02)
        bar.set_label("accuracy")
    return figure


def _draw_cell(ax: Axes, cell: pd.DataFrame) -> QuadContourSet:
    grid = cell[cell["what"] == "grid"].pivot_table(index="y", columns="x", values="accuracy")
    image = ax.contourf(grid.columns, grid.index, grid.to_numpy(), LEVELS, cmap="viridis", vmin=0, vmax=1)
    ax.contour(
        grid.columns, grid.index, grid.to_numpy(), [0.5, 0.9], colors="white", linewidths=0.8,
        linestyles=["--", "-"],
    )  # fmt: skip
    models = cell[cell["what"] == "model"]
    for row in models.itertuples():
        base = row.label == "base"
        across = (row.x - grid.columns[0]) / (grid.columns[-1] - grid.columns[0])
        ink = "white" if base else style.color(str(row.optimizer))
        ax.plot(row.x, row.y, "o", color=ink, markersize=6, markeredgecolor="black", markeredgewidth=0.8)
        ax.annotate(
            row.label, (row.x, row.y), xytext=(0, -8 if base else 7), textcoords="offset points",
            ha="right" if across > 0.75 else "left" if across < 0.15 else "center",
            va="top" if base else "bottom", fontsize=7, color="black",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.75, "linewidth": 0},
        )  # fmt: skip
    ax.set_aspect("equal", adjustable="box")
    ax.grid(visible=False)
    return image


def caption(data: pd.DataFrame) -> str:
    """What is shown, and of which seed."""
    languages = ", ".join(sorted(set(data["language"].dropna().astype(str))))
    seeds = ", ".join(str(seed) for seed in sorted(set(data["seed"])))
    return (
        "Accuracy (mean over goal slices) on the plane through a base and two models finetuned from it in"
        " full, at their best learning rates, by the base's own optimizer (on the horizontal axis) and by"
        f" another; new language: {languages}. Axes are l2 distances in weight space along an orthonormal"
        f" basis; white lines: accuracy 0.9 (solid) and 0.5 (broken). One seed ({seeds}; n = 1): an"
        " illustration, without an interval."
    )
