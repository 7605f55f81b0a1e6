"""Verdicts on rote against rule, by rules fixed before the numbers are seen.

C6: with little data on a new rule, Muon in both stages is worse than AdamW in both stages. C7: Muon tends to rote. Both
are set in their source against evidence that points the other way, so cells are told one by one: where a claim holds is
as much a result as whether.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from synthlm.claims.verdicts import Cell, Estimate, Verdict, decide, estimate, with_holm
from synthlm.statistics import LEVEL
from synthlm.tendency import AT_RECALL, CELL, FITTED, curves, matched, outcomes

SMALLEST_C6 = 0.02
"""Two points of held-out accuracy, as for C1."""
SMALLEST_C7 = 0.05
"""Five points of held-out accuracy: read at a moment of training, one run's share of 256 items has a standard error of
three points."""
FLOOR, CEILING = 0.1, 0.95
"""A cell of C6 speaks when someone gets above the floor and someone stays below the ceiling."""
LEARNT = 0.5
"""A cell of C7 speaks when either optimizer ends with this much of the rule."""
ONE, OTHER = "muon", "adamw"

RULE_C6 = (
    "Effect: held-out accuracy on the new rule at the end of finetuning, AdamW base finetuned by AdamW minus Muon"
    " base finetuned by Muon, each at the learning rate that is best on the other seeds; mean over numbers of"
    " examples, then over languages, one number a seed. A cell counts when the better mean is at least"
    f" {FLOOR:g} and the worse at most {CEILING:g}. Supported: the {LEVEL:.0%} t interval over paired seeds lies"
    f" above 0 and the effect is at least {SMALLEST_C6:g}. Contradicted: the interval lies below {SMALLEST_C6:g}."
    " Otherwise, and with fewer than two seeds: inconclusive. p values of cells and of languages are Holm-corrected."
)
RULE_C7 = (
    "Effect: held-out rule accuracy of AdamW minus that of Muon at the moment when rote recall reaches 50% and 90%"
    " (mean of the levels that both reach), each at its own best learning rate; mean over cells (rule examples,"
    " rote share), then over languages, one number a seed. A cell counts when the better of both ends with a mean"
    f" rule accuracy of at least {LEARNT:g}. The same difference is taken at the lowest training loss that both"
    f" reach. Supported, contradicted or inconclusive as for C6, with {SMALLEST_C7:g} as the smallest effect, when"
    " both say the same; otherwise inconclusive."
)

ARTIFACTS_C7 = (
    "rule_at_recall", "tendency_map", "rote_rule_curves", "counterfactual", "exposure", "corruption", "tendency.csv",
)  # fmt: skip

CONSTANTS = {
    "smallest_c6": SMALLEST_C6,
    "smallest_c7": SMALLEST_C7,
    "floor": FLOOR,
    "ceiling": CEILING,
    "learnt": LEARNT,
}


def judge(tables: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Verdicts on C6 (from ``small_data``) and C7 (from ``tendency``), as far as the tables are there."""
    verdicts = []
    if "small_data" in tables:
        verdicts.append(_judge_small_data(tables["small_data"]))
    if "tendency" in tables:
        verdicts.append(_judge_tendency(tables))
    return verdicts


# -- C6 ----------------------------------------------------------------------------------------------------------------


def pairs(small: pd.DataFrame, column: str = "accuracy") -> pd.DataFrame:
    """The chosen finetunings side by side: language, examples, seed, and a column ``BASE-ARM`` for each pairing."""
    chosen = small[small["chosen"].astype(bool)]
    named = chosen.assign(pair=chosen["base"] + "-" + chosen["arm"])
    wide = named.pivot_table(index=["language", "examples", "seed"], columns="pair", values=column)
    return wide.reset_index()


