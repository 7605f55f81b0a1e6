"""What the figures of rote and rule share: means over seeds, panels by cell, an optimizer's line."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from synthlm.figures import style
from synthlm.figures.arms import interval_text
from synthlm.statistics import bootstrap_table

DIVERGED = "Models that diverged are left out."
"""What captions say of models that were not asked."""
EXCEPTIONS = (
    "Where the rote items are exceptions to the rule itself, they are among the rule examples: of N examples,"
    " N (1 - rote share) follow it."
)
"""What captions say of how rule examples are counted."""

SUMMARY = ("mean", "low", "high", "n", "interval")


def with_summary(rows: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """``rows`` (a row per ``by`` and seed) with the mean of ``value`` over the seeds of each group, and its interval.

    Adds SUMMARY; ``n`` counts the seeds in which the value is defined.
    """
    wide = rows.pivot_table(index=list(by), columns="seed", values=value, aggfunc="mean", dropna=False)
    wide = wide.reindex(pd.MultiIndex.from_frame(rows[list(by)].drop_duplicates()))
    summary = bootstrap_table(wide.to_numpy(dtype=float)).set_index(wide.index)
    return rows.join(summary[list(SUMMARY)], on=list(by))


def shown_share(data: pd.DataFrame) -> pd.Series:
    """Language -> the one rote share that a figure of few panels shows: the one nearest to a half."""
    shares = data[["language", "rote_share"]].drop_duplicates()
    order = (shares["rote_share"] - 0.5).abs().sort_values(kind="stable").index
    return shares.loc[order].drop_duplicates("language").set_index("language")["rote_share"]


def optimizers(data: pd.DataFrame) -> list[str]:
    """Optimizers in the order shown: the two that the claims compare first, then by name."""
    found = set(data["optimizer"])
    return [name for name in ("adamw", "muon") if name in found] + sorted(found - {"adamw", "muon"})


def share_text(share: float) -> str:
    """A rote share as shown."""
    return f"{share:.0%} rote"


def line(ax: Axes, x: Any, here: pd.DataFrame, optimizer: str, **look: Any) -> None:
    """Mean with its band; ``here`` has SUMMARY, a row per x."""
    ax.plot(x, here["mean"], color=style.color(optimizer), zorder=3, **look)
    if here["n"].max() > 1:
        ax.fill_between(
            x, here["low"], here["high"], color=style.color(optimizer), alpha=0.13, linewidth=0, zorder=2
        )


def handles(names: Sequence[str]) -> tuple[list[Any], list[str]]:
    """Legend entries of optimizers, by colour."""
    return (
        [Line2D([], [], color=style.color(name), linewidth=2) for name in names],
        [style.name(name) for name in names],
    )


def seeds_text(data: pd.DataFrame) -> str:
    """How many seeds, and what the intervals are."""
    return interval_text(data["seed"].nunique(), set(data["interval"].astype(str)))
