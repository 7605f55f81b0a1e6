"""Recall in context: pairs are given, then keys are asked for."""

import math
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from synthlm.tasks.assembly import assemble
from synthlm.tasks.keys import first_distinct
from synthlm.tasks.language import Count, Integers, Language, SingleConfig


class Recall(SingleConfig):
    """Fresh key-value pairs in every sequence, then ``queries`` of its keys, whose values are scored.

    tag k1 v1 k2 v2 ... = q1 a1 q2 a2 ...: only the answers a are scored, each is in the same sequence, so the floor is
    0 and there is nothing to store. Keys are symbols 0..keys-1, values the next ``values`` ones. No two items have the
    same set of pairs (in whatever order), so a held-out item cannot be recalled from training.

    pairs: pairs a sequence. queries: how many keys are asked for. items, heldout: sequences.

    Source: multi-query associative recall (MQAR), arXiv 2312.04927; there pairs and queries are farther apart.
    """

    name: Literal["recall"] = "recall"
    pairs: Count = 4
    queries: Count = 2
    keys: Count = 16
    values: Count = 16
    items: Count = 1024
    heldout: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.keys + self.values > self.alphabet:
            raise ValueError(
                f"keys: {self.keys} keys and {self.values} values are more than the alphabet's {self.alphabet} symbols"
            )
        for field, value, most in (("pairs", self.pairs, self.keys), ("queries", self.queries, self.pairs)):
            if value > most:
                raise ValueError(f"{field}: {value} different keys are wanted; allowed: 1..{most}")
        contexts = math.comb(self.keys, self.pairs) * self.values**self.pairs
        if self.items + self.heldout > contexts:
            raise ValueError(
                f"items: {self.items} and {self.heldout} held out are more than the {contexts} sets of "
                f"{self.pairs} pairs of {self.keys} keys and {self.values} values"
            )
        return self

    def build(self, seed: int) -> Language:
        """Draw the sets of pairs, their order, and the queries."""
        generators = self.generators(seed)
        generator = generators("pairs")

        def draw(count: int) -> Integers:
            shuffled = generator.permuted(np.broadcast_to(np.arange(self.keys), (count, self.keys)), axis=1)
            keys = np.sort(shuffled[:, : self.pairs], axis=1)
            return np.hstack([keys, generator.integers(self.values, size=keys.shape)])

        sets = first_distinct(draw, self.items + self.heldout)
        keys, values = sets[:, : self.pairs], self.keys + sets[:, self.pairs :]
        count = len(sets)
        places = np.broadcast_to(np.arange(self.pairs), keys.shape)
        order = generators("order").permuted(places, axis=1)
        asked = generators("queries").permuted(places, axis=1)[:, : self.queries]

        def interleave(at: Integers) -> Integers:
            pair = [np.take_along_axis(symbols, at, axis=1) for symbols in (keys, values)]
            return np.stack(pair, axis=2).reshape(count, -1)

        return assemble(
            self,
            prompts=interleave(order),
            answers=interleave(asked),
            item_slice=(np.arange(count) >= self.items).astype(np.int64),
            goals={"rule/train": "", "rule/heldout": "rule"},
            train_items=self.items,
            bits=0.0,
            rule_bits=0.0,
            asked=np.broadcast_to(np.arange(2 * self.queries) % 2, (count, 2 * self.queries)),
            key=sets,
        )
