"""Figure: the adiabatic parameter over the phases of training, forgetting included."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import edge_style, style
from synthlm.statistics import bootstrap_table

NAME = "edge_adiabatic"
STUDY = "edge"
TABLE = "edge_windows"
PHASES = {
    "fitting": "fitting",
    "plateau": "plateau",
    "transition": "transition",
    "after": "after",
    "control plateau": "plateau of\nthe control",
    "forgetting": "forgetting",
}
MEASURES = {
    "adiabatic_sigma": "$\\|\\Delta C\\|_F/(\\eta g^2)$, $g=\\sigma_{k^*}-\\sigma_{k^*+1}$",
    "adiabatic_lambda": "$\\|\\Delta C\\|_F/(\\eta g^2)$, $g=\\lambda_{k^*}-\\lambda_{k^*+1}$",
    "turning": "without units: $\\|\\Delta C\\|_F/(\\lambda_{k^*}-\\lambda_{k^*+1})$",
}
COLUMNS = (
    "measure",
    "phase",
    "source",
    "task",
    "arm",
    "seed",
    "value",
    "mean",
    "low",
    "high",
    "n",
    "interval",
)


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per run, phase and measure: the median over its windows of all parameters (log10 in ``value``); mean and
    interval over the seeds' means of an optimizer."""
    rows = table[table["set"] == "all"].copy()
    rows.loc[(rows["condition"] == "control") & (rows["phase"] == "plateau"), "phase"] = "control plateau"
    rows = rows[(rows["condition"] != "control") | (rows["phase"] == "control plateau")]
    frames = []
    for measure in MEASURES:
        values = rows[measure].to_numpy(float)
        logs = pd.Series(
            np.where(values > 0, np.log10(np.where(values > 0, values, 1.0)), np.nan), rows.index
        )
        keys = ["phase", "source", "task", "arm", "seed"]
        runs = logs.groupby([rows[key] for key in keys]).median().rename("value").reset_index()
        by_seed = runs.groupby(["phase", "source", "arm", "seed"])["value"].mean().unstack("seed")
        summary = bootstrap_table(by_seed.to_numpy(float)).set_index(by_seed.index)
        frames.append(runs.join(summary, on=["phase", "source", "arm"]).assign(measure=measure))
    found = pd.concat(frames, ignore_index=True)
    return found[list(COLUMNS)].sort_values(
        ["measure", "phase", "source", "arm", "task", "seed"], kind="stable", ignore_index=True
    )


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    figure = style.new_figure(3.5 * len(MEASURES) + 0.3, 3.9)
    axes = figure.subplots(1, len(MEASURES), squeeze=False)[0]
    own = data[data["source"] == "edge"]
    arms = sorted(set(own["arm"]))
    other = data[data["source"] != "edge"]
    for ax, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        for place, phase in enumerate(PHASES):
            for index, arm in enumerate(arms):
                rows = own[(own["measure"] == measure) & (own["phase"] == phase) & (own["arm"] == arm)]
                if rows.empty:
                    continue
                x = place + (index - (len(arms) - 1) / 2) * 0.2
                ax.plot(
                    [x] * len(rows),
                    10 ** rows["value"],
                    "o",
                    color=style.color(arm),
                    markersize=2.4,
                    alpha=0.5,
                )
                first = rows.iloc[0]
                ends = (
                    10 ** np.array([[first["low"]], [first["high"]]]) if np.isfinite(first["low"]) else None
                )
                mean = 10 ** first["mean"]
                error = None if ends is None else np.abs(ends - mean)
                ax.errorbar(
                    x, mean, error, fmt="D", color=style.color(arm), markersize=4, capsize=2, linewidth=1.1
                )
            rows = other[(other["measure"] == measure) & (other["phase"] == phase)]
            ax.plot(
                [place + 0.42] * len(rows), 10 ** rows["value"], "x", color="black", markersize=3.5, alpha=0.6
            )
        ax.axhline(1, color=style.GREY, linewidth=0.8, linestyle=(0, (1, 2)))
        ax.set_yscale("log")
        ax.set_title(label, fontsize=8.5)
        ax.set_xticks(range(len(PHASES)), PHASES.values(), rotation=40, ha="right", rotation_mode="anchor")
        ax.set_xlim(-0.55, len(PHASES) - 0.4)
    axes[0].set_ylabel("adiabatic parameter")
    handles = [Line2D([], [], color=style.color(arm), marker="D", markersize=4) for arm in arms]
    labels = [f"{style.name(arm)}, mean over seeds" for arm in arms]
    if len(other):
        handles.append(Line2D([], [], color="black", marker="x", linestyle="none", markersize=3.5))
        labels.append("full finetuning of the learning-forgetting study")
    style.legend(figure, handles, labels, columns=4)
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, n, what the intervals are."""
    own = data[data["source"] == "edge"]
    n = int(own["n"].max()) if len(own) else 0
    return (
        "The adiabatic parameter by phase: medians over the windows of a run (dots), their mean over"
        " tasks and seeds, log10. The paper predicts far below 1 on the plateau, about 1 in the"
        " transition (dotted line), far above 1 in forgetting, and does not say which gap is meant: both"
        " are shown. They carry the units of the learning rate and of squared updates, so 1 is no natural"
        " mark for them; the third measure has no units. Forgetting: main runs finetuned on the same kind"
        " of language drawn anew. The plateau of a main run that never generalizes lasts to its end."
        f" {edge_style.interval_text(n)}{edge_style.fewer(own, ('phase', 'arm'))}"
    )
