"""What figures over pretraining share: a mean over matrices for each base, seed and step, and lines of bases."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from synthlm.figures import style
from synthlm.statistics import bootstrap_table

BASE = ["base", "optimizer", "own"]


def over_matrices(rows: pd.DataFrame, columns: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    """Long form: one row per base, seed, step, ``by`` and column (``name``), ``value`` the mean over matrices and
    slices, ``mean``, ``low``, ``high``, ``n`` and ``interval`` over seeds."""
    rows = rows.rename(columns={"base_optimizer": "optimizer"})
    keys = [*BASE, *by, "step", "seed"]
    means = rows.groupby(keys, as_index=False)[list(columns)].mean()
    long = means.melt(id_vars=keys, value_vars=list(columns), var_name="name", value_name="value")
    cell = [*BASE, *by, "name", "step"]
    wide = long.pivot(index=cell, columns="seed", values="value")
    summary = bootstrap_table(wide.to_numpy(dtype=float)).set_index(wide.index)
    found = long.join(summary, on=cell)
    return found.sort_values([*cell, "seed"], kind="stable", ignore_index=True)


def draw_bases(ax: Axes, here: pd.DataFrame, thick: str = "") -> None:
    """The lines of all bases, with bands and single seeds; those whose geometry is ``thick`` are thick."""
    for base in style.base_order(list(here["base"])):
        rows = here[here["base"] == base]
        look = line(base, rows["optimizer"].iloc[0], thick == rows["own"].iloc[0] or not thick)
        mean = rows[rows["n"] == rows["n"].max()].drop_duplicates("step")
        ax.plot(mean["step"], mean["mean"], zorder=3, **look)
        if mean["n"].max() > 1:
            ax.fill_between(
                mean["step"], mean["low"], mean["high"], color=look["color"], alpha=0.15, linewidth=0
            )
        ax.plot(rows["step"], rows["value"], ".", color=look["color"], markersize=2.4, alpha=0.6, zorder=2)


def line(base: str, optimizer: str, thick: bool = True) -> dict:
    """How a base is drawn: colour of its optimizer, broken when it is a control."""
    return {
        "color": style.color(optimizer),
        "linestyle": "-" if base == optimizer else (0, (3.2, 1.6)),
        "linewidth": 2.2 if thick else 1.1,
    }


def step_axis(axes: Iterable[Axes], steps: pd.Series) -> None:
    """Steps from 0 in log scale above the first that is not 0."""
    for ax in axes:
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, steps.max() * 1.15)
        ticks = [0, *(10**k for k in range(int(np.log10(max(steps.max(), 1))) + 1))]
        ax.set_xticks(ticks, ["0", *(f"{tick:g}" for tick in ticks[1:])])
        ax.minorticks_off()


def bases_legend(data: pd.DataFrame) -> tuple[list[Line2D], list[str]]:
    """Handles and labels of the bases of a figure."""
    pairs = data[["base", "optimizer"]].drop_duplicates().set_index("base")["optimizer"]
    bases = style.base_order(list(pairs.index))
    return [Line2D([], [], **line(base, pairs[base])) for base in bases], [
        f"{style.name(b)} base" for b in bases
    ]
