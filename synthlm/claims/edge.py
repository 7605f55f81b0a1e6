"""Verdicts on the spectral edge claims S1, S2 and S3, by rules fixed before the numbers are seen.

S1: a gap of the Gram matrix of updates moves before generalization. S2: the gap position depends on the optimizer. S3:
both survive honest nulls. Each run is compared with its control at matched steps; seeds are the units.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from synthlm.claims.verdicts import Cell, Estimate, Verdict, decide, estimate, with_holm
from synthlm.edge_scores import CELL, auc, depths, gap_positions, leads, pairs
from synthlm.statistics import LEVEL

SIGNAL = "g23"
"""The signal that S1 is judged by: the fall of sigma_2^2 - sigma_3^2, the paper's own (its table of grokking runs)."""

OTHER_SIGNALS = {"g23_share": True, "ratio": False, "share": False}
"""Shown beside it: signal -> whether its fall is meant."""

SMALLEST_FALL = round(math.log10(1.5), 6)
"""Smallest effect of interest of S1, log10: the signal falls half as far again as in the control. The paper's falls are
tenfold and more, but so is that of a falling step norm alone."""

SMALLEST_SHIFT = 0.5
"""Smallest effect of interest of S2: half a place of k*. The paper tells of one place."""

POSITION_RULE = "k_ratio"
"""The rule that S2 is judged by: the plain argmax of sigma_j / sigma_(j+1), as the paper defines k*."""

RULES = ("k_ratio", "k_mass", "k_bulk")
FIRST, SECOND = "adamw", "muon"

CONSTANTS = {
    "signal": SIGNAL,
    "smallest_fall": SMALLEST_FALL,
    "smallest_shift": SMALLEST_SHIFT,
    "position_rule": POSITION_RULE,
}

SOURCE = "arXiv 2603.28964"
OURS = "ours: the paper's claims against nulls and controls"

S1_RULE = (
    "Score of a run: how far g23 = sigma_2^2 - sigma_3^2 lies below its maximum so far (log10, median of"
    " the last three windows) at the horizon, the last evaluation before grokking at which held-out"
    " accuracy is still near chance. Effect: score of the main run minus that of its control at the same"
    " step, averaged over tasks and optimizers, one number a seed; pairs whose main run does not"
    f" generalize do not count. Supported: the {LEVEL:.0%} t interval over seeds lies above 0 and the"
    f" effect is at least {SMALLEST_FALL:.3f} (a factor of 1.5). Contradicted: the interval lies below"
    " that, or below 0. Otherwise: inconclusive."
)
S2_RULE = (
    "Effect: mean k* (plain ratio rule, all parameters, over all windows of a main run) under AdamW minus"
    " that under Muon, same task and seed, averaged over tasks, one number a seed. Supported: the"
    f" {LEVEL:.0%} t interval lies above 0 and the effect is at least {SMALLEST_SHIFT:g}. Contradicted:"
    " the interval lies below that, or below 0. Otherwise: inconclusive."
)
S3_RULE = (
    "S1 again with g23 of norm-normalized updates, with g23 over its median under random directions of the"
    " same norms, and over its median under updates of the same norms and lag correlation; S2 again with"
    " k* less the mean k* of such updates. Supported: S1, S2 and each of these by their own rules are."
    " Contradicted: any of them is. Otherwise: inconclusive. The effect shown is the one with the lowest"
    " upper end, in units of its smallest effect of interest."
)

ARTIFACTS = (
    "edge_timeline",
    "edge_leads",
    "edge_positions",
    "edge_spectra",
    "edge_runs.csv",
    "edge_windows.csv",
)


