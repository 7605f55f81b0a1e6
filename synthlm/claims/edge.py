"""Verdicts on the spectral edge claims S1, S2 and S3, by rules fixed before the numbers are seen.

S1: a gap of the Gram matrix of updates moves before generalization. S2: the gap position depends on the optimizer. S3:
both survive honest nulls. Each run is compared with its control at matched steps; seeds are the units.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from synthlm.claims.verdicts import (
    Cell,
    Estimate,
    Verdict,
    complete_cells,
    decide,
    estimate,
    few_seeds,
    with_holm,
)
from synthlm.edge_scores import CELL, LEAST_SEEDS, RUN, auc, depths, gap_positions, leads, pairs
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
    " step, averaged over tasks and optimizers, one number a seed. Pairs whose main run does not"
    " generalize do not count, and a task and optimizer counts when its pairs of all seeds do, so that every"
    f" seed's number is of the same ones. Supported: the {LEVEL:.0%} t interval over seeds lies above 0 and the"
    f" effect is at least {SMALLEST_FALL:.3f} (a factor of 1.5). Contradicted: the interval lies below"
    " that, or below 0. Otherwise: inconclusive."
)
S2_RULE = (
    "Effect: mean k* (plain ratio rule, all parameters, over all windows of a main run) under AdamW minus"
    " that under Muon, same task and seed, averaged over tasks, one number a seed. The rule asks whether the"
    f" position is smaller under Muon, not whether it is the paper's 1 and 2. Supported: the"
    f" {LEVEL:.0%} t interval lies above 0 and the effect is at least {SMALLEST_SHIFT:g}. Contradicted:"
    " the interval lies below that, or below 0. Otherwise: inconclusive."
)
S3_RULE = (
    "S1 again with g23 of norm-normalized updates, with g23 over its median under random directions of the"
    " same norms, and over its median under updates of the same norms and lag correlation (a strict null: it"
    " takes on what each window's own correlation shows, whatever that comes from); S2 again with k* less"
    " the mean k* of such updates. Supported: S1, S2 and each of these by their own rules are. Contradicted:"
    " any of them is. Otherwise: inconclusive. The effect shown is the one with the lowest upper end, in"
    " units of its smallest effect of interest."
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
    seeds = sorted(set(runs["seed"]))
    moved = depths(runs, windows, {SIGNAL: True, **OTHER_SIGNALS})
    found = gap_positions(windows, RULES)
    robust = [
        (name, _fall(moved, SIGNAL, variant, seeds), SMALLEST_FALL)
        for name, variant in (
            ("S1, norm-normalized updates", "normalized"),
            ("S1, over random directions of the same norms", "directions"),
            ("S1, over updates of the same norms and lag correlation", "stationary"),
        )
    ]
    robust.append(
        (
            "S2, beyond what lag correlation gives",
            _shift(found, POSITION_RULE, "excess", seeds),
            SMALLEST_SHIFT,
        )
    )
    first = _first(runs, windows, moved, tables.get("edge_onsets", pd.DataFrame(columns=["signal"])), seeds)
    second = _second(windows, found, seeds)
    return [first, second, _third(first, second, robust, _removal(tables.get("edge_modes"), seeds))]


def _by_seed(rows: pd.DataFrame, values: pd.Series, seeds: Sequence[int]) -> np.ndarray:
    """Mean over the cells that have a value on every seed, one number a seed; empty without such a cell."""
    complete = complete_cells(rows, [name for name in CELL if name in rows], values, seeds)
    return complete.mean(axis=0).to_numpy(float) if len(complete) else np.empty(0)


def _counted(moved: pd.DataFrame, signal: str, variant: str) -> pd.DataFrame:
    rows = moved[(moved["signal"] == signal) & (moved["variant"] == variant) & (moved["why"] == "")]
    return rows[np.isfinite(rows["main"]) & np.isfinite(rows["control"])]


def _fall(moved: pd.DataFrame, signal: str, variant: str, seeds: Sequence[int], name: str = "") -> Estimate:
    rows = _counted(moved, signal, variant)
    return estimate(name or f"{signal}, {variant}", _by_seed(rows, rows["main"] - rows["control"], seeds))


def _cells(moved: pd.DataFrame, seeds: Sequence[int]) -> tuple[Cell, ...]:
    rows = moved[(moved["signal"] == SIGNAL) & (moved["variant"] == "observed")]
    keys, estimates, notes = [], [], []
    for key, group in rows.groupby(CELL):
        good = _counted(group, SIGNAL, "observed")
        keys.append(dict(zip(("task", "optimizer"), map(str, key), strict=True)))
        estimates.append(estimate("/".join(map(str, key)), (good["main"] - good["control"]).to_numpy(float)))
        notes.append("; ".join(sorted(set(group["why"]) - {""})) or "no windows before the rise")
    return tuple(
        Cell(
            labels,
            item,
            item.n == len(seeds),
            "" if item.n == len(seeds) else f"{item.n} of {len(seeds)} seeds: {note}",
        )
        for labels, item, note in zip(keys, with_holm(estimates), notes, strict=True)
    )


def _first(
    runs: pd.DataFrame, windows: pd.DataFrame, moved: pd.DataFrame, onsets: pd.DataFrame, seeds: Sequence[int]
) -> Verdict:
    effect = _fall(moved, SIGNAL, "observed", seeds, "S1")
    verdict, reason = decide(effect, SMALLEST_FALL)
    attention = depths(runs, windows, {SIGNAL: True}, "attention")
    cells = _cells(moved, seeds)
    secondary = [
        *(_fall(moved, name, "observed", seeds, f"{name}: {'fall' if falls else 'rise'}, main - control (log10)")
          for name, falls in OTHER_SIGNALS.items()),
        _fall(attention, SIGNAL, "observed", seeds, "g23 of the attention matrices: fall, main - control (log10)"),
        *_areas(moved),
        *_lead_estimates(onsets, seeds),
    ]  # fmt: skip
    paired = pairs(runs)
    caveats = [f"{(paired['why'] != '').sum()} of {len(paired)} pairs do not count", *few_seeds(len(seeds))]
    signs = {np.sign(cell.estimate.effect) for cell in cells if cell.counted}
    if len(signs) > 1:
        caveats.append(
            "the effect has both signs among the cells that count: its mean describes none of them"
        )
    main = runs[(runs["condition"] == "main") & np.isfinite(runs["grokked"])]
    late = int((main["memorized"] <= main["rise"]).sum())
    caveats.append(f"{late} of {len(main)} main runs that generalized had memorized before they began to")
    control = runs[(runs["condition"] == "control") & np.isfinite(runs["grokked"])]
    if len(control):
        caveats.append(f"{len(control)} controls generalized in the end")
    if len(seeds) < LEAST_SEEDS:
        caveats.append(f"areas under the curve have no interval: it would take {LEAST_SEEDS} seeds")
    return Verdict(
        "S1", "The spectral gap of the rolling-window Gram matrix of updates moves before grokking does.", SOURCE,
        verdict, reason, effect, "fall of g23 before the rise, main - control (log10)", S1_RULE,
        cells, (), tuple(secondary), ARTIFACTS, tuple(caveats),
    )  # fmt: skip


def _areas(moved: pd.DataFrame) -> list[Estimate]:
    """The area under the ROC curve of each signal's score, main against control of the same task and optimizer."""
    out = []
    for signal in (SIGNAL, *OTHER_SIGNALS):
        for variant in ("observed", "stationary") if signal == SIGNAL else ("observed",):
            rows = _counted(moved, signal, variant)
            name = f"AUC, {signal} ({variant}), main against control (0.5: no better than chance)"
            out.append(Estimate(name, *auc(rows), rows["seed"].nunique(), math.nan))
    return out


