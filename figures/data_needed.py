"""Figure: how many examples an optimizer needs to learn a rule."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import cells, style
from synthlm.tendency import curves, outcomes

NAME = "data_needed"
STUDY = "tendency"
TABLE = "tendency"
ENOUGH = 0.9
COLUMNS = (
    "language", "rote_share", "optimizer", "seed", "needed", "best", "largest", "mean", "low", "high", "n", "interval",
)  # fmt: skip


def needed(items: np.ndarray, accuracy: np.ndarray) -> float:
    """Number of examples at which accuracy reaches ``ENOUGH``: straight in ln(items) between the sizes tried.

    The smallest size that reaches it and whose larger sizes all do, and the way to it from the size below. The smallest
    size tried where every size is enough; NaN where the largest is not.
    """
    enough = accuracy >= ENOUGH
    if not len(enough) or not enough[-1]:
        return float("nan")
    first = len(enough) - int(np.argmin(enough[::-1])) if not enough.all() else 0
    if first == 0:
        return float(items[0])
    share = (ENOUGH - accuracy[first - 1]) / (accuracy[first] - accuracy[first - 1])
    a, b = np.log(items[first - 1]), np.log(items[first])
    return float(np.exp(a + share * (b - a)))


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per language, rote share, optimizer and seed: examples needed (NaN: more than ``largest``).

    Mean and interval over the seeds in which it is known are of the logarithm, given as examples.
    """
    ends = outcomes(curves(table))
    records = []
    for key, rows in ends.groupby(["language", "rote_share", "optimizer", "seed"], sort=True):
        rows = rows.sort_values("items")
        records.append(
            dict(zip(["language", "rote_share", "optimizer", "seed"], key, strict=True))
            | {
                "needed": needed(rows["items"].to_numpy(dtype=float), rows["rule"].to_numpy(dtype=float)),
                "best": rows["rule"].max(),
                "largest": int(rows["items"].max()),
            }
        )
    found = pd.DataFrame(records, columns=[*COLUMNS[:7]])
    found = cells.with_summary(
        found.assign(log=np.log(found["needed"])), ["language", "rote_share", "optimizer"], "log"
    )
    for name in ("mean", "low", "high"):
        found[name] = np.exp(found[name])
    return found[list(COLUMNS)].sort_values(list(COLUMNS[:4]), kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    languages = list(dict.fromkeys(data["language"]))
    names = cells.optimizers(data)
    columns = min(3, len(languages))
    rows = -(-len(languages) // columns)
    figure = style.new_figure(max(2.3 * columns + 0.5, 5.4), 2.1 * rows + 0.75)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(languages) :]:
        ax.set_axis_off()
    for ax, language in zip(axes, languages, strict=False):
        here = data[data["language"] == language]
        shares = sorted(here["rote_share"].unique())
        top = here["largest"].max()
        beyond = top * 1.45
        for k, optimizer in enumerate(names):
            for x, share in enumerate(shares):
                cell = here[(here["optimizer"] == optimizer) & (here["rote_share"] == share)]
                if cell.empty:
                    continue
                place = x + (k - (len(names) - 1) / 2) * 0.16
                ink, one = style.color(optimizer), cell.iloc[0]
                ax.plot([place] * len(cell), cell["needed"], ".", color=ink, markersize=4, alpha=0.6)
                if one["n"] > 0:
                    ax.plot([place - 0.06, place + 0.06], [one["mean"]] * 2, color=ink, linewidth=2)
                    if one["n"] > 1:
                        ax.plot([place] * 2, [one["low"], one["high"]], color=ink, linewidth=1)
                missing = int(cell["needed"].isna().sum())
                if missing:
                    ax.plot(place, beyond, "^", color=ink, markersize=4.5, markerfacecolor="none")
                    if missing < len(cell):
                        ax.annotate(
                            str(missing), (place, beyond), xytext=(0, 4), textcoords="offset points", ha="center",
                            fontsize=6,
                        )  # fmt: skip
        ax.axhline(top * 1.15, color=style.GREY, linewidth=0.7, linestyle=(0, (1, 2)))
        ax.set_yscale("log", base=2)
        low = min(here["needed"].min(), here["low"].min()) if here["needed"].notna().any() else top / 4
        ax.set_ylim(low / 1.5, beyond * 1.5)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_xticks(range(len(shares)), [f"{share:g}" for share in shares])
        ax.set_xlim(-0.6, len(shares) - 0.4)
        ax.set_title(language)
        ax.set_xlabel("rote share")
        ax.set_ylabel("rule examples needed")
    entries, labels = cells.handles(names)
    entries.append(
        Line2D([], [], color="black", marker="^", markerfacecolor="none", linestyle="none", markersize=5)
    )
    style.legend(figure, entries, [*labels, "more than were tried"], columns=3)
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, what is not known, how many seeds."""
    unknown = int(data["needed"].isna().sum())
    return (
        f"Number of rule examples with which accuracy on held-out instances reaches {ENOUGH:.0%} at the end of training"
        " (interpolated in the logarithm of the number between the sizes tried; the smallest size where all"
        " suffice), by"
        " rote share. Dots: seeds; bars: geometric mean; lines: interval. Triangles: more than were tried,"
        f" in {unknown} of"
        f" {len(data)} runs (how many of a cell's seeds, where not all; the mean leaves them out and is then"
        " too low). Each"
        f" optimizer at its own best learning rate. {cells.EXCEPTIONS} {cells.seeds_text(data)}"
    )
