"""Verdicts on the claims about learning and forgetting, by a rule fixed before the numbers are seen.

C1: full finetuning with the pretraining optimizer (the matched arm) keeps more, at the same learning, than
full finetuning with another optimizer. C2: it keeps more than LoRA. The effect of one cell (base, language,
other arm) and seed is the matched arm's frontier minus the other arm's, averaged over the matched levels; a
seed's effect is the mean over its cells; the verdict is a paired t interval over seeds.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from synthlm.bases import PASS_ACCURACY, base_optimizers, judge_bases, passed_pairs
from synthlm.claims.verdicts import Cell, Estimate, Verdict, decide, estimate, few_seeds, with_holm
from synthlm.frontier import (
    LEVELS,
    MINIMUM_TOP,
    ON_GRID,
    OUTCOMES,
    Frontiers,
    best_rates,
    frontiers,
    matched_levels,
)
from synthlm.statistics import LEVEL

SMALLEST_EFFECT = 0.02
"""Smallest effect of interest: two points of accuracy on the old language."""

ALPHA = round(1 - LEVEL, 6)

RULE = (
    "Effect: old accuracy kept by the matched arm minus that kept by the other arm at the same learning"
    f" (rescaled learning {LEVELS[0]:.2f} to {LEVELS[-1]:.2f} in steps of 0.05, as far as both arms get in"
    f" every seed; cells whose common levels end below {MINIMUM_TOP:g} have no common learning and do not"
    " count), averaged over levels, then over cells, one number a seed. Bases that failed pretraining do"
    f" not count, nor do control bases. Supported: the {LEVEL:.0%} t interval over paired seeds lies above 0"
    f" and the effect is at least {SMALLEST_EFFECT:g}. Contradicted: the interval lies below"
    f" {SMALLEST_EFFECT:g}, the smallest effect of interest. Otherwise, and with fewer than two seeds:"
    f" inconclusive. p values of cells and groups are Holm-corrected (alpha {ALPHA:g})."
)


@dataclass(frozen=True)
class Claim:
    """A claim: its text, where it comes from, and which arms (a row of ``Frontiers.cells``) it sets
    against."""

    name: str
    statement: str
    source: str
    against: Callable[[pd.Series, str], bool]


CLAIMS = (
    Claim(
        "C1",
        "Full finetuning with the pretraining optimizer forgets less, at the same learning of the new task,"
        " than full finetuning with another optimizer.",
        "arXiv 2605.06654; arXiv 2605.10468",
        lambda arm, optimizer: arm["method"] == "full" and arm["optimizer"] != optimizer,
    ),
    Claim(
        "C2",
        "Full finetuning with the pretraining optimizer forgets less, at the same learning of the new task,"
        " than LoRA.",
        "arXiv 2605.06654; arXiv 2605.10468 disagrees in part",
        lambda arm, optimizer: arm["method"] == "lora",
    ),
)

CONSTANTS = {
    "smallest_effect": SMALLEST_EFFECT,
    "alpha": ALPHA,
    "minimum_top": MINIMUM_TOP,
    "pass_accuracy": PASS_ACCURACY,
    "levels": [float(level) for level in LEVELS],
}

UNIT = "kept: matched - other"

OUTCOME_TEXT = {
    "kept": "old accuracy kept, mean over goal slices",
    "rote": "old accuracy kept, rote slices",
    "rule": "old accuracy kept, rule slices",
    "loss": "less rise of the old loss (nats per token)",
    "kl": "less KL from the base on old inputs (nats per token)",
    "attained:kept": "old accuracy kept, evaluated points only (no interpolation)",
    "area": "area under the learning-forgetting frontier (accuracy)",
}

ARTIFACTS = ("frontier", "forgetting_matrix", "lr_sensitivity", "pretraining", "results.csv")


def judge(tables: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Verdicts on C1 and C2, from the tidy table ``results``; none without it."""
    if "results" not in tables:
        return []
    table = tables["results"]
    found, bases = frontiers(table), judge_bases(table)
    rates = best_rates(found)
    return [_judge(claim, found, bases, rates) for claim in CLAIMS]


