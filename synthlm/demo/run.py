"""``synthlm demo``: a lesson from command-line options, shown as it goes, its end state kept as a figure."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from synthlm import options
from synthlm.config import InputError, choose
from synthlm.demo import figure
from synthlm.demo.lesson import Frame, Lesson
from synthlm.demo.screen import view
from synthlm.engines.batch import one_thread
from synthlm.figures import style
from synthlm.optimizers import RULES
from synthlm.progress import duration
from synthlm.store import check_writable
from synthlm.tasks.language import FIRST_SYMBOL

DEFAULTS = (
    "training.batch=64",
    'training.schedule={ shape = "linear", warmup_fraction = 0.05, final = 0.05 }',
)
"""Settings of every lesson, unless they are set."""
VERBS = (
    "language.alphabet=26",
    'language.rule={ name = "cipher", length = 3, items = 1200, heldout = 128 }',
    "language.exceptions=60",
    "language.probe=128",
)
"""Settings of the language of regular and irregular verbs, written with 26 letters."""
MOST = 4
"""Learners side by side."""


@dataclass(frozen=True)
class Plan:
    """A lesson and what it is called."""

    lesson: Lesson
    title: str
    alphabet: int


def plan(
    language: str,
    optimizers: str,
    rates: str | None,
    steps: int,
    seed: int,
    settings: Sequence[str],
    device: str = "cpu",
) -> Plan:
    """The lesson that the options ask for.

    Args:
        optimizers: names with commas between. rates: learning rates with commas between, one each; None: defaults.
        settings: ``PATH=VALUE``, as of ``synthlm train``.

    Raises:
        InputError: naming the option or setting that is wrong.
    """
    names = [name.strip() for name in optimizers.split(",") if name.strip()]
    if not 1 <= len(names) <= MOST:
        raise InputError(
            f"optimizers: {optimizers!r} names {len(names)}; allowed: 1 to {MOST}, with commas between"
        )
    for name in names:
        choose("optimizers", name, list(RULES))
    given = _rates(rates, names)
    defaults = [*DEFAULTS, *_verbs(language, options.assignments(settings))]
    jobs = [
        options.pretrain_job(language, name, lr, steps, seed, [*defaults, *settings], "demo")
        for name, lr in zip(names, given, strict=True)
    ]
    shown = [f"{style.name(job.optimizer.name)} (lr {job.optimizer.lr:g})" for job in jobs]
    called = [style.name(name) for name in names] if len(set(names)) == len(names) else shown
    lesson = Lesson(jobs, called, device)
    title = f"{' and '.join(shown)} on {lesson.language.config.name}, seed {seed}"
    return Plan(lesson, title, lesson.language.vocab - FIRST_SYMBOL)


def _verbs(language: str, given: Mapping[str, Any]) -> list[str]:
    """Settings of the language of verbs, as far as the given ones leave language and rule as they are."""

    def name(table: Any, default: str) -> str:
        return str(table.get("name", default)) if isinstance(table, Mapping) else default

    of_language = given.get("language", {})
    if name(of_language, language) != "exceptions":
        return []
    rule = of_language.get("rule", {}) if isinstance(of_language, Mapping) else {}
    return [s for s in VERBS if name(rule, "cipher") == "cipher" or not s.startswith("language.rule=")]


def _rates(rates: str | None, names: Sequence[str]) -> list[float | None]:
    if rates is None:
        return [None] * len(names)
    try:
        values: list[float | None] = [float(word) for word in rates.split(",")]
    except ValueError:
        raise InputError(
            f"lrs: {rates!r} should be numbers with commas between, such as 0.003,0.02"
        ) from None
    for value in values:
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise InputError(f"lrs: {value:g} should be a number of at least 0")
    if len(values) != len(names):
        raise InputError(f"lrs: {len(values)} given for {len(names)} optimizers ({', '.join(names)})")
    return values


def teach(made: Plan, out: Path, console: Console, animated: bool) -> Frame:
    """Play the lesson on the console and keep its end state in ``out``; returns the last frame.

    Raises:
        InputError: when ``out`` cannot be written, before anything trains.
    """
    check_writable(out, "out")
    lesson = made.lesson
    begun = time.monotonic()
    frame: Frame | None = None
    with (
        one_thread(lesson.device),
        view(console, made.title, lesson.nouns, made.alphabet, animated) as shown,
    ):
        for frame in lesson.play():
            shown.show(frame)
    assert frame is not None
    paths = figure.save(out, frame, lesson.counts, lesson.nouns, made.title)
    console.print(
        Text(f"{duration(time.monotonic() - begun)}; kept as {', '.join(map(str, paths))}"), soft_wrap=True
    )
    return frame
