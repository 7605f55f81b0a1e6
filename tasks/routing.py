"""Routing: several sources share one low-rank map, which can instead be memorized source by source."""

import math
from typing import Literal

import numpy as np
from pydantic import Field

from synthlm.tasks.language import Count, Generators, Integers
from synthlm.tasks.rules import Drawn, RuleLanguage


class Routing(RuleLanguage):
    """Several sources share one low-rank map from keys to values, which can instead be memorized for each.

    (source, key) -> value, where the value depends on the key alone and takes ``rank`` values. As a matrix from
    keys to values the map has that rank, and it is the same for every source. Training shows each key with some
    sources only. Who shares the map across sources knows the held-out pairs; who stores a table for each source
    fits training as well and knows nothing of them.

    sources, keys: how many of each (symbols 0.. in the first and second place). rank: how many values there are.
    train_fraction: share of the pairs in training (rounded), every key with at least one source.

    Rule bits: log2 of the number of maps from the keys onto just ``rank`` of the alphabet's symbols.

    Source: the idea of arXiv 2603.00742 (Muon may miss structure that is common to several domains); the task is our
    reconstruction.
    """

    name: Literal["routing"] = "routing"
    sources: Count = 8
    keys: Count = 32
    rank: Count = 8
    train_fraction: float = Field(default=0.5, gt=0, lt=1)

    def check(self, alphabet: int) -> None:
        """Raise ValueError if the symbols do not suffice, or training or held-out pairs would be missing."""
        for field, value, most in (
            ("sources", self.sources, alphabet),
            ("keys", self.keys, alphabet),
            ("rank", self.rank, min(alphabet, self.keys)),
        ):
            if value > most:
                raise ValueError(f"{field}: {value} is too many; allowed: 1..{most}")
        pairs = self.sources * self.keys
        if not self.keys <= self.train_items < pairs:
            raise ValueError(
                f"train_fraction: {self.train_fraction} of {pairs} pairs is {self.train_items} training pairs; "
                f"allowed: fractions that give {self.keys}..{pairs - 1}, every key at least once"
            )

    @property
    def train_items(self) -> int:
        """Number of training pairs."""
        return round(self.train_fraction * self.sources * self.keys)

    def draw(self, alphabet: int, generators: Generators) -> Drawn:
        """Draw the map and the split."""
        generator = generators("rule")
        values = generator.permutation(alphabet)[: self.rank]
        classes = self._onto(generator)
        generator = generators("keys")
        cells = generator.permutation(self.sources * self.keys)
        key = cells % self.keys
        first = np.zeros(len(cells), dtype=bool)
        first[np.unique(key, return_index=True)[1]] = True
        cells = np.concatenate([cells[first], cells[~first]])
        train = generator.permutation(cells[: self.train_items])
        cells = np.concatenate([train, cells[self.train_items :]])
        source, key = cells // self.keys, cells % self.keys
        bits = math.log2(math.comb(alphabet, self.rank) * self._maps(self.keys, self.rank))
        return Drawn(
            np.stack([source, key], axis=1), values[classes[key]][:, None], self.train_items, alphabet, bits
        )

    def _maps(self, keys: int, wanted: int) -> int:
        """How many maps of so many keys to ``rank`` classes hit each of ``wanted`` given classes."""
        return sum((-1) ** j * math.comb(wanted, j) * (self.rank - j) ** keys for j in range(wanted + 1))

    def _onto(self, generator: np.random.Generator) -> Integers:
        """[key] a class each, uniform among the maps that hit every class."""
        new = generator.permutation(self.rank).tolist()
        hit: list[int] = []
        for left in range(self.keys, 0, -1):
            fresh = len(new) * self._maps(left - 1, len(new) - 1) / self._maps(left, len(new)) if new else 0.0
            hit.append(new.pop() if generator.random() < fresh else hit[generator.integers(len(hit))])
            # a class in use is chosen uniformly among the classes in use
        return np.array(hit)
