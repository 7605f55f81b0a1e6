"""Verdicts on rote against rule, by rules fixed before the numbers are seen.

C6: with little data on a new rule, Muon in both stages is worse than AdamW in both stages. C7: Muon tends to rote. Both
are set in their source against evidence that points the other way, so cells are told one by one: where a claim holds is
as much a result as whether.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from synthlm.bases import PASS_ACCURACY
from synthlm.claims.verdicts import Cell, Estimate, Verdict, decide, estimate, signed, with_holm
from synthlm.statistics import LEVEL
from synthlm.tendency import AT_RECALL, CELL, FITTED, curves, matched, outcomes, searches

SMALLEST_C6 = 0.02
"""Two points of held-out accuracy, as for C1."""
SMALLEST_C7 = 0.05
"""Five points of held-out accuracy: read at a moment of training, one run's share of 256 items has a standard error of
three points."""
FLOOR, CEILING = 0.1, 0.95
"""A cell of C6 speaks when someone gets above the floor and someone stays below the ceiling."""
LEARNT = 0.5
"""A cell of C7 speaks when either optimizer ends with this much of the rule."""
CORRECTED = 0.05
"""A language's verdict needs a Holm-corrected p below this."""
SHOWN = 8
"""So many learning rates at an end are named."""
ONE, OTHER = "muon", "adamw"

COMPLETE = (
    "Only cells with a number on every seed count (every seed that has a number in any cell), so that every seed's"
    " number is of the same cells."
)
LANGUAGES = (
    "A language is decided alike from its own cells, but supported or contradicted only when the test that this rests"
    " on (paired t against 0, or against the smallest effect where the interval lies below that alone) has p below"
    f" {CORRECTED:g} after Holm's correction over languages. p values of cells are Holm-corrected too."
)
RULE_C6 = (
    "Effect: held-out accuracy on the new rule at the end of finetuning, AdamW base finetuned by AdamW minus Muon"
    " base finetuned by Muon, each at the learning rate that is best on the other seeds; mean over numbers of"
    " examples, then over languages, one number a seed. A cell counts when the better mean is at least"
    f" {FLOOR:g} and the worse at most {CEILING:g}. Supported: the {LEVEL:.0%} t interval over paired seeds lies"
    f" above 0 and the effect is at least {SMALLEST_C6:g}. Contradicted: the interval lies below {SMALLEST_C6:g}."
    " Otherwise, and with fewer than two seeds: inconclusive. " + COMPLETE + " " + LANGUAGES
)
RULE_C7 = (
    "Effect: held-out rule accuracy of AdamW minus that of Muon at the moment when rote recall reaches 50% and 90%"
    " (mean of the levels that both reach on every seed), each at its own best learning rate; mean over cells (rule"
    " examples, rote share), then over languages, one number a seed. A cell counts when the better of both ends with"
    f" a mean rule accuracy of at least {LEARNT:g}. The same difference is taken, in the same cells, at the lowest"
    " training loss that both reach: the one that ends with the higher loss is read there at its annealed end, the"
    " other in mid-schedule; pairs of which one diverged have no such number. Supported, contradicted or inconclusive"
    f" as for C6, with {SMALLEST_C7:g} as the smallest effect, when both readings say the same; otherwise"
    f" inconclusive. {COMPLETE}"
    f" {LANGUAGES} A language's readings have to agree too, each corrected by itself."
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
    "corrected": CORRECTED,
}


