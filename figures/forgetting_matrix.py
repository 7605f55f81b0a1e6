"""Figure: forgetting at matched learning, bases by arms, the matched arm outlined; one panel per new
language."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from synthlm.bases import base_optimizers, judge_bases
from synthlm.figures import style
from synthlm.figures.arms import ARM, arms_of, interval_text, with_base
from synthlm.frontier import LEVELS, MINIMUM_TOP, ON_GRID, frontiers, matched_levels
from synthlm.statistics import bootstrap_table

NAME = "forgetting_matrix"
STUDY = "consistency"
TABLE = "results"
KINDS = ("finetune", "pretrain")
COLUMNS = (
    "language", "base", *ARM, "matched", "state", "lowest_level", "highest_level", "top", "forgetting",
    "low", "high", "n", "interval", "seeds_failed",
)  # fmt: skip


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per language, base and arm: old accuracy lost since step 0, averaged over the row's matched
    levels.

    The matched levels of a (language, base) are those that every arm reaches in every seed, among arms that
    reach MINIMUM_TOP in every seed; other arms are ``not learnt``. ``state``: ok, not learnt, base failed.
    ``top``: the least over seeds of the arm's highest rescaled learning. Seeds whose base failed do not
    count.
    """
    found = frontiers(table)
    cells = with_base(found.cells, table)
    bases = judge_bases(table)
    failed = (~bases.set_index("base")["passed"]).groupby("base").sum()
    arms = cells[["method", "optimizer", "rank", "arm"]].drop_duplicates("arm").set_index("arm", drop=False)
    own = base_optimizers(bases)
    lost = cells["start_kept"].to_numpy()[:, None] - found.curves["kept"]
    records = []
    for (language, base), group in cells.groupby(["language", "base"]):
        live = group[group["passed"]]
        tops = live.groupby("arm")["top"].min()
        learnt = live[live["arm"].isin(tops[tops >= MINIMUM_TOP - 1e-9].index)]
        levels = matched_levels(found.curves["kept"][learnt.index])
        for arm, rows in group.groupby("arm"):
            first = rows.iloc[0]
            able = arm in set(learnt["arm"]) and bool(levels.any())
            state = "ok" if able else "not learnt" if arm in tops.index else "base failed"
            use = rows.index[rows["passed"]] if able else rows.index[:0]
            values = lost[use][:, ON_GRID[levels]].mean(axis=1) if able else np.empty(0)
            summary = bootstrap_table(values[None, :]).iloc[0]
            records.append({
                "language": language, "base": base, **first[ARM].to_dict(), "matched": bool(first["matched"]),
                "state": state, "lowest_level": LEVELS[levels].min() if able else math.nan,
                "highest_level": LEVELS[levels].max() if able else math.nan,
                "top": tops.get(arm, rows["top"].min()), "forgetting": summary["mean"], "low": summary["low"],
                "high": summary["high"], "n": int(summary["n"]), "interval": summary["interval"],
                "seeds_failed": int(failed.loc[str(base)]),
            })  # fmt: skip
    tried = {(record["language"], record["base"]) for record in records}
    for language in sorted(set(cells["language"])):
        for base in failed.index[failed > 0]:
            if (language, base) not in tried:
                records += [
                    {"language": language, "base": base, **row[ARM].to_dict(), "state": "base failed", "n": 0,
                     "matched": bool(row["method"] == "full" and row["optimizer"] == own[base]),
                     "interval": "none", "seeds_failed": int(failed.loc[str(base)])}
                    for _, row in arms.iterrows()
                ]  # fmt: skip
    return pd.DataFrame(records, columns=list(COLUMNS)).sort_values(
        ["language", "base", "arm"], kind="stable", ignore_index=True
    )


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    languages, bases, arms = (
        sorted(data["language"].unique()),
        style.base_order(list(data["base"])),
        arms_of(data),
    )
    cells = {(r.language, r.base, r.arm): r for r in data.itertuples()}
    height = max(len(languages) * (0.62 * len(bases) + 0.65) + 0.55, 2.6)
    figure = style.new_figure(1.7 + 1.12 * len(arms) + 0.6, height)
    axes = figure.subplots(len(languages), 1, squeeze=False, sharex=True)[:, 0]
    colors = LinearSegmentedColormap.from_list(
        "forgetting", ["#ffffff", "#f6c9a8", "#c4522d", "#6e1a0c"]
    ).with_extremes(bad="#f0f0f0")
    top = max(0.1, float(np.nanmax([*data["forgetting"], 0.0])))
    image: Any = None
    for ax, language in zip(axes, languages, strict=True):
        values = np.full((len(bases), len(arms)), np.nan)
        for i, base in enumerate(bases):
            for j, arm in enumerate(arms):
                row = cells.get((language, base, arm[0]))
                values[i, j] = math.nan if row is None else row.forgetting
                _write_cell(ax, i, j, row, top)
        image = ax.imshow(values, cmap=colors, vmin=0, vmax=top, aspect="auto")
        ax.grid(False)
        for side in ax.spines.values():
            side.set_visible(False)
        ax.set_title(f"after learning {language}", loc="left")
        ax.set_yticks(range(len(bases)), [_row_label(data, language, base) for base in bases])
        ax.set_xticks(range(len(arms)), [style.arm_name(*arm[1:]).replace(" ", "\n", 1) for arm in arms])
        ax.tick_params(length=0)
    axes[-1].set_xlabel("finetuning arm")
    bar = figure.colorbar(image, ax=list(axes), shrink=0.8, pad=0.015, aspect=28)
    bar.set_label("old accuracy lost")
    bar.outline.set_visible(False)
    return figure