def judge(tables: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Verdicts on S1, S2 and S3 from the tables of the edge study; none without them."""
    runs, windows = tables.get("edge_runs"), tables.get("edge_windows")
    if runs is None or windows is None or runs.empty or windows.empty:
        return []
    windows = windows[windows["condition"].isin(["main", "control"])]
    signals = {SIGNAL: True, **OTHER_SIGNALS}
    moved = depths(runs, windows, signals)
    found = gap_positions(windows, RULES)
    onsets = tables.get("edge_onsets", pd.DataFrame(columns=["signal"]))
    first, robust = _first(runs, moved, onsets), [
        (name, _fall(moved, SIGNAL, variant), SMALLEST_FALL)
        for name, variant in (
            ("S1, norm-normalized updates", "normalized"),
            ("S1, over random directions of the same norms", "directions"),
            ("S1, over updates of the same norms and lag correlation", "stationary"),
        )
    ]  # fmt: skip
    second = _second(found)
    robust.append(
        ("S2, beyond what lag correlation gives", _shift(found, POSITION_RULE, "excess"), SMALLEST_SHIFT)
    )
    return [first, second, _third(first, second, robust)]


def _by_seed(rows: pd.DataFrame, values: pd.Series) -> np.ndarray:
    """Mean over cells, one number a seed."""
    return values.groupby(rows["seed"]).mean().to_numpy(float)


def _counted(moved: pd.DataFrame, signal: str, variant: str) -> pd.DataFrame:
    rows = moved[(moved["signal"] == signal) & (moved["variant"] == variant) & (moved["why"] == "")]
    return rows[np.isfinite(rows["main"]) & np.isfinite(rows["control"])]


def _fall(moved: pd.DataFrame, signal: str, variant: str, name: str = "") -> Estimate:
    rows = _counted(moved, signal, variant)
    return estimate(name or f"{signal}, {variant}", _by_seed(rows, rows["main"] - rows["control"]))


def _cells(moved: pd.DataFrame, runs: pd.DataFrame) -> tuple[Cell, ...]:
    rows = moved[(moved["signal"] == SIGNAL) & (moved["variant"] == "observed")]
    keys, estimates, notes = [], [], []
    for key, group in rows.groupby(CELL):
        good = _counted(group, SIGNAL, "observed")
        keys.append(dict(zip(("task", "optimizer"), map(str, key), strict=True)))
        estimates.append(estimate("/".join(map(str, key)), (good["main"] - good["control"]).to_numpy(float)))
        notes.append("; ".join(sorted(set(group["why"]) - {""})))
    return tuple(
        Cell(
            labels,
            item,
            item.n > 0,
            "" if item.n else note or "no windows before the rise",
            {"left_out": note},
        )
        for labels, item, note in zip(keys, with_holm(estimates), notes, strict=True)
    )


def _first(runs: pd.DataFrame, moved: pd.DataFrame, onsets: pd.DataFrame) -> Verdict:
    effect = _fall(moved, SIGNAL, "observed", "S1")
    verdict, reason = decide(effect, SMALLEST_FALL)
    secondary = [
        *(_fall(moved, name, "observed", f"{name}: {'fall' if falls else 'rise'}, main - control (log10)")
          for name, falls in OTHER_SIGNALS.items()),
        *_areas(moved),
        *_lead_estimates(onsets),
    ]  # fmt: skip
    paired = pairs(runs)
    caveats = [f"{len(paired) - (paired['why'] == '').sum()} of {len(paired)} pairs do not count"]
    main = runs[(runs["condition"] == "main") & np.isfinite(runs["grokked"])]
    late = int((main["memorized"] <= main["rise"]).sum())
    caveats.append(f"{late} of {len(main)} main runs that generalized had memorized before they began to")
    control = runs[(runs["condition"] == "control") & np.isfinite(runs["grokked"])]
    if len(control):
        caveats.append(f"{len(control)} controls generalized in the end")
    return Verdict(
        "S1", "The spectral gap of the rolling-window Gram matrix of updates moves before grokking does.", SOURCE,
        verdict, reason, effect, "fall of g23 before the rise, main - control (log10)", S1_RULE,
        _cells(moved, runs), (), tuple(secondary), ARTIFACTS, tuple(caveats),
    )  # fmt: skip


def _areas(moved: pd.DataFrame) -> list[Estimate]:
    """The area under the ROC curve of each signal's score, main against control, with its interval over seeds."""
    out = []
    for signal in (SIGNAL, *OTHER_SIGNALS):
        for variant in ("observed", "stationary") if signal == SIGNAL else ("observed",):
            rows = _counted(moved, signal, variant)
            name = f"AUC, {signal} ({variant}), main against control (0.5: no better than chance)"
            out.append(Estimate(name, *auc(rows), rows["seed"].nunique(), math.nan))
    return out


def _lead_estimates(onsets: pd.DataFrame) -> list[Estimate]:
    """Lead times of main runs, and how often the same onset is found by the deadline where there is nothing to
    announce."""
    if onsets.empty:
        return []
    found = leads(onsets, SIGNAL)
    out = []
    for condition, source, what in (
        ("main", "observed", "lead of the fall of g23, share of the steps to grokking"),
        ("main", "normalized", "the same of norm-normalized updates"),
    ):
        rows = found[(found["condition"] == condition) & (found["source"] == source)]
        out.append(estimate(what, _by_seed(rows, rows["lead"])))
    for condition, source, what in (
        ("main", "observed", "main runs"),
        ("control", "observed", "controls, by the deadline of their main runs"),
        ("main", "directions", "trajectories of the same norms in random directions"),
        ("main", "stationary", "trajectories of the same norms and lag correlation"),
    ):
        rows = found[(found["condition"] == condition) & (found["source"] == source)]
        hits = rows["lead"].notna().astype(float)
        out.append(estimate(f"share with such a fall before grokking: {what}", _by_seed(rows, hits)))
    return out


def _shift(found: pd.DataFrame, rule: str, column: str, task: str | None = None) -> Estimate:
    rows = found[(found["rule"] == rule) & ((found["task"] == task) | (task is None))]
    wide = rows.pivot_table(index=["task", "seed"], columns="arm", values=column).reset_index()
    name = f"{rule}, {column}" + ("" if task is None else f", {task}")
    if not {FIRST, SECOND} <= set(wide.columns):
        return estimate(name, [])
    difference = wide[FIRST] - wide[SECOND]
    return estimate(name, _by_seed(wide, difference))


def _second(found: pd.DataFrame) -> Verdict:
    effect = _shift(found, POSITION_RULE, "k")
    verdict, reason = decide(effect, SMALLEST_SHIFT)
    labels = [(task, rule) for task in sorted(set(found["task"])) for rule in RULES]
    estimates = with_holm([_shift(found, rule, "k", task) for task, rule in labels])
    cells = tuple(
        Cell(
            {"task": task, "rule": rule}, item, rule == POSITION_RULE and item.n > 0,
            "" if rule == POSITION_RULE and item.n > 0 else ("another rule" if item.n else "nothing to compare"),
        )
        for (task, rule), item in zip(labels, estimates, strict=True)
    )  # fmt: skip
    means = found[found["rule"] == POSITION_RULE].groupby("arm")[["k", "stationary"]].mean()
    caveats = [
        f"mean k* of {arm}: {row['k']:.2f}; of updates of its lag correlation: {row['stationary']:.2f}"
        for arm, row in means.iterrows()
    ]
    return Verdict(
        "S2", "The position of the spectral gap depends on the optimizer: 1 under Muon, 2 under AdamW.", SOURCE,
        verdict, reason, effect, "k* under AdamW - under Muon", S2_RULE, cells, (), (), ARTIFACTS, tuple(caveats),
    )  # fmt: skip


def _third(first: Verdict, second: Verdict, robust: Sequence[tuple[str, Estimate, float]]) -> Verdict:
    items = with_holm([item for _, item, _ in robust])
    outcomes = [decide(item, smallest)[0] for item, (_, _, smallest) in zip(items, robust, strict=True)]
    everything = [first.verdict, second.verdict, *outcomes]
    named = ["S1 itself", "S2 itself", *(name for name, _, _ in robust)]
    if "contradicted" in everything:
        verdict = "contradicted"
        reason = f"contradicted: {'; '.join(n for n, v in zip(named, everything, strict=True) if v == 'contradicted')}"
    elif all(item == "supported" for item in everything):
        verdict, reason = "supported", "S1 and S2 hold, and hold against every null"
    else:
        verdict = "inconclusive"
        reason = (
            f"not settled: {'; '.join(n for n, v in zip(named, everything, strict=True) if v != 'supported')}"
        )
    scaled = [
        Estimate(name, item.effect / least, item.low / least, item.high / least, item.n, item.p, item.p_holm)
        for item, (name, _, least) in zip(items, robust, strict=True)
    ]
    weakest = min(scaled, key=lambda item: item.high if math.isfinite(item.high) else math.inf)
    cells = tuple(
        Cell(
            {"against": name, "verdict": outcome},
            item,
            item.n > 0,
            "" if item.n else "nothing to compare",
            {"smallest": smallest},
        )
        for (name, _, smallest), item, outcome in zip(robust, items, outcomes, strict=True)
    )
    return Verdict(
        "S3", "S1 and S2 survive honest nulls.", OURS, verdict, reason, weakest,
        "effect, each in its own unit", S3_RULE, cells, (), (), ARTIFACTS, (f"shown as the effect: {weakest.name}",),
    )  # fmt: skip
