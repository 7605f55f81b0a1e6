"""Figure: the density of the Hessian's eigenvalues at the end of pretraining, by base."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import style
from synthlm.figures.over_pretraining import line

NAME = "spectral_density"
STUDY = "mechanism"
TABLE = "spectrum"
COLUMNS = ("base", "optimizer", "seed", "sign", "eigenvalue", "density", "largest", "smallest", "n")

DECADES = 3.5
"""How far below the largest eigenvalue of all the axis begins."""
BROADENING = 0.15
"""Standard deviation of the Gaussian that a node of the quadrature becomes, in decades."""
POINTS = 160
FLOOR = 1e-6
"""Shares per decade below this are not drawn."""


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per base, seed, sign and point: ``eigenvalue`` (its size) and ``density``, the share of all eigenvalues
    that lie there with that sign, per decade; ``largest`` and ``smallest`` node of the seed.

    Made of the quadrature's nodes (rows ``node``), each a Gaussian in log10 of its size, since the bulk and the
    outliers lie decades apart.
    """
    nodes = table[(table["what"] == "node") & table["eigenvalue"].notna()]
    if nodes.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    top = np.log10(nodes["eigenvalue"].abs().max())
    grid = np.linspace(top - DECADES, top + 3 * BROADENING, POINTS)
    frames = []
    for (base, optimizer, seed), rows in nodes.groupby(["base", "base_optimizer", "seed"]):
        probes = rows["probe"].nunique()
        for sign in (1, -1):
            mine = rows[rows["eigenvalue"] * sign > 0]
            offset = (grid[:, None] - np.log10(mine["eigenvalue"].abs().to_numpy())) / BROADENING
            kernel = np.exp(-np.square(offset) / 2) / (BROADENING * np.sqrt(2 * np.pi))
            frames.append(pd.DataFrame({
                "base": base, "optimizer": optimizer, "seed": seed, "sign": sign, "eigenvalue": 10**grid,
                "density": kernel @ mine["weight"].to_numpy() / probes,
                "largest": rows["eigenvalue"].max(), "smallest": rows["eigenvalue"].min(),
            }))  # fmt: skip
    found = pd.concat(frames, ignore_index=True)
    found["n"] = found.groupby("base")["seed"].transform("nunique")
    keys = ["base", "seed", "sign", "eigenvalue"]
    return found[list(COLUMNS)].sort_values(keys, kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    bases = style.base_order(list(data["base"]))
    figure = style.new_figure(max(2.6 * len(bases) + 0.6, 4.4), 2.9)
    axes = figure.subplots(1, len(bases), sharex=True, sharey=True, squeeze=False)[0]
    for ax, base in zip(axes, bases, strict=True):
        rows = data[data["base"] == base]
        for (_, sign), one in rows.groupby(["seed", "sign"]):
            look = line(base, one["optimizer"].iloc[0], thick=False)
            shape = look["linestyle"] if sign > 0 else (0, (1.2, 1.2))
            ax.plot(one["eigenvalue"], one["density"], **(look | {"linestyle": shape}))
        ends = ", ".join(f"{top:.3g}" for top in np.sort(rows.groupby("seed")["largest"].first()))
        ax.set_title(f"{style.name(base)} base\nlargest: {ends}")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(FLOOR, 3)
        ax.set_xlabel("size of the eigenvalue (nats)")
    axes[0].set_ylabel("share per decade")
    shapes: tuple = ("-", (0, (1.2, 1.2)))
    handles = [Line2D([], [], color="black", linewidth=1.1, linestyle=shape) for shape in shapes]
    style.legend(figure, handles, ["positive eigenvalues", "negative eigenvalues"], columns=2)
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds."""
    n = int(data["n"].max())
    return (
        "Spectral density of the Hessian of the old loss at the end of pretraining, over the hidden matrices'"
        " parameters: the share of eigenvalues per decade of their size, by stochastic Lanczos quadrature; each node is"
        f" broadened by {BROADENING:g} decades. One line a seed and sign; titles give the largest Ritz value of each"
        " seed. Sizes far below the bulk are beyond what the quadrature resolves."
        f" n = {n} seed{'' if n == 1 else 's'}; no interval."
    )
