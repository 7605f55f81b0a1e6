"""Figure: held-out rule accuracy at the moment when rote recall reaches 50% and 90%, against the number of examples."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.analysis.tendency import LEVELS
from synthlm.figures import cells, style
from synthlm.tendency import AT_RECALL, CELL, FITTED, RUN, curves, outcomes, searches

NAME = "rule_at_recall"
STUDY = "tendency"
TABLE = "tendency"
COLUMNS = (*RUN, "lr", "rates", "edge", "status", "level", "fitted", "rule", "reached", *cells.SUMMARY)


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cell, optimizer, seed and level of recall: the step that reaches it, the rule's accuracy there.

    ``reached``: in how many seeds recall gets there; the mean is over these.
    """
    swept = searches(table).drop(columns="lr")
    ends = outcomes(curves(table)).merge(swept, on=[*CELL, "optimizer"])
    frames = [
        ends[[*RUN, "lr", "rates", "edge", "status"]].assign(
            level=level, fitted=ends[fitted], rule=ends[rule]
        )
        for level, fitted, rule in zip(LEVELS, FITTED, AT_RECALL, strict=True)
    ]
    by = [*RUN[:-1], "level"]
    long = cells.with_summary(pd.concat(frames, ignore_index=True), by, "rule")
    long = long.assign(reached=long["n"])
    return long[list(COLUMNS)].sort_values([*by, "seed"], kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    languages = list(dict.fromkeys(data["language"]))
    shares = {name: sorted(data[data["language"] == name]["rote_share"].unique()) for name in languages}
    languages = sorted(languages, key=lambda name: -len(shares[name]))
    rows = [(level, place) for level in LEVELS for place in range(max(map(len, shares.values())))]
    side = max(0.15, (5.4 - 1.65 * len(languages) - 0.85) / 2)
    figure, axes = style.grid_figure(len(rows), len(languages), (1.65, 1.4), (0.85 + side, side, 0.3, 1.0))
    names = cells.optimizers(data)
    for i, (level, place) in enumerate(rows):
        for j, language in enumerate(languages):
            ax = axes[i, j]
            if place >= len(shares[language]):
                ax.set_visible(False)
                continue
            share = shares[language][place]
            panel = data[
                (data["language"] == language)
                & (data["rote_share"] == share)
                & np.isclose(data["level"], level)
            ]
            for optimizer in names:
                run = panel[panel["optimizer"] == optimizer]
                mean = run[run["n"] > 0].drop_duplicates("items").sort_values("items")
                if len(mean):
                    cells.line(ax, mean["items"], mean, optimizer)
                ax.plot(run["items"], run["rule"], ".", color=style.color(optimizer), markersize=4, alpha=0.7)
            if i == 0:
                ax.set_title(language)
            ax.text(0.04, 0.95, cells.share_text(share), transform=ax.transAxes, fontsize=7, va="top")
            items = sorted(panel["items"].unique())
            ax.set_xscale("log")
            if items:
                ax.set_xticks(items, [str(n) for n in items])
                ax.set_xlim(items[0] / 1.4, items[-1] * 1.4)
            ax.minorticks_off()
        left = next(ax for ax in axes[i] if ax.get_visible())
        left.set_ylabel(f"rule accuracy\nat {level:.0%} recall", fontsize=8)
        left.tick_params(labelleft=True)
    for column in axes.T:
        last = [ax for ax in column if ax.get_visible()][-1]
        last.set_xlabel("rule examples")
        last.tick_params(labelbottom=True)
    axes[0, 0].set_ylim(-0.04, 1.05)
    axes[0, 0].set_yticks([0, 0.5, 1])
    entries, labels = cells.handles(names)
    entries.append(Line2D([], [], color="black", marker=".", linestyle="none"))
    style.legend(figure, entries, [*labels, "a seed"], columns=6 if len(languages) > 3 else 3)
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, where recall never got there, how many seeds."""
    seeds = data["seed"].nunique()
    cases = data.drop_duplicates([*RUN[:-1], "level"])
    searched = data.drop_duplicates(RUN[:-1])
    ends = int((searched["edge"] != "").sum())
    tried = " to ".join(
        dict.fromkeys(f"{count}" for count in (searched["rates"].min(), searched["rates"].max()))
    )
    short = int((cases["reached"] < seeds).sum())
    return (
        "Which comes first, rote or rule? Accuracy on held-out instances of the rule at the moment when"
        " recall of the rote"
        f" items first reaches {' and '.join(f'{level:.0%}' for level in LEVELS)} (interpolated in the logarithm of the"
        " step), against the number of rule examples. Lower: more learnt by rote before the rule is found. In"
        f" {short} of {len(cases)} cells recall did not get there in every seed; the mean is over those in"
        " which it did."
        f" Each optimizer at its own best learning rate of {tried}; in {ends} of {len(searched)} searches"
        " that is an end of"
        " the rates tried. Lines: mean; bands: interval."
        f" {cells.EXCEPTIONS} {cells.seeds_text(data)}"
    )
