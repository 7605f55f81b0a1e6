"""Figure: bits stored per parameter against the bits there were to store."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.analysis.capacity import plateau
from synthlm.figures import cells, style

NAME = "capacity"
STUDY = "tendency"
TABLE = "capacity"
COLUMNS = (
    "optimizer", "seed", "lr", "items", "parameters", "exact", "stored", "recall", "exposures", "plateau", "seen",
    *cells.SUMMARY,
)  # fmt: skip


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per optimizer, number of items and seed.

    exact, stored: bits per parameter; mean and interval over seeds are of ``stored``. plateau: the seed's capacity,
    fitted over its sizes, bits per parameter; seen: whether the largest size shows one.
    """
    rows = table.assign(
        exact=table["exact_bits"] / table["parameters"], stored=table["bits"] / table["parameters"]
    )
    fits = []
    for key, run in rows.groupby(["optimizer", "seed"]):
        usable = run[run["bits"] > 0]
        fit = plateau(usable["exact"], usable["stored"]) if len(usable) else None
        told = {"plateau": fit.capacity if fit else np.nan, "seen": bool(fit and fit.seen)}
        fits.append(dict(zip(["optimizer", "seed"], key, strict=True)) | told)
    rows = rows.merge(pd.DataFrame(fits), on=["optimizer", "seed"])
    by = ["optimizer", "items"]
    out = cells.with_summary(rows, by, "stored")
    return out[list(COLUMNS)].sort_values([*by, "seed"], kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    figure = style.new_figure(4.6, 3.5)
    ax = figure.subplots()
    names = cells.optimizers(data)
    entries, labels = cells.handles(names)
    dashed, dotted = (0, (3, 2)), (0, (1, 2))
    for place, optimizer in enumerate(names):
        here = data[data["optimizer"] == optimizer]
        mean = here.drop_duplicates("items")
        cells.line(ax, mean["exact"], mean, optimizer)
        ax.plot(here["exact"], here["stored"], ".", color=style.color(optimizer), markersize=4, alpha=0.7)
        level, seen = here.drop_duplicates("seed")["plateau"].mean(), here["seen"].all()
        if seen:
            ax.axhline(level, color=style.color(optimizer), linewidth=0.9, linestyle=dashed)
        labels[place] += f": {level:.2g} bits per parameter" if seen else f": at least {level:.2g}"
    ends = [data["exact"].min() * 0.8, data["exact"].max() * 1.2]
    ax.plot(ends, ends, color=style.GREY, linewidth=0.8, linestyle=dotted, zorder=1)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    low = data.loc[data["stored"] > 0, "stored"].min()
    ax.set_ylim(min(low, ends[0]) * 0.8, max(data["stored"].max() * 1.6, ends[0] * 2))
    ax.set_xlim(*ends)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: "")
    ax.set_xlabel("bits to store, per parameter")
    ax.set_ylabel("bits stored, per parameter")
    entries += [
        Line2D([], [], color=style.GREY, linewidth=0.8, linestyle=dotted),
        Line2D([], [], color="black", linewidth=0.9, linestyle=dashed),
    ]
    style.legend(figure, entries, [*labels, "everything", "plateau"], columns=2)
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, with how many exposures, how many seeds."""
    few, many = data["exposures"].min(), data["exposures"].max()
    return (
        "Bits stored (sum over items of log2 of the model's probability of the answer over chance, where above 0;"
        " arXiv 2505.24832) against the bits that the answers hold, both per parameter"
        f" ({data['parameters'].max():,} parameters, embeddings included). The number of steps is the same for all"
        f" sizes, so an item was seen {many:.0f} times in the smallest and {few:.0f} times in the largest set: what"
        " falls short there is training as much as capacity. Plateau: least squares of the logarithm of min(bits to"
        " store, capacity), mean over seeds. Every size has its own learning-rate search. Dots: seeds; lines: mean;"
        f" bands: interval. {cells.DIVERGED} {cells.seeds_text(data)}"
    )
