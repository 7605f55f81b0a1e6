"""Figures: one module each, with NAME, COLUMNS, KINDS, ``data(table)``, ``draw(data)`` and ``caption(data)``.

``data`` turns the tidy results table into the figure's own table, which is written as CSV; ``draw`` and
``caption`` need nothing but that. KINDS names the kinds of jobs that a figure rests on (of pretraining, the
chosen runs only), the one it is about first.
"""

from pathlib import Path
from typing import Protocol

import pandas as pd
from matplotlib.figure import Figure

from synthlm.config import InputError, choose
from synthlm.figures import forgetting_matrix, frontier, lr_sensitivity, pretraining
from synthlm.table import read_csv


class FigureModule(Protocol):
    """What every figure's module offers."""

    NAME: str
    COLUMNS: tuple[str, ...]
    KINDS: tuple[str, ...]

    def data(self, table: pd.DataFrame, /) -> pd.DataFrame:
        """The figure's own table."""

    def draw(self, data: pd.DataFrame, /) -> Figure:
        """The figure."""

    def caption(self, data: pd.DataFrame, /) -> str:
        """Its caption: what is shown, n, what the intervals are."""


FIGURES: dict[str, FigureModule] = {
    module.NAME: module for module in (frontier, forgetting_matrix, lr_sensitivity, pretraining)
}
"""Every figure by name, in the order of the report."""


def get(name: str) -> FigureModule:
    """The figure of that name.

    Raises:
        InputError: naming the allowed ones.
    """
    return FIGURES[choose("figures", name, list(FIGURES))]


def data_of(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """A figure's own table; without rows when the results hold no job of the kind it is about.

    Raises:
        InputError: no such figure, or a finetuning without step 0.
    """
    module = get(name)
    if not (table["kind"] == module.KINDS[0]).any():
        return pd.DataFrame(columns=list(module.COLUMNS))
    return module.data(table)


def load(name: str, path: Path) -> pd.DataFrame:
    """A figure's data from its CSV.

    Raises:
        InputError: the file cannot be read, or columns are missing.
    """
    data = read_csv(path)
    missing = [column for column in get(name).COLUMNS if column not in data.columns]
    if missing:
        raise InputError(f"{path}: columns {', '.join(missing)} are missing")
    return data