def _row_label(data: pd.DataFrame, language: str, base: str) -> str:
    rows = data[(data["language"] == language) & (data["base"] == base)]
    label = f"{style.name(base)} base".replace(", ", ",\n")
    if len(rows) and rows["highest_level"].notna().any():
        label += f"\nat {rows['lowest_level'].min():.2f} to {rows['highest_level'].max():.2f}"
    if len(rows) and rows["seeds_failed"].max():
        failed = int(rows["seeds_failed"].max())
        label += f"\n({failed} of {failed + int(rows['n'].max())} seeds failed)"
    return label


def _write_cell(ax: Axes, i: int, j: int, row: Any, top: float) -> None:
    if row is None:
        return
    ink = "#6b6b6b"
    if row.state == "ok":
        ink = "white" if row.forgetting > 0.6 * top else "black"
        text = f"{row.forgetting:.2f}"
        if math.isfinite(row.low):
            text += f"\n[{row.low:.2f}, {row.high:.2f}]"
    elif row.state == "not learnt":
        text = f"not learnt\n(top {row.top:.2f})"
    else:
        text = "base failed"
    ax.text(j, i, text, ha="center", va="center", color=ink, fontsize=8, linespacing=1.25, zorder=4)
    if row.matched:
        ax.add_patch(
            Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, fill=False, edgecolor="black", linewidth=2, zorder=5)
        )


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds, what the interval is."""
    n = int(data["n"].max())
    text = (
        "Forgetting at matched learning: accuracy on the pretraining language lost since step 0, at the"
        " best point of each arm's learning-forgetting frontier, averaged over the levels of rescaled"
        " learning that all arms of a row reach in every seed (printed beside the row; at most"
        f" {LEVELS[0]:.2f} to {LEVELS[-1]:.2f}). Compare within a row. Outlined: the matched arm (full"
        f" finetuning with the pretraining optimizer). Arms that stay below {MINIMUM_TOP:g} in some seed are"
        f" not learnt and have no value. {interval_text(n, set(data['interval'].astype(str)))}"
    )
    counts = data[data["n"] > 0]["n"]
    if len(counts) and counts.min() < counts.max():
        text += f" Some cells have fewer seeds (down to {int(counts.min())})."
    failed = data[data["seeds_failed"] > 0].drop_duplicates("base")
    if len(failed):
        parts = [f"{style.name(str(row.base))} ({row.seeds_failed})" for row in failed.itertuples()]
        text += f" Bases with failed seeds, which are left out: {', '.join(parts)}."
    return text
