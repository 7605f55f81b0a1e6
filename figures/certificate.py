"""Figure: the accuracy that noise certifies at a distance, against that of the finetuned models that far away."""

import numpy as np
import pandas as pd
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import style

NAME = "certificate"
STUDY = "mechanism"
TABLE = "certificate"
COLUMNS = (
    "base", "seed", "arm", "language", "method", "optimizer", "sigma", "distance", "accuracy", "noised",
    "low", "radius", "weak_radius", "fall", "bound", "trials", "best", "n",
)  # fmt: skip


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row a model, seed and sigma; arm is empty for the base. ``best``: the sigma with the largest certified radius
    of a base and seed. ``n``: seeds of the base."""
    names = {name: name.removeprefix("of_") for name in table.columns if name.startswith("of_")}
    rows = table.drop(columns=["language", "arm"]).rename(columns=names)
    own = rows[rows["arm"] == ""]
    best = own.loc[own.groupby(["base", "seed"])["radius"].idxmax()].set_index(["base", "seed"])["sigma"]
    keys = pd.MultiIndex.from_frame(rows[["base", "seed"]])
    seeds = rows.groupby("base")["seed"].transform("nunique")
    rows = rows.assign(best=rows["sigma"].to_numpy() == best.reindex(keys).to_numpy(), n=seeds)
    order = ["base", "seed", "sigma", "language", "arm"]
    return rows[list(COLUMNS)].sort_values(order, kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    bases = style.base_order(list(data["base"]))
    side = max(0.1, (6.2 - 0.8 - 2.1 * len(bases)) / 2)
    figure, axes = style.grid_figure(1, len(bases), (2.1, 2.1), (0.8 + side, side + 0.1, 0.3, 1.05))
    best = data[data["best"].astype(bool)]
    tuned = best[best["arm"] != ""]
    for ax, base in zip(axes[0], bases, strict=True):
        _draw_cell(ax, best[best["base"] == base])
        ax.set_title(f"{style.name(base)} base")
        ax.set_xscale("log")
        ax.set_xlabel("distance from the base (l2)")
        ax.set_xlim(2e-3, tuned["distance"].max() * 2)
    axes[0, 0].set_ylabel("old accuracy")
    axes[0, 0].set_ylim(-0.04, 1.06)
    optimizers = [str(name) for name in sorted(set(tuned["optimizer"]))]
    handles = [
        Line2D([], [], color="black"),
        Line2D([], [], color="#E69F00", linewidth=3, alpha=0.6),
        *(
            Line2D([], [], color=style.color(name), marker="o", markersize=4, linestyle="none")
            for name in optimizers
        ),
        Line2D([], [], color=style.GREY, marker="o", markersize=4, linestyle="none", markerfacecolor="white"),
    ]
    labels = [
        "certified under noise", "certified radius",
        *(f"finetuned by {style.name(name)}, under noise" for name in optimizers), "without noise",
    ]  # fmt: skip
    style.legend(figure, handles, labels, 2)
    return figure


def _draw_cell(ax: Axes, cell: pd.DataFrame) -> None:
    for row in cell[cell["arm"] == ""].itertuples():
        distance = np.geomspace(2e-3, max(cell["distance"].max(), row.sigma) * 2, 400)
        bound = scipy.stats.norm.cdf(scipy.stats.norm.ppf(row.low) - distance / row.sigma)
        ax.plot(distance, bound, color="black", linewidth=1)
        ax.axvline(row.radius, color="#E69F00", linewidth=3, alpha=0.6, zorder=1)
    for row in cell[cell["arm"] != ""].itertuples():
        ink = style.color(str(row.optimizer))
        ax.plot([row.distance, row.distance], [row.noised, row.accuracy], color=ink, linewidth=0.6, alpha=0.6)
        ax.plot(row.distance, row.accuracy, "o", color=ink, markersize=3.2, markerfacecolor="white", zorder=4)
        ax.plot(row.distance, row.noised, "o", color=ink, markersize=3.2, zorder=3)


def caption(data: pd.DataFrame) -> str:
    """What is shown, the ratio of certified radius to actual distance, and how many seeds."""
    best = data[data["best"].astype(bool)]
    tuned = best[best["arm"] != ""]
    ratio = tuned["radius"] / tuned["distance"]
    kept = (tuned["noised"] < tuned["bound"]).sum()
    fall = ", ".join(f"{value:g}" for value in sorted(set(data["fall"])))
    n = int(data["n"].max())
    shares = (
        f"{ratio.min():.2g} to {ratio.max():.2g} (median {ratio.median():.2g})" if len(ratio) else "unknown"
    )
    return (
        "Old accuracy that randomized smoothing certifies, with confidence 95%, for every model at a"
        " distance from the base (black; a curve a seed, at the noise with the largest certified radius),"
        f" the radius within which noised accuracy is certified to lie at most {fall} below the base's own,"
        " and the finetuned models at their actual distances, under the same noise (filled) and without"
        f" (hollow). Certified radius over actual distance: {shares}: at real finetuning distances the"
        f" guarantee is {'empty' if len(ratio) and ratio.max() < 1 else 'not empty throughout'}. {int(kept)}"
        f" of {len(tuned)} models lie below the certified accuracy at their distance. n = {n}"
        f" seed{'' if n == 1 else 's'}; every model is shown, no interval."
    )
