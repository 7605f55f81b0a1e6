"""Figure: over pretraining, statistics of the hidden matrices' inputs and of the matrices themselves, by base."""

import pandas as pd
from matplotlib.figure import Figure

from synthlm.figures import style
from synthlm.figures.arms import interval_text
from synthlm.figures.over_pretraining import BASE, bases_legend, draw_bases, over_matrices, step_axis

NAME = "activation_statistics"
STUDY = "mechanism"
TABLE = "activations"
COLUMNS = (*BASE, "name", "step", "seed", "value", "mean", "low", "high", "n", "interval")

LABELS = {
    "rms": "RMS", "l1": "mean l1 norm / √d", "l2": "mean l2 norm", "operator": "operator norm / √tokens",
    "density": "density, l1 / (√d l2)", "outlier": "largest entry / RMS", "kurtosis": "kurtosis",
    "small": "share below 0.1 RMS", "stable_rank": "stable rank of inputs",
    "weight/stable_rank": "stable rank of weights", "weight/entropy": "SVD entropy of weights",
    "weight/norm/frobenius": "Frobenius norm of weights",
}  # fmt: skip
"""What is shown: column of the table -> title of its panel."""

ALL = "all"


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per base, statistic, step and seed: mean over hidden matrices, of the tokens of all goal slices
    together."""
    return over_matrices(table[table["slice"] == ALL], list(LABELS), [])[list(COLUMNS)]


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    columns = 4
    rows = -(-len(LABELS) // columns)
    figure = style.new_figure(2.2 * columns + 0.3, 1.75 * rows + 0.7)
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for index, (ax, (name, title)) in enumerate(zip(axes, LABELS.items(), strict=False)):
        draw_bases(ax, data[data["name"] == name])
        ax.set_title(title, fontsize=8.5)
        ax.tick_params(axis="y", labelsize=7)
        if index >= columns * (rows - 1):
            ax.set_xlabel("pretraining step")
    step_axis(axes, data["step"])
    handles, labels = bases_legend(data)
    style.legend(figure, handles, labels, columns=4)
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds, what the band is."""
    n = data["seed"].nunique()
    return (
        "Statistics of what enters the hidden matrices, over pretraining, on fixed probe items of the old language, and"
        " of the matrices themselves (last three): mean over hidden matrices. d: features. Density is 1 when all"
        " entries have one size; kurtosis is 3 for a Gaussian; SVD entropy is 1 when all singular values are equal."
        " Lines: mean over seeds; bands: interval; dots: single seeds."
        f" {interval_text(n, set(data['interval'].astype(str)))}"
    )
