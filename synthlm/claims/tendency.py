"""The verdict on C7: Muon tends to rote.

By a rule fixed before the numbers are seen. The claim's source is set against evidence that points the other way, so
cells are told one by one: where a claim holds is as much a result as whether.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

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
from synthlm.claims.verdicts import Estimate, Verdict, decide, estimate, signed
from synthlm.tendency import AT_RECALL, CELL, FITTED, curves, matched, outcomes, searches

SMALLEST = 0.05
"""Five points of held-out accuracy: read at a moment of training, one run's share of 256 items has a standard error of
three points."""
LEARNT = 0.5
"""A cell speaks when either optimizer ends with this much of the rule."""

RULE = (
    "Effect: held-out rule accuracy of AdamW minus that of Muon at the moment when rote recall reaches 50% and 90%"
    " (mean of the levels that both reach on every seed), each at its own best learning rate; mean over cells (rule"
    " examples, rote share), then over languages, one number a seed. A cell counts when the better of both ends with"
    f" a mean rule accuracy of at least {LEARNT:g}. The same difference is taken, in the same cells, at the lowest"
    " training loss that both reach: the one that ends with the higher loss is read there at its annealed end, the"
    " other in mid-schedule; pairs of which one diverged have no such number. Supported, contradicted or inconclusive"
    f" as for C6, with {SMALLEST:g} as the smallest effect, when both readings say the same; otherwise"
    f" inconclusive. {COMPLETE}"
    f" {LANGUAGES} A language's readings have to agree too, each corrected by itself."
)

ARTIFACTS = (
    "rule_at_recall", "tendency_map", "rote_rule_curves", "counterfactual", "exposure", "corruption", "tendency.csv",
)  # fmt: skip

CONSTANTS = {"smallest": SMALLEST, "learnt": LEARNT, "corrected": CORRECTED}


def judge(tables: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """The verdict on C7 from the table ``tendency`` and those of single items; none without the first."""
    return [_judge(tables)] if "tendency" in tables else []


def differences(tendency: pd.DataFrame) -> pd.DataFrame:
    """AdamW against Muon in every cell and seed; signs are such that the claim predicts positive numbers.

    Columns: CELL, seed, effect (rule accuracy at the moments of rote recall, mean of those that both reach on every
    seed, AdamW minus Muon), area (Muon minus AdamW), end (rule accuracy, AdamW minus Muon), best_end (the better one of
    both at the end, a mean over seeds), sooner (ln of AdamW's over Muon's step of 90% recall), matched (rule accuracy
    at the lowest training loss that both reach, AdamW minus Muon; NaN if one diverged), diverged (whether one did).
    """
    columns = [*CELL, "seed", "effect", "area", "end", "best_end", "sooner", "matched", "diverged"]
    traces = curves(tendency)
    found = outcomes(traces)
    keys = [*CELL, "seed"]
    a, m = (found[found["optimizer"] == name].set_index(keys) for name in (OTHER, ONE))
    both = a.index.intersection(m.index)
    if not len(both):
        return pd.DataFrame(columns=columns)
    a, m = a.loc[both], m.loc[both]
    out = pd.DataFrame(index=both)
    at_recall = a[list(AT_RECALL)] - m[list(AT_RECALL)]
    later = list(AT_RECALL[1:])  # a level that is not reached on every seed is not averaged on any
    at_recall[later] = at_recall[later].where(at_recall[later].notna().groupby(level=CELL).transform("all"))
    out["effect"] = at_recall.mean(axis=1)
    out["area"] = m["area"] - a["area"]
    out["end"] = a["rule"] - m["rule"]
    out["sooner"] = np.log1p(a[FITTED[-1]]) - np.log1p(m[FITTED[-1]])
    means = [side["rule"].groupby(level=CELL).mean() for side in (a, m)]
    out = out.join(np.maximum(*means).rename("best_end"), on=CELL)
    at_loss = matched(traces, OTHER, ONE).set_index(keys)
    out["matched"] = (at_loss["first"] - at_loss["second"]).reindex(both)
    out["diverged"] = (a["status"] == "diverged") | (m["status"] == "diverged")
    return out.reset_index()[columns]


def _unheard(rows: pd.DataFrame, seeds: Sequence[int]) -> str:
    """Why a cell does not count; nothing when it does."""
    if not rows["best_end"].iloc[0] >= LEARNT:
        return f"neither ends with {LEARNT:g} of the rule"
    if rows["effect"].isna().all():
        return "rote recall does not reach 50% in both"
    if rows["matched"].isna().all():
        return "one of the two diverged on every seed"
    rows = rows[rows["seed"].isin(seeds)]
    absent, unread, unmatched = (
        len(seeds) - len(rows),
        int(rows["effect"].isna().sum()),
        int(rows["matched"].isna().sum()),
    )
    why = [
        f"{text} on {count} of {len(seeds)} seeds"
        for text, count in (
            ("one of the two is missing", absent),
            ("rote recall does not reach 50% in both", unread),
            ("one of the two diverged, so that there is no equal training loss", unmatched),
        )
        if count > 0
    ]
    return "; ".join(why)


def _judge(tables: Mapping[str, pd.DataFrame]) -> Verdict:
    found = differences(tables["tendency"])
    seeds = paired_seeds(found, "effect", "matched")
    cells, counted = told_cells(found, CELL, lambda rows: _unheard(rows, seeds))
    at_loss_rows = counted.assign(effect=counted["matched"])
    effect = headline("C7", counted, seeds)
    at_loss = headline("at matched training loss", at_loss_rows, seeds)
    verdict, reason = decide(effect, SMALLEST)
    other, reason_at_loss = decide(at_loss, SMALLEST)
    if other != verdict:
        reason = f"at own best rates {verdict} ({reason}), at matched loss {other} ({reason_at_loss})"
        verdict = "inconclusive"
    by_items = counted.groupby("language")["items"]
    few, many = (counted[counted["items"] == by_items.transform(end)] for end in ("min", "max"))
    secondary = [
        at_loss,
        headline("fewest rule examples of each language", few, seeds),
        headline("most rule examples of each language", many, seeds),
        *(
            headline(text, counted.assign(effect=counted[column]), seeds)
            for text, column in (
                ("area between rote and rule curves, Muon minus AdamW", "area"),
                ("rule accuracy at the end, AdamW minus Muon", "end"),
                ("rote fitted sooner by Muon, ln of the ratio of steps", "sooner"),
            )
        ),
        *_of_items(tables),
    ]
    notes = list(caveats(found, counted, seeds))
    if 0 in seeds and len(counted):
        later = counted[counted["seed"] != 0]
        unseen = headline(
            "without seed 0, which learning rates are chosen on", later, [s for s in seeds if s]
        )
        secondary.append(unseen)
        notes.append(
            "learning rates are chosen by recall and held-out items of seed 0, which counts too"
            f" (without it: {signed(unseen)})"
        )
    swept = searches(tables["tendency"])
    swept = swept[swept["optimizer"].isin([ONE, OTHER])]
    notes += [*at_ends(swept, CELL, "optimizer", counted), *none_alone(verdict, cells)]
    diverged = int(found["diverged"].astype(bool).sum())
    if diverged:
        notes.append(
            f"{diverged} of {len(found)} comparisons have a run that diverged, hence none at equal training loss"
        )
    return Verdict(
        "C7",
        "Muon tends to rote memorization: when it knows by rote what must be memorized, it has less of the rule than"
        " AdamW.",
        "arXiv 2605.06654; arXiv 2504.16041 (Muon groks sooner) points the other way",
        verdict, reason, effect, "rule accuracy at rote recall, positive: AdamW has more of the rule", RULE,
        cells=cells,
        groups=by_language(counted, SMALLEST, seeds, {"at matched training loss": at_loss_rows}),
        secondary=tuple(item for item in secondary if item.n),
        artifacts=ARTIFACTS,
        caveats=tuple(notes),
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