def _lead_estimates(onsets: pd.DataFrame, seeds: Sequence[int]) -> list[Estimate]:
    """Lead times of main runs, how often the same onset is found by the deadline where there is nothing to announce,
    and by how much more often in main runs. Leads and shares are positive by their making: they have no p."""
    if onsets.empty:
        return []
    found = leads(onsets, SIGNAL)

    def rows(condition: str, source: str) -> pd.DataFrame:
        return found[(found["condition"] == condition) & (found["source"] == source)]

    out = []
    for source, what in (
        ("observed", "lead of the fall of g23, share of the steps to grokking"),
        ("normalized", "the same of norm-normalized updates"),
    ):
        here = rows("main", source)
        out.append(replace(estimate(what, _by_seed(here, here["lead"], seeds)), p=math.nan))
    hits = {}
    for condition, source, what in (
        ("main", "observed", "main runs"),
        ("control", "observed", "controls, by the deadline of their main runs"),
        ("main", "directions", "trajectories of the same norms in random directions"),
        ("main", "stationary", "trajectories of the same norms and lag correlation"),
    ):
        here = rows(condition, source)
        hits[what] = _by_seed(here, here["lead"].notna(), seeds)
        name = f"share with such a fall before grokking: {what}"
        out.append(replace(estimate(name, hits[what]), p=math.nan))
    main, *others = hits.items()
    for what, values in others:
        if len(values) == len(main[1]):
            out.append(estimate(f"that share, main runs - {what}", main[1] - values))
    return out


