"""``synthlm edge``: the spectral edge of a folder of checkpoints, whoever wrote them, as a table and a figure."""

from pathlib import Path

import numpy as np
import pandas as pd

from synthlm.analysis.edge_statistics import grams, sound
from synthlm.analysis.trajectories import Trace, checkpoint_steps, trace_folder
from synthlm.config import InputError
from synthlm.probes.edge import Edge
from synthlm.seeds import numpy_generator
from synthlm.store import check_writable
from synthlm.table import write_csv

SAMPLES = 99


def steps_found(folder: Path, every: int = 1) -> tuple[str, str]:
    """A line on the checkpoints that are taken (how many, first, last, spacing), and a warning when they do not lie
    equal numbers of steps apart, else nothing.

    Raises:
        InputError: see :func:`synthlm.analysis.trajectories.checkpoint_steps`.
    """
    steps = np.array(list(checkpoint_steps(folder))[::every])
    apart = np.diff(steps)
    head = f"{len(steps)} checkpoints, steps {steps[0]} to {steps[-1]}"
    if len(set(apart)) <= 1:
        return head + "".join(f", {each} apart" for each in apart[:1]), ""
    usual = np.bincount(apart).argmax()
    at = int(np.flatnonzero(apart != usual)[0])
    return f"{head}, {apart.min()} to {apart.max()} apart", (
        f"warning: checkpoints are not equally spaced ({steps[at]} to {steps[at + 1]} are {apart[at]} steps, most "
        f"others {usual}): updates over more steps are longer and smoother, so gaps, norms and turns are not "
        "comparable from window to window; leave out checkpoints until the rest are equally spaced"
    )


def table(
    folder: Path,
    window: int = 10,
    sets: tuple[str, ...] = ("all", "attention"),
    every: int = 1,
    sketch: int | None = None,
    lr: float | None = None,
    samples: int = SAMPLES,
) -> pd.DataFrame:
    """One row a window and parameter set; columns as of the analysis ``edge``, and ``dimension``: the number of
    parameters, or of a sketch their effective dimension. Deterministic.

    Args:
        every: take every so many checkpoints. lr: for the adiabatic parameter; None leaves it out.

    Raises:
        InputError: when the folder is no trajectory that fills a window, no window of a set is of finite updates that
            all have a length, or a setting is wrong.
    """
    frames = []
    analysis = Edge(samples=samples)
    for trace in trace_folder(folder, window, sets, sketch, every):
        _check_moves(trace, folder)
        rate = np.full(len(trace.step), np.nan if lr is None else lr)
        rng = numpy_generator(0, "edge-folder", trace.name)
        found = pd.DataFrame(analysis.windows(trace.rows, trace.dimension, rate, rng))
        found.insert(0, "dimension", trace.dimension)
        found.insert(0, "parameters", trace.parameters)
        found.insert(0, "set", trace.name)
        found.insert(0, "step", trace.step[window - 1 :])
        frames.append(found)
    return pd.concat(frames, ignore_index=True)


def _check_moves(trace: Trace, folder: Path) -> None:
    norms = trace.rows[:, 0]
    if not norms.any():
        raise InputError(
            f"folder: all {len(norms) + 1} checkpoints of {folder} hold equal weights in the set {trace.name!r}; "
            "allowed: sets that training changes"
        )
    if not sound(grams(trace.rows)).any():
        raise InputError(
            f"folder: no window of {trace.rows.shape[1] - 1} updates of the set {trace.name!r} can be analysed: of "
            f"{len(norms)} updates {(norms == 0).sum()} are zero (checkpoints that are equal) and "
            f"{(~np.isfinite(norms)).sum()} are not finite; allowed: at least one window without any"
        )


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
    """A few lines on each parameter set; windows without a spectrum (a zero update, weights that are not finite) are
    left out of every mean, and counted."""
    lines = []
    for name, rows in found.groupby("set", sort=False):
        whole = rows[rows["k_ratio"] > 0]
        if whole.empty:
            raise InputError(f"window: no window of the set {str(name)!r} has a spectrum")
        parameters, dimension = int(rows["parameters"].iloc[0]), float(rows["dimension"].iloc[0])
        sketched = f" (sketched: {dimension:,.0f} dimensions)" if dimension < parameters else ""
        without = len(rows) - len(whole)
        left_out = (
            f", {without} left out (equal checkpoints or weights that are not finite)" if without else ""
        )
        rows = whole
        usual = rows["k_ratio"].mode().iloc[0]
        beyond = (rows["p"] <= 0.05).mean()
        excess = (rows["share"] - rows["share/stationary/mid"]).mean()
        own, null = rows["k_ratio"].mean(), rows["k_ratio/stationary/mean"].mean()
        lines.append(
            f"{name}: {parameters:,} parameters{sketched}, {len(rows)} windows{left_out}\n"
            f"  gap position k* {usual} most often; mean {own:.2f}, of its lag correlation alone {null:.2f}\n"
            f"  gap beyond random directions (p <= 0.05) in {beyond:.0%} of windows\n"
            f"  leading share {rows['share'].mean():.3f}; {excess:+.3f} against updates of the same norms and lag "
            "correlation"
        )
    return "\n".join(lines)
