"""Figure: recall of frequent and of rare items over training, where frequencies are Zipf's."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synthlm.figures import cells, style
from synthlm.tendency import RUN

NAME = "tail_recall"
STUDY = "tendency"
TABLE = "tendency"
COLUMNS = (*RUN, "lr", "status", "part", "step", "recall", *cells.SUMMARY)
LINES: dict[str, tuple[Any, str]] = {
    "tail": ("-", "tail: the rarest items"),
    "head": ((0, (1, 1.2)), "all other items"),
}


def data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cell with a tail slice, optimizer, seed, part (head or tail) and step."""
    rows = table[table["chosen"].astype(bool)]
    tailed = {slice_.removesuffix("/tail") for slice_ in rows["slice"].unique() if slice_.endswith("/tail")}
    part = pd.Series("head", index=rows.index).mask(rows["slice"].str.endswith("/tail"), "tail")
    within = rows["slice"].str.removesuffix("/tail").isin(tailed)
    kept = rows["job"].isin(rows[rows["slice"].str.endswith("/tail")]["job"])
    rows = rows.assign(part=part, recall=rows["accuracy"])[within & kept & rows["loss"].notna()]
    rows = rows.drop(columns="n")
    by = [*RUN[:-1], "part", "step"]
    if rows.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    rows = cells.with_summary(rows, by, "recall")
    return rows[list(COLUMNS)].sort_values([*by, "seed"], kind="stable", ignore_index=True)


@style.styled
def draw(data: pd.DataFrame) -> Figure:
    """Draw the figure from its own data."""
    panels = list(data[["language", "items", "rote_share"]].drop_duplicates().itertuples(index=False))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = style.new_figure(max(2.6 * columns + 0.5, 5.4), 2.2 * rows + 0.9)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    names = cells.optimizers(data)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for index, (ax, (language, items, share)) in enumerate(zip(axes, panels, strict=False)):
        panel = data[
            (data["language"] == language) & (data["items"] == items) & (data["rote_share"] == share)
        ]
        for part, (dash, _) in LINES.items():
            for optimizer in names:
                run = panel[(panel["part"] == part) & (panel["optimizer"] == optimizer)]
                run = run[run["n"] == run["n"].max()].drop_duplicates("step")
                if len(run):
                    cells.line(ax, run["step"], run, optimizer, linestyle=dash)
        ax.set_title(f"{language}, {items} items" + ("" if share == 1 else f", {cells.share_text(share)}"))
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, data["step"].max() * 1.1)
        ax.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        ax.minorticks_off()
        ax.set_xlabel("training step")
        if index % columns == 0:
            ax.set_ylabel("recall per scored token")
    axes[0].set_ylim(-0.03, 1.04)
    entries, labels = cells.handles(names)
    entries += [Line2D([], [], color="black", linestyle=dash) for dash, _ in LINES.values()]
    style.legend(figure, entries, [*labels, *(text for _, text in LINES.values())], columns=4)
    return figure


def caption(data: pd.DataFrame) -> str:
    """What is shown, how many seeds, what the band is."""
    return (
        "Recall of random facts whose frequencies fall as Zipf's law, over training from scratch: the rarest"
        " items (solid)"
        " and all others (dotted), against the step (logarithmic above 1). Each optimizer at its own best"
        " learning rate,"
        " judged by the recall of the frequent items alone (the tail is shown, it does not count)."
        f" Lines: mean over seeds; bands: interval. {cells.seeds_text(data)}"
    )
