"""Figure: the gap position k* by optimizer and rule, against what the updates' lag correlation alone gives."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.edge_scores import gap_positions
from synthlm.figures import edge_style, style
from synthlm.statistics import bootstrap_table

NAME = "edge_positions"
STUDY = "edge"
TABLE = "edge_windows"
RULES = {
    "k_ratio": "plain: argmax $\\sigma_j/\\sigma_{j+1}$",
    "k_mass": "weighted by $\\sigma_j/\\sum\\sigma$",
    "k_bulk": "above the Marchenko-Pastur edge",
}
COLUMNS = (
    "set", "rule", "task", "arm", "seed", "k", "stationary", "excess", "windows", "mean", "low", "high", "n",
    "interval",
)  # fmt: skip


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per main run, parameter set and rule: mean k* over its windows and under its null; mean and interval over
    the seeds of the task and optimizer."""
    frames = []
    for name in sorted(set(table["set"])):
        found = gap_positions(table, tuple(RULES), name)
        if found.empty:
            continue
        keys = ["rule", "task", "arm"]
        wide = found.pivot_table(index=keys, columns="seed", values="k", dropna=False)
        summary = bootstrap_table(wide.to_numpy(float)).set_index(wide.index)
        frames.append(found.assign(set=name).join(summary, on=keys))
    if not frames:
        return pd.DataFrame(columns=list(COLUMNS))
    keys = ["set", "rule", "task", "arm", "seed"]
    return pd.concat(frames)[list(COLUMNS)].sort_values(keys, kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    sets = sorted(set(data["set"]), key=lambda name: (name != "all", name))[:2]
    tasks, arms = list(dict.fromkeys(data["task"])), sorted(set(data["arm"]))
    figure = style.new_figure(3.1 * len(RULES) + 0.6, 2.5 * len(sets) + 0.7)
    axes = figure.subplots(len(sets), len(RULES), sharex=True, sharey=True, squeeze=False)
    for row, name in enumerate(sets):
        for column, (rule, label) in enumerate(RULES.items()):
            ax = axes[row, column]
            here = data[(data["set"] == name) & (data["rule"] == rule)]
            for place, (task, arm) in enumerate((t, a) for t in tasks for a in arms):
                rows = here[(here["task"] == task) & (here["arm"] == arm)]
                if rows.empty:
                    continue
                ax.plot(
                    [place + 0.16] * len(rows),
                    rows["stationary"],
                    "_",
                    color="#CC79A7",
                    markersize=9,
                    markeredgewidth=1.6,
                )
                ax.plot(
                    [place - 0.16] * len(rows),
                    rows["k"],
                    "o",
                    color=style.color(arm),
                    markersize=3,
                    alpha=0.7,
                )
                first = rows.iloc[0]
                error = (
                    [[first["mean"] - first["low"]], [first["high"] - first["mean"]]]
                    if first["n"] > 1
                    else None
                )
                ax.errorbar(
                    place,
                    first["mean"],
                    error,
                    fmt="D",
                    color=style.color(arm),
                    markersize=4.5,
                    capsize=2,
                    linewidth=1.2,
                )
            if row == 0:
                ax.set_title(label)
            if column == 0:
                ax.set_ylabel(f"{name} parameters\nmean $k^*$ over windows")
            ax.set_xticks(
                range(len(tasks) * len(arms)), [style.name(a) for _ in tasks for a in arms], rotation=60
            )
            for edge in range(1, len(tasks)):
                ax.axvline(edge * len(arms) - 0.5, color="#cccccc", linewidth=0.8)
            for index, task in enumerate(tasks):
                where = ((index + 0.5) / len(tasks), 0.98)
                ax.text(
                    *where, task, transform=ax.transAxes, ha="center", va="top", fontsize=7.5, color="#555555"
                )
    top = max(2.0, float(data[["k", "stationary", "high"]].max().max()))
    axes[0, 0].set_ylim(0.85, top * 1.12)
    axes[0, 0].set_xlim(-0.6, len(tasks) * len(arms) - 0.4)
    handles = [
        Line2D([], [], color="black", marker="D", markersize=4.5),
        Line2D([], [], color="black", marker="o", linestyle="none", markersize=3, alpha=0.7),
        Line2D([], [], color="#CC79A7", marker="_", linestyle="none", markersize=9, markeredgewidth=1.6),
    ]
    style.legend(
        figure, handles, ["mean over seeds, 95% interval", "single runs", edge_style.NULL_NAMES["stationary"]]
    )
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, n, what the intervals are."""
    n = int(data["n"].max()) if len(data) else 0
    return (
        "The position k* of the spectral gap by the three rules in use, mean over all windows of a main"
        " run, by task and optimizer. Dashes: the mean k* of updates of the same norms and lag"
        " correlation, run by run. Where points lie on their dashes, the optimizer sets k* by how long"
        f" its updates stay alike, and by nothing else. {edge_style.interval_text(n)}"
    )
