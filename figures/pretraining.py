"""Figure: accuracy by slice over pretraining, one line per base, with the learning rate that was chosen."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.bases import PASS_ACCURACY, judge_bases
from synthlm.figures import style
from synthlm.figures.arms import failed_text, failures, interval_text
from synthlm.statistics import bootstrap_table

NAME = "pretraining"
STUDY = "consistency"
TABLE = "results"
KINDS = ("pretrain",)
COLUMNS = (
    "base", "optimizer", "seed", "lr", "status", "passed", "slice", "goal", "step", "accuracy", "mean",
    "low", "high", "n", "interval",
)  # fmt: skip


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per base, seed, slice and step of the chosen pretraining runs; mean and interval over seeds."""
    runs = table[(table["kind"] == "pretrain") & table["chosen"].astype(bool)]
    passed = judge_bases(table).set_index(["base", "seed"])["passed"]
    runs = runs.join(passed, on=["base", "seed"])
    keys = ["base", "slice", "step"]
    wide = runs.pivot_table(index=keys, columns="seed", values="accuracy", aggfunc="mean", dropna=True)
    summary = bootstrap_table(wide.to_numpy(dtype=float)).set_index(wide.index)
    runs = runs.drop(columns="n").join(summary, on=keys)
    return runs[list(COLUMNS)].sort_values([*keys, "seed"], kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    slices = data[["slice", "goal"]].drop_duplicates()
    names = sorted(
        slices["slice"], key=lambda item: (item not in set(slices[slices["goal"] != ""]["slice"]), item)
    )
    goals = set(slices[slices["goal"] != ""]["slice"])
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = style.new_figure(max(2.7 * columns + 0.6, 5.4), 2.2 * rows + 1.1)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    bases = style.base_order(list(data["base"]))
    failed = failures(data)
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    for index, (ax, item) in enumerate(zip(axes, names, strict=False)):
        for base in bases:
            _draw_base(ax, data[(data["slice"] == item) & (data["base"] == base)], base)
        if item in goals:
            ax.axhline(PASS_ACCURACY, color=style.GREY, linewidth=0.8, linestyle=(0, (1, 2)))
        ax.set_title(item if item in goals else f"{item} (shown only)")
        if index % columns == 0:
            ax.set_ylabel("accuracy per scored token")
        if index + columns >= len(names):
            ax.set_xlabel("pretraining step")
            ax.tick_params(labelbottom=True)
    axes[0].set_xscale("symlog", linthresh=1)
    axes[0].set_xlim(0, data["step"].max() * 1.1)
    axes[0].set_ylim(-0.03, 1.04)
    handles, labels = [], []
    for base in bases:
        here = data[data["base"] == base]
        handles.append(Line2D([], [], **_look(base, here["optimizer"].iloc[0])))
        rates = sorted(here["lr"].unique())
        label = f"{style.name(base)}, lr {', '.join(f'{rate:g}' for rate in rates)}"
        if base in failed:
            everywhere = len(failed[base]) == here["seed"].nunique()
            label += "; failed" if everywhere else f"; failed in seed {', '.join(map(str, failed[base]))}"
        labels.append(label)
    handles.append(Line2D([], [], color=style.GREY, linewidth=0.8, linestyle=(0, (1, 2))))
    labels.append(f"pass: {PASS_ACCURACY:g} in every goal slice")
    if failed:
        handles.append(Line2D([], [], color="black", marker="x", linestyle="none", markersize=5))
        labels.append("a failed seed's end")
    style.legend(figure, handles, labels, columns=2)
    return figure


def _look(base: str, optimizer: str) -> dict:
    return {"color": style.color(optimizer), "linestyle": "-" if base == optimizer else (0, (3.2, 1.6))}


def _draw_base(ax: Axes, here: pd.DataFrame, base: str) -> None:
    if here.empty:
        return
    look = _look(base, here["optimizer"].iloc[0])
    mean = here[here["n"] == here["n"].max()].drop_duplicates("step")
    ax.plot(mean["step"], mean["mean"], linewidth=1.6, zorder=3, **look)
    if mean["n"].max() > 1:
        ax.fill_between(mean["step"], mean["low"], mean["high"], color=look["color"], alpha=0.15, linewidth=0)
    ax.plot(here["step"], here["accuracy"], ".", color=look["color"], markersize=2.6, alpha=0.6, zorder=2)
    ends = here.loc[here.groupby("seed")["step"].idxmax()]
    ends = ends[~ends["passed"].astype(bool)]
    ax.plot(
        ends["step"], ends["accuracy"], "x", color=look["color"], markersize=6, markeredgewidth=1.6, zorder=5
    )


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds, what the band is."""
    n = data["seed"].nunique()
    text = (
        "Pretraining of the bases at their chosen learning rates: accuracy by slice against the step"
        " (logarithmic above 1). Lines: mean over seeds; bands: interval; dots: single seeds. A base passes"
        f" when it ends at {PASS_ACCURACY:g} or more in every goal slice."
        f" {interval_text(n, set(data['interval'].astype(str)))}"
    )
    return text + failed_text(failures(data))