def _judge_small_data(small: pd.DataFrame) -> Verdict:
    wide = pairs(small)
    same = {name: f"{name}-{name}" for name in (ONE, OTHER)}
    missing = [name for name in same.values() if name not in wide.columns]
    if missing:
        wide = wide.assign(**dict.fromkeys(missing, float("nan")))
    wide["effect"] = wide[same[OTHER]] - wide[same[ONE]]
    cells, counted = _cells(
        wide, ["language", "examples"], lambda rows: _speaks(rows[list(same.values())].mean())
    )
    effect = _headline("C6", counted)
    verdict, reason = decide(effect, SMALLEST_C6)
    smallest = counted[counted["examples"] == counted.groupby("language")["examples"].transform("min")]
    secondary = [_headline("smallest number of examples that counts", smallest)]
    for text, better, worse in (
        ("on the Muon base: finetuned by AdamW minus by Muon", "muon-adamw", "muon-muon"),
        ("on the AdamW base: finetuned by AdamW minus by Muon", "adamw-adamw", "adamw-muon"),
        ("finetuned by AdamW: AdamW base minus Muon base", "adamw-adamw", "muon-adamw"),
        ("finetuned by Muon: AdamW base minus Muon base", "adamw-muon", "muon-muon"),
    ):
        if better in counted and worse in counted:
            secondary.append(_headline(text, counted.assign(effect=counted[better] - counted[worse])))
    return Verdict(
        "C6",
        "With little data on a new rule, Muon in pretraining and finetuning is worse than AdamW in both.",
        "arXiv 2605.06654; the GSM8K table of arXiv 2502.16982 points the other way",
        verdict, reason, effect, "held-out accuracy, positive: AdamW-AdamW better", RULE_C6,
        cells=cells,
        groups=_by_language(counted, SMALLEST_C6),
        secondary=tuple(item for item in secondary if item.n),
        artifacts=("small_data", "small_data.csv"),
        caveats=tuple(_caveats(wide, counted)),
    )  # fmt: skip


def _speaks(means: pd.Series) -> str:
    """Why a cell does not count; nothing when it does."""
    if means.isna().any():
        return "one of the two is missing"
    if means.max() < FLOOR:
        return f"neither gets to {FLOOR:g}"
    return f"both are above {CEILING:g}" if means.min() > CEILING else ""


# -- C7 ----------------------------------------------------------------------------------------------------------------


def differences(tendency: pd.DataFrame) -> pd.DataFrame:
    """AdamW against Muon in every cell and seed; signs are such that the claim predicts positive numbers.

    Columns: CELL, seed, effect (rule accuracy at the moments of rote recall, mean of those that both reach, AdamW minus
    Muon), area (Muon minus AdamW), end (rule accuracy, AdamW minus Muon), best_end (the better one of both at the end,
    a mean over seeds), sooner (ln of AdamW's over Muon's step of 90% recall), matched (rule accuracy at the lowest
    training loss that both reach, AdamW minus Muon).
    """
    columns = [*CELL, "seed", "effect", "area", "end", "best_end", "sooner", "matched"]
    traces = curves(tendency)
    found = outcomes(traces)
    keys = [*CELL, "seed"]
    a, m = (found[found["optimizer"] == name].set_index(keys) for name in (OTHER, ONE))
    both = a.index.intersection(m.index)
    if not len(both):
        return pd.DataFrame(columns=columns)
    a, m = a.loc[both], m.loc[both]
    out = pd.DataFrame(index=both)
    out["effect"] = (a[list(AT_RECALL)] - m[list(AT_RECALL)]).mean(axis=1)  # of the levels that both reach
    out["area"] = m["area"] - a["area"]
    out["end"] = a["rule"] - m["rule"]
    out["sooner"] = np.log1p(a[FITTED[-1]]) - np.log1p(m[FITTED[-1]])
    means = [side["rule"].groupby(level=CELL).mean() for side in (a, m)]
    out = out.join(np.maximum(*means).rename("best_end"), on=CELL)
    at_loss = matched(traces, OTHER, ONE).set_index(keys)
    out["matched"] = (at_loss["first"] - at_loss["second"]).reindex(both)
    return out.reset_index()[columns]


def _unheard(rows: pd.DataFrame) -> str:
    """Why a cell does not count; nothing when it does."""
    if not rows["best_end"].iloc[0] >= LEARNT:
        return f"neither ends with {LEARNT:g} of the rule"
    return "" if rows["effect"].notna().any() else "rote recall does not reach 50% in both"


