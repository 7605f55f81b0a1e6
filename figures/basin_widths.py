"""Figure: basin widths by base and by training noise, a dot a seed."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import style
from synthlm.figures.arms import interval_text
from synthlm.figures.bands import STATISTICS, over_seeds, plain_log

NAME = "basin_widths"
STUDY = "mechanism"
TABLE = "basins"
COLUMNS = (
    "panel", "base", "base_optimizer", "variant", "perturb", "tolerance", "seed", "width", "bound",
    *STATISTICS,
)  # fmt: skip

PANELS = {
    "most/absolute": "most case\nsigma per coordinate",
    "most/relative": "most case\nsigma in each tensor's RMS",
    "worst/absolute": "worst case\nsigma per coordinate",
}


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row a panel (case/scale), base, variant and seed: the width by accuracy, mean over the old goal slices; and
    the mean over seeds with its interval."""
    rows = table[
        (table["row"] == "width") & (table["measure"] == "accuracy") & (table["slice"] == "all")
        & (table["role"] == "old") & (table["centre"] == "pretrained")
    ]  # fmt: skip
    rows = rows.assign(panel=rows["case"] + "/" + rows["scale"])
    rows = rows[rows["panel"].isin(list(PANELS))]
    keys = ["panel", "base", "variant"]
    summary = over_seeds(rows, keys, "width")
    found = rows.drop(columns=["low", "high", "n"]).merge(summary, on=keys)
    return found[list(COLUMNS)].sort_values([*keys, "seed"], kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    order = [
        (base, variant)
        for base in style.base_order(list(data["base"]))
        for variant in sorted(
            set(data[data["base"] == base]["variant"]), key=lambda name: (name != "plain", name)
        )
    ]
    panels = [panel for panel in PANELS if (data["panel"] == panel).any()]
    figure = style.new_figure(1.4 + 1.95 * len(panels), 1.1 + 0.32 * len(order))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        for y, (base, variant) in enumerate(order):
            cell = data[(data["panel"] == panel) & (data["base"] == base) & (data["variant"] == variant)]
            _draw_cell(ax, cell, y)
        ax.set_xscale("log")
        ax.set_title(PANELS[panel])
        ax.set_xlabel("width")
        ax.grid(visible=False, axis="y")
        low, high = data[data["panel"] == panel]["width"].agg(["min", "max"])
        ax.set_xlim(low / 1.5, high * 1.5)
        plain_log(ax.xaxis, (1.0, 2.0, 5.0) if high > 3 * low else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
    trained = dict(zip(data["variant"], data["perturb"].fillna(""), strict=True))
    axes[0].set_yticks(
        range(len(order)),
        [
            f"{style.name(base)} base" if variant == "plain" else f"   {trained[variant] or variant}"
            for base, variant in order
        ],
    )
    axes[0].set_ylim(len(order) - 0.5, -0.5)
    handles = [
        Line2D([], [], color="#555555", marker="o", markersize=5),
        Line2D([], [], color="#555555", marker=".", markersize=5, linestyle="none", alpha=0.6),
        Line2D([], [], color="#555555", marker=">", markersize=4, linestyle="none", fillstyle="none"),
    ]
    shown = handles if (data["bound"] != "").any() else handles[:2]
    style.legend(figure, shown, ["mean over seeds", "one seed", "a bound: beyond the grid"][: len(shown)], 3)
    return figure


def _draw_cell(ax: Axes, cell: pd.DataFrame, y: int) -> None:
    if cell.empty:
        return
    first = cell.iloc[0]
    ink = style.color(str(first["base_optimizer"]))
    hollow = first["variant"] != "plain"
    if first["n"] > 1:
        ax.plot([first["low"], first["high"]], [y, y], color=ink, linewidth=1.6, zorder=3)
    ax.plot(
        first["mean"], y, "o", color=ink, markersize=5.5, markerfacecolor="white" if hollow else ink, zorder=4
    )
    for row in cell.itertuples():
        marker = {"": ".", "at least": ">", "at most": "<"}[str(row.bound) if row.bound == row.bound else ""]
        ax.plot(
            row.width, y + 0.22, marker, color=ink, markersize=4, alpha=0.7, zorder=5,
            fillstyle="full" if marker == "." else "none",
        )  # fmt: skip


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds, what the intervals are."""
    tolerance = ", ".join(f"{value:g}" for value in sorted(set(data["tolerance"])))
    text = (
        "Basin widths of pretrained bases: the sigma at which accuracy on the old language has fallen by"
        f" {tolerance}, for Gaussian noise of one sigma for all parameters, for noise relative to each"
        " tensor's root mean square, and for the worst point that projected ascent found (an upper bound of"
        " that width)."
    )
    if (data["variant"] != "plain").any():
        text += (
            " Hollow: the same base trained again with gradients taken at perturbed weights, or a control"
            " with as much compute."
        )
    return f"{text} {interval_text(int(data['n'].max()), set(data['interval']))}"
