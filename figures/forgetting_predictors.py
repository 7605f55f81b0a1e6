"""Figure: forgetting against what may predict it, one dot a finetuned model (claim C5)."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from synthlm.analysis.prediction import isotonic, rank_correlation, unseen_r2
from synthlm.figures import style
from synthlm.figures.predictors import PREDICTORS

NAME = "forgetting_predictors"
STUDY = "mechanism"
TABLE = "predictors"
SHOWN = (
    "distance", "relative/frobenius", "own/norm", "own/reach", "drift/outputs", "stable_rank", "second_order", "kl",
)  # fmt: skip
SHORT = {
    "distance": "Frobenius size",
    "relative/frobenius": "Frobenius size / weights",
    "own/reach": "base's own norm, with activations",
    "second_order": "second-order estimate",
}
"""Shorter names than those of PREDICTORS."""
ARM = ["arm", "method", "optimizer", "rank"]
COLUMNS = ("base", "seed", "language", *ARM, "lr", "forgetting", *SHOWN, "n")


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per finetuned model."""
    found = table.reindex(columns=[name for name in COLUMNS if name != "n"]).assign(n=len(table))
    keys = ["base", "language", "arm", "seed", "lr"]
    return found[list(COLUMNS)].sort_values(keys, kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    shown = [name for name in SHOWN if data[name].notna().any()]
    columns = 4
    rows = -(-len(shown) // columns)
    figure = style.new_figure(2.35 * columns + 0.3, 2.15 * rows + 0.8)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    for index, (ax, name) in enumerate(zip(axes, shown, strict=False)):
        usable = data[data["forgetting"].notna() & (data[name] > 0)]
        for optimizer, method in sorted(set(zip(usable["optimizer"], usable["method"], strict=True))):
            dots = usable[(usable["optimizer"] == optimizer) & (usable["method"] == method)]
            ax.plot(dots[name], dots["forgetting"], linestyle="none", alpha=0.55, **_look(optimizer, method))
        x, y = usable[name].to_numpy(dtype=float), usable["forgetting"].to_numpy(dtype=float)
        if len(x) > 2:
            grid = np.geomspace(x.min(), x.max(), 200)
            ax.plot(grid, isotonic(x, y)(grid), color="black", linewidth=1.0, zorder=5)
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_title(_title(name, x, y, usable), fontsize=8)
        if index % columns == 0:
            ax.set_ylabel("old accuracy lost")
    kinds = sorted(set(zip(data["method"], data["optimizer"], strict=True)))
    handles = [Line2D([], [], linestyle="none", **_look(optimizer, method)) for method, optimizer in kinds]
    labels = [
        f"{'full' if method == 'full' else 'LoRA'} {style.name(optimizer)}" for method, optimizer in kinds
    ]
    style.legend(figure, handles, labels, columns=6)
    return figure


def _look(optimizer: str, method: str) -> dict:
    fill = style.color(optimizer) if method == "full" else "none"
    return {
        "marker": "o" if method == "full" else "s", "markersize": 2.8, "markeredgewidth": 0.6,
        "markeredgecolor": style.color(optimizer), "markerfacecolor": fill,
    }  # fmt: skip


def _title(name: str, x: np.ndarray, y: np.ndarray, usable: pd.DataFrame) -> str:
    text = SHORT.get(name, PREDICTORS[name])
    rank, r2 = rank_correlation(x, y), unseen_r2(x, y, usable["arm"])
    numbers = [
        f"rank corr. {rank:.2f}" if math.isfinite(rank) else "",
        f"R² = {r2:.2f}" if math.isfinite(r2) else "",
    ]
    return f"{text}\n{', '.join(part for part in numbers if part)}"


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many models."""
    return (
        "Old accuracy lost at the end of finetuning against what was told of the update, one dot a finetuned model"
        f" (n = {int(data['n'].max())}; all bases, seeds, arms, learning rates and languages), logarithmic axes. Black:"
        " the best non-decreasing curve. rank corr.: Spearman's; R²: on arms left out, by that curve fitted to"
        " the other arms. Models with a predictor that is not positive are left out of its panel; intervals are in the"
        " figure of scores."
    )
