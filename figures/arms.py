"""What the figures of finetuning share: the base behind each cell, the arms of a table, the words of a
caption."""

import pandas as pd

from synthlm.bases import base_optimizers, judge_bases, passed_pairs
from synthlm.figures import style
from synthlm.statistics import LEVEL, RESAMPLES

ARM = ["arm", "method", "optimizer", "rank"]


def with_base(cells: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Add ``passed`` (did the base of this base and seed learn its language?) and ``matched`` (is this arm
    full finetuning with the base's own optimizer?) to rows with base, seed, method, optimizer."""
    bases = judge_bases(table)
    good, optimizers = passed_pairs(bases), base_optimizers(bases)
    pairs = zip(cells["base"], cells["seed"], strict=True)
    own = cells["base"].map(optimizers)
    return cells.assign(
        passed=[(base, int(seed)) in good for base, seed in pairs],
        matched=(cells["method"] == "full") & (cells["optimizer"] == own),
    )


def with_untried(data: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Append one row without an arm for each language, base and seed that was never finetuned because its
    base failed.

    So a failed base is seen in the figure, and not silently missing.
    """
    bases = judge_bases(table)
    failed = bases[~bases["passed"]]
    tried = set(zip(data["language"], data["base"], data["seed"], strict=True))
    rows = [
        {"language": language, "base": base, "seed": seed, "arm": "", "method": "", "optimizer": "",
         "rank": 0, "matched": False, "passed": False, "status": "", "diverged": 0, "best": False, "edge": "",
         "n": 0, "interval": "none"}
        for language in sorted(data["language"].unique())
        for base, seed in zip(failed["base"], failed["seed"], strict=True)
        if (language, base, seed) not in tried
    ]  # fmt: skip
    if not rows:
        return data
    extra = pd.DataFrame(rows).reindex(columns=data.columns)
    for column in data.columns:
        extra[column] = extra[column].astype(data[column].dtype)
    return pd.concat([data, extra], ignore_index=True)


def arms_of(data: pd.DataFrame) -> list[tuple[str, str, str, int]]:
    """(arm, method, optimizer, rank) of a figure's data, in the order shown."""
    rows = data.loc[data["arm"] != "", ARM].drop_duplicates()
    return style.arm_order([(str(a), str(m), str(o), int(r)) for a, m, o, r in rows.itertuples(index=False)])


def failures(data: pd.DataFrame) -> dict[str, list[int]]:
    """Base -> the seeds whose pretraining failed; from columns base, seed, passed."""
    failed = data[~data["passed"].astype(bool)][["base", "seed"]].drop_duplicates()
    return {str(base): sorted(int(seed) for seed in rows["seed"]) for base, rows in failed.groupby("base")}


def base_title(base: str, failed: list[int], seeds: int) -> str:
    """``AdamW base``, with a second line when pretraining failed in some or all seeds."""
    title = f"{style.name(base)} base"
    if not failed:
        return title
    if len(failed) == seeds:
        return f"{title}\n(failed pretraining)"
    return f"{title}\n(seed {', '.join(map(str, failed))} failed)"


def interval_text(n: int, intervals: set[str]) -> str:
    """How many seeds, and what the interval shown is; ``intervals``: the methods found in the data."""
    if n < 2:
        return "n = 1 seed: no interval can be given."
    text = f"n = {n} paired seeds; intervals: {LEVEL:.0%} BCa bootstrap of the mean ({RESAMPLES} resamples)"
    if "percentile" in intervals:
        text += ", percentile ones where BCa is undefined"
    text += "."
    if n < 5:
        text += (
            f" With n = {n} they cover too rarely; verdicts use the paired t interval; 5 seeds are wanted."
        )
    return text


def failed_text(failed: dict[str, list[int]]) -> str:
    """A sentence on bases that failed pretraining, or nothing."""
    if not failed:
        return ""
    parts = [f"{style.name(base)} (seed {', '.join(map(str, seeds))})" for base, seeds in failed.items()]
    return f" Bases that failed pretraining: {'; '.join(parts)}."