def _judge_tendency(tables: Mapping[str, pd.DataFrame]) -> Verdict:
    found = differences(tables["tendency"])
    cells, counted = _cells(found, CELL, _unheard)
    effect = _headline("C7", counted)
    at_loss = _headline("at matched training loss", counted.assign(effect=counted["matched"]))
    verdict, reason = decide(effect, SMALLEST_C7)
    other, reason_at_loss = decide(at_loss, SMALLEST_C7)
    if other != verdict:
        reason = f"at own best rates {verdict} ({reason}), at matched loss {other} ({reason_at_loss})"
        verdict = "inconclusive"
    by_items = counted.groupby("language")["items"]
    few, many = (counted[counted["items"] == by_items.transform(end)] for end in ("min", "max"))
    secondary = [
        at_loss,
        _headline("fewest rule examples of each language", few),
        _headline("most rule examples of each language", many),
        _headline(
            "area between rote and rule curves, Muon minus AdamW", counted.assign(effect=counted["area"])
        ),
        _headline("rule accuracy at the end, AdamW minus Muon", counted.assign(effect=counted["end"])),
        _headline(
            "rote fitted sooner by Muon, ln of the ratio of steps", counted.assign(effect=counted["sooner"])
        ),
        *_of_items(tables),
    ]
    return Verdict(
        "C7",
        "Muon tends to rote memorization: when it knows by rote what must be memorized, it has less of the rule than"
        " AdamW.",
        "arXiv 2605.06654; arXiv 2504.16041 (Muon groks sooner) points the other way",
        verdict, reason, effect, "rule accuracy at rote recall, positive: AdamW has more of the rule", RULE_C7,
        cells=cells,
        groups=_by_language(counted, SMALLEST_C7),
        secondary=tuple(item for item in secondary if item.n),
        artifacts=ARTIFACTS_C7,
        caveats=tuple(_caveats(found, counted)),
    )  # fmt: skip


def _of_items(tables: Mapping[str, pd.DataFrame]) -> list[Estimate]:
    """Muon minus AdamW of scores of single items: positive when Muon memorizes more."""
    out = []
    for name, column, text, keep in (
        ("counterfactual", "score", "counterfactual score of rule items", "/rule/train"),
        ("counterfactual", "score", "counterfactual score of what must be memorized", "exception"),
        ("exposure", "exposure", "exposure of canaries, bits", ""),
        ("corruption", "excess", "held-out regular items spoilt by exceptions", ""),
    ):
        if name in tables:
            rows = tables[name]
            rows = rows[rows["slice"].str.endswith(keep)] if "slice" in rows else rows
            if "exceptions" in rows:
                rows = rows[rows["exceptions"] > rows["exceptions"].min()]  # the rest is the control
            mean = rows.groupby(["optimizer", "seed"])[column].mean().unstack("optimizer")
            if {ONE, OTHER} <= set(mean.columns):
                out.append(estimate(f"{text}, Muon minus AdamW", mean[ONE] - mean[OTHER]))
    return out


# -- both --------------------------------------------------------------------------------------------------------------


def _cells(
    found: pd.DataFrame, keys: list[str], why: Callable[[pd.DataFrame], str]
) -> tuple[tuple[Cell, ...], pd.DataFrame]:
    """Every cell, told whether it counts; and the rows (one a cell and seed) of those that do."""
    groups = [(key, rows) for key, rows in found.groupby(keys)] if len(found) else []
    reasons = [why(rows) for _, rows in groups]
    estimates = [estimate("effect", rows["effect"]) for _, rows in groups]
    corrected = iter(with_holm([item for item, no in zip(estimates, reasons, strict=True) if not no]))
    cells = tuple(
        Cell(
            {
                name: f"{value:g}" if isinstance(value, float) else str(value)
                for name, value in zip(keys, key, strict=True)
            },
            item if no else next(corrected),
            not no,
            no,
        )
        for (key, _), item, no in zip(groups, estimates, reasons, strict=True)
    )
    kept = [rows for (_, rows), no in zip(groups, reasons, strict=True) if not no]
    return cells, pd.concat(kept, ignore_index=True) if kept else found.iloc[:0]


def _headline(name: str, rows: pd.DataFrame) -> Estimate:
    """Over seeds: the mean over a language's cells, then over languages."""
    if rows.empty:
        return estimate(name, [])
    return estimate(name, rows.groupby(["language", "seed"])["effect"].mean().groupby("seed").mean())


def _by_language(rows: pd.DataFrame, smallest: float) -> tuple[Estimate, ...]:
    """One estimate a language, its own verdict in its name."""
    if rows.empty:
        return ()
    out = []
    for language, mine in rows.groupby("language"):
        item = _headline("", mine)
        out.append(_headline(f"language: {language} ({decide(item, smallest)[0]})", mine))
    return tuple(with_holm(out))


def _caveats(found: pd.DataFrame, counted: pd.DataFrame) -> Sequence[str]:
    if counted.empty:
        return ["no cell counts"]
    notes = []
    n = counted.dropna(subset="effect")["seed"].nunique()
    if n < 5:
        notes.append(f"{n} paired seed{'' if n == 1 else 's'}: fewer than the 5 a headline asks for")
    missing = int(counted["effect"].isna().sum())
    if missing:
        notes.append(f"{missing} of {len(counted)} comparisons that count have no number")
    if len(counted) < len(found):
        notes.append(
            f"{len(found) - len(counted)} of {len(found)} comparisons are of cells that do not count"
        )
    return notes