def judge(tables: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Verdicts on C6 (from ``small_data``) and C7 (from ``tendency``), as far as the tables are there."""
    verdicts = []
    if "small_data" in tables:
        verdicts.append(_judge_small_data(tables["small_data"], tables.get("small_data_bases")))
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


def _judge_small_data(small: pd.DataFrame, bases: pd.DataFrame | None) -> Verdict:
    wide = pairs(small)
    same = {name: f"{name}-{name}" for name in (ONE, OTHER)}
    missing = [name for name in same.values() if name not in wide.columns]
    if missing:
        wide = wide.assign(**dict.fromkeys(missing, float("nan")))
    wide["effect"] = wide[same[OTHER]] - wide[same[ONE]]
    seeds = _seeds(wide, "effect")
    cells, counted = _cells(
        wide, ["language", "examples"], lambda rows: _speaks(rows, list(same.values()), seeds)
    )
    effect = _headline("C6", counted, seeds)
    verdict, reason = decide(effect, SMALLEST_C6)
    smallest = counted[counted["examples"] == counted.groupby("language")["examples"].transform("min")]
    secondary = [_headline("smallest number of examples that counts", smallest, seeds)]
    for text, better, worse in (
        ("on the Muon base: finetuned by AdamW minus by Muon", "muon-adamw", "muon-muon"),
        ("on the AdamW base: finetuned by AdamW minus by Muon", "adamw-adamw", "adamw-muon"),
        ("finetuned by AdamW: AdamW base minus Muon base", "adamw-adamw", "muon-adamw"),
        ("finetuned by Muon: AdamW base minus Muon base", "adamw-muon", "muon-muon"),
    ):
        if better in counted and worse in counted:
            crossed = counted.assign(effect=counted[better] - counted[worse])
            secondary.append(_headline(text, crossed, seeds))
    caveats = [
        *_caveats(wide, counted, seeds),
        *_left_out(bases),
        *_at_ends(_rates(small, set(same.values())), ["language", "examples"], "pair", counted),
        *_none_alone(verdict, cells),
    ]
    return Verdict(
        "C6",
        "With little data on a new rule, Muon in pretraining and finetuning is worse than AdamW in both.",
        "arXiv 2605.06654; the GSM8K table of arXiv 2502.16982 points the other way",
        verdict, reason, effect, "held-out accuracy, positive: AdamW-AdamW better", RULE_C6,
        cells=cells,
        groups=_by_language(counted, SMALLEST_C6, seeds),
        secondary=tuple(item for item in secondary if item.n),
        artifacts=("small_data", "small_data.csv", "small_data_bases.csv"),
        caveats=tuple(caveats),
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


# -- C7 ----------------------------------------------------------------------------------------------------------------


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


def _judge_tendency(tables: Mapping[str, pd.DataFrame]) -> Verdict:
    found = differences(tables["tendency"])
    seeds = _seeds(found, "effect", "matched")
    cells, counted = _cells(found, CELL, lambda rows: _unheard(rows, seeds))
    at_loss_rows = counted.assign(effect=counted["matched"])
    effect = _headline("C7", counted, seeds)
    at_loss = _headline("at matched training loss", at_loss_rows, seeds)
    verdict, reason = decide(effect, SMALLEST_C7)
    other, reason_at_loss = decide(at_loss, SMALLEST_C7)
    if other != verdict:
        reason = f"at own best rates {verdict} ({reason}), at matched loss {other} ({reason_at_loss})"
        verdict = "inconclusive"
    by_items = counted.groupby("language")["items"]
    few, many = (counted[counted["items"] == by_items.transform(end)] for end in ("min", "max"))
    secondary = [
        at_loss,
        _headline("fewest rule examples of each language", few, seeds),
        _headline("most rule examples of each language", many, seeds),
        *(
            _headline(text, counted.assign(effect=counted[column]), seeds)
            for text, column in (
                ("area between rote and rule curves, Muon minus AdamW", "area"),
                ("rule accuracy at the end, AdamW minus Muon", "end"),
                ("rote fitted sooner by Muon, ln of the ratio of steps", "sooner"),
            )
        ),
        *_of_items(tables),
    ]
    caveats = list(_caveats(found, counted, seeds))
    if 0 in seeds and len(counted):
        later = counted[counted["seed"] != 0]
        unseen = _headline(
            "without seed 0, which learning rates are chosen on", later, [s for s in seeds if s]
        )
        secondary.append(unseen)
        caveats.append(
            "learning rates are chosen by recall and held-out items of seed 0, which counts too"
            f" (without it: {signed(unseen)})"
        )
    swept = searches(tables["tendency"])
    swept = swept[swept["optimizer"].isin([ONE, OTHER])]
    caveats += [*_at_ends(swept, CELL, "optimizer", counted), *_none_alone(verdict, cells)]
    diverged = int(found["diverged"].astype(bool).sum())
    if diverged:
        caveats.append(
            f"{diverged} of {len(found)} comparisons have a run that diverged, hence none at equal training loss"
        )
    return Verdict(
        "C7",
        "Muon tends to rote memorization: when it knows by rote what must be memorized, it has less of the rule than"
        " AdamW.",
        "arXiv 2605.06654; arXiv 2504.16041 (Muon groks sooner) points the other way",
        verdict, reason, effect, "rule accuracy at rote recall, positive: AdamW has more of the rule", RULE_C7,
        cells=cells,
        groups=_by_language(counted, SMALLEST_C7, seeds, {"at matched training loss": at_loss_rows}),
        secondary=tuple(item for item in secondary if item.n),
        artifacts=ARTIFACTS_C7,
        caveats=tuple(caveats),
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


def _seeds(found: pd.DataFrame, *columns: str) -> list[int]:
    """The seeds that have a number in any cell, in every one of ``columns``."""
    return sorted({int(seed) for seed in found.loc[found[list(columns)].notna().all(axis=1), "seed"]})


def _by_seed(rows: pd.DataFrame, seeds: Sequence[int]) -> np.ndarray:
    """The mean of ``effect`` over a language's cells, then over languages, a number a seed; of the cells that have one
    on every seed. Empty without such a cell."""
    keys = [name for name in (*CELL, "examples") if name in rows]
    if rows.empty:
        return np.empty(0)
    wide = rows.pivot_table(index=keys, columns="seed", values="effect", dropna=False)
    complete = wide.reindex(columns=list(seeds)).dropna()
    if complete.empty:
        return np.empty(0)
    return complete.groupby(level="language").mean().mean(axis=0).to_numpy(float)


def _headline(name: str, rows: pd.DataFrame, seeds: Sequence[int]) -> Estimate:
    """Over seeds: the mean over a language's cells, then over languages; of the cells complete over seeds."""
    return estimate(name, _by_seed(rows, seeds))


def _by_language(
    rows: pd.DataFrame,
    smallest: float,
    seeds: Sequence[int],
    others: Mapping[str, pd.DataFrame] | None = None,
) -> tuple[Estimate, ...]:
    """Estimates of each language, under every reading, its verdict in the name of the first.

    Verdicts are corrected over languages, and ``others`` (name -> the same rows under another reading) have to say the
    same.
    """
    languages = sorted(set(rows["language"]))
    readings = {"": rows, **(others or {})}
    found, verdicts = {}, {}
    for name, read in readings.items():
        values = [_by_seed(read[read["language"] == language], seeds) for language in languages]
        found[name] = with_holm([estimate("", one) for one in values])
        below = with_holm([estimate("", one - smallest) for one in values])
        verdicts[name] = [
            _corrected(item, against, smallest) for item, against in zip(found[name], below, strict=True)
        ]
    out = []
    for place, language in enumerate(languages):
        said = {name: told[place] for name, told in verdicts.items()}
        verdict = said[""] if len(set(said.values())) == 1 else "inconclusive"
        for name, items in found.items():
            text = (
                f"language: {language}, {name} (there {said[name]})"
                if name
                else f"language: {language} ({verdict})"
            )
            out.append(replace(items[place], name=text))
    return tuple(out)


def _corrected(item: Estimate, against: Estimate, smallest: float) -> str:
    """The verdict of one among several; ``against``: the estimate less ``smallest``. Both have corrected p values."""
    verdict, _ = decide(item, smallest)
    test = item if verdict == "supported" or item.high < 0 else against
    return verdict if verdict == "inconclusive" or test.p_holm < CORRECTED else "inconclusive"


def _caveats(found: pd.DataFrame, counted: pd.DataFrame, seeds: Sequence[int]) -> Sequence[str]:
    if counted.empty:
        return ["no cell counts"]
    notes = []
    n = len(seeds)
    if n < 5:
        notes.append(f"{n} paired seed{'' if n == 1 else 's'}: fewer than the 5 a headline asks for")
    without = sorted(set(found["seed"]) - set(seeds))
    if without:
        notes.append(f"no comparison has a number on seed {', '.join(map(str, without))}")
    if len(counted) < len(found):
        notes.append(
            f"{len(found) - len(counted)} of {len(found)} comparisons are of cells that do not count"
        )
    return notes


def _at_ends(rates: pd.DataFrame, keys: list[str], who: str, counted: pd.DataFrame) -> list[str]:
    """Names the best learning rates that are an end of those tried; ``rates``: keys, ``who`` tuned, lr, edge."""
    cells = counted[keys].drop_duplicates()
    rates = rates.merge(cells, on=keys)
    notes = []
    ends = rates[rates["edge"].isin(["low", "high"])]
    if len(ends):
        ways = {"low": "lowest", "high": "highest"}
        named = [
            f"{' '.join(f'{row[key]}' for key in keys)} {row[who]} ({row['lr']:g}, the {ways[row['edge']]})"
            for row in ends.to_dict("records")
        ]
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        notes.append(
            f"best learning rates that are an end of those tried, in {len(ends[keys].drop_duplicates())} of"
            f" {len(cells)} cells that count: {', '.join(named[:SHOWN])}{more}"
        )
    single = rates[rates["edge"] == "only"]
    if len(single):
        notes.append(
            f"a single learning rate was tried in {len(single)} of {len(rates)} searches, in"
            f" {len(single[keys].drop_duplicates())} of {len(cells)} cells that count"
        )
    return notes


def _none_alone(verdict: str, cells: Sequence[Cell]) -> list[str]:
    """Tells of a support that no cell shows by itself."""
    if verdict != "supported" or any(cell.counted and cell.estimate.p_holm < CORRECTED for cell in cells):
        return []
    return [f"supported over all cells, but in none of them is p below {CORRECTED:g} after Holm's correction"]
