"""Strings: uniform random token strings; nothing to infer, only to recall."""

import math
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from synthlm.tasks.assembly import compose, listed_floor
from synthlm.tasks.keys import distinct_strings, log2_sets
from synthlm.tasks.language import FIRST_SYMBOL, Count, Integers, Language, SingleConfig


class Strings(SingleConfig):
    """Uniform random strings, to be recalled whole or from a prefix on.

    length: symbols in a string. prefix: how many of its first symbols are given and not scored. With a prefix every
    string has one of its own, which is its key. Without one, the first symbols cannot be known even by heart: the floor
    is the code length under the list of all strings, and recall stays below 1.

    Bits: with a prefix items * (length - prefix) * log2(alphabet); without one the strings are a random set, and hold
    log2 binomial(alphabet ** length, items).

    Source: the random strings of arXiv 2505.24832, for a model's capacity.
    """

    name: Literal["strings"] = "strings"
    items: Count = 256
    length: Count = 8
    prefix: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.prefix >= self.length:
            raise ValueError(
                f"prefix: {self.prefix} leaves nothing to score of length {self.length}; "
                f"allowed: 0..{self.length - 1}"
            )
        own = self.prefix or self.length
        if self.items > self.alphabet**own:
            raise ValueError(
                f"items: {self.items} is more than the {self.alphabet**own} strings of {own} symbols over an "
                f"alphabet of {self.alphabet}; allowed: 1..{self.alphabet**own}"
            )
        return self

    def build(self, seed: int) -> Language:
        """Draw the strings."""
        generator = self.generators(seed)("strings")
        strings = distinct_strings(generator, self.items, self.alphabet, self.prefix or self.length)
        if self.prefix:
            rest = generator.integers(self.alphabet, size=(self.items, self.length - self.prefix))
            strings = np.hstack([strings, rest])
        return compose(
            self,
            sequences=FIRST_SYMBOL + strings,
            slices=np.where(np.arange(self.length) < self.prefix, -1, np.zeros_like(strings)),
            item_slice=np.zeros(self.items, dtype=np.int64),
            goals={"rote": "rote"},
            train_items=self.items,
            bits=self._bits(self.items),
            rule_bits=0.0,
            floor=listed_floor(strings),
            key=strings[:, : self.prefix or self.length],
        )

    def bits_of(self, language: Language, kept: Integers) -> float:
        """Bits of some of the strings."""
        return self._bits(len(kept))

    def _bits(self, items: int) -> float:
        if self.prefix:
            return items * (self.length - self.prefix) * math.log2(self.alphabet)
        return log2_sets(self.alphabet**self.length, items)