@dataclass(frozen=True)
class Comparison:
    """The matched arm against another on one base and language. ``counted`` says whether the verdict uses it.

    ``lowest`` and ``highest`` are the ends of the matched levels (rescaled learning; NaN without common
    learning), ``matched_top`` and ``other_top`` the least learning over seeds that each arm reached at best.
    """

    base: str
    language: str
    matched: str
    other: str
    estimate: Estimate
    seeds: tuple[int, ...]
    lowest: float
    highest: float
    matched_top: float
    other_top: float
    counted: bool
    why: str

    def cell(self) -> Cell:
        """As a row of the verdict's table."""
        levels = f"{self.lowest:.2f} to {self.highest:.2f}" if math.isfinite(self.lowest) else "none"
        labels = {
            "base": self.base, "language": self.language, "matched arm": self.matched, "other arm": self.other,
            "learning levels": levels,
        }  # fmt: skip
        details = {
            name: getattr(self, name) for name in ("seeds", "lowest", "highest", "matched_top", "other_top")
        }
        return Cell(labels, self.estimate, self.counted, self.why, details)


def _judge(claim: Claim, found: Frontiers, bases: pd.DataFrame, rates: pd.DataFrame) -> Verdict:
    passed, optimizers = passed_pairs(bases), base_optimizers(bases)
    outcomes = (*OUTCOMES, "area")
    areas = found.area()
    cells: list[Comparison] = []
    frames: list[pd.DataFrame] = []
    for key, group in found.cells.groupby(["base", "language"]):
        base, language = map(str, key)
        arms = group.drop_duplicates("arm")
        matched = arms[(arms["method"] == "full") & (arms["optimizer"] == optimizers[base])]
        for _, other in arms.iterrows():
            if len(matched) and claim.against(other, optimizers[base]):
                pair = _pair(group, matched.iloc[0]["arm"], other["arm"])
                pair["passed"] = [(base, seed) in passed for seed in pair["seed"]]
                cell, values = _compare(pair, found, areas, control=base != optimizers[base])
                name = str(other["arm"])
                cell = replace(cell, base=base, language=language, matched=matched.iloc[0]["arm"], other=name)
                cells.append(cell)
                if cell.counted:
                    frames.append(values.assign(base=base, language=language, other=name))
    columns = ["seed", "base", "language", "other", *outcomes]
    counted = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
    effect = _mean_over_cells(claim.name, counted, "kept")
    verdict, reason = decide(effect, SMALLEST_EFFECT)
    if effect.n == 0:
        reason = "no cell with common learning on a base that passed pretraining"
    corrected = iter(with_holm([cell.estimate for cell in cells if cell.counted]))
    cells = [replace(cell, estimate=next(corrected)) if cell.counted else cell for cell in cells]
    groups = [estimate for key in ("other", "base", "language") for estimate in _by(counted, key)]
    secondary = [_mean_over_cells(OUTCOME_TEXT[key], counted, key) for key in outcomes if key != "kept"]
    return Verdict(
        claim.name, claim.statement, claim.source, verdict, reason, effect, UNIT, RULE,
        tuple(cell.cell() for cell in cells), tuple(groups),
        tuple(estimate for estimate in secondary if estimate.n), ARTIFACTS,
        tuple(_caveats(cells, counted, bases, rates)),
    )  # fmt: skip


def _pair(group: pd.DataFrame, matched: str, other: str) -> pd.DataFrame:
    """Seeds that have both arms: columns seed, row_* (position in Frontiers.cells), top_*."""

    def side(arm: str) -> pd.DataFrame:
        rows = group[group["arm"] == arm]
        return pd.DataFrame({"seed": rows["seed"], "row": rows.index, "top": rows["top"]})

    return side(matched).merge(side(other), on="seed", suffixes=("_matched", "_other")).sort_values("seed")


