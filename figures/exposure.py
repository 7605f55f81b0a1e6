"""Figure: exposure of canaries against how often they were repeated."""

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import cells, style

NAME = "exposure"
STUDY = "tendency"
TABLE = "exposure"
COLUMNS = (
    "optimizer", "seed", "lr", "repeats", "references", "canaries", "exposure", "recall", *cells.SUMMARY,
)  # fmt: skip
UNTRAINED = math.log2(math.e)
"""Mean exposure of a string never trained on, among many references: bits."""


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per optimizer, number of repeats and seed: the means over its canaries; mean and interval over seeds."""
    by = ["optimizer", "repeats"]
    grouped = table.groupby([*by, "seed", "lr", "references"])
    rows = grouped.agg(canaries=("item", "size"), exposure=("exposure", "mean"), recall=("right", "mean"))
    out = cells.with_summary(rows.reset_index(), by, "exposure")
    return out[list(COLUMNS)].sort_values([*by, "seed"], kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    figure = style.new_figure(5.4, 3.4)
    ax = figure.subplots()
    names = cells.optimizers(data)
    for optimizer in names:
        here = data[data["optimizer"] == optimizer]
        mean = here.drop_duplicates("repeats")
        cells.line(ax, mean["repeats"], mean, optimizer)
        ax.plot(here["repeats"], here["exposure"], ".", color=style.color(optimizer), markersize=4, alpha=0.7)
    top = math.log2(data["references"].max() + 1)
    dashed, dotted = (0, (3, 2)), (0, (1, 2))
    ax.axhline(top, color=style.GREY, linewidth=0.8, linestyle=dashed)
    ax.axhline(UNTRAINED, color=style.GREY, linewidth=0.8, linestyle=dotted)
    ax.set_xscale("log", base=2)
    repeats = sorted(data["repeats"].unique())
    ax.set_xticks(repeats, [f"{repeat:g}" for repeat in repeats])
    ax.minorticks_off()
    ax.set_ylim(0, top * 1.05)
    ax.set_xlabel("repeats, relative to an ordinary item")
    ax.set_ylabel("exposure (bits)")
    entries, labels = cells.handles(names)
    entries += [
        Line2D([], [], color=style.GREY, linewidth=0.8, linestyle=dashed),
        Line2D([], [], color=style.GREY, linewidth=0.8, linestyle=dotted),
    ]
    style.legend(figure, entries, [*labels, "most that can be seen", "never trained on"], columns=3)
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many canaries and seeds."""
    return (
        "Exposure (arXiv 1802.08232): log2 of the number of strings less log2 of a canary's rank by loss among"
        f" {data['references'].max()} strings never trained on, mean over {data['canaries'].min()} canaries for each"
        " number of repeats. A canary with r repeats is drawn r times as often as an item of the language it is planted"
        f" in. Each optimizer at its own best learning rate. Dots: seeds; lines: mean; bands: interval."
        f" {cells.DIVERGED} {cells.seeds_text(data)}"
    )
