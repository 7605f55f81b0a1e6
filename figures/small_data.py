"""Figure: held-out accuracy on a new rule against the number of examples, for matched and crossed finetuning."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import cells, style

NAME = "small_data"
STUDY = "tendency"
TABLE = "small_data"
COLUMNS = (
    "language", "base", "arm", "examples", "seed", "lr", "status", "accuracy", "loss", "train_accuracy", "kept",
    *cells.SUMMARY,
)  # fmt: skip


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per language, base, arm, number of examples and seed, at the chosen learning rates."""
    rows = table[table["chosen"].astype(bool)].drop(columns="n")
    by = ["language", "base", "arm", "examples"]
    out = cells.with_summary(rows, by, "accuracy")
    return out[list(COLUMNS)].sort_values([*by, "seed"], kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    languages = list(dict.fromkeys(data["language"]))
    pairs = sorted(
        set(zip(data["base"], data["arm"], strict=True)), key=lambda pair: (pair[0] != pair[1], pair)
    )
    figure = style.new_figure(max(2.9 * len(languages) + 0.5, 5.4), 3.1)
    axes = figure.subplots(1, len(languages), sharey=True, squeeze=False)[0]
    for ax, language in zip(axes, languages, strict=True):
        for base, arm in pairs:
            here = data[(data["language"] == language) & (data["base"] == base) & (data["arm"] == arm)]
            if here.empty:
                continue
            look = _look(base, arm)
            mean = here.drop_duplicates("examples").sort_values("examples")
            ax.plot(mean["examples"], mean["mean"], zorder=3, **look)
            if mean["n"].max() > 1:
                ink = look["color"]
                ax.fill_between(
                    mean["examples"], mean["low"], mean["high"], color=ink, alpha=0.1, linewidth=0
                )
            ax.plot(here["examples"], here["accuracy"], ".", color=look["color"], markersize=3.5, alpha=0.6)
        ax.set_title(language)
        ax.set_xscale("log", base=2)
        sizes = sorted(data["examples"].unique())
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.minorticks_off()
        ax.set_xlabel("examples of the new rule")
    axes[0].set_ylabel("accuracy, held out")
    axes[0].set_ylim(-0.03, 1.04)
    entries = [Line2D([], [], **_look(*pair)) for pair in pairs]
    labels = [f"{style.name(base)} base, then {style.name(arm)}" for base, arm in pairs]
    style.legend(figure, entries, labels, columns=2)
    return figure


def _look(base: str, arm: str) -> dict[str, Any]:
    """Colour by base, broken when finetuned by another optimizer than the base's; a marker for each optimizer."""
    marker = {"adamw": "o", "muon": "s"}.get(arm, "D")
    line = "-" if base == arm else (0, (3, 1.6))
    return {"color": style.color(base), "linestyle": line, "marker": marker, "markersize": 4}


def caption(data: pd.DataFrame) -> str:
    """What is shown, how learning rates were chosen, how many seeds."""
    chosen = (
        "a seed's rate is the one that is best on the other seeds, so no rate is chosen by the items it is told of"
        if data["seed"].nunique() > 1
        else "with one seed its rate is chosen by the very items it is told of"
    )
    return (
        "A new rule learnt from few examples: accuracy per token on held-out instances at the end of finetuning."
        " Colour: the optimizer of the base; solid: finetuned by the same optimizer, broken: by the other. Every base,"
        f" arm, language and number of examples has its own learning-rate sweep; {chosen}. Dots: seeds; lines: mean;"
        f" bands: interval. {cells.seeds_text(data)}"
    )
