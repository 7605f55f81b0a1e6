"""Tidy rows of probes: which model a row speaks of, what that model learnt and forgot."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from synthlm.experiments.consistency import FinetunedCell
from synthlm.jobs import Finetune, Pretrain, Probe
from synthlm.lora import LoraConfig
from synthlm.store import Record

Named = Mapping[str, FinetunedCell]
"""Key of a finetuned model -> the cell that it belongs to."""

OUTCOMES = ("learnt", "relative", "forgetting", "forgetting/rote", "forgetting/rule")
"""Accuracy on the new language's goal slices at the end, the same rescaled (0: the base, 1: perfect), and the accuracy
on the old language's goal slices that was lost."""


def probe_rows(probe: Probe, record: Record | None, base: str, cells: Named) -> pd.DataFrame:
    """A probe's rows, led by job, seed, base, base_optimizer and own (that optimizer's geometry).

    Where rows speak of one of several subjects (column ``subject``) the columns model, language, arm, method,
    optimizer, rank and lr tell which; they are empty, or 0, for the base itself.
    """
    if record is None:
        return pd.DataFrame()
    rows = pd.DataFrame(record.metrics)
    for name in rows:
        if rows[name].isna().all():
            rows[name] = rows[name].astype(float)
    first = probe.subjects[0]
    head = {
        "job": probe.key[:12], "seed": first.seed, "base": base, "base_optimizer": first.optimizer.name,
        "own": first.optimizer.rule.geometry,
    }  # fmt: skip
    parts = [pd.DataFrame(head, index=rows.index)]
    if "subject" in rows:
        labels = [_labels(job, cells) for job in probe.subjects]
        parts.append(pd.DataFrame([labels[i] for i in rows["subject"]], index=rows.index))
    return pd.concat([*parts, rows], axis=1)


def _labels(job: Pretrain | Finetune, cells: Named) -> dict[str, Any]:
    if isinstance(job, Pretrain):
        text = dict.fromkeys(("model", "language", "arm", "method", "optimizer"), "")
        return text | {"rank": 0, "lr": 0.0}
    rank = job.method.rank if isinstance(job.method, LoraConfig) else 0
    cell = cells[job.key]
    return {
        "model": job.key[:12], "language": cell.language, "arm": cell.arm, "method": job.method.kind,
        "optimizer": job.optimizer.name, "rank": rank, "lr": job.optimizer.lr,
    }  # fmt: skip


def outcomes(record: Record | None) -> dict[str, float]:
    """OUTCOMES of a finetuned model; NaN while it is not trained."""
    if record is None:
        return dict.fromkeys(OUTCOMES, math.nan)
    names = ("step", "role", "goal", "accuracy")
    rows = list(zip(*(record.metrics[name] for name in names), strict=True))
    start, end = (pick(row[0] for row in rows) for pick in (min, max))

    def mean(step: int, role: str, goals: tuple[str, ...] = ("rote", "rule")) -> float:
        found = [row[3] for row in rows if row[:2] == (step, role) and row[2] in goals]
        return sum(found) / len(found) if found and None not in found else math.nan

    before, learnt = mean(start, "new"), mean(end, "new")
    lost = [
        mean(start, "old", goals) - mean(end, "old", goals)
        for goals in (("rote", "rule"), ("rote",), ("rule",))
    ]
    relative = (learnt - before) / (1 - before) if before < 1 else math.nan
    return dict(zip(OUTCOMES, (learnt, relative, *lost), strict=True))


def ended(record: Record | None) -> bool:
    """Whether a training went to its end; a diverged model has no update to speak of."""
    return record is not None and record.manifest["status"] == "done"


def goals_of(record: Record | None) -> dict[str, str]:
    """Old slice -> the goal that it counts to, from a training's own rows."""
    rows = {} if record is None else record.metrics
    return {
        name: goal
        for name, goal, role in zip(*(rows.get(key, ()) for key in ("slice", "goal", "role")), strict=True)
        if role == "old"
    }


def joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Frames below each other, those without rows left out; an empty frame of none."""
    listed = [frame for frame in frames if len(frame)]
    return pd.concat(listed, ignore_index=True) if listed else pd.DataFrame()
