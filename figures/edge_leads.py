"""Figure: how long before grokking a signal's onset is known, against controls and null trajectories."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.edge_scores import leads
from synthlm.figures import edge_style, style
from synthlm.statistics import bootstrap_table

NAME = "edge_leads"
STUDY = "edge"
TABLE = "edge_onsets"
SIGNALS = {"g23": "$g_{23}$ has halved", "share": "$\\lambda_1\\,/\\sum\\lambda$ has doubled"}
ROWS = (
    ("main", "observed", "main runs"),
    ("main", "normalized", "main runs, updates of norm 1"),
    ("control", "observed", "controls (false alarms)"),
    ("main", "directions", "null: random directions"),
    ("main", "stationary", "null: same lag correlation"),
)
COLUMNS = (
    "signal", "task", "arm", "seed", "condition", "source", "sample", "lead", "hit", "mean", "low", "high", "hits", "n",
    "interval",
)  # fmt: skip


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per pair that counts, source and sample: ``lead``, the share of the way to grokking that is left at the
    onset (NaN without one, ``hit`` 0). Mean and interval are over the seeds' mean leads, ``hits`` the share with an
    onset."""
    frames = []
    for signal in SIGNALS:
        found = leads(table, signal)
        found["hit"] = found["lead"].notna().astype(int)
        for condition, source, _ in ROWS:
            rows = found[(found["condition"] == condition) & (found["source"] == source)]
            if rows.empty:
                continue
            by_seed = rows.groupby("seed")["lead"].mean().to_numpy(float)
            summary = bootstrap_table(by_seed[None]).iloc[0].to_dict()
            frames.append(rows.assign(signal=signal, hits=rows["hit"].mean(), **summary))
    if not frames:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(frames, ignore_index=True)[list(COLUMNS)]


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    figure = style.new_figure(4.1 * len(SIGNALS) + 1.2, 3.4)
    axes = figure.subplots(1, len(SIGNALS), sharey=True, squeeze=False)[0]
    for ax, (signal, label) in zip(axes, SIGNALS.items(), strict=True):
        _draw_signal(ax, data[data["signal"] == signal])
        ax.set_title(f"onset: {label}")
        ax.set_xlabel("lead: share of the steps to grokking left at the onset")
        ax.set_xlim(-0.03, 1.22)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axes[0].set_yticks(range(len(ROWS)), [text for _, _, text in ROWS])
    axes[0].set_ylim(len(ROWS) - 0.5, -0.5)
    arms = sorted(set(data["arm"]))
    handles = [
        Line2D([], [], marker="o", linestyle="none", markersize=4, color=style.color(arm)) for arm in arms
    ]
    handles.append(Line2D([], [], color="black", marker="D", markersize=4))
    style.legend(figure, handles, [*map(style.name, arms), "mean over seeds, 95% interval"])
    return figure


def _draw_signal(ax: Axes, here: pd.DataFrame) -> None:
    for place, (condition, source, _) in enumerate(ROWS):
        rows = here[(here["condition"] == condition) & (here["source"] == source)].reset_index(drop=True)
        if rows.empty:
            continue
        spread = (np.arange(len(rows)) * 0.6180339887 % 1 - 0.5) * 0.5  # even, and the same each time
        for arm, points in rows.groupby("arm"):
            ax.plot(
                points["lead"], place + spread[points.index], "o", color=style.color(str(arm)), markersize=2.6,
                alpha=0.55 if source in ("directions", "stationary") else 0.9, markeredgewidth=0,
            )  # fmt: skip
        first = rows.iloc[0]
        if np.isfinite(first["mean"]):
            ax.plot(first["mean"], place, "D", color="black", markersize=4.5, zorder=5)
            if np.isfinite(first["low"]):
                ax.plot([first["low"], first["high"]], [place, place], color="black", linewidth=1.2, zorder=4)
        ax.text(1.04, place, f"{first['hits']:.0%}", va="center", ha="left", fontsize=7.5)
    ax.text(1.04, -0.47, "found in", va="bottom", ha="left", fontsize=7)


def caption(data: pd.DataFrame) -> str:
    """What is shown, n, what the intervals are."""
    n = int(data["n"].max()) if len(data) else 0
    pairs = data[data["source"] == "observed"].drop_duplicates(["task", "arm", "seed"]).shape[0]
    return (
        "When the onset of a signal is known, before grokking (0: at grokking, 1: at the start), by one"
        " rule everywhere: the third window on end in which g23 is at most half of its maximum so far (or"
        " the leading share twice its minimum). Controls are judged by the deadline of their main runs;"
        " null trajectories have the step norms of the main runs and random directions, or also their"
        f" mean correlation by lag. A precursor would show long leads above and few points below. {pairs}"
        f" pairs of runs; percentages: share with an onset before grokking. {edge_style.interval_text(n)}"
        f"{edge_style.fewer(data, ('signal', 'condition', 'source'))}"
    )
