"""Figure: how sharp the old loss is along each geometry's steepest finetuning step, on each base (claim C4)."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from synthlm.figures import style
from synthlm.figures.arms import interval_text
from synthlm.statistics import bootstrap_table

NAME = "sharpness_matrix"
STUDY = "mechanism"
TABLE = "sharpness"
COLUMNS = (
    "panel", "base", "own", "geometry", "value", "relative", "low", "high", "n", "interval", "missing",
)  # fmt: skip

PANELS = {
    "unit": ("new", "native", "curvature", "curvature along unit steps\nof the finetuning gradient (nats)"),
    "equal": (
        "new",
        "relative",
        "curvature",
        "same, at equal Frobenius norm\nrelative to the weights (nats)",
    ),
    "critical": (
        "old",
        "native",
        "critical",
        "critical sharpness along unit\nsteps of the old gradient (2 / step)",
    ),
}
"""Panel -> gradient, kind of step, quantity, title. Critical sharpness needs a step along which the old
loss falls."""

ORDER = ("max", "spectral", "frobenius")


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per panel, base and geometry.

    ``value``: geometric mean over seeds, of the mean over finetuning languages. ``relative`` with ``low`` and
    ``high``: its natural logarithm less the means of its base and of its geometry in the same seed. ``missing``:
    seeds whose value is not positive, and has no logarithm.
    """
    records = []
    for panel, (gradient, kind, quantity, _) in PANELS.items():
        rows = table[(table["gradient"] == gradient) & (table["kind"] == kind)]
        mean = rows.groupby(["base", "own", "geometry", "seed"])[quantity].mean()
        log = np.log(mean.where(mean > 0)).rename("value").reset_index()
        of_base = log.groupby(["base", "seed"])["value"].transform("mean")
        of_geometry = log.groupby(["geometry", "seed"])["value"].transform("mean")
        of_seed = log.groupby("seed")["value"].transform("mean")
        log["relative"] = log["value"] - of_base - of_geometry + of_seed
        for (base, own, geometry), cell in log.groupby(["base", "own", "geometry"]):
            summary = bootstrap_table(cell["relative"].to_numpy(dtype=float)[None]).iloc[0]
            records.append({
                "panel": panel, "base": base, "own": own, "geometry": geometry,
                "value": math.exp(cell["value"].mean()), "relative": summary["mean"], "low": summary["low"],
                "high": summary["high"], "n": int(summary["n"]), "interval": summary["interval"],
                "missing": int(cell["value"].isna().sum()),
            })  # fmt: skip
    return pd.DataFrame(records, columns=list(COLUMNS))


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    panels = [panel for panel in PANELS if panel in set(data["panel"])]
    bases = style.base_order(list(data["base"]))
    geometries = [name for name in ORDER if name in set(data["geometry"])]
    figure = style.new_figure(2.95 * len(panels) + 1.2, 0.78 * len(bases) + 1.5)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    top = max(0.1, float(np.nanmax(data["relative"].abs(), initial=0.1)))
    image: Any = None
    for ax, panel in zip(axes, panels, strict=True):
        rows = data[data["panel"] == panel].set_index(["base", "geometry"])
        values = rows["relative"].unstack().reindex(index=bases, columns=geometries)
        image = ax.imshow(values, cmap="RdBu_r", norm=TwoSlopeNorm(0, -top, top), aspect="auto")
        for i, base in enumerate(bases):
            for j, name in enumerate(geometries):
                if (base, name) in rows.index:
                    _write(ax, i, j, rows.loc[(base, name)], top)
        ax.grid(False)
        for side in ax.spines.values():
            side.set_visible(False)
        ax.set_title(PANELS[panel][3])
        ax.set_xticks(range(len(geometries)), geometries)
        ax.set_yticks(range(len(bases)), [f"{style.name(base)} base" for base in bases])
        ax.tick_params(length=0)
        ax.set_xlabel("geometry of the step")
    bar = figure.colorbar(image, ax=list(axes), pad=0.015, aspect=18)
    bar.set_label("relative sharpness (ln)")
    bar.outline.set_visible(False)
    return figure


def _write(ax: Any, i: int, j: int, row: pd.Series, top: float) -> None:
    ink = "white" if abs(row["relative"]) > 0.6 * top else "black"
    text = f"{row['value']:.3g}" if row["n"] else "not positive"
    if row["n"]:
        text += f"\n{row['relative']:+.2f}"
    if math.isfinite(row["low"]):
        text += f"\n[{row['low']:+.2f}, {row['high']:+.2f}]"
    ax.text(j, i, text, ha="center", va="center", color=ink, fontsize=7, linespacing=1.3, zorder=4)
    if row["own"] == row.name[1]:
        ax.add_patch(
            Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, fill=False, edgecolor="black", linewidth=2, zorder=5)
        )


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds, what the interval is."""
    missing = int(data["missing"].sum())
    text = (
        "Sharpness of the old loss at the end of pretraining along the step that is steepest in each geometry, for the"
        " finetuning languages' gradients (left, middle; mean over languages) or the old loss' own (right), on each"
        " base. Upper number: geometric mean over seeds. Second number and colour: its natural logarithm less"
        " the means of its row and column, with an interval over seeds; blue is relatively flat."
        " Outlined: the geometry of the base's own optimizer, where C4 predicts blue."
    )
    if missing:
        text += f" In {missing} cells of single seeds the number is not positive, without a logarithm, and left out."
    return f"{text} {interval_text(int(data['n'].max()), set(data['interval'].astype(str)))}"
