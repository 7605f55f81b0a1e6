"""Figure: where in (language, data size, rote share) does Muon generalize better than AdamW? And who is best?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from synthlm.figures import cells, style
from synthlm.tendency import CELL, READINGS, curves, differences, outcomes, significance

NAME = "tendency_map"
STUDY = "tendency"
TABLE = "tendency"
FIRST, SECOND = "muon", "adamw"
BEST = "best"
COLUMNS = (*CELL, "reading", "first", "second", "mean", "low", "high", "n", "p", "p_holm")
LEVEL = 0.05
TITLES = dict(
    zip(READINGS, ("at the end", "at 90%\nrote recall", "at equal\ntraining loss"), strict=True)
) | {BEST: "best of all,\nat the end"}
SCALE = 0.4
"""Difference of accuracies at which the colour is full."""


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and reading: mean of Muon minus AdamW over seeds, its paired t interval, p, p after Holm.

    Reading ``best``: ``first`` has the highest mean rule accuracy at the end, ``second`` the next; the difference is
    between these two.
    """
    traces = curves(table)
    found = significance(differences(traces, FIRST, SECOND), [*CELL, "reading"]).assign(
        first=FIRST, second=SECOND
    )
    ends = outcomes(traces)
    ranked = []
    for key, cell in ends.groupby(CELL, sort=True):
        means = cell.groupby("optimizer")["rule"].mean().sort_values(ascending=False, kind="stable")
        if len(means) > 1:
            first, second = means.index[:2]
            wide = cell.pivot_table(index="seed", columns="optimizer", values="rule")
            ranked.append(
                pd.DataFrame(
                    dict(zip(CELL, key, strict=True))
                    | {
                        "reading": BEST,
                        "first": first,
                        "second": second,
                        "difference": wide[first] - wide[second],
                    }
                )
            )
    if ranked:
        best = significance(pd.concat(ranked, ignore_index=True), [*CELL, "reading", "first", "second"])
        found = pd.concat([found, best], ignore_index=True)
    return found[list(COLUMNS)].sort_values([*CELL, "reading"], kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    languages = list(dict.fromkeys(data["language"]))
    readings = [name for name in (*READINGS, BEST) if (data["reading"] == name).any()]
    widest = max(2, *(data[data["language"] == name]["items"].nunique() for name in languages))
    tallest = max(2, data["rote_share"].nunique())
    cell = (0.5 * widest + 0.4, 0.34 * tallest + 0.36)
    side = max(0.1, (5.6 - cell[0] * len(languages) - 1.1) / 2)
    figure, axes = style.grid_figure(
        len(readings), len(languages), cell, (1.1 + side, side, 0.35, 1.5), share_y=False, gap=0.36
    )
    shown = Normalize(-SCALE, SCALE)
    for i, reading in enumerate(readings):
        for j, language in enumerate(languages):
            panel = data[(data["language"] == language) & (data["reading"] == reading)]
            _draw_panel(axes[i, j], panel, reading, shown)
            if i == 0:
                axes[i, j].set_title(language)
            if i == len(readings) - 1:
                axes[i, j].set_xlabel("rule examples", fontsize=8)
        axes[i, 0].set_ylabel(f"{TITLES[reading]}\n\nrote share", fontsize=7)
    height = figure.get_size_inches()[1]
    bar = figure.add_axes((0.3, 0.86 / height, 0.4, 0.1 / height))
    mappable = colormaps["PuOr_r"]
    figure.colorbar(_scalar(shown, mappable), cax=bar, orientation="horizontal")
    bar.set_xlabel("held-out rule accuracy, Muon minus AdamW", fontsize=8)
    bar.grid(False)
    winners = cells.optimizers(data.rename(columns={"first": "optimizer"})[lambda t: t["reading"] == BEST])
    style.legend(
        figure, [Patch(facecolor=style.color(name), alpha=0.75) for name in winners],
        [f"{style.name(name)} best" for name in winners], columns=6,
    )  # fmt: skip
    return figure


def _scalar(norm: Normalize, cmap: Any) -> Any:
    from matplotlib.cm import ScalarMappable

    return ScalarMappable(norm, cmap)


def _draw_panel(ax: Axes, panel: pd.DataFrame, reading: str, norm: Normalize) -> None:
    items: Sequence[int] = sorted(panel["items"].unique())
    shares: Sequence[float] = sorted(panel["rote_share"].unique())
    ax.grid(False)
    for row in panel.itertuples():
        x, y = items.index(row.items), shares.index(row.rote_share)
        if reading == BEST:
            ink, alpha = style.color(row.first), 0.75
        elif np.isfinite(row.mean):
            ink, alpha = colormaps["PuOr_r"](norm(row.mean)), 1.0
        else:
            ink, alpha = "white", 1.0
        ax.fill_between([x - 0.5, x + 0.5], y - 0.5, y + 0.5, color=ink, alpha=alpha, linewidth=0)
        if not np.isfinite(row.mean):
            ax.plot([x - 0.4, x + 0.4], [y - 0.4, y + 0.4], color=style.GREY, linewidth=0.8)
            continue
        text = f"{row.mean:+.2f}" if reading != BEST else f"{row.mean:.2f}"
        mark = "**" if row.p_holm < LEVEL else "*" if row.p < LEVEL else ""
        ax.text(x, y, text + mark, ha="center", va="center", fontsize=6.2)
    ax.set_xticks(range(len(items)), [str(n) for n in items], fontsize=7)
    ax.set_yticks(range(len(shares)), [f"{share:g}" for share in shares], fontsize=7)
    ax.set_xlim(-0.5, len(items) - 0.5)
    ax.set_ylim(-0.5, len(shares) - 0.5)
    ax.tick_params(length=0, labelbottom=True)


def caption(data: pd.DataFrame) -> str:
    """What is shown, what the marks mean, how many seeds."""
    pairs = data[data["reading"] != BEST]
    raw, corrected = int((pairs["p"] < LEVEL).sum()), int((pairs["p_holm"] < LEVEL).sum())
    counts = data["n"].where(data["n"] > 0)  # the rest is crossed out
    few, many = (0, 0) if counts.isna().all() else (int(counts.min()), int(counts.max()))
    seeds = f"{many}" if few == many else f"{few} to {many} (by cell and reading)"
    better, worse = int((pairs["low"] > 0).sum()), int((pairs["high"] < 0).sum())
    return (
        "Map of the tendency to learn by rote: accuracy on held-out instances of the rule, Muon minus AdamW,"
        " by number of"
        " rule examples and rote share, read in three ways: at the end of training, when rote recall first"
        " reaches 90%, and"
        " when both have the same training loss (the lowest that both reach: the one that ends with the higher loss is"
        " read there at its annealed end, the other in mid-schedule; pairs of which one diverged are left out)."
        " Orange: Muon generalizes better; purple:"
        " AdamW. Last row: the optimizer with the highest mean at the end among all, and its lead over the"
        " next; these two are picked by the very numbers tested, so the row's stars come too easily. One star:"
        f" p < {LEVEL} in the paired t test over seeds; two stars: still so after Holm's correction over all cells and"
        f" readings shown (the last row apart). {raw} of {len(pairs)} Muon-AdamW cells have one star or two,"
        f" {corrected} two;"
        f" Muon is ahead in {better} of these, AdamW in {worse}. n = {seeds} paired seeds; crossed out:"
        " undefined, recall not reached or no pair left. Each optimizer at its own best learning rate in each cell."
        f" {cells.EXCEPTIONS}"
    )