def _shift(
    found: pd.DataFrame, rule: str, column: str, seeds: Sequence[int], task: str | None = None, name: str = ""
) -> Estimate:
    """k* under the first optimizer minus under the second, same task and seed."""
    rows = found[(found["rule"] == rule) & ((found["task"] == task) | (task is None))]
    wide = rows.pivot_table(index=["task", "seed"], columns="arm", values=column).reset_index()
    name = name or f"{rule}, {column}" + ("" if task is None else f", {task}")
    if not {FIRST, SECOND} <= set(wide.columns):
        return estimate(name, [])
    return estimate(name, _by_seed(wide, wide[FIRST] - wide[SECOND], seeds))


def _second(windows: pd.DataFrame, found: pd.DataFrame, seeds: Sequence[int]) -> Verdict:
    effect = _shift(found, POSITION_RULE, "k", seeds)
    verdict, reason = decide(effect, SMALLEST_SHIFT)
    labels = [(task, rule) for task in sorted(set(found["task"])) for rule in RULES]
    estimates = with_holm([_shift(found, rule, "k", seeds, task) for task, rule in labels])
    cells = tuple(
        Cell(
            {"task": task, "rule": rule}, item, rule == POSITION_RULE and item.n > 0,
            "" if rule == POSITION_RULE and item.n > 0 else ("another rule" if item.n else "nothing to compare"),
        )
        for (task, rule), item in zip(labels, estimates, strict=True)
    )  # fmt: skip
    before = windows[~(windows["step"] > windows["grokked"])]
    secondary = [
        _shift(gap_positions(windows, RULES, "attention"), POSITION_RULE, "k", seeds,
               name="attention matrices alone: k* under AdamW - under Muon"),
        _shift(gap_positions(before, RULES), POSITION_RULE, "k", seeds,
               name="windows up to grokking alone: k* under AdamW - under Muon"),
    ]  # fmt: skip
    plain = found[found["rule"] == POSITION_RULE]
    for arm, column, value in ((FIRST, "at_2", 2), (SECOND, "at_1", 1)):
        rows = plain[plain["arm"] == arm]
        share = estimate(
            f"share of windows with k* = {value} under {arm}", _by_seed(rows, rows[column], seeds)
        )
        secondary.append(replace(share, p=math.nan))
    means = plain.groupby("arm")[["k", "stationary"]].mean()
    caveats = few_seeds(len(seeds)) + [
        f"mean k* of {arm}: {row['k']:.2f}; of updates of its lag correlation: {row['stationary']:.2f}"
        for arm, row in means.iterrows()
    ]
    return Verdict(
        "S2", "The position of the spectral gap depends on the optimizer: smaller under Muon than under AdamW (the"
        " paper: 1 and 2).", SOURCE,
        verdict, reason, effect, "k* under AdamW - under Muon", S2_RULE, cells, (), tuple(secondary), ARTIFACTS,
        tuple(caveats),
    )  # fmt: skip


def _removal(modes: pd.DataFrame | None, seeds: Sequence[int]) -> Estimate:
    """How much more the loss rises when the leading mode is taken out of the update since the start than when as much
    is taken in random directions; at the last checkpoint with modes up to grokking."""
    name = "the leading mode removed - as much removed in random directions, up to grokking: rise of the loss (nats)"
    if modes is None or modes.empty:
        return estimate(name, [])
    rows = modes[(modes["condition"] == "main") & (modes["origin"] == "update") & (modes["mode"] == 1)]
    rows = rows[rows["kind"].isin(["mode", "matched"]) & (rows["step"] <= rows["grokked"])]
    rows = rows[rows["step"] == rows.groupby(RUN)["step"].transform("max")]
    wide = rows.pivot_table(index=RUN, columns="kind", values="loss").reset_index()
    if not {"mode", "matched"} <= set(wide.columns):
        return estimate(name, [])
    return estimate(name, _by_seed(wide, wide["mode"] - wide["matched"], seeds))


def _third(
    first: Verdict, second: Verdict, robust: Sequence[tuple[str, Estimate, float]], removal: Estimate
) -> Verdict:
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
        "effect, each in its own unit", S3_RULE, cells, (), (removal,),
        (*ARTIFACTS, "edge_removal"), (f"shown as the effect: {weakest.name}",),
    )  # fmt: skip
