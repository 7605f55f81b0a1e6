"""Means and intervals over seeds, for lines with bands, and logarithmic axes with plain numbers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from synthlm.statistics import bootstrap_table

STATISTICS = ("mean", "low", "high", "n", "interval")


def over_seeds(table: pd.DataFrame, keys: Sequence[str], column: str) -> pd.DataFrame:
    """One row for each combination of ``keys``: the mean over seeds of ``column`` and its bootstrap interval.

    Rows of one seed are averaged first. Columns keys, mean, low, high, n (seeds), interval (its method), sorted by
    keys.
    """
    if table.empty:
        return pd.DataFrame(columns=[*keys, *STATISTICS])
    wide = table.pivot_table(index=list(keys), columns="seed", values=column, aggfunc="mean", dropna=True)
    summary = bootstrap_table(wide.to_numpy(dtype=float))
    return pd.concat([wide.index.to_frame(index=False), summary], axis=1)


def complete(summary: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Only rows that rest on as many seeds as any of their line (``keys``): a line does not change its seeds midway."""
    most = summary.groupby(list(keys))["n"].transform("max")
    return summary[np.asarray(summary["n"] == most)].reset_index(drop=True)


def plain_log(axis: Axis, ticks: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Label a logarithmic axis at these multiples of powers of ten, as plain numbers, and nowhere else."""
    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())
