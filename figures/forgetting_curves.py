"""Figure: what is left of strings that a step of training saw, or a few, as training goes on without them."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from synthlm.figures import cells, style

NAME = "forgetting_curves"
STUDY = "tendency"
TABLE = "injection"
COLUMNS = (
    "optimizer", "since", "seed", "lr", "step", "items", "references", "chance", "injected", "reference", "remembered",
    "retained", "half_life", "background", *cells.SUMMARY,
    "retained_mean", "retained_low", "retained_high", "retained_n",
)  # fmt: skip
STATISTICS = ["mean", "low", "high", "n"]
BEFORE = 0.5
"""Where on the logarithmic axis of steps the moment right before the injection stands."""


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per optimizer, evaluation from right before the injection on, and seed; means and intervals over seeds of
    ``remembered`` and, over the seeds in which the injection taught something, of ``retained``."""
    by = ["optimizer", "since"]
    rows = table[table["since"] >= 0]
    out = cells.with_summary(rows, by, "remembered")
    left = cells.with_summary(rows, by, "retained")
    for name in STATISTICS:
        out[f"retained_{name}"] = left[name].to_numpy()
    return out[list(COLUMNS)].sort_values([*by, "seed"], kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    figure = style.new_figure(7.0, 3.2)
    left, right = figure.subplots(1, 2)
    names = cells.optimizers(data)
    for optimizer in names:
        here = data[data["optimizer"] == optimizer]
        mean = here.drop_duplicates("since")
        after, before = mean[mean["since"] > 0], mean[mean["since"] == 0]
        ink = style.color(optimizer)
        cells.line(left, after["since"], after, optimizer)
        for _, own in here[here["since"] > 0].groupby("seed"):
            left.plot(own["since"], own["remembered"], color=ink, linewidth=0.5, alpha=0.45)
        left.errorbar(
            [_aside(names, optimizer)] * len(before), before["mean"],
            yerr=np.abs(before[["low", "high"]].sub(before["mean"], axis=0).fillna(0).to_numpy().T),
            fmt="o", markersize=3.2, elinewidth=0.9, capsize=2, color=ink,
        )  # fmt: skip
        known = after[after["retained_n"] > 0]
        shares = known[[f"retained_{name}" for name in STATISTICS]].set_axis(STATISTICS, axis=1)
        cells.line(right, known["since"], shares, optimizer)
    for ax in (left, right):
        ax.axhline(0, color=style.GREY, linewidth=0.8)
        _steps(ax, data, before=ax is left)
    right.axhline(1, color=style.GREY, linewidth=0.8, linestyle=(0, (3, 2)))
    left.set_ylabel("remembered (bits per string)")
    right.set_ylabel("share of it that is left")
    entries, labels = cells.handles(names)
    style.legend(figure, entries, labels, columns=6)
    return figure


def _aside(names: list[str], optimizer: str) -> float:
    """The optimizer's own place next to BEFORE, so that no mark hides another."""
    return BEFORE * 1.12 ** (names.index(optimizer) - (len(names) - 1) / 2)


def _steps(ax: Axes, data: pd.DataFrame, before: bool) -> None:
    ax.set_xscale("log")
    last = data["since"].max()
    ticks = [float(step) for power in range(7) for step in (10**power, 3 * 10**power) if step <= last]
    shown = [*([BEFORE] if before else []), *ticks]
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels(["before" if tick == BEFORE else f"{tick:g}" for tick in shown])
    ax.set_xlabel("steps since the injection began")


def caption(data: pd.DataFrame) -> str:
    """What is shown, what is subtracted, how many strings and seeds."""
    taught = data[data["since"] > 0]
    untaught = int((taught.groupby(["optimizer", "seed"])["retained"].count() == 0).sum())
    runs = data.groupby(["optimizer", "seed"]).ngroups
    before = data[data["since"] == 0]["background"]
    taught_from = taught.loc[
        taught["retained"].notna(), "since"
    ].min()  # the share is 1 right after the injection
    repeats = int(taught["since"].min() if np.isnan(taught_from) else taught_from)
    fill = "fill one training step" if repeats == 1 else f"fill each of {repeats} consecutive training steps"
    none = f" (in {untaught} of {runs} runs it taught nothing; they have no share)" if untaught else ""
    return (
        f"Forgetting curves (arXiv 2205.10770): {data['items'].max()} random strings"
        f" ({data['chance'].max():.0f} bits each) {fill} and are never seen again. Left: what is"
        f" remembered of them, the mean loss of {data['references'].max()} strings drawn alike and never trained on"
        " minus theirs; at 'before' it is what chance in the draw of the strings makes. Right: the share that is left"
        f" of what the injection had added right after it{none}; it rises above 1 while momentum goes on with the"
        " injected gradient. Each optimizer at its own best learning rate for the language trained on besides, on which"
        f" it is right in {before.min():.0%} to {before.max():.0%} right before. Thin lines: seeds; lines: mean; bands"
        f" and bars: interval. {cells.seeds_text(data)}"
    )
