"""Figure: learning-forgetting frontiers, bases in columns, finetuning languages in rows, all arms."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm import frontier as frontier_analysis
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
from synthlm.statistics import bootstrap_table

NAME = "frontier"
STUDY = "consistency"
TABLE = "results"
KINDS = ("finetune", "pretrain")
COLUMNS = (
    "base", "language", *ARM, "matched", "seed", "passed", "start_kept", "diverged", "level", "kept", "mean",
    "low", "high", "n", "interval",
)  # fmt: skip
STEP = 2  # every second of the grid's levels: 0.02 of rescaled learning


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per base, language, arm, seed and level of rescaled learning that this seed reached.

    ``kept``: the seed's frontier. ``mean``, ``low``, ``high``: over the ``n`` seeds whose base passed; they
    exist only at levels that each of those seeds reaches, so that a curve's mean is over the same seeds all
    along.
    """
    found = frontier_analysis.frontiers(table)
    cells = with_base(found.cells, table)
    level = frontier_analysis.GRID[::STEP]
    kept = found.curves["kept"][:, ::STEP]
    frame = cells.loc[cells.index.repeat(len(level))].reset_index(drop=True)
    frame = frame.assign(level=np.tile(level, len(cells)), kept=kept.ravel())
    keys = ["base", "language", "arm", "level"]
    wide = frame[frame["passed"]].pivot(index=keys, columns="seed", values="kept")
    asked = frame[frame["passed"]].groupby(keys)["seed"].nunique().reindex(wide.index)
    summary = bootstrap_table(wide.to_numpy(dtype=float)).set_index(wide.index)
    summary = summary[summary["n"] == asked]
    frame = frame.dropna(subset="kept").join(summary, on=keys)
    frame["n"] = frame["n"].fillna(0).astype(int)
    frame["interval"] = frame["interval"].astype(object).where(frame["n"] > 0, "none")
    frame = with_untried(frame[list(COLUMNS)], table)
    return frame.sort_values([*keys, "seed"], kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    bases, languages = style.base_order(list(data["base"])), sorted(data["language"].unique())
    arms, failed = arms_of(data), failures(data)
    width, height = max(2.5 * len(bases) + 0.8, 5.4), 2.3 * len(languages) + 1.2
    figure = style.new_figure(width, height)
    axes = figure.subplots(len(languages), len(bases), sharex=True, sharey=True, squeeze=False)
    cells = dict(list(data.groupby(["base", "language", "arm"])))
    for row, language in enumerate(languages):
        for column, base in enumerate(bases):
            ax = axes[row, column]
            here = data[(data["base"] == base) & (data["language"] == language)]
            for arm, method, optimizer, rank in arms:
                rows = cells.get((base, language, arm))
                if rows is not None:
                    _draw_arm(ax, rows, style.arm_style(method, optimizer, rank))
            if here["start_kept"].notna().any():
                start = here.drop_duplicates("seed")["start_kept"].mean()
                ax.axhline(start, color=style.GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            if row == 0:
                ax.set_title(
                    base_title(base, failed.get(base, []), data[data["base"] == base]["seed"].nunique())
                )
            if column == 0:
                ax.set_ylabel(f"{language}\nold accuracy kept")
            if row == len(languages) - 1:
                ax.set_xlabel("learning of the new language")
    axes[0, 0].set_xlim(0, 1.02)
    axes[0, 0].set_ylim(max(0.0, np.floor(10 * data["kept"].min()) / 10 - 0.03), 1.03)
    handles = [_handle(style.arm_style(*arm[1:]), 1.3) for arm in arms]
    labels = [style.arm_name(*arm[1:]) for arm in arms]
    handles += [
        Line2D([], [], color="black", linewidth=2.8),
        Line2D([], [], color=style.GREY, linewidth=0.8, linestyle=(0, (1, 2))),
    ]
    labels += ["thick: the matched arm", "the base itself"]
    style.legend(figure, handles, labels, columns=4 if width < 8 else 5)
    return figure


def _draw_arm(ax: Axes, rows: pd.DataFrame, look: dict) -> None:
    line = {"color": look["color"], "linestyle": look["linestyle"]}
    matched = bool(rows["matched"].iloc[0])
    mean = rows[rows["n"] > 0].drop_duplicates("level")
    if len(mean):
        ax.plot(
            mean["level"], mean["mean"], linewidth=2.8 if matched else 1.3, zorder=4 if matched else 3, **line
        )
        if mean["n"].max() > 1:
            ax.fill_between(
                mean["level"], mean["low"], mean["high"], color=look["color"], alpha=0.13, linewidth=0
            )
    ends = rows.loc[rows.groupby("seed")["level"].idxmax()]
    for passed, face in ((True, look["color"]), (False, "white")):
        some = ends[ends["passed"].astype(bool) == passed]
        ax.plot(
            some["level"], some["kept"], linestyle="none", marker=look["marker"], markersize=3.6, zorder=5,
            markerfacecolor=face, markeredgecolor=look["color"], markeredgewidth=0.7,
        )  # fmt: skip


def _handle(look: dict, width: float) -> Line2D:
    return Line2D([], [], markersize=3.6, linewidth=width, **look)


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds, what the band is."""
    n = int(data["n"].max())
    shown = set(data["interval"].astype(str))
    diverged = data.drop_duplicates(["base", "language", "arm", "seed"])["diverged"].sum()
    text = (
        "Learning-forgetting frontiers: the most accuracy on the pretraining language that any learning"
        " rate and any step keeps at a given learning of the new language (0: the base itself, 1: perfect;"
        " held-out items for rules, training items for facts). Upper right is better. Lines: mean over"
        " seeds, as far as every seed gets; bands: interval; dots: where each single seed's frontier ends"
        f" (hollow: its base failed pretraining, and it is not in the mean). {interval_text(n, shown)}"
    )
    if diverged:
        text += f" {int(diverged)} diverged runs count up to their divergence."
    return text + failed_text(failures(data))
