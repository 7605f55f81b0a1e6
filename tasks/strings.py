"""Reverse, sort and copy random strings."""

import math
from typing import Literal

import numpy as np

from synthlm.tasks.language import Integers
from synthlm.tasks.rules import RuleLanguage, StringRule


class Reverse(StringRule, RuleLanguage):
    """The string backwards. There is one such rule: another seed or tag changes the strings only."""

    name: Literal["reverse"] = "reverse"

    def rewrite(
        self, strings: Integers, alphabet: int, generator: np.random.Generator
    ) -> tuple[Integers, float]:
        """The reversed strings; no bits."""
        return strings[:, ::-1], 0.0


class Copy(StringRule, RuleLanguage):
    """The string again. There is one such rule: another seed or tag changes the strings only."""

    name: Literal["copy"] = "copy"

    def rewrite(
        self, strings: Integers, alphabet: int, generator: np.random.Generator
    ) -> tuple[Integers, float]:
        """The same strings; no bits."""
        return strings.copy(), 0.0


class Sort(StringRule, RuleLanguage):
    """The string's symbols in order.

    order: "natural": by number, the same for every seed and tag; "random": by a random order of the alphabet,
    which is log2(alphabet!) rule bits. A held-out string is not a training string, but may be a reordering of
    one.
    """

    name: Literal["sort"] = "sort"
    order: Literal["natural", "random"] = "natural"

    def rewrite(
        self, strings: Integers, alphabet: int, generator: np.random.Generator
    ) -> tuple[Integers, float]:
        """The sorted strings, and the bits of the order."""
        if self.order == "natural":
            return np.sort(strings, axis=1), 0.0
        ascending = generator.permutation(alphabet)  # the symbols, smallest first
        rank = np.argsort(ascending)
        return ascending[np.sort(rank[strings], axis=1)], math.log2(math.factorial(alphabet))
