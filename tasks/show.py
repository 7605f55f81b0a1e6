"""Describe a language for people: sizes, slices, exact bits, sample sequences."""

from dataclasses import dataclass

import numpy as np
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from synthlm.tasks.language import FIRST_SYMBOL, FIRST_TAG, SEP, Language


@dataclass(frozen=True)
class Sample:
    """One sequence as text: its tokens, each with whether it is scored. slice: of its last scored token."""

    slice: str
    words: tuple[tuple[str, bool], ...]

    @property
    def text(self) -> str:
        """The tokens, with spaces between."""
        return " ".join(word for word, _ in self.words)


@dataclass(frozen=True)
class SliceRow:
    """One slice. Items: those with a position in it. share: of the scored tokens of training, by how often each is
    drawn. floor: mean nats a scored token of the probe."""

    name: str
    goal: str
    train_items: int
    probe_items: int
    scored_tokens: int
    share: float
    floor: float


@dataclass(frozen=True)
class Description:
    """What ``synthlm tasks NAME`` shows. floor: mean nats a scored token of the probe; bits: see Language. prescribed:
    (step, number of items) of each step that sees these items alone."""

    name: str
    vocab: int
    length: int
    train_items: int
    probe_items: int
    bits: float
    rule_bits: float
    floor: float
    sha256: str
    prescribed: tuple[tuple[int, int], ...]
    slices: tuple[SliceRow, ...]
    samples: tuple[Sample, ...]


def describe(language: Language, samples: int = 4) -> Description:
    """Sizes, truth and ``samples`` evenly spaced sequences of each slice."""
    train, probe = language.train, language.probe
    rows: list[SliceRow] = []
    shown: list[Sample] = []
    mass = (train.scored * train.weight[:, None]).sum()
    for index, name in enumerate(language.slices):
        positions, trained = probe.slices == index, train.slices == index
        items = np.flatnonzero(positions.any(axis=1))
        rows.append(
            SliceRow(
                name=name,
                goal=language.goals[name],
                train_items=int(trained.any(axis=1).sum()),
                probe_items=len(items),
                scored_tokens=int(positions.sum()),
                share=float((trained * train.weight[:, None]).sum() / mass),
                floor=float(probe.floor[positions].mean()),
            )
        )
        items = np.flatnonzero(probe.item_slice == index)
        count = min(samples, len(items))
        chosen = items[np.arange(count) * len(items) // max(count, 1)]
        shown.extend(Sample(name, _words(language, int(item))) for item in chosen)
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
        prescribed=tuple((step, len(items)) for step, items in sorted(language.prescribed.items())),
        slices=tuple(rows),
        samples=tuple(shown),
    )


def render(description: Description) -> Group:
    """The description as something rich prints; scored tokens are in brackets, and bold where there is bold."""
    d = description
    head = Text(
        f"{d.name}: {d.train_items} training items, {d.probe_items} in the probe, {d.length} tokens each, "
        f"vocabulary {d.vocab}\n"
        f"{d.bits:.1f} bits to memorize beyond the rule, {d.rule_bits:.1f} bits of rule, "
        f"floor {d.floor:.4g} nats a scored token\nsha256 {d.sha256}"
    )
    for step, items in d.prescribed:
        head.append(f"\nthe step after the first {step} sees {items} items of weight 0 and no others")
    slices = RichTable()
    slices.add_column("slice", no_wrap=True)
    slices.add_column("counts to")
    for title in ("training items", "probe items", "scored tokens", "share of training", "floor"):
        slices.add_column(title, justify="right")
    for row in d.slices:
        numbers = (row.train_items, row.probe_items, row.scored_tokens)
        slices.add_row(
            Text(row.name), row.goal or "-", *map(str, numbers), f"{row.share:.1%}", f"{row.floor:.4g}"
        )
    if not d.samples:
        return Group(head, slices)
    samples = RichTable("slice", "sequence (scored tokens in brackets)")
    for sample in d.samples:
        parts = [(f"[{word}]", "bold") if scored else (word, "") for word, scored in sample.words]
        samples.add_row(Text(sample.slice), Text(" ").join(Text(*part) for part in parts))
    return Group(head, slices, samples)


def _words(language: Language, item: int) -> tuple[tuple[str, bool], ...]:
    """A probe item's tokens up to its last scored one, each with whether it is scored."""
    table, names = language.probe, language.config.tags
    last = int(np.flatnonzero(table.scored[item])[-1])
    tokens = [*table.tokens[item, : last + 1].tolist(), int(table.targets[item, last])]
    scored = [False, *table.scored[item, : last + 1].tolist()]
    return tuple((_token(token, names), flag) for token, flag in zip(tokens, scored, strict=True))


def _token(token: int, tags: dict[int, str]) -> str:
    if token >= FIRST_SYMBOL:
        return f"s{token - FIRST_SYMBOL}"
    return "=" if token == SEP else f"<{tags[token - FIRST_TAG]}>"
