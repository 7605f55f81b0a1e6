"""Describe a language for people: sizes, slices, exact bits, sample sequences."""

from dataclasses import dataclass

import numpy as np
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from synthlm.tasks.language import FIRST_SYMBOL, FIRST_TAG, PAD, SEP, Language, SingleConfig
from synthlm.tasks.mixture import Mixture


@dataclass(frozen=True)
class Sample:
    """One sequence as text. prompt and separator: not scored; answer: scored."""

    slice: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class SliceRow:
    """One slice. share: probability that a training sequence is of it. floor: mean nats a scored token."""

    name: str
    goal: str
    train_items: int
    probe_items: int
    scored_tokens: int
    share: float
    floor: float


@dataclass(frozen=True)
class Description:
    """What ``synthlm tasks NAME`` shows. floor: mean nats a scored token of the probe; bits: see Language."""

    name: str
    vocab: int
    length: int
    train_items: int
    probe_items: int
    bits: float
    rule_bits: float
    floor: float
    sha256: str
    slices: tuple[SliceRow, ...]
    samples: tuple[Sample, ...]


def describe(language: Language, samples: int = 4) -> Description:
    """Sizes, truth and ``samples`` evenly spaced sequences of each slice."""
    train, probe = language.train, language.probe
    rows: list[SliceRow] = []
    shown: list[Sample] = []
    for index, name in enumerate(language.slices):
        items = np.flatnonzero(probe.item_slice == index)
        trained = train.item_slice == index
        rows.append(
            SliceRow(
                name=name,
                goal=language.goals[name],
                train_items=int(trained.sum()),
                probe_items=len(items),
                scored_tokens=int(probe.scored[items].sum()),
                share=float(train.weight[trained].sum()),
                floor=float(probe.floor[items][probe.scored[items]].mean()),
            )
        )
        count = min(samples, len(items))
        chosen = items[np.arange(count) * len(items) // max(count, 1)]
        shown.extend(Sample(name, *_text(language, int(item))) for item in chosen)
    return Description(
        name=language.config.name,
        vocab=language.vocab,
        length=language.length,
        train_items=len(train.key),
        probe_items=len(probe.key),
        bits=language.bits,
        rule_bits=language.rule_bits,
        floor=float(probe.floor[probe.scored].mean()),
        sha256=language.sha256,
        slices=tuple(rows),
        samples=tuple(shown),
    )


def render(description: Description) -> Group:
    """The description as something rich prints; scored tokens are bold."""
    d = description
    head = Text(
        f"{d.name}: {d.train_items} training items, {d.probe_items} in the probe, {d.length} tokens each, "
        f"vocabulary {d.vocab}\n"
        f"{d.bits:.1f} bits to memorize beyond the rule, {d.rule_bits:.1f} bits of rule, "
        f"floor {d.floor:g} nats a scored token\nsha256 {d.sha256}"
    )
    slices = RichTable()
    slices.add_column("slice", no_wrap=True)
    slices.add_column("counts to")
    for title in ("training items", "probe items", "scored tokens", "share of training", "floor"):
        slices.add_column(title, justify="right")
    for row in d.slices:
        numbers = (row.train_items, row.probe_items, row.scored_tokens)
        slices.add_row(
            Text(row.name), row.goal or "-", *map(str, numbers), f"{row.share:.1%}", f"{row.floor:g}"
        )
    samples = RichTable("slice", "sequence (scored tokens bold)")
    for sample in d.samples:
        samples.add_row(Text(sample.slice), Text.assemble(sample.prompt, " ", (sample.answer, "bold")))
    return Group(head, slices, samples)


def _text(language: Language, item: int) -> tuple[str, str]:
    """Prompt and answer of a probe item."""
    tokens, targets = language.probe.tokens[item], language.probe.targets[item]
    scored = language.probe.scored[item]
    prompt = tokens[: int(np.argmax(scored)) + 1]
    names = _tag_names(language)
    return " ".join(_token(int(t), names) for t in prompt), " ".join(
        _token(int(t), names) for t in targets[scored]
    )


def _tag_names(language: Language) -> dict[int, str]:
    config = language.config
    parts = config.parts if isinstance(config, Mixture) else (config,)
    return {FIRST_TAG + part.tag: part.label for part in parts if isinstance(part, SingleConfig)}


def _token(token: int, tags: dict[int, str]) -> str:
    if token >= FIRST_SYMBOL:
        return f"s{token - FIRST_SYMBOL}"
    return {PAD: "<pad>", SEP: "="}.get(token) or f"<{tags[token]}>"
