"""From the edge study's tables to one number a run: how far a signal has moved before generalization is to be seen.

A main run is compared with its control at matched steps: both are looked at up to the *horizon*, the last evaluation at
which the main run's held-out accuracy is still near chance. Signals are positive series over windows; what counts is
how far one has fallen below its maximum so far (log10), by the same rule in every run and null. All rules are ours.
"""

import numpy as np
import pandas as pd

from synthlm.analysis.onsets import HOLD, depth
from synthlm.seeds import numpy_generator

CELL = ["task", "arm"]
RUN = [*CELL, "seed"]

VARIANTS = ("observed", "normalized", "directions", "stationary")
"""As it is; of updates divided by their norms; over the median of random directions of the same norms; over the median
of updates of the same norms and lag correlation."""

RESAMPLES = 1999
LEAST_SEEDS = 5
"""Fewest seeds of which resamples give an interval."""


def series(windows: pd.DataFrame, signal: str, variant: str) -> np.ndarray:
    """A signal ``[row]`` under a variant, from the table ``edge_windows``."""
    if variant == "observed":
        return windows[signal].to_numpy(float)
    if variant == "normalized":
        return windows[f"{signal}/normalized"].to_numpy(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return windows[signal].to_numpy(float) / windows[f"{signal}/{variant}/mid"].to_numpy(float)


def depth_at(steps: np.ndarray, values: np.ndarray, horizon: float, falling: bool = True) -> float:
    """How far a series has moved by the horizon, log10: the median over the last ``HOLD`` windows up to it. NaN when
    there are fewer."""
    order = np.argsort(steps, kind="stable")
    before = order[steps[order] <= horizon]
    moved = depth(values[before], falling)
    moved = moved[np.isfinite(moved)]
    return float(np.median(moved[-HOLD:])) if len(moved) >= HOLD else float("nan")


def pairs(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a (task, arm, seed): horizon, deadline, and ``why`` the pair does not count (empty when it does)."""
    rows = []
    for key, group in runs.groupby(RUN):
        both = group.set_index("condition")
        why = ""
        if not {"main", "control"} <= set(both.index):
            why = "a run is missing"
        elif not np.isfinite(both.loc["main", "grokked"]):
            why = "the main run did not generalize"
        elif not np.isfinite(both.loc["main", "rise"]):
            why = "no evaluation before the rise"
        elif both.loc["control", "grokked"] <= both.loc["main", "grokked"]:
            why = "the control generalized no later"
        first = group.iloc[0]
        rows.append([*key, float(first["horizon"]), float(first["deadline"]), why])
    return pd.DataFrame(rows, columns=[*RUN, "horizon", "deadline", "why"])


def depths(
    runs: pd.DataFrame, windows: pd.DataFrame, signals: dict[str, bool], parameters: str = "all"
) -> pd.DataFrame:
    """How far each signal has moved by the horizon: one row a pair, signal and variant, with columns ``main`` and
    ``control`` (log10) and ``why``.

    Args:
        signals: signal -> whether its fall is meant. parameters: the parameter set.
    """
    here = windows[windows["set"] == parameters]
    by_run = dict(iter(here.groupby([*RUN, "condition"])))
    rows = []
    for pair in pairs(runs).itertuples(index=False):
        key = (pair.task, pair.arm, pair.seed)
        for signal, falling in signals.items():
            for variant in VARIANTS:
                moved = {}
                for condition in ("main", "control"):
                    found = by_run.get((*key, condition))
                    moved[condition] = (
                        float("nan")
                        if found is None
                        else depth_at(
                            found["step"].to_numpy(float),
                            series(found, signal, variant),
                            pair.horizon,
                            falling,
                        )
                    )
                rows.append([*key, signal, variant, moved["main"], moved["control"], pair.why])
    return pd.DataFrame(rows, columns=[*RUN, "signal", "variant", "main", "control", "why"])


def auc(scores: pd.DataFrame) -> tuple[float, float, float]:
    """Chance that a main run's score is above that of a control of its own task and arm, averaged over these cells.

    ``scores``: columns of ``CELL``, seed, main, control. With the 95% percentile interval over seeds, resampled whole;
    NaN with fewer than ``LEAST_SEEDS``, of which there are too few resamples.
    """
    seeds = sorted(set(scores["seed"]))
    place = {seed: i for i, seed in enumerate(seeds)}
    wins, count = [], []
    for _, rows in scores.groupby(CELL):
        # wins and comparisons of every pair of seeds: a resample only weighs them
        wins.append(np.zeros((len(seeds), len(seeds))))
        count.append(np.zeros((len(seeds), len(seeds))))
        at = rows["seed"].map(place).to_numpy()
        difference = rows["main"].to_numpy(float)[:, None] - rows["control"].to_numpy(float)
        wins[-1][np.ix_(at, at)] = (difference > 0) + 0.5 * (difference == 0)
        count[-1][np.ix_(at, at)] = np.isfinite(difference)
    if not wins:
        return float("nan"), float("nan"), float("nan")
    won, of = np.stack(wins), np.stack(count)

    def area(weight: np.ndarray) -> np.ndarray:
        """``[sample, seed] -> [sample]``."""
        with np.errstate(invalid="ignore"):
            cells = [np.einsum("...i,cij,...j->...c", weight, each, weight) for each in (won, of)]
            return np.nanmean(cells[0] / cells[1], axis=-1)

    value = float(area(np.ones(len(seeds))))
    if len(seeds) < LEAST_SEEDS:
        return value, float("nan"), float("nan")
    rng = numpy_generator(0, "auc")
    weight = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=RESAMPLES)
    low, high = np.nanquantile(area(weight.astype(float)), [0.025, 0.975])
    return value, float(low), float(high)


def leads(onsets: pd.DataFrame, signal: str) -> pd.DataFrame:
    """One row a pair that counts, condition, source and sample: ``lead``, the share of the main run's way to
    generalization that is left when the signal's move is known, (deadline - onset) / deadline.

    NaN where there is no onset by the deadline. Controls are judged by their main run's deadline: their leads are false
    alarms. Sources: observed, normalized, and trajectories drawn from the nulls.
    """
    found = onsets[(onsets["signal"] == signal) & (onsets["why"] == "")]
    deadline = found["deadline"].to_numpy(float)
    onset = found["onset"].to_numpy(float)
    lead = np.where(onset <= deadline, (deadline - onset) / deadline, np.nan)
    return found[[*RUN, "job", "condition", "source", "sample", "deadline"]].assign(lead=lead)


def gap_positions(windows: pd.DataFrame, rules: tuple[str, ...], parameters: str = "all") -> pd.DataFrame:
    """Mean k* over the windows of each main run that have one: one row a run and rule, with ``k``, ``stationary`` (what
    its own lag correlation gives) and ``excess``, their difference, and ``at_1`` and ``at_2``, the shares of windows
    whose k* is 1 and 2."""
    here = windows[(windows["set"] == parameters) & (windows["condition"] == "main")]
    rows = []
    for key, group in here.groupby([*RUN, "job"]):
        for rule in rules:
            k = group[rule].to_numpy(float)
            null = group[f"{rule}/stationary/mean"].to_numpy(float)
            found = (k > 0) & np.isfinite(null)
            values = [k, null, k - null, k == 1, k == 2]
            means = [float(each[found].mean()) if found.any() else float("nan") for each in values]
            rows.append([*key, rule, *means, int(found.sum())])
    names = ["k", "stationary", "excess", "at_1", "at_2", "windows"]
    return pd.DataFrame(rows, columns=[*RUN, "job", "rule", *names])
