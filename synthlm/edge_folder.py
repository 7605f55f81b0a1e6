"""``synthlm edge``: the spectral edge of a folder of checkpoints, whoever wrote them, as a table and a figure."""

from pathlib import Path

import numpy as np
import pandas as pd

from synthlm.analysis.trajectories import trace_folder
from synthlm.config import InputError
from synthlm.probes.edge import Edge
from synthlm.seeds import numpy_generator
from synthlm.store import check_writable
from synthlm.table import write_csv

SAMPLES = 99


def table(
    folder: Path,
    window: int = 10,
    sets: tuple[str, ...] = ("all", "attention"),
    every: int = 1,
    sketch: int | None = None,
    lr: float | None = None,
    samples: int = SAMPLES,
) -> pd.DataFrame:
    """One row a window and parameter set; columns as of the analysis ``edge``. Deterministic.

    Args:
        every: take every so many checkpoints. lr: for the adiabatic parameter; None leaves it out.

    Raises:
        InputError: when the folder is no trajectory that fills a window, or a setting is wrong.
    """
    frames = []
    analysis = Edge(samples=samples)
    for trace in trace_folder(folder, window, sets, sketch, every):
        rate = np.full(len(trace.step), np.nan if lr is None else lr)
        rng = numpy_generator(0, "edge-folder", trace.name)
        found = pd.DataFrame(analysis.windows(trace.rows, trace.parameters, rate, rng))
        found.insert(0, "parameters", trace.parameters)
        found.insert(0, "set", trace.name)
        found.insert(0, "step", trace.step[window - 1 :])
        frames.append(found)
    return pd.concat(frames, ignore_index=True)


def write(found: pd.DataFrame, out: Path, source: str) -> list[Path]:
    """Write ``edge.csv``, ``edge.png`` and ``edge.pdf`` into a folder.

    Raises:
        InputError: when the folder cannot be written.
    """
    from synthlm.figures import edge_folder, style

    check_writable(out, "out")
    path = out / "edge.csv"
    write_csv(found, path)
    return [path, *style.save(edge_folder.draw(found, source), out / "edge")]


def summary(found: pd.DataFrame) -> str:
    """A few lines on each parameter set."""
    lines = []
    for name, rows in found.groupby("set", sort=False):
        if not len(rows):
            raise InputError("window: no window is full")
        usual = rows["k_ratio"].mode().iloc[0]
        beyond = (rows["p"] <= 0.05).mean()
        excess = (rows["share"] - rows["share/stationary/mid"]).mean()
        own, null = rows["k_ratio"].mean(), rows["k_ratio/stationary/mean"].mean()
        lines.append(
            f"{name}: {int(rows['parameters'].iloc[0]):,} parameters, {len(rows)} windows\n"
            f"  gap position k* {usual} most often; mean {own:.2f}, of its lag correlation alone {null:.2f}\n"
            f"  gap beyond random directions (p <= 0.05) in {beyond:.0%} of windows\n"
            f"  leading share {rows['share'].mean():.3f}; {excess:+.3f} against updates of the same norms and lag "
            "correlation"
        )
    return "\n".join(lines)
