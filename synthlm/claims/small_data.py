"""The verdict on C6: with little data on a new rule, Muon in both stages is worse than AdamW in both stages.

By a rule fixed before the numbers are seen. The claim's source is set against evidence that points the other way, so
cells are told one by one: where a claim holds is as much a result as whether.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from synthlm.bases import PASS_ACCURACY
from synthlm.claims.tendency_cells import (
    COMPLETE,
    CORRECTED,
    LANGUAGES,
    ONE,
    OTHER,
    at_ends,
    by_language,
    caveats,
    headline,
    none_alone,
    paired_seeds,
    told_cells,
)
from synthlm.claims.verdicts import Verdict, decide
from synthlm.statistics import LEVEL

SMALLEST = 0.02
"""Two points of held-out accuracy, as for C1."""
FLOOR, CEILING = 0.1, 0.95
"""A cell speaks when someone gets above the floor and someone stays below the ceiling."""

RULE = (
    "Effect: held-out accuracy on the new rule at the end of finetuning, AdamW base finetuned by AdamW minus Muon"
    " base finetuned by Muon, each at the learning rate that is best on the other seeds; mean over numbers of"
    " examples, then over languages, one number a seed. A cell counts when the better mean is at least"
    f" {FLOOR:g} and the worse at most {CEILING:g}. Supported: the {LEVEL:.0%} t interval over paired seeds lies"
    f" above 0 and the effect is at least {SMALLEST:g}. Contradicted: the interval lies below {SMALLEST:g}."
    " Otherwise, and with fewer than two seeds: inconclusive. " + COMPLETE + " " + LANGUAGES
)

CONSTANTS = {"smallest": SMALLEST, "floor": FLOOR, "ceiling": CEILING, "corrected": CORRECTED}


def judge(tables: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """The verdict on C6 from the table ``small_data``; none without it."""
    if "small_data" not in tables:
        return []
    return [_judge(tables["small_data"], tables.get("small_data_bases"))]


def pairs(small: pd.DataFrame, column: str = "accuracy") -> pd.DataFrame:
    """The chosen finetunings side by side: language, examples, seed, and a column ``BASE-ARM`` for each pairing."""
    chosen = small[small["chosen"].astype(bool)]
    named = chosen.assign(pair=chosen["base"] + "-" + chosen["arm"])
    wide = named.pivot_table(index=["language", "examples", "seed"], columns="pair", values=column)
    return wide.reset_index()


def _judge(small: pd.DataFrame, bases: pd.DataFrame | None) -> Verdict:
    wide = pairs(small)
    same = {name: f"{name}-{name}" for name in (ONE, OTHER)}
    missing = [name for name in same.values() if name not in wide.columns]
    if missing:
        wide = wide.assign(**dict.fromkeys(missing, float("nan")))
    wide["effect"] = wide[same[OTHER]] - wide[same[ONE]]
    seeds = paired_seeds(wide, "effect")
    cells, counted = told_cells(
        wide, ["language", "examples"], lambda rows: _speaks(rows, list(same.values()), seeds)
    )
    effect = headline("C6", counted, seeds)
    verdict, reason = decide(effect, SMALLEST)
    smallest = counted[counted["examples"] == counted.groupby("language")["examples"].transform("min")]
    secondary = [headline("smallest number of examples that counts", smallest, seeds)]
    for text, better, worse in (
        ("on the Muon base: finetuned by AdamW minus by Muon", "muon-adamw", "muon-muon"),
        ("on the AdamW base: finetuned by AdamW minus by Muon", "adamw-adamw", "adamw-muon"),
        ("finetuned by AdamW: AdamW base minus Muon base", "adamw-adamw", "muon-adamw"),
        ("finetuned by Muon: AdamW base minus Muon base", "adamw-muon", "muon-muon"),
    ):
        if better in counted and worse in counted:
            crossed = counted.assign(effect=counted[better] - counted[worse])
            secondary.append(headline(text, crossed, seeds))
    notes = [
        *caveats(wide, counted, seeds),
        *_left_out(bases),
        *at_ends(_rates(small, set(same.values())), ["language", "examples"], "pair", counted),
        *none_alone(verdict, cells),
    ]
    return Verdict(
        "C6",
        "With little data on a new rule, Muon in pretraining and finetuning is worse than AdamW in both.",
        "arXiv 2605.06654; the GSM8K table of arXiv 2502.16982 points the other way",
        verdict, reason, effect, "held-out accuracy, positive: AdamW-AdamW better", RULE,
        cells=cells,
        groups=by_language(counted, SMALLEST, seeds),
        secondary=tuple(item for item in secondary if item.n),
        artifacts=("small_data", "small_data.csv", "small_data_bases.csv"),
        caveats=tuple(notes),
    )  # fmt: skip


def _rates(small: pd.DataFrame, names: set[str]) -> pd.DataFrame:
    """The chosen learning rates of each pairing in ``names``: language, examples, pair, lr, edge (as of
    ``synthlm.tendency.searches``); seeds may have chosen several."""
    named = small.assign(pair=small["base"] + "-" + small["arm"])
    named = named[named["pair"].isin(names)]
    keys = ["language", "examples", "pair"]
    tried = named.groupby(keys)["lr"].agg(lowest="min", highest="max")
    chosen = named[named["chosen"].astype(bool)].drop_duplicates([*keys, "lr"]).join(tried, on=keys)
    low, high = chosen["lr"] == chosen["lowest"], chosen["lr"] == chosen["highest"]
    edge = np.select([low & high, low, high], ["only", "low", "high"], "")
    return chosen[[*keys, "lr"]].assign(edge=edge).sort_values([*keys, "lr"], ignore_index=True)


def _left_out(bases: pd.DataFrame | None) -> list[str]:
    """Names the bases that were not finetuned."""
    if bases is None:
        return []
    failed = bases[~bases["passed"].astype(bool)]
    named = [
        f"{row.base} of seed {row.seed} ({row.status if row.status == 'diverged' else f'{row.accuracy:.2f}'})"
        for row in failed.itertuples()
    ]
    text = f"bases left out, below an accuracy of {PASS_ACCURACY:g} in their own language: {', '.join(named)}"
    return [text] if named else []


def _speaks(rows: pd.DataFrame, names: list[str], seeds: Sequence[int]) -> str:
    """Why a cell does not count; nothing when it does."""
    means = rows[names].mean()
    if means.isna().any():
        return "one of the two is missing"
    known = rows["effect"].notna().sum()
    if known < len(seeds):
        return f"one of the two is missing on {len(seeds) - known} of {len(seeds)} seeds"
    if means.max() < FLOOR:
        return f"neither gets to {FLOOR:g}"
    return f"both are above {CEILING:g}" if means.min() > CEILING else ""
