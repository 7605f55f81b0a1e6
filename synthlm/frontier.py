"""Learning-forgetting frontiers: what is kept of the old language at equal learning of the new one.

Learning is the accuracy on the new language's goal slices, rescaled so that 0 is the base itself (step 0) and
1 is perfect. A finetuning run is the polyline through its evaluations, in (learnt, value). The frontier of a
cell (seed, base, arm, language) is value*(l) = the largest value that any of its runs, at any time, has with
learning >= l; between two evaluations a run is taken to be linear. ``attained:kept`` uses the evaluations
alone, without that interpolation: a lower bound, reported to show what the interpolation does. Source: the
protocol of this project (our own choice).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from synthlm.config import InputError

GRID: NDArray[np.float64] = np.round(np.linspace(0.0, 1.0, 101), 2)
"""Rescaled learning at which every frontier is known."""

LEVELS: NDArray[np.float64] = np.round(np.arange(0.30, 0.951, 0.05), 2)
"""Levels of rescaled learning at which arms are compared: fixed before any result was seen."""

MINIMUM_TOP = 0.5
"""Two arms whose common levels end below this have no common learning: shown, but no part of a verdict."""

ON_GRID: NDArray[np.int64] = np.rint(LEVELS * 100).astype(np.int64)

CELL = ["base", "language", "arm", "seed"]
RUN = [*CELL, "lr", "job"]
ARM = ["method", "optimizer", "rank"]

OUTCOMES = ("kept", "rote", "rule", "loss", "kl", "attained:kept")
"""Larger is better in all: ``loss`` is minus the rise of the old loss since step 0, ``kl`` minus the KL
(nats)."""


def points(table: pd.DataFrame) -> pd.DataFrame:
    """One row per finetuning run and evaluated step, sorted by RUN and step.

    Columns: RUN, ARM, status, step, learnt (accuracy), relative (rescaled learning), kept, rote, rule
    (accuracies on the old language), loss and kl (see OUTCOMES), and start_learnt, start_kept, start_rote,
    start_rule of the base. A point with a non-finite loss is left out: a diverged run counts up to its
    divergence.

    Raises:
        InputError: a cell has no evaluation at step 0, so nothing to measure learning and forgetting against.
    """
    rows = table[(table["kind"] == "finetune") & (table["goal"] != "")]
    rows = rows.sort_values([*RUN, "step", "role", "slice"], kind="stable", ignore_index=True)
    keys = [*RUN, "step"]
    point = rows.groupby(keys).ngroup()
    rows = rows[np.isfinite(rows["loss"]).groupby(point).transform("all")]

    def means(chosen: pd.Series, **columns: str) -> pd.DataFrame:
        """Per point, the mean over the chosen rows: new name = old name."""
        aggregated = rows.loc[chosen, list(columns.values())].groupby(point).mean()
        return aggregated.set_axis(list(columns), axis=1)

    old = rows["role"] == "old"
    parts = [
        means(rows["role"] == "new", learnt="accuracy"),
        means(old, kept="accuracy", loss="loss", kl="kl"),
        means(old & (rows["goal"] == "rote"), rote="accuracy"),
        means(old & (rows["goal"] == "rule"), rule="accuracy"),
    ]
    head = rows[[*keys, *ARM, "status"]].groupby(point).first()
    found = pd.concat([head, *parts], axis=1).sort_index()
    found = found[found["learnt"].notna() & found["kept"].notna()]

    home = ["base", "language", "seed"]
    at_start = found[found["step"] == 0].groupby(home)[["learnt", "kept", "rote", "rule", "loss"]].mean()
    found = found.join(at_start.add_prefix("start_"), on=home)
    lost = found[found["start_learnt"].isna()]
    if len(lost):
        where = ", ".join(f"{name} {lost.iloc[0][name]}" for name in home)
        raise InputError(f"results table: no evaluation at step 0 for {where}")
    room = 1 - found["start_learnt"]
    # A base that already knows the new language has nothing to learn: no level is ever reached.
    found["relative"] = ((found["learnt"] - found["start_learnt"]) / room.where(room > 1e-9)).fillna(-1.0)
    found["loss"] = found["start_loss"] - found["loss"]
    found["kl"] = -found["kl"]
    return found.drop(columns="start_loss").sort_values([*RUN, "step"], kind="stable", ignore_index=True)


@dataclass(frozen=True)
class Frontiers:
    """Frontiers of every cell, and of every run alone.

    ``cells``: one row per cell: CELL, ARM, start_*, top (highest rescaled learning), rates (number of
    learning rates), diverged (number of runs). ``runs``: the same per run, with lr, job, status.
    ``curves[outcome]`` [cell, grid] and ``run_curves[outcome]`` [run, grid]: NaN at levels not reached.
    """

    cells: pd.DataFrame
    runs: pd.DataFrame
    curves: dict[str, NDArray[np.float64]]
    run_curves: dict[str, NDArray[np.float64]]

    def area(self, outcome: str = "kept") -> NDArray[np.float64]:
        """Area under each cell's frontier over rescaled learning in [0, 1]; levels not reached count 0."""
        return _area(self.curves[outcome])

    def run_area(self, outcome: str = "kept") -> NDArray[np.float64]:
        """Area under each run's own frontier."""
        return _area(self.run_curves[outcome])


