"""Dyck: balanced brackets of several kinds, nested to a bounded depth."""

import math
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from synthlm.tasks.assembly import compose, listed_floor
from synthlm.tasks.keys import first_distinct, log2_sets
from synthlm.tasks.language import FIRST_SYMBOL, Count, Floats, Integers, Language, SingleConfig

FORCED, FREE = 0, 2


class Dyck(SingleConfig):
    """Balanced strings of brackets of several kinds, nested to a bounded depth.

    Strings are uniform among all with ``pairs`` pairs of ``kinds`` kinds, nested at most ``depth`` deep.

    Every symbol is scored, in two slices. "rule": where a closing bracket is forced, because the string has no room to
    open another or is as deep as it may be; which kind it is follows from what is open, so the floor is 0. "free": all
    others; the floor of a held-out string is -ln of the symbol's exact share among all ways to go on.

    brackets: "natural": kind i is symbols 2i (opens) and 2i + 1 (closes), the same for every seed and tag; "random":
    random symbols. items, heldout: strings, all distinct.

    Bits: the training strings are a random set of all n strings, log2 binomial(n, items). Rule bits: 0, or with random
    brackets log2 of alphabet! / ((alphabet - 2 kinds)! kinds!).

    Source: Dyck languages of bounded depth, arXiv 2010.07515; uniform strings of one length are our choice.
    """

    name: Literal["dyck"] = "dyck"
    kinds: Count = 3
    pairs: int = Field(default=6, ge=1, le=512)
    depth: Count = 4
    items: Count = 1024
    heldout: int = Field(default=256, ge=1)
    brackets: Literal["natural", "random"] = "natural"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if 2 * self.kinds > self.alphabet:
            raise ValueError(
                f"kinds: {self.kinds} kinds need {2 * self.kinds} symbols of an alphabet of {self.alphabet}; "
                f"allowed: 1..{self.alphabet // 2}"
            )
        if self.items + self.heldout > self.strings:
            raise ValueError(
                f"items: {self.items} and {self.heldout} held out are more than the {self.strings} strings of "
                f"{self.pairs} pairs of {self.kinds} kinds nested {self.depth} deep"
            )
        return self

    @property
    def strings(self) -> int:
        """How many strings there are."""
        return completions(self.kinds, self.pairs, self.depth)[-1][0]

    def build(self, seed: int) -> Language:
        """Draw the strings."""
        generators = self.generators(seed)
        generator = generators("strings")
        strings = first_distinct(lambda count: self._draw(count, generator), self.items + self.heldout)
        forced, floor = self._floors(strings)
        floor[: self.items] = listed_floor(strings[: self.items])
        heldout = (np.arange(len(strings)) >= self.items).astype(np.int64)
        symbols, rule_bits = np.arange(2 * self.kinds), 0.0
        if self.brackets == "random":
            symbols = generators("rule").permutation(self.alphabet)[: 2 * self.kinds]
            rule_bits = math.log2(math.perm(self.alphabet, 2 * self.kinds) // math.factorial(self.kinds))
        return compose(
            self,
            sequences=FIRST_SYMBOL + symbols[strings],
            slices=np.where(forced, FORCED, FREE) + heldout[:, None],
            item_slice=heldout,
            goals={"rule/train": "", "rule/heldout": "rule", "free/train": "", "free/heldout": ""},
            train_items=self.items,
            bits=log2_sets(self.strings, self.items),
            rule_bits=rule_bits,
            floor=floor,
        )

    def bits_of(self, language: Language, kept: Integers) -> float:
        """Bits of some of the training strings."""
        return log2_sets(self.strings, len(kept))

    def _closing(self) -> Floats:
        """[left, depth] the share of closing brackets among all ways to go on with so many symbols left."""
        ways = completions(self.kinds, self.pairs, self.depth)
        share = np.zeros((len(ways), len(ways[0])))
        for left in range(1, len(ways)):
            for depth in range(1, len(ways[0])):
                if ways[left][depth]:
                    share[left, depth] = ways[left - 1][depth - 1] / ways[left][depth]
        return share

    def _draw(self, count: int, generator: np.random.Generator) -> Integers:
        """[count, time] uniform strings, with kind i as 2i and 2i + 1."""
        time, closing = 2 * self.pairs, self._closing()
        strings = np.empty((count, time), dtype=np.int64)
        stack = np.zeros((count, closing.shape[1]), dtype=np.int64)
        rows, depth = np.arange(count), np.zeros(count, dtype=np.int64)
        for t in range(time):
            closes = generator.random(count) < closing[time - t, depth]
            kind = generator.integers(self.kinds, size=count)
            strings[:, t] = np.where(closes, 2 * stack[rows, depth] + 1, 2 * kind)
            depth = depth + np.where(closes, -1, 1)
            opened = rows[~closes]
            stack[opened, depth[opened]] = kind[opened]
        return strings

    def _floors(self, strings: Integers) -> tuple[np.ndarray, Floats]:
        """[item, time] whether a closing bracket is forced, and -ln of each symbol's probability under the rule."""
        time, closing = strings.shape[1], self._closing()
        closes = strings % 2 == 1
        depth = np.cumsum(np.where(closes, -1, 1), axis=1)
        depth = np.hstack([np.zeros((len(strings), 1), dtype=np.int64), depth[:, :-1]])
        share = closing[time - np.arange(time), depth]
        with np.errstate(divide="ignore"):
            floor = np.where(closes, -np.log(share), -np.log((1 - share) / self.kinds))
        return share == 1, np.maximum(floor, 0.0)


@lru_cache(maxsize=16)
def completions(kinds: int, pairs: int, most: int) -> tuple[tuple[int, ...], ...]:
    """[left, depth] how many ways there are to close everything with ``left`` more symbols, from ``depth`` open
    brackets of at most ``most``; the kinds of those already open are given.

    left: 0..2 pairs. depth: 0 up to the lesser of ``most`` and ``pairs``. Depths that a string of so many pairs cannot
    have with so many symbols left count 0.
    """
    deepest = min(most, pairs)
    ways = [[1] + [0] * deepest]
    for left in range(1, 2 * pairs + 1):
        before = [0, *ways[-1], 0]  # depth d is at d + 1
        reachable = min(deepest, left, 2 * pairs - left)
        row = [before[d] + kinds * before[d + 2] for d in range(reachable + 1)]
        ways.append(row + [0] * (deepest - reachable))
    return tuple(map(tuple, ways))
