"""Facts: random keys to random values; nothing to infer, only to recall."""

import math
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from synthlm.tasks.assembly import assemble
from synthlm.tasks.keys import distinct_strings
from synthlm.tasks.language import Count, Floats, Language, SingleConfig


class Facts(SingleConfig):
    """Distinct random keys, each with a uniform random value.

    items: number of facts. key_length, value_length: symbols. frequency: how often an item is drawn in
    training; "zipf": the r-th item in proportion to r ** -exponent. tail: with "zipf", the share of items
    (the rarest, rounded down) that is a slice of its own, which is shown but does not count (ignored with
    "uniform").

    Given the keys, the values hold exactly items * value_length * log2(alphabet) bits.
    Source of the Zipf variant: arXiv 2509.26030 (tail items in associative memories).
    """

    name: Literal["facts"] = "facts"
    items: Count = 512
    key_length: Count = 3
    value_length: Count = 2
    frequency: Literal["uniform", "zipf"] = "uniform"
    exponent: float = Field(default=1.0, ge=0)
    tail: float = Field(default=0.25, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        keys = self.alphabet**self.key_length
        if self.items > keys:
            raise ValueError(
                f"items: {self.items} is more than the {keys} keys of key_length {self.key_length} "
                f"over an alphabet of {self.alphabet}; allowed: 1..{keys}"
            )
        return self

    def build(self, seed: int) -> Language:
        """Draw keys and values; items are in order of falling frequency."""
        generators = self.generators(seed)
        keys = distinct_strings(generators("keys"), self.items, self.alphabet, self.key_length)
        values = generators("values").integers(self.alphabet, size=(self.items, self.value_length))
        tail = int(self.tail * self.items) if self.frequency == "zipf" else 0
        goals = {"rote": "rote"} | ({"rote/tail": ""} if tail else {})
        return assemble(
            self,
            prompts=keys,
            answers=values,
            item_slice=(np.arange(self.items) >= self.items - tail).astype(np.int64),
            goals=goals,
            train_items=self.items,
            weight=zipf(self.items, self.exponent) if self.frequency == "zipf" else None,
            bits=self.items * self.value_length * math.log2(self.alphabet),
            rule_bits=0.0,
        )


def zipf(items: int, exponent: float) -> Floats:
    """[item] probabilities in proportion to rank ** -exponent."""
    weight = np.arange(1, items + 1, dtype=np.float64) ** -exponent
    return weight / weight.sum()
