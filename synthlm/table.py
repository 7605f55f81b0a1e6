"""The tidy results table: its columns, its fixed order, and CSV files that read back to the same numbers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.csv

from synthlm.config import InputError

TEXT = (
    "job", "kind", "base", "arm", "method", "optimizer", "language", "status", "role", "slice", "goal",
)  # fmt: skip
"""Columns of text; a job's 12 hex digits would otherwise read back as a number now and then."""

COLUMNS = (
    "job", "kind", "seed", "base", "arm", "method", "optimizer", "rank", "language", "lr", "steps_total",
    "status", "chosen", "step", "role", "slice", "goal", "loss", "floor", "accuracy", "exact", "kl", "n",
)  # fmt: skip
"""One row is one job x evaluation step x slice. Losses, floor and kl are nats per scored token."""

ORDER = [
    "kind", "base", "language", "arm", "seed", "lr", "steps_total", "job", "step", "role", "slice", "goal",
]  # fmt: skip


def stacked(parts: Iterable[tuple[Mapping[str, Any], Mapping[str, Sequence[Any]]]]) -> pd.DataFrame:
    """One table of many parts, each made of values that all its rows share and of columns of equal length.

    A column of numbers may hold None, which becomes NaN. Made at once: thousands of small frames would take seconds.
    """
    columns: dict[str, list[Any]] = {}
    for shared, body in parts:
        count = max(map(len, body.values()), default=0)
        for name, value in shared.items():
            columns.setdefault(name, []).extend([value] * count)
        for name, values in body.items():
            columns.setdefault(name, []).extend(values)
    frame = pd.DataFrame(columns)
    for name in frame.columns[frame.isna().all()]:
        frame[name] = frame[name].astype(float)
    return frame


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """The table in its fixed order of rows and columns, so that equal results give equal files.

    Raises:
        InputError: naming the columns that are missing.
    """
    if not len(table.columns):  # a study without any result
        table = pd.DataFrame(columns=list(COLUMNS))
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"results table: columns {', '.join(missing)} are missing")
    others = sorted(name for name in table.columns if name not in COLUMNS)
    table = table[[*COLUMNS, *others]].copy()
    for name in TEXT:
        table[name] = table[name].fillna("").astype(str)
    for name in ("seed", "rank", "steps_total", "step", "n"):
        table[name] = table[name].fillna(0).astype("int64")
    for name in ("lr", "loss", "floor", "accuracy", "exact", "kl"):
        table[name] = table[name].astype(float)
    table["chosen"] = table["chosen"].eq(True)
    return table.sort_values(ORDER, kind="stable", ignore_index=True)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """CSV in UTF-8, ``\\n`` line ends, floats in their shortest form that reads back to the same bits."""
    frame.to_csv(path, index=False, na_rep="nan", lineterminator="\n", encoding="utf-8")


def read_csv(path: Path) -> pd.DataFrame:
    """Read what ``write_csv`` wrote; empty text stays empty text.

    Raises:
        InputError: the file is missing or not a table.
    """
    try:
        options = pyarrow.csv.ConvertOptions(
            column_types={name: pyarrow.string() for name in TEXT},
            null_values=["nan"],
            strings_can_be_null=False,
        )
        found = pyarrow.csv.read_csv(path, convert_options=options)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise InputError(f"{path}: not a readable table ({error})") from None
    empty = [field.name for field in found.schema if pyarrow.types.is_null(field.type)]
    frame: pd.DataFrame = found.to_pandas()
    return frame.astype(dict.fromkeys(empty, float))
