"""What a verdict holds, and how it is written: ``claims.json`` and ``claims.md``."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import ArrayLike

from synthlm.statistics import holm, paired_difference


@dataclass(frozen=True)
class Estimate:
    """An effect over ``n`` seeds with its interval, positive when it is what the claim predicts; NaN where there is
    none."""

    name: str
    effect: float
    low: float
    high: float
    n: int
    p: float
    p_holm: float = math.nan


@dataclass(frozen=True)
class Cell:
    """One comparison behind a verdict. ``counted``: whether the verdict uses it; ``why`` not, else.

    ``labels``: column -> text, such as base and language; ``details``: further numbers, for ``claims.json``.
    """

    labels: dict[str, str]
    estimate: Estimate
    counted: bool
    why: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What the data say of one claim.

    verdict: supported, contradicted or inconclusive; reason: why. effect: what the rule looks at; unit: what its number
    is, and what a positive one means. groups: the effect within parts of the cells; secondary: other outcomes.
    """

    claim: str
    statement: str
    source: str
    verdict: str
    reason: str
    effect: Estimate
    unit: str
    rule: str
    cells: tuple[Cell, ...] = ()
    groups: tuple[Estimate, ...] = ()
    secondary: tuple[Estimate, ...] = ()
    artifacts: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()


def estimate(name: str, values: ArrayLike) -> Estimate:
    """The mean of ``values`` [seed] with its t interval and the p of the (paired) t test."""
    paired = paired_difference(values)
    interval = paired.interval
    return Estimate(name, interval.mean, interval.low, interval.high, interval.n, paired.p)


def complete_cells(
    rows: pd.DataFrame, cell: Sequence[str], values: pd.Series, seeds: Sequence[int]
) -> pd.DataFrame:
    """Mean of ``values`` (aligned with ``rows``) by cell and seed ``[cell, seed]``, of the cells that have a value on
    every one of ``seeds``: so every seed's mean over them is of the same cells."""
    wide = values.astype(float).groupby([*(rows[name] for name in cell), rows["seed"]]).mean().unstack("seed")
    return wide.reindex(columns=list(seeds)).dropna()


WANTED_SEEDS = 5
"""Paired seeds that a headline asks for."""


def few_seeds(n: int) -> list[str]:
    """A caveat when there are fewer seeds than a headline asks for."""
    text = f"{n} paired seed{'' if n == 1 else 's'}: fewer than the {WANTED_SEEDS} a headline asks for"
    return [text] if n < WANTED_SEEDS else []


def with_holm(estimates: Sequence[Estimate]) -> list[Estimate]:
    """The estimates with p values corrected over all of them (Holm)."""
    corrected = holm([item.p for item in estimates])
    return [replace(item, p_holm=p) for item, p in zip(estimates, corrected, strict=True)]


def decide(effect: Estimate, smallest: float) -> tuple[str, str]:
    """Verdict and reason for an effect whose predicted sign is positive.

    Supported: the interval lies above 0 and the effect is at least ``smallest``, the smallest effect of interest.
    Contradicted: the interval lies below 0, or below ``smallest``. Otherwise, and with fewer than two seeds:
    inconclusive.
    """
    if effect.n == 0:
        return "inconclusive", "nothing to compare"
    if not math.isfinite(effect.low):
        return "inconclusive", "a single seed has no interval"
    if effect.low > 0 and effect.effect >= smallest:
        return "supported", "the interval lies above 0 and the effect is large enough to matter"
    if effect.high < 0:
        return "contradicted", "the interval lies below 0: the effect is reversed"
    if effect.high < smallest:
        return "contradicted", f"the interval excludes every effect of at least {smallest:g}"
    return "inconclusive", "the interval holds both effects that matter and effects that do not"


def to_json(verdicts: Sequence[Verdict], constants: Mapping[str, Any], study: str = "") -> str:
    """``claims.json``: the rule's constants, the study's text, every verdict; numbers that do not exist are
    null."""
    data = {"constants": dict(constants), "study": study, "claims": [asdict(verdict) for verdict in verdicts]}
    return json.dumps(_finite(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(verdicts: Sequence[Verdict]) -> str:
    """``claims.md``: one section a claim."""
    lines = ["# Claims", ""]
    for verdict in verdicts:
        lines += [
            f"## {verdict.claim}: {verdict.verdict}",
            "",
            f"{verdict.statement} (Source: {verdict.source})",
            "",
            f"Effect ({verdict.unit}): {signed(verdict.effect)}; {verdict.reason}.",
            "",
            f"Rule. {verdict.rule}",
        ]
        if verdict.cells:
            head = cell_head(verdict)
            lines += ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
            lines += ["| " + " | ".join(row) + " |" for row in cell_rows(verdict)]
        for title, estimates in (("Within", verdict.groups), ("Secondary outcomes", verdict.secondary)):
            if estimates:
                lines += ["", f"{title}:", ""]
                lines += [f"- {item.name}: {signed(item)}" for item in estimates]
        lines += [
            "",
            "Caveats:" if verdict.caveats else "No caveats.",
            *[f"- {note}" for note in verdict.caveats],
        ]
        lines += ["", f"Shown in: {', '.join(verdict.artifacts)}", ""]
    return "\n".join(lines)


def cell_head(verdict: Verdict) -> list[str]:
    """The columns of ``cell_rows``."""
    labels = dict.fromkeys(name for cell in verdict.cells for name in cell.labels)
    return [*labels, verdict.unit, "n", "p (Holm)", "counted"]


def cell_rows(verdict: Verdict) -> list[list[str]]:
    """The cells of a verdict as rows of text under ``cell_head``."""
    labels = cell_head(verdict)[:-4]
    return [
        [
            *[cell.labels.get(name, "") for name in labels],
            signed(cell.estimate, count=False), str(cell.estimate.n), number(cell.estimate.p_holm, ".3g"),
            "yes" if cell.counted else f"no: {cell.why}",
        ]
        for cell in verdict.cells
    ]  # fmt: skip


def number(value: float, form: str = "+.3f") -> str:
    """A number, or ``none`` when it does not exist."""
    return format(value, form) if math.isfinite(value) else "none"


def signed(estimate: Estimate, count: bool = True) -> str:
    """``+0.123 [+0.100, +0.146], n = 3, p = 0.004``."""
    if not math.isfinite(estimate.effect):
        return "none"
    interval = (
        f"[{estimate.low:+.3f}, {estimate.high:+.3f}]" if math.isfinite(estimate.low) else "(no interval)"
    )
    p = f", p = {estimate.p:.2g}" if math.isfinite(estimate.p) else ""
    p += f" (Holm {estimate.p_holm:.2g})" if math.isfinite(estimate.p_holm) else ""
    return f"{estimate.effect:+.3f} {interval}" + (f", n = {estimate.n}{p}" if count else "")


def write_claims(
    verdicts: Sequence[Verdict], constants: Mapping[str, Any], out: Path, study: str = ""
) -> list[Path]:
    """Write ``claims.json`` and ``claims.md`` into ``out``."""
    paths = [out / "claims.json", out / "claims.md"]
    paths[0].write_text(to_json(verdicts, constants, study), encoding="utf-8")
    paths[1].write_text(to_markdown(verdicts), encoding="utf-8")
    return paths