def _area(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.trapezoid(np.nan_to_num(curves, nan=0.0), GRID, axis=1)


def frontiers(table: pd.DataFrame) -> Frontiers:
    """Frontiers of all cells of a results table (see the module's text and ``points``)."""
    return frontiers_of(points(table))


def frontiers_of(traces: pd.DataFrame) -> Frontiers:
    """Frontiers from the points of ``points``."""
    run_first = _first_rows(traces, RUN)
    runs = traces.iloc[run_first]
    starts = [name for name in traces.columns if name.startswith("start_")]
    runs = runs[[*RUN, *ARM, "status", *starts]].reset_index(drop=True)
    cell_first = _first_rows(runs, CELL)
    relative = traces["relative"].to_numpy()
    same_run = np.ones(max(len(traces) - 1, 0), dtype=bool)
    same_run[run_first[1:] - 1] = False

    run_curves, curves = {}, {}
    for outcome in OUTCOMES:
        value = traces[outcome.removeprefix("attained:")].to_numpy()
        best = _best_values(relative, value, same_run, between=":" not in outcome)
        by_run = np.maximum.reduceat(best, run_first, axis=0) if len(best) else best
        by_cell = np.maximum.reduceat(by_run, cell_first, axis=0) if len(best) else best
        run_curves[outcome] = np.where(np.isfinite(by_run), by_run, np.nan)
        curves[outcome] = np.where(np.isfinite(by_cell), by_cell, np.nan)

    tops = traces.groupby(RUN, sort=False)["relative"].max().to_numpy()
    runs = runs.assign(top=tops)
    grouped = runs.groupby(CELL, sort=False)
    cells = runs.iloc[cell_first].drop(columns=["lr", "job", "status"]).reset_index(drop=True)
    cells["top"] = grouped["top"].max().to_numpy()
    cells["rates"] = grouped["lr"].nunique().to_numpy()
    cells["diverged"] = (
        (runs["status"] == "diverged").groupby([runs[key] for key in CELL], sort=False).sum().to_numpy()
    )
    return Frontiers(cells, runs, curves, run_curves)


def run_area(learnt: NDArray[np.float64], kept: NDArray[np.float64]) -> float:
    """Area under the frontier of one run: accuracies on the new and the old language by step, step 0 first.

    What a learning rate is judged by, here and in a search that widens a sweep. Non-finite steps are left
    out.
    """
    finite = np.isfinite(learnt) & np.isfinite(kept)
    room = 1 - learnt[0]
    if not finite[0] or room <= 1e-9:
        return 0.0
    relative = (learnt[finite] - learnt[0]) / room
    best = _best_values(relative, kept[finite], np.ones(finite.sum() - 1, dtype=bool), between=True).max(
        axis=0
    )
    return float(_area(np.where(np.isfinite(best), best, np.nan)[None])[0])


def _first_rows(frame: pd.DataFrame, keys: list[str]) -> NDArray[np.int64]:
    """Positions of the first row of each group, in a frame sorted by ``keys``."""
    return np.flatnonzero(~frame.duplicated(keys).to_numpy())


def _best_values(
    relative: NDArray[np.float64], value: NDArray[np.float64], same_run: NDArray[np.bool_], between: bool
) -> NDArray[np.float64]:
    """[point, grid]: the largest value with learning >= level at a point and, if ``between``, on the way to
    the next.

    A linear piece is largest at one of its ends or where it crosses the level. -inf where the level is not
    reached.
    """
    value = np.where(np.isfinite(value), value, -np.inf)
    level = GRID[None, :] - 1e-9
    best = np.where(relative[:, None] >= level, value[:, None], -np.inf)
    if between and len(relative) > 1:
        joined = np.flatnonzero(same_run & np.isfinite(value[:-1]) & np.isfinite(value[1:]))
        a, b, va, vb = relative[joined], relative[joined + 1], value[joined], value[joined + 1]
        crosses = (np.minimum(a, b)[:, None] < level) & (level <= np.maximum(a, b)[:, None])
        piece, at = np.nonzero(crosses)
        share = (GRID[at] - a[piece]) / (b[piece] - a[piece])
        crossing = va[piece] + np.clip(share, 0, 1) * (vb[piece] - va[piece])
        best[joined[piece], at] = np.maximum(best[joined[piece], at], crossing)
    return best


def matched_levels(kept: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of LEVELS may be compared: ``kept`` [curve, grid] -> [level], reached by every curve.

    All False when there is no curve or when the common levels end below MINIMUM_TOP (no common learning).
    """
    if not len(kept):
        return np.zeros(len(LEVELS), dtype=bool)
    common: NDArray[np.bool_] = np.asarray(np.isfinite(kept[:, ON_GRID]).all(axis=0))
    if not common.any() or LEVELS[common].max() < MINIMUM_TOP - 1e-9:
        return np.zeros(len(LEVELS), dtype=bool)
    return common


def best_rates(found: Frontiers) -> pd.DataFrame:
    """The best learning rate of each (base, language, arm): the largest mean area of its own runs' frontiers.

    The mean is over the seeds in which that rate was run; ties go to the smaller rate. Columns: base,
    language, arm, lr, area, lowest, highest, rates (how many were swept), edge ("low" or "high" when the best
    is an end of the sweep, "only" when there was one rate, else ""), seeds, agree (seeds whose own best rate
    is this one), runs, diverged.
    """
    runs = found.runs.assign(area=found.run_area())
    records = []
    for (base, language, arm), rows in runs.groupby(["base", "language", "arm"]):
        means = rows.groupby("lr")["area"].mean()
        best = float(means.index[int(means.to_numpy().argmax())])
        own = rows.loc[rows.groupby("seed")["area"].idxmax(), "lr"]
        lowest, highest = float(means.index.min()), float(means.index.max())
        edge = "only" if lowest == highest else {lowest: "low", highest: "high"}.get(best, "")
        records.append({
            "base": base, "language": language, "arm": arm, "lr": best, "area": float(means.max()),
            "lowest": lowest, "highest": highest, "rates": len(means), "edge": edge,
            "seeds": rows["seed"].nunique(), "agree": int((own == best).sum()), "runs": len(rows),
            "diverged": int((rows["status"] == "diverged").sum()),
        })  # fmt: skip
    columns = [
        "base", "language", "arm", "lr", "area", "lowest", "highest", "rates", "edge", "seeds", "agree",
        "runs", "diverged",
    ]  # fmt: skip
    return pd.DataFrame(records, columns=columns)
