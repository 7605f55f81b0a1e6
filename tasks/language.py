"""What a language is: token sequences, which of their tokens are scored, and the exact truth about them.

Most sequences are ``tag, prompt symbols, SEP, answer symbols``, of which the answer alone is scored: prompts are
random, so that nothing can be learnt about them. In others (strings, dyck, pcfg) every symbol after the tag is scored.
Padding is no data. Token ids 0..15 are special, symbol ``s`` is ``16 + s``.
"""

import abc
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from synthlm.config import Config, canonical_json
from synthlm.seeds import numpy_generator

IGNORE = -100
"""Target of a position that is not scored (the default ``ignore_index`` of torch's cross entropy)."""
PAD, SEP, END = 0, 1, 2
FIRST_TAG, TAGS = 4, 12
FIRST_SYMBOL = FIRST_TAG + TAGS

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
Generators = Callable[[str], np.random.Generator]
"""From a purpose ("rule", "keys", ...) to its own generator."""

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Table:
    """Sequences, one an item. All arrays are read-only (copy with ``torch.tensor``, not
    ``torch.from_numpy``).

    tokens: [item, time] input token ids. targets: [item, time] next token, ``IGNORE`` where unscored.
    slices: [item, time] index into ``Language.slices``, -1 where unscored. weight: [item] sampling
    probability. floor: [item, time] nats that the best possible model spends on this target, given what came before
    it: -ln of its true probability, 0 where it can be known. Of training items that model knows the rule and the list
    of training items by heart, of held-out items the rule alone. 0 where unscored. key: [item] identity of the prompt
    within the language: equal numbers, equal prompts (equal sequences, where all of it is scored).
    """

    tokens: Integers
    targets: Integers
    slices: Integers
    weight: Floats
    floor: Floats
    key: Integers

    def __post_init__(self) -> None:
        for column in fields(self):
            getattr(self, column.name).flags.writeable = False

    @property
    def scored(self) -> NDArray[np.bool_]:
        """[item, time] whether the target counts."""
        return self.targets != IGNORE

    @property
    def item_slice(self) -> Integers:
        """[item] the slice of each item; where its positions are of several slices, the last of these."""
        return self.slices.max(axis=1)

    def take(self, items: Integers) -> "Table":
        """The given items, in that order and equally weighted."""
        weight = np.full(len(items), 1.0 / len(items))
        others = {f.name: getattr(self, f.name)[items] for f in fields(self) if f.name != "weight"}
        return Table(weight=weight, **others)


