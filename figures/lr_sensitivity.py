"""Figure: final learning and final old accuracy against the learning rate, a panel per base, language and
arm."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from synthlm.figures import style
from synthlm.figures.arms import (
    ARM,
    arms_of,
    base_title,
    failed_text,
    failures,
    interval_text,
    with_base,
    with_untried,
)
from synthlm.frontier import best_rates, frontiers_of, points
from synthlm.statistics import bootstrap_table

NAME = "lr_sensitivity"
STUDY = "consistency"
TABLE = "results"
KINDS = ("finetune", "pretrain")
COLUMNS = (
    "base", "language", *ARM, "matched", "lr", "seed", "passed", "status", "learnt", "kept", "best", "edge",
    "learnt_mean", "learnt_low", "learnt_high", "kept_mean", "kept_low", "kept_high", "n", "interval",
)  # fmt: skip
MEASURES = {
    "learnt": ("#000000", "new language, accuracy"),
    "kept": ("#CC79A7", "old language, accuracy kept"),
}


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per run: accuracy on the new (``learnt``) and old (``kept``) language at its last finite
    evaluation.

    ``best``: the cell's best learning rate (largest mean area under the run's own frontier); ``edge``:
    whether it ends the sweep. The means and intervals of a learning rate are over its ``n`` seeds that did
    not diverge.
    """
    traces = points(table)
    keys = ["base", "language", "arm", "lr"]
    last = traces.loc[traces.groupby([*keys, "seed", "job"])["step"].idxmax()]
    last = with_base(last, table).sort_values([*keys, "seed", "job"], kind="stable", ignore_index=True)
    rates = best_rates(frontiers_of(traces)).rename(columns={"lr": "best_lr"})
    last = last.merge(rates[["base", "language", "arm", "best_lr", "edge"]], on=keys[:-1], how="left")
    last["best"] = last["lr"] == last["best_lr"]
    done = last[last["status"] != "diverged"]
    grouped = done.groupby(keys)
    for measure in MEASURES:
        wide = grouped[measure].apply(lambda values: values.to_numpy(dtype=float))
        size = max((len(values) for values in wide), default=0)
        matrix = np.full((len(wide), size), np.nan)
        for index, values in enumerate(wide):
            matrix[index, : len(values)] = values
        summary = bootstrap_table(matrix).set_index(wide.index)
        names = {name: f"{measure}_{name}" for name in ("mean", "low", "high")}
        keep = [*names.values(), *(["n", "interval"] if measure == "kept" else [])]
        last = last.join(summary.rename(columns=names)[keep], on=keys)
    last["n"] = last["n"].fillna(0).astype(int)
    last["interval"] = last["interval"].astype(object).where(last["n"] > 0, "none")
    return with_untried(last[list(COLUMNS)], table).sort_values(
        [*keys, "seed", "status"], kind="stable", ignore_index=True
    )


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    arms, failed = arms_of(data), failures(data)
    bases = style.base_order(list(data.loc[data["arm"] != "", "base"]))
    rows = [(base, language) for language in sorted(data["language"].unique()) for base in bases]
    side = max(0.15, (5.6 - 0.95 - 1.4 * len(arms)) / 2)  # room for the legend beside few panels
    figure, axes = style.grid_figure(
        len(rows), len(arms), (1.4, 1.25), (0.85 + side, side, 0.45, 1.05 if len(arms) > 3 else 1.2)
    )
    cells = dict(list(data.groupby(["base", "language", "arm"])))
    for i, (base, language) in enumerate(rows):
        seeds = data[data["base"] == base]["seed"].nunique()
        for j, (arm, method, optimizer, rank) in enumerate(arms):
            ax = axes[i, j]
            found = cells.get((base, language, arm))
            if found is not None:
                _draw_cell(ax, found)
            if i == 0:
                ax.set_title(style.arm_name(method, optimizer, rank).replace(" ", "\n", 1))
            if j == 0:
                title = base_title(base, failed.get(base, []), seeds).replace(", ", ",\n", 1)
                ax.set_ylabel(f"{title}\n{language}", fontsize=7)
    for j, ax in enumerate(axes[-1]):
        swept = data[data["arm"] == arms[j][0]]["lr"]
        ax.set_xscale("log")
        ax.set_xlim(swept.min() / 2, swept.max() * 2)
        ax.xaxis.set_major_locator(LogLocator(numticks=4))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("learning rate")
    axes[0, 0].set_ylim(-0.06, 1.06)
    axes[0, 0].set_yticks([0, 0.5, 1])
    handles = [Line2D([], [], color=ink, marker="o", markersize=3) for ink, _ in MEASURES.values()]
    handles += [
        Line2D([], [], color="#E69F00", linewidth=5, alpha=0.55),
        Line2D([], [], color="#c00000", linewidth=5, alpha=0.4),
        Line2D([], [], color="#c00000", marker="x", markersize=5, linestyle="none"),
    ]
    labels = [text for _, text in MEASURES.values()]
    style.legend(
        figure,
        handles,
        [*labels, "best rate", "best rate, an end of the sweep", "diverged run"],
        3 if len(arms) > 3 else 2,
    )
    return figure


def _draw_cell(ax: Axes, found: pd.DataFrame) -> None:
    best = found[found["best"].astype(bool)]
    for row in best.head(1).itertuples():
        ax.axvline(
            row.lr, color="#c00000" if row.edge else "#E69F00", alpha=0.4 if row.edge else 0.55, linewidth=5
        )
    done = found[found["status"] != "diverged"]
    for measure, (ink, _) in MEASURES.items():
        mean = done.drop_duplicates("lr").sort_values("lr")
        ax.plot(mean["lr"], mean[f"{measure}_mean"], color=ink, linewidth=1.1, zorder=3)
        if len(mean) and mean["n"].max() > 1:
            low, high = mean[f"{measure}_low"], mean[f"{measure}_high"]
            ax.fill_between(mean["lr"], low, high, color=ink, alpha=0.15, linewidth=0)
        ax.plot(done["lr"], done[measure], ".", color=ink, markersize=3.2, zorder=4)
    broken = found[found["status"] == "diverged"]
    ax.plot(broken["lr"], [0.0] * len(broken), "x", color="#c00000", markersize=4.5, zorder=5, clip_on=False)


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds, the search space."""
    failed = failures(data)
    data = data[data["arm"] != ""]
    rates = data.groupby(["base", "language", "arm"])["lr"].nunique()
    swept = f"{rates.min()}" if rates.min() == rates.max() else f"{rates.min()} to {rates.max()}"
    edges = data[data["best"].astype(bool) & (data["edge"] != "")].drop_duplicates(
        ["base", "language", "arm"]
    )
    broken = int((data["status"] == "diverged").sum())
    text = (
        "Accuracy on the new language and on the pretraining language at the end of finetuning, against the"
        f" learning rate; {swept} rates for each arm ({data['lr'].min():g} to {data['lr'].max():g}),"
        f" {len(data)} runs. Dots: single seeds; lines: mean; bands: interval. The best rate is the one with"
        f" the largest mean area under its own learning-forgetting frontier; in {len(edges)} of {len(rates)}"
        f" cells it ends the sweep. {broken} runs diverged."
        f" {interval_text(int(data['n'].max()), set(data['interval'].astype(str)))}"
    )
    return text + failed_text(failed)
