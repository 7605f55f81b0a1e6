"""Figure: held-out regular items that exceptions spoil, and how soon the exceptions are fitted."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import cells, style

NAME = "corruption"
STUDY = "tendency"
TABLE = "corruption"
COLUMNS = (
    "optimizer", "exceptions", "items", "heldout", "seed", "lr", "wrong", "control", "excess", "exact", "fitted_90",
    *cells.SUMMARY, "fitted_mean", "fitted_low", "fitted_high", "fitted_n",
)  # fmt: skip


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per optimizer, number of exceptions and seed; mean and interval over seeds of ``wrong``, and of
    ``fitted_90`` over the seeds that get there."""
    by = ["optimizer", "exceptions"]
    out = cells.with_summary(table, by, "wrong")
    fitted = cells.with_summary(table, by, "fitted_90")
    for name in ("mean", "low", "high", "n"):
        out[f"fitted_{name}"] = fitted[name].to_numpy()
    return out[list(COLUMNS)].sort_values([*by, "seed"], kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    figure = style.new_figure(6.4, 3.0)
    left, right = figure.subplots(1, 2)
    names = cells.optimizers(data)
    for optimizer in names:
        here = data[data["optimizer"] == optimizer]
        mean = here.drop_duplicates("exceptions")
        ink = style.color(optimizer)
        cells.line(left, mean["exceptions"], mean, optimizer)
        unfitted = here["exact"] < 0.9
        for rows, look in ((here[~unfitted], {}), (here[unfitted], {"markerfacecolor": "none"})):
            left.plot(
                rows["exceptions"], rows["wrong"], "o", color=ink, markersize=3.2, markeredgewidth=0.8, **look
            )
        renamed = mean.drop(columns=["mean", "low", "high", "n"]).rename(
            columns={f"fitted_{name}": name for name in ("mean", "low", "high", "n")}
        )
        reached = renamed[renamed["n"] > 0]
        if len(reached):
            cells.line(right, reached["exceptions"], reached, optimizer)
        right.plot(here["exceptions"], here["fitted_90"], "o", color=ink, markersize=3.2)
    counts = sorted(data["exceptions"].unique())
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.set_xticks(counts, [str(count) for count in counts])
        ax.minorticks_off()
        ax.set_xlabel(f"exceptions among {data['items'].max()} training items")
    left.set_ylabel("held-out regular items wrong")
    left.set_ylim(-0.02, max(0.1, min(1.02, data["wrong"].max() * 1.15)))
    right.set_ylabel("step of 90% recall of exceptions")
    right.set_ylim(0, None)
    entries, labels = cells.handles(names)
    dot: dict[str, Any] = {"color": "black", "marker": "o", "linestyle": "none", "markersize": 3.2}
    entries += [Line2D([], [], **dot), Line2D([], [], markerfacecolor="none", **dot)]
    style.legend(figure, entries, [*labels, "a seed", "a seed that has not fitted them"], columns=5)
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, what the control is, how many items and seeds."""
    fewest = data["exceptions"].min()
    never = int(data["fitted_90"].isna().sum())
    return (
        f"What exceptions do to the rule: share of {data['heldout'].max()} held-out regular items not answered as the"
        " rule says in every token, at the end of training (left; open: fewer than 90% of the exceptions are right by"
        f" then), and the step at which recall of the exceptions reaches 90% (right; never in {never} of {len(data)}"
        f" runs, which the mean leaves out). The control is the smallest number, {fewest}: what is wrong there is not"
        " the exceptions' doing. Each optimizer at its own best learning rate for each number. Lines: mean; bands:"
        f" interval. {cells.DIVERGED} {cells.seeds_text(data)}"
    )