@dataclass(frozen=True)
class Language:
    """A language drawn from one seed.

    config: what it was built from. vocab: token ids are below it. length: the time axis. slices: names, in
    the order of ``Table.slices``. goals: slice name -> "rote" or "rule", the accuracy that it counts to, or
    "" if only shown. train: items to train on, with their sampling probabilities. probe: items to evaluate on
    (training and held out; at most ``config.probe`` a slice, equally weighted). bits: what a perfect
    memorizer must store beyond the rule, given the prompts. rule_bits: log2 of the number of equally likely
    rules. prescribed: step of a training on it -> the training items (their indices) that the batch of that step
    consists of, instead of drawn ones. sha256: of the config and all arrays.

    Raises:
        ValueError: a table contradicts itself, scores padding or leaks held-out prompts into training; prescribed
            items are none of the training items.
    """

    config: "LanguageConfig"
    vocab: int
    length: int
    slices: tuple[str, ...]
    goals: Mapping[str, str]
    train: Table
    probe: Table
    bits: float
    rule_bits: float
    prescribed: Mapping[int, Integers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for table in (self.train, self.probe):
            _check_table(table, self)
        heldout = [index for index, name in enumerate(self.slices) if name.endswith("/heldout")]
        if np.isin(self.train.slices, heldout).any():
            raise ValueError("a held-out item is among the training items")
        hidden = self.probe.key[np.isin(self.probe.slices, heldout).any(axis=1)]
        if np.isin(hidden, self.train.key).any():
            raise ValueError("a held-out prompt is also a training prompt")
        if len(np.unique(self.train.key)) != len(self.train.key):
            raise ValueError("two training items share a prompt")
        if tuple(self.goals) != self.slices or not set(self.goals.values()) <= {"rote", "rule", ""}:
            raise ValueError(
                f"goals: {dict(self.goals)} must give rote, rule or '' for each of {self.slices}"
            )
        for step, items in self.prescribed.items():
            if step < 0 or not len(items) or not 0 <= items.min() <= items.max() < len(self.train.key):
                raise ValueError(f"prescribed: at step {step} {items} are no training items")

    @property
    def total_bits(self) -> float:
        """Bits of the rule and of everything beyond it."""
        return self.bits + self.rule_bits

    @property
    def sha256(self) -> str:
        """Hex digest of the config and of every array of both tables."""
        digest = hashlib.sha256(canonical_json(self.config).encode())
        for role, table in (("train", self.train), ("probe", self.probe)):
            for column in fields(table):
                array = getattr(table, column.name)
                little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
                digest.update(f"{role}.{column.name}:{little.dtype.str}{little.shape}".encode())
                digest.update(little.tobytes())
        for step, items in sorted(self.prescribed.items()):
            digest.update(f"prescribed.{step}:{items.tolist()}".encode())
        return digest.hexdigest()


def _check_table(table: Table, language: Language) -> None:
    shape = (len(table.key), language.length)
    wide = (table.tokens, table.targets, table.slices, table.floor)
    if any(array.shape != shape for array in wide) or table.weight.shape != shape[:1]:
        raise ValueError(f"every array of a table must be {shape} or {shape[:1]}")
    scored = table.scored
    if table.tokens.min() < 0 or max(table.tokens.max(), table.targets.max()) >= language.vocab:
        raise ValueError(f"a token is outside the vocabulary of {language.vocab}")
    if (table.tokens[scored] == PAD).any() or (table.targets[scored] < FIRST_SYMBOL).any():
        raise ValueError("padding or another special token is scored")
    follows = table.tokens[:, 1:] == table.targets[:, :-1]
    padded = table.tokens[:, 1:] == PAD
    if not (follows | padded | ~scored[:, :-1]).all():
        raise ValueError("a target is not the token that follows")
    if not np.array_equal(scored, table.slices >= 0) or not scored.any(axis=1).all():
        raise ValueError("slices and targets disagree on what is scored, or an item has nothing scored")
    if table.slices.max() >= len(language.slices):
        raise ValueError(f"a slice index is outside the {len(language.slices)} slices")
    if (table.weight < 0).any() or not np.isclose(table.weight.sum(), 1.0, rtol=0, atol=1e-9):
        raise ValueError("the weights must be at least 0 and sum to 1")
    if (table.floor < 0).any() or table.floor[~scored].any():
        raise ValueError("floors must be at least 0, and 0 where nothing is scored")


class LanguageConfig(Config, abc.ABC):
    """Settings of a language. Array shapes follow from them alone, never from the seed."""

    name: str

    @property
    @abc.abstractmethod
    def tags(self) -> dict[int, str]:
        """Tag -> label of the sequences marked by it."""

    @property
    def least_batch(self) -> int:
        """The smallest batch that holds whatever a step must see."""
        return 1

    def evaluation_steps(self, steps: int) -> list[int]:
        """Steps after which a training of so many is to be evaluated besides its own choice."""
        return []

    @abc.abstractmethod
    def build(self, seed: int) -> Language:
        """Draw the language; equal settings and seeds give equal arrays, in every process."""


class SingleConfig(LanguageConfig):
    """Settings of every language but mixtures.

    label: prefix of the slice names (the language's name unless given). tag: 0..11, marks the sequences.
    alphabet: number of symbols. probe: most items of a slice that evaluation uses (evenly spaced; None: all
    of them).

    Seed, label and tag together choose all random draws: a new label or tag is a new rule and new items.
    """

    label: str = Field(default_factory=lambda data: data.get("name", ""), pattern=r"^[a-z0-9][a-z0-9._-]*$")
    tag: int = Field(default=0, ge=0, lt=TAGS)
    alphabet: int = Field(default=64, ge=2, le=4096)
    probe: Count | None = 1024

    @property
    def tags(self) -> dict[int, str]:
        """Tag -> label of the sequences marked by it."""
        return {self.tag: self.label}

    def generators(self, seed: int) -> Generators:
        """One generator a purpose; the rule, say, does not depend on how many items are drawn."""
        return partial(numpy_generator, seed, "language", self.label, self.tag)

    def bits_of(self, language: Language, kept: Integers) -> float:
        """Bits of some of the training items (their indices), a uniform random choice, given the rule.

        As it stands, for languages whose items hold equally many bits each, independently of each other.
        """
        return language.bits * len(kept) / len(language.train.key)

    def fresh(self, tag: int, label: str) -> Self:
        """The same kind of language under another tag and label, hence drawn anew: something new to learn."""
        return type(self).model_validate(self.model_dump() | {"tag": tag, "label": label})
