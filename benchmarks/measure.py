"""What every benchmark shares: the machine's description, ratios over interleaved repeats, tables and CSV files."""

import csv
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from synthlm.engines import usable_cores

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results"


def given(value: T | None) -> T:
    """A setting that the grid in use is known to have."""
    assert value is not None
    return value


def machine() -> str:
    """Processor, usable cores, memory, Python, torch and load, in one line."""
    names = [line.split(":", 1)[1] for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = names[0].strip() if names else platform.processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{processor} ({capability}), {usable_cores()} cores, {memory:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f} at start"
    )


def spread(values: Sequence[float], digits: int = 2) -> str:
    """``median (least - most)``."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def ratios(values: Sequence[float], references: Sequence[float]) -> list[float]:
    """Repeat by repeat, so that what slows a whole round cancels."""
    return [value / reference for value, reference in zip(values, references, strict=True)]


def show(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table in aligned columns."""
    header = list(rows[0])
    cells = [header, *([str(row[name]) for name in header] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def write(name: str, rows: Sequence[Mapping[str, object]], description: str) -> Path:
    """Write ``results/NAME.csv``, with the machine's description and the date as its last columns."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    common = {"machine": description, "date": time.strftime("%Y-%m-%d", time.gmtime())}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *common], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **common} for row in rows)
    return path


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
