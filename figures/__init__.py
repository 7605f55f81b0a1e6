"""Figures: one module each, with NAME, STUDY, TABLE, COLUMNS, ``data(table)``, ``draw(data)`` and ``caption(data)``.

``data`` turns a study's tidy table into the figure's own table, which is written as CSV; ``draw`` and
``caption`` need nothing but that. A module may name KINDS of jobs, the one that it is about first, when its table
holds others too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd
from matplotlib.figure import Figure

from synthlm.config import InputError, choose
from synthlm.figures import (
    activation_sizes,
    activation_statistics,
    basin_widths,
    basins,
    capacity,
    certificate,
    corruption,
    counterfactual,
    data_needed,
    edge_adiabatic,
    edge_leads,
    edge_positions,
    edge_removal,
    edge_spectra,
    edge_timeline,
    exposure,
    forgetting_curves,
    forgetting_matrix,
    forgetting_predictors,
    frontier,
    landscape,
    lr_sensitivity,
    plane,
    predictor_scores,
    pretraining,
    rote_rule_curves,
    rule_at_recall,
    sharpness_matrix,
    small_data,
    spectral_density,
    tail_recall,
    tendency_map,
)
from synthlm.table import read_csv


class FigureModule(Protocol):
    """What every figure's module offers."""

    NAME: str
    STUDY: str
    """The study that it belongs to."""
    TABLE: str
    """The study's table that it is made from; a column ``job`` tells what each row rests on."""
    COLUMNS: tuple[str, ...]
    """Columns of its own table, ``n`` among them."""

    def data(self, table: pd.DataFrame, /) -> pd.DataFrame:
        """The figure's own table."""

    def draw(self, data: pd.DataFrame, /) -> Figure:
        """The figure."""

    def caption(self, data: pd.DataFrame, /) -> str:
        """Its caption: what is shown, n, what the intervals are."""


FIGURES: dict[str, FigureModule] = {
    module.NAME: module
    for module in (
        frontier,
        forgetting_matrix,
        lr_sensitivity,
        pretraining,
        activation_sizes,
        activation_statistics,
        landscape,
        sharpness_matrix,
        spectral_density,
        plane,
        basins,
        basin_widths,
        certificate,
        forgetting_predictors,
        predictor_scores,
        rote_rule_curves,
        rule_at_recall,
        tendency_map,
        data_needed,
        tail_recall,
        small_data,
        counterfactual,
        exposure,
        capacity,
        corruption,
        forgetting_curves,
        edge_timeline,
        edge_spectra,
        edge_leads,
        edge_positions,
        edge_adiabatic,
        edge_removal,
    )
}
"""Every figure by name, in the order of the report."""


def get(name: str) -> FigureModule:
    """The figure of that name.

    Raises:
        InputError: naming the allowed ones.
    """
    return FIGURES[choose("figures", name, list(FIGURES))]


def studies(names: Sequence[str]) -> list[str]:
    """The studies that figures of these names belong to.

    Raises:
        InputError: when there is no such figure.
    """
    return list(dict.fromkeys(get(name).STUDY for name in names))


def _rows(name: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    """The rows that a figure rests on: of jobs of its KINDS (all, when it names none), and of pretraining runs in
    a sweep the chosen ones alone."""
    module = get(name)
    table = tables.get(module.TABLE)
    kinds = getattr(module, "KINDS", ())
    if table is None or not kinds:
        return table
    if not (table["kind"] == kinds[0]).any():
        return table.iloc[:0]
    return table[table["kind"].isin(kinds) & ((table["kind"] != "pretrain") | table["chosen"])]


def data_of(name: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A figure's own table; without rows when its study has no results for it yet.

    Raises:
        InputError: no such figure, or a finetuning without step 0.
    """
    rows = _rows(name, tables)
    module = get(name)
    if rows is None or rows.empty:
        return pd.DataFrame(columns=list(module.COLUMNS))
    return module.data(tables[module.TABLE])


def jobs_of(name: str, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The jobs that a figure rests on, by the first 12 digits of their keys."""
    rows = _rows(name, tables)
    return [] if rows is None else sorted(set(rows["job"]))


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
