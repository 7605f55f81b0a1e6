"""Figure: rote recall and held-out rule accuracy over training from scratch, a panel per language and data size."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import cells, style
from synthlm.tendency import RUN, curves

NAME = "rote_rule_curves"
STUDY = "tendency"
TABLE = "tendency"
COLUMNS = (*RUN, "lr", "status", "goal", "step", "accuracy", *cells.SUMMARY)
LINES: dict[str, tuple[Any, str]] = {
    "rule": ("-", "held-out rule accuracy"),
    "rote": ((0, (1, 1.2)), "rote recall"),
}


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per language with a rule, data size, optimizer, seed, goal and step, of one rote share a language."""
    traces = curves(table)
    traces = traces[traces["rule"].notna() & traces["rote"].notna()]
    traces = traces[traces["rote_share"] == traces["language"].map(cells.shown_share(traces))]
    long = traces.melt(
        id_vars=[*RUN, "lr", "status", "step"],
        value_vars=["rote", "rule"],
        var_name="goal",
        value_name="accuracy",
    )
    by = [*RUN[:-1], "goal", "step"]
    long = cells.with_summary(long, by, "accuracy")
    return long[list(COLUMNS)].sort_values([*by, "seed"], kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    languages = list(dict.fromkeys(data["language"]))
    sizes = {name: sorted(data[data["language"] == name]["items"].unique()) for name in languages}
    columns = max(map(len, sizes.values()))
    side = max(0.15, (5.4 - 1.5 * columns - 0.75) / 2)
    figure, axes = style.grid_figure(len(languages), columns, (1.5, 1.35), (0.75 + side, side, 0.15, 1.05))
    names = cells.optimizers(data)
    for i, language in enumerate(languages):
        here = data[data["language"] == language]
        for j in range(columns):
            ax = axes[i, j]
            if j >= len(sizes[language]):
                ax.set_axis_off()
                continue
            panel = here[here["items"] == sizes[language][j]]
            for goal, (dash, _) in LINES.items():
                for optimizer in names:
                    run = panel[(panel["goal"] == goal) & (panel["optimizer"] == optimizer)]
                    run = run[run["n"] == run["n"].max()].drop_duplicates("step")
                    if len(run):
                        cells.line(
                            ax,
                            run["step"],
                            run,
                            optimizer,
                            linestyle=dash,
                            linewidth=1.5 if goal == "rule" else 1.2,
                        )
            ax.text(
                0.05, 0.94, f"{sizes[language][j]} examples", transform=ax.transAxes, fontsize=7, va="top"
            )
        share = cells.share_text(here["rote_share"].iloc[0])
        axes[i, 0].set_ylabel(f"{language}\n({share})\naccuracy", fontsize=8)
    for ax in axes.ravel():
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, data["step"].max() * 1.1)
        ax.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        ax.minorticks_off()
    for j in range(columns):
        last = max(i for i, name in enumerate(languages) if j < len(sizes[name]))
        axes[last, j].tick_params(labelbottom=True)
        axes[last, j].set_xlabel("training step")
    axes[0, 0].set_ylim(-0.03, 1.04)
    axes[0, 0].set_yticks([0, 0.5, 1])
    entries, labels = cells.handles(names)
    entries += [Line2D([], [], color="black", linestyle=dash) for dash, _ in LINES.values()]
    style.legend(figure, entries, [*labels, *(text for _, text in LINES.values())], columns=4)
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds, what the band is."""
    broken = data[data["status"] == "diverged"][RUN].drop_duplicates()
    return (
        "Training from scratch on rote and a rule together: accuracy on held-out instances of the rule (solid) and"
        " recall of the rote items (dotted), per scored token, against the step (logarithmic above 1)."
        " Columns: number of"
        " training examples of the rule. Every optimizer is at its own best learning rate in every panel"
        " (search on seed"
        f" 0). {len(broken)} of {len(data[RUN].drop_duplicates())} runs diverged. Lines: mean over seeds;"
        " bands: interval."
        f" {cells.EXCEPTIONS} {cells.seeds_text(data)}"
    )
