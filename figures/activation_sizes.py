"""Figure: over pretraining, the activation size that pairs with each geometry's norm, by base (claim C3)."""

import pandas as pd
from matplotlib.figure import Figure

from synthlm.figures import style
from synthlm.figures.arms import interval_text
from synthlm.figures.over_pretraining import BASE, bases_legend, draw_bases, over_matrices, step_axis

NAME = "activation_sizes"
STUDY = "mechanism"
TABLE = "activations"
COLUMNS = (*BASE, "goal", "geometry", "step", "seed", "value", "mean", "low", "high", "n", "interval")

SIZES = {"max": "mean l1 norm", "spectral": "mean l2 norm", "frobenius": "operator norm / √tokens"}
"""The activation size of each geometry, in words; others are shown by the geometry's name."""


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per base, goal, geometry, step and seed: the paired size, mean over hidden matrices and goal slices."""
    rows = table[table["goal"] != ""]
    names = [name for name in table.columns if name.startswith("size/")]
    long = over_matrices(rows, names, ["goal"])
    long["geometry"] = long["name"].str.removeprefix("size/")
    return long[list(COLUMNS)]


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    goals = sorted(data["goal"].unique())
    geometries = [name for name in SIZES if name in set(data["geometry"])]
    geometries += sorted(set(data["geometry"]) - set(SIZES))
    figure = style.new_figure(2.55 * len(geometries) + 0.7, 2.0 * len(goals) + 0.8)
    axes = figure.subplots(len(goals), len(geometries), sharex=True, squeeze=False)
    for row, goal in enumerate(goals):
        for column, name in enumerate(geometries):
            ax = axes[row, column]
            draw_bases(ax, data[(data["goal"] == goal) & (data["geometry"] == name)], thick=name)
            ax.tick_params(axis="y", labelsize=7)
            if row == 0:
                ax.set_title(f"{name} geometry:\n{SIZES.get(name, '')}")
            if column == 0:
                ax.set_ylabel(f"inputs of {goal} items")
            if row == len(goals) - 1:
                ax.set_xlabel("pretraining step")
    step_axis(axes.ravel(), data["step"])
    handles, labels = bases_legend(data)
    style.legend(figure, handles, labels, columns=4)
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds, what the band is."""
    n = data["seed"].nunique()
    return (
        "The size of what enters the hidden matrices over pretraining, on fixed probe items of the old language: the"
        " statistic that bounds how far an update of norm 1 moves the outputs, one column a geometry, mean"
        " over hidden matrices. Thick: the base whose own optimizer has that geometry; C3 predicts that it is"
        " relatively lowest there. Inputs of query, key, value and MLP-in matrices follow an RMS norm, so that their l2"
        " norm is fixed up to gains. Lines: mean over seeds; bands: interval; dots: single seeds."
        f" {interval_text(n, set(data['interval'].astype(str)))}"
    )
