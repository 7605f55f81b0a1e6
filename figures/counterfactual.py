"""Figure: counterfactual memorization of single items, by what kind of item they are."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import cells, style

NAME = "counterfactual"
STUDY = "tendency"
TABLE = "counterfactual"
COLUMNS = (
    "optimizer", "seed", "lr", "slice", "item", "models", "score", "error", "slice_mean", *cells.SUMMARY,
)  # fmt: skip


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per item that has a score, optimizer and seed; mean and interval over seeds of the slice's mean score."""
    rows = table[table["score"].notna()]
    by = ["slice", "optimizer"]
    means = rows.groupby([*by, "seed"])["score"].mean().rename("slice_mean").reset_index()
    summary = cells.with_summary(means, by, "slice_mean")
    out = rows.merge(summary, on=[*by, "seed"])
    return out[list(COLUMNS)].sort_values([*by, "seed", "item"], kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    slices = list(dict.fromkeys(data["slice"]))
    names = cells.optimizers(data)
    figure = style.new_figure(max(2.9 * len(slices) + 0.5, 5.4), 3.0)
    axes = figure.subplots(1, len(slices), sharey=True, squeeze=False)[0]
    for ax, item in zip(axes, slices, strict=True):
        for optimizer in names:
            here = data[(data["slice"] == item) & (data["optimizer"] == optimizer)]
            ink = style.color(optimizer)
            for _, seed in here.groupby("seed"):
                ordered = np.sort(seed["score"].to_numpy())
                share = 1 - np.arange(len(ordered)) / len(ordered)
                ax.step([-1, *ordered, 1], [1, *share, 0], where="pre", color=ink, linewidth=0.8, alpha=0.7)
            if len(here):
                one = here.iloc[0]
                ax.axvline(one["mean"], color=ink, linewidth=1.4, linestyle=(0, (3, 2)))
                if one["n"] > 1:
                    ax.axvspan(one["low"], one["high"], color=ink, alpha=0.12, linewidth=0)
        ax.set_title(item)
        ax.set_xlabel("score: right with it minus without it")
        ax.set_xlim(-0.6, 1.05)
    axes[0].set_ylabel("share of items at or above")
    axes[0].set_ylim(-0.02, 1.03)
    entries, labels = cells.handles(names)
    entries += [
        Line2D([], [], color="black", linewidth=0.8),
        Line2D([], [], color="black", linewidth=1.4, linestyle=(0, (3, 2))),
    ]
    style.legend(figure, entries, [*labels, "a seed's items", "mean of all seeds, with interval"], columns=4)
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, how sure a single score is, how many models and seeds."""
    counts = data.drop_duplicates(["slice", "optimizer", "seed"])["models"]
    models = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    sizes = data.groupby(["slice", "optimizer", "seed"]).size().groupby("slice").max()
    listed = ", ".join(f"{count} of {name}" for name, count in sizes.items())
    return (
        "Counterfactual memorization (arXiv 2008.03703, 2112.12938): how much more often an item is answered right in"
        " every token by models trained with it than by models trained without it. Near 0: the rule answers it, or"
        f" nothing does; near 1: known by rote. Items: {listed}; a single score's standard error is"
        f" {data['error'].median():.2f} (median), with {models} models a seed. Each optimizer"
        f" at the learning rate that is best on the whole language. {cells.DIVERGED} {cells.seeds_text(data)}"
    )
