"""Figure: how well each number told of an update predicts forgetting over all finetuned models (claim C5)."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from synthlm.figures import style
from synthlm.figures.predictors import PREDICTORS, SIZE, score_text, scored

NAME = "predictor_scores"
STUDY = "mechanism"
TABLE = "predictors"
COLUMNS = ("predictor", "score", "value", "low", "high", "n", "clusters")

TITLES = {
    "spearman": "rank correlation\nwith forgetting",
    "partial": "partial rank correlation,\ngiven what was learnt",
    "r2": "R² on arms left out\n(isotonic fit to the others)",
}
LOWEST = -1.0
"""R^2 below this is drawn at the edge."""


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per predictor and score."""
    return scored(table)[list(COLUMNS)]


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    names = [name for name in PREDICTORS if name in set(data["predictor"])]
    places = {name: len(names) - i for i, name in enumerate(names)}
    figure = style.new_figure(9.2, 0.24 * len(names) + 1.1)
    axes = figure.subplots(1, len(TITLES), sharey=True)
    for ax, (score, title) in zip(axes, TITLES.items(), strict=True):
        rows = data[data["score"] == score].set_index("predictor").reindex(names)
        for name, row in rows.iterrows():
            ink = style.GREY if name in SIZE else "black" if name != "kl" else "#b07aa1"
            y = places[str(name)]
            if pd.notna(row["low"]):
                ax.plot([max(row["low"], LOWEST), max(row["high"], LOWEST)], [y, y], color=ink, linewidth=1.2)
            if pd.notna(row["value"]):
                edge = row["value"] < LOWEST
                ax.plot(max(row["value"], LOWEST), y, "<" if edge else "o", color=ink, markersize=4.5)
                ax.annotate(
                    f"{row['value']:.2f}", (1.015, y), xycoords=("axes fraction", "data"),
                    va="center", fontsize=7, color=ink,
                )  # fmt: skip
        best = rows["value"].reindex(SIZE).max()
        if pd.notna(best) and best > LOWEST:
            ax.axvline(best, color=style.GREY, linewidth=0.8, linestyle=(0, (2, 2)))
        ax.axvline(0, color="black", linewidth=0.6)
        least = np.nanmin([0.0, *rows["value"], *rows["low"]])
        ax.set_xlim(max(least, LOWEST) - 0.05, 1.03)
        ax.set_title(title)
    axes[0].set_yticks(list(places.values()), [PREDICTORS[name] for name in places])
    for ax in axes:
        ax.tick_params(axis="y", length=0)
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many models, what the interval is."""
    return (
        "How well each number told of a finetuning update predicts the old accuracy that was lost, over all finetuned"
        f" models (n = {int(data['n'].max())}: all bases, seeds, arms, learning rates and languages, at the end of"
        " finetuning). R²: an isotonic curve is fitted to all arms but one and tested on that one; below 0 it is"
        " worse than the others' mean. Dashed: the better of the two Frobenius sizes (grey). The forward KL is measured"
        " on the finetuned model's answers, so it is a yardstick and no prediction."
        f" {score_text(int(data['clusters'].max()))}"
    )
