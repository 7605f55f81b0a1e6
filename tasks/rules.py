"""Languages with a rule: the answers to held-out keys can be inferred from training items."""

import abc
from dataclasses import dataclass
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from synthlm.config import Config
from synthlm.tasks.assembly import assemble
from synthlm.tasks.keys import distinct_strings
from synthlm.tasks.language import Booleans, Count, Generators, Integers, Language, SingleConfig


@dataclass(frozen=True)
class Drawn:
    """A rule applied to distinct keys.

    keys: [item, key] symbols. answers: [item, value] symbols. train_items: the first so many are for
    training. values: answers use symbols 0..values-1. rule_bits: log2 of the number of equally likely rules.
    """

    keys: Integers
    answers: Integers
    train_items: int
    values: int
    rule_bits: float


class Rule(Config, abc.ABC):
    """Settings of a rule and of its keys, apart from the alphabet and how sequences are marked."""

    name: str

    @abc.abstractmethod
    def check(self, alphabet: int) -> None:
        """Raise ValueError if the settings do not fit the alphabet."""

    @property
    @abc.abstractmethod
    def train_items(self) -> int:
        """Number of training items."""

    @abc.abstractmethod
    def draw(self, alphabet: int, generators: Generators) -> Drawn:
        """Draw the rule and the keys, and apply it."""


class RuleLanguage(Rule, SingleConfig):
    """A language that is nothing but a rule. Beyond the rule there are no bits to store."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.check(self.alphabet)
        return self

    def build(self, seed: int) -> Language:
        """Draw the rule and its items; held-out keys are no training keys."""
        drawn = self.draw(self.alphabet, self.generators(seed))
        shown = self.shown(drawn)
        goals = {"rule/train": "", "rule/heldout": "rule"}
        if shown is not None:  # an item is named by its last slice: held out
            goals = {"rule/train": "", "rule/shown": "", "rule/heldout": "rule"}
        heldout = len(goals) - 1
        item_slice = np.where(np.arange(len(drawn.keys)) < drawn.train_items, 0, heldout)
        return assemble(
            self,
            prompts=drawn.keys,
            answers=drawn.answers,
            item_slice=item_slice,
            answer_slice=None if shown is None else np.where(shown, 1, item_slice[:, None]),
            goals=goals,
            train_items=drawn.train_items,
            bits=0.0,
            rule_bits=drawn.rule_bits,
        )

    def shown(self, drawn: Drawn) -> Booleans | None:
        """[item, value]: answers of held-out keys that stand in the training data, no one's goal; None: none."""
        return None


class StringRule(Rule):
    """A rule on random strings.

    length: symbols in a string. items: training strings. heldout: further strings, none of them a training
    string.
    """

    length: Count = 4
    items: Count = 512
    heldout: int = Field(default=256, ge=1)

    def check(self, alphabet: int) -> None:
        """Raise ValueError if there are too few strings."""
        strings = alphabet**self.length
        if self.items >= strings:
            raise ValueError(
                f"items: {self.items} leaves nothing to hold out of the {strings} strings of length "
                f"{self.length} over an alphabet of {alphabet}; allowed: 1..{strings - 1}"
            )
        left = strings - self.items
        if self.heldout > left:
            raise ValueError(
                f"heldout: {self.heldout} is more than the {left} strings of length {self.length} "
                f"over an alphabet of {alphabet} that items={self.items} leaves; allowed: 1..{left}"
            )

    @property
    def train_items(self) -> int:
        """Number of training strings."""
        return self.items

    def draw_keys(self, alphabet: int, generator: np.random.Generator) -> Integers:
        """[items + heldout, length] distinct uniform strings, the training strings first."""
        return distinct_strings(generator, self.items + self.heldout, alphabet, self.length)

    @abc.abstractmethod
    def rewrite(
        self, strings: Integers, alphabet: int, generator: np.random.Generator
    ) -> tuple[Integers, float]:
        """Draw the rule; return its answers [item, length] and its bits."""

    def draw(self, alphabet: int, generators: Generators) -> Drawn:
        """Draw the rule and the strings, and apply it."""
        keys = self.draw_keys(alphabet, generators("keys"))
        answers, rule_bits = self.rewrite(keys, alphabet, generators("rule"))
        return Drawn(keys, answers, self.items, alphabet, rule_bits)
