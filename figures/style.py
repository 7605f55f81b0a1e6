"""One style for all figures: colour by optimizer, line and marker by method and rank, files equal to the
byte.

Colours are those of Okabe and Ito, told apart by all common kinds of colour blindness. No TeX.
"""

import re
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "text.usetex": False,
}

COLORS = {
    "adamw": "#0072B2", "muon": "#D55E00", "sgd": "#009E73", "lion": "#CC79A7", "signsgd": "#CC79A7",
    "soap": "#E69F00", "shampoo": "#E69F00",
}  # fmt: skip
OTHER_COLORS = ("#56B4E9", "#000000", "#F0E442")
NAMES = {
    "adamw": "AdamW", "muon": "Muon", "sgd": "SGD", "lion": "Lion", "signsgd": "signSGD", "soap": "SOAP",
    "shampoo": "Shampoo", "adamw-matched": "AdamW, loss-matched",
}  # fmt: skip
GREY = "#8a8a8a"


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Run ``draw`` under this style, whatever the caller's settings."""

    @wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(RC)
            return draw(*args, **kwargs)

    return wrapped


def new_figure(width: float, height: float) -> Figure:
    """A figure (inches) whose layout keeps labels and outside legends from overlapping."""
    return Figure(figsize=(width, height), layout="constrained")


def grid_figure(
    rows: int,
    columns: int,
    cell: tuple[float, float],
    margins: tuple[float, float, float, float],
    share_y: bool = True,
    gap: float = 0.16,
) -> tuple[Figure, Any]:
    """A figure and its axes [row, column] for many equal panels, laid out by hand (fast, however many
    panels).

    ``cell``: width and height of a panel with its ``gap``, inches. ``margins``: left, right, top, bottom, inches.
    Axes of a column share x, all share y unless ``share_y`` is False.
    """
    left, right, top, bottom = margins
    width, height = left + columns * cell[0] + right, top + rows * cell[1] + bottom
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(
        rows, columns, sharex="col", sharey=share_y, squeeze=False,
        gridspec_kw={
            "left": left / width, "right": 1 - right / width,
            "top": 1 - top / height, "bottom": bottom / height,
            "wspace": gap / (cell[0] - gap), "hspace": gap / (cell[1] - gap),
        },
    )  # fmt: skip
    return figure, axes


@styled
def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem.pdf`` and ``stem.png``, without dates or versions, so that equal figures give equal
    files."""
    pdf, png = stem.with_suffix(".pdf"), stem.with_suffix(".png")
    figure.savefig(png, dpi=150, metadata={"Software": None})
    figure.set_layout_engine("none")  # the layout was found while drawing the PNG
    figure.savefig(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return [pdf, png]


def color(optimizer: str) -> str:
    """The fixed colour of an optimizer; unknown ones get one by their name, the same in every figure."""
    return COLORS.get(optimizer) or OTHER_COLORS[sum(optimizer.encode()) % len(OTHER_COLORS)]


def name(text: str) -> str:
    """An optimizer's or base's name as shown."""
    return NAMES.get(text, text)


def arm_name(method: str, optimizer: str, rank: int) -> str:
    """``full AdamW``, ``LoRA 16 Muon``: method, rank, optimizer."""
    return f"full {name(optimizer)}" if method == "full" else f"LoRA {rank} {name(optimizer)}"


def arm_style(method: str, optimizer: str, rank: int) -> dict[str, Any]:
    """Line and marker of an arm: full is solid with circles; LoRA is broken, the more the smaller its
    rank."""
    line: Any
    if method == "full":
        line, marker = "-", "o"
    elif rank <= 4:
        line, marker = (0, (1, 1.4)), "v"
    elif rank <= 16:
        line, marker = (0, (3.2, 1.6)), "s"
    else:
        line, marker = (0, (5, 1.4, 1, 1.4)), "D"
    return {"color": color(optimizer), "linestyle": line, "marker": marker}


def arm_order(arms: Sequence[tuple[str, str, str, int]]) -> list[tuple[str, str, str, int]]:
    """(arm, method, optimizer, rank) in the order shown: full before LoRA, by optimizer, by rank."""
    return sorted(set(arms), key=lambda arm: (arm[1] != "full", arm[2], arm[3], arm[0]))


def base_order(bases: Sequence[str]) -> list[str]:
    """Bases in the order shown: those named after an optimizer, then their controls beside them."""
    return sorted(set(bases), key=lambda base: (re.split(r"[-_]", base)[0], base))


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int = 6) -> None:
    """A legend below the panels, outside of the data."""
    rows = -(-len(labels) // columns)
    figure.legend(
        handles,
        labels,
        loc="outside lower center" if figure.get_layout_engine() else "lower center",
        ncols=-(-len(labels) // rows),
        handlelength=2.8,
        columnspacing=1.4,
    )
