"""Figure: the density of the Hessian's eigenvalues at the end of pretraining, by base."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from synthlm.figures import style
from synthlm.figures.over_pretraining import line

NAME = "spectral_density"
STUDY = "mechanism"
TABLE = "spectrum"
COLUMNS = ("base", "optimizer", "seed", "eigenvalue", "density", "top", "n")

FLOOR = 1e-5
"""Densities below this share of the largest are not drawn."""


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per base, seed and point: probability density of an eigenvalue (per nat), ``top`` the largest node."""
    nodes = table[table["what"] == "node"].groupby(["base", "seed"])["eigenvalue"].max().rename("top")
    rows = table[table["what"] == "density"].join(nodes, on=["base", "seed"])
    rows = rows.rename(columns={"base_optimizer": "optimizer", "weight": "density"})
    rows = rows.assign(n=rows.groupby("base")["seed"].transform("nunique"))
    keys = ["base", "seed", "eigenvalue"]
    return rows[list(COLUMNS)].sort_values(keys, kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    bases = style.base_order(list(data["base"]))
    figure = style.new_figure(2.6 * len(bases) + 0.6, 2.7)
    axes = figure.subplots(1, len(bases), sharex=True, sharey=True, squeeze=False)[0]
    highest = float(data["density"].max())
    for ax, base in zip(axes, bases, strict=True):
        rows = data[data["base"] == base]
        for _, one in rows.groupby("seed"):
            look = line(base, one["optimizer"].iloc[0], thick=False)
            ax.plot(one["eigenvalue"], one["density"].clip(lower=FLOOR * highest), **look)
        tops = np.sort(rows.groupby("seed")["top"].first())
        ends = ", ".join(f"{top:.3g}" for top in tops)
        ax.set_title(f"{style.name(base)} base\nlargest: {ends}")
        ax.set_yscale("log")
        ax.set_ylim(FLOOR * highest, 2 * highest)
        ax.set_xscale("symlog", linthresh=_threshold(data))
        ax.axvline(0, color=style.GREY, linewidth=0.7)
        ax.set_xlabel("eigenvalue (nats)")
    axes[0].set_ylabel("density")
    return figure


def _threshold(data: pd.DataFrame) -> float:
    """Where the eigenvalue axis turns from linear to logarithmic: a hundredth of the largest, rounded to a power."""
    top = float(data["eigenvalue"].abs().max())
    return float(10.0 ** np.floor(np.log10(top / 100))) if top > 0 else 1.0


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds."""
    n = int(data["n"].max())
    return (
        "Spectral density of the Hessian of the old loss at the end of pretraining, over the hidden matrices'"
        " parameters, by stochastic Lanczos quadrature with Gaussian broadening; the eigenvalue axis is linear around 0"
        " and logarithmic beyond. One line a seed; titles give the largest Ritz value of each."
        f" n = {n} seed{'' if n == 1 else 's'}, no interval."
    )
