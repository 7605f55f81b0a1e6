"""What a verdict holds, and how it is written: ``claims.json`` and ``claims.md``."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CELL_HEAD = (
    "base", "language", "matched arm", "other arm", "learning levels", "kept: matched - other", "n",
    "p (Holm)", "counted",
)  # fmt: skip

OUTCOME_TEXT = {
    "kept": "old accuracy kept, mean over goal slices",
    "rote": "old accuracy kept, rote slices",
    "rule": "old accuracy kept, rule slices",
    "loss": "less rise of the old loss (nats per token)",
    "kl": "less KL from the base on old inputs (nats per token)",
    "attained:kept": "old accuracy kept, evaluated points only (no interpolation)",
    "area": "area under the learning-forgetting frontier (accuracy)",
}


@dataclass(frozen=True)
class Estimate:
    """A mean difference over ``n`` seeds, positive when it favours the matched arm; NaN where there is
    none."""

    name: str
    effect: float
    low: float
    high: float
    n: int
    p: float
    p_holm: float = math.nan


@dataclass(frozen=True)
class CellResult:
    """One comparison: base, language, matched arm against another. ``counted`` says whether the verdict uses
    it.

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


@dataclass(frozen=True)
class Verdict:
    """What the data say of one claim. ``verdict``: supported, contradicted or inconclusive; ``reason``:
    why."""

    claim: str
    statement: str
    source: str
    verdict: str
    reason: str
    effect: Estimate
    rule: str
    cells: tuple[CellResult, ...]
    groups: tuple[Estimate, ...]
    secondary: tuple[Estimate, ...]
    artifacts: tuple[str, ...]
    caveats: tuple[str, ...]


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
            f"Effect {signed(verdict.effect)}; {verdict.reason}.",
            "",
            f"Rule. {verdict.rule}",
            "",
            "| " + " | ".join(CELL_HEAD) + " |",
            "|---" * len(CELL_HEAD) + "|",
        ]
        lines += ["| " + " | ".join(row) + " |" for row in cell_rows(verdict)]
        for title, estimates in (("Within", verdict.groups), ("Secondary outcomes", verdict.secondary)):
            if estimates:
                lines += ["", f"{title}:", ""]
                lines += [f"- {OUTCOME_TEXT.get(item.name, item.name)}: {signed(item)}" for item in estimates]
        lines += [
            "",
            "Caveats:" if verdict.caveats else "No caveats.",
            *[f"- {note}" for note in verdict.caveats],
        ]
        lines += ["", f"Shown in: {', '.join(verdict.artifacts)}", ""]
    return "\n".join(lines)


def cell_rows(verdict: Verdict) -> list[list[str]]:
    """The cells of a verdict as rows of text under CELL_HEAD."""
    return [
        [
            cell.base, cell.language, cell.matched, cell.other,
            f"{cell.lowest:.2f} to {cell.highest:.2f}" if math.isfinite(cell.lowest) else "none",
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