def _at_levels(
    curves: NDArray[np.float64], left: NDArray[np.int64], right: NDArray[np.int64], levels: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """[seed]: mean over the matched levels of left minus right; NaN without levels."""
    if not levels.any():
        return np.full(len(left), np.nan)
    return (curves[left][:, ON_GRID[levels]] - curves[right][:, ON_GRID[levels]]).mean(axis=1)


def _compare(
    pair: pd.DataFrame, found: Frontiers, areas: NDArray[np.float64], control: bool
) -> tuple[Comparison, pd.DataFrame]:
    """One cell (its names still empty), and the differences behind it: columns seed and one per outcome.

    ``pair``: a row per seed with seed, passed, row_* (positions in ``found.cells``), top_*. Seeds whose base
    failed are left out, unless all did: then they are shown, and do not count.
    """
    good = pair[pair["passed"]]
    rows = good if len(good) else pair
    left, right = rows["row_matched"].to_numpy(dtype=int), rows["row_other"].to_numpy(dtype=int)
    levels = matched_levels(found.curves["kept"][np.concatenate([left, right])])
    values = rows[["seed"]].assign(
        **{outcome: _at_levels(found.curves[outcome], left, right, levels) for outcome in OUTCOMES},
        area=areas[left] - areas[right],
    )
    common = LEVELS[levels] if levels.any() else np.array([math.nan])
    tops = rows[["top_matched", "top_other"]].min()
    why = ""
    if pair.empty:
        why = "no seed has both arms"
    elif good.empty:
        why = "the base failed pretraining"
    elif not levels.any():
        why = "no common learning"
    elif control:
        why = "control base"
    cell = Comparison(
        "", "", "", "", estimate("kept", values["kept"]), tuple(map(int, rows["seed"])),
        float(common.min()), float(common.max()), float(tops["top_matched"]), float(tops["top_other"]),
        why == "", why,
    )  # fmt: skip
    return cell, values


def _mean_over_cells(name: str, counted: pd.DataFrame, outcome: str) -> Estimate:
    per_seed = counted.groupby("seed")[outcome].mean().to_numpy(dtype=float)
    return estimate(name, per_seed)


def _by(counted: pd.DataFrame, key: str) -> list[Estimate]:
    """The effect within each value of ``key``, Holm-corrected over them."""
    return with_holm(
        [_mean_over_cells(f"{key}: {value}", rows, "kept") for value, rows in counted.groupby(key)]
    )


def _caveats(
    cells: list[Comparison], counted: pd.DataFrame, bases: pd.DataFrame, rates: pd.DataFrame
) -> list[str]:
    notes = few_seeds(counted["seed"].nunique())
    for base, rows in bases[~bases["passed"]].groupby("base"):
        seeds = "; ".join(f"seed {row.seed}: {row.why}" for row in rows.itertuples())
        notes.append(f"base {base} failed pretraining ({seeds})")
    if counted.groupby("seed").size().nunique() > 1:
        notes.append("seeds do not have the same cells, so seed means differ in what they average over")
    signs = [cell.estimate.effect > 0 for cell in cells if cell.counted]
    if len(set(signs)) > 1:
        notes.append(f"the matched arm keeps more in {sum(signs)} of {len(signs)} cells, not in the others")
    for cell in cells:
        if cell.why == "no common learning":
            notes.append(
                f"no common learning: {cell.base} / {cell.language}: {cell.matched} reaches"
                f" {cell.matched_top:.2f}, {cell.other} {cell.other_top:.2f}"
            )
    used = {(c.base, c.language, arm) for c in cells if c.counted for arm in (c.matched, c.other)}
    keys = zip(rates["base"], rates["language"], rates["arm"], strict=True)
    here = rates[np.array([key in used for key in keys], dtype=bool)]
    for row in here[here["edge"] != ""].itertuples():
        end = "the only one" if row.edge == "only" else f"the {'lowest' if row.edge == 'low' else 'highest'}"
        notes.append(f"best learning rate {row.lr:g} is {end} swept: {row.base} / {row.language} / {row.arm}")
    if here["rates"].nunique() > 1:
        notes.append(f"arms swept {here['rates'].min()} to {here['rates'].max()} learning rates each")
    diverged = int(here["diverged"].sum())
    if diverged:
        notes.append(
            f"{diverged} of {int(here['runs'].sum())} runs diverged; they count up to their divergence"
        )
    return notes
