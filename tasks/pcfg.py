"""PCFG: strings of one length from a small random context-free grammar."""

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from synthlm.tasks.assembly import compose, listed_floor
from synthlm.tasks.keys import first_distinct, log2_sets
from synthlm.tasks.language import FIRST_SYMBOL, Count, Floats, Integers, Language, SingleConfig


class Pcfg(SingleConfig):
    """Random strings of a random grammar in Chomsky normal form; every symbol is scored.

    Each of ``nonterminals`` (the first starts) has ``branches`` rules to two nonterminals and ``words`` rules to a
    symbol, all random, all derivations of a string of ``length`` symbols equally likely. So a string's probability is
    its share of the derivations. The floor of a held-out string is exact: the share of a prefix is the share of the
    derivations in which its first symbols are these and the others any (inside algorithm with wildcards). A symbol is
    seldom forced, so accuracy cannot reach 1: compare losses with the floor.

    items, heldout: strings, all distinct: the first ones of a random stream, repeats left out.

    Bits: -log2 of the probability that just these training strings come first in the stream, given the grammar. Rule
    bits: nonterminals * (log2 binomial(nonterminals ** 2, branches) + log2 binomial(alphabet, words)); grammars that
    differ in the names of nonterminals count apart.

    Source: learning a context-free grammar as a task, arXiv 2305.13673; this small random grammar is our own. Prefix
    probabilities: Jelinek and Lafferty 1991.
    """

    name: Literal["pcfg"] = "pcfg"
    nonterminals: int = Field(default=8, ge=1, le=16)
    branches: Count = 2
    words: Count = 2
    length: int = Field(default=12, ge=2, le=32)
    items: Count = 1024
    heldout: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field, value, most in (
            ("branches", self.branches, self.nonterminals**2),
            ("words", self.words, self.alphabet),
        ):
            if value > most:
                raise ValueError(f"{field}: {value} different ones are wanted; allowed: 1..{most}")
        # every nonterminal has a word and a branch, so each tree has words ** length strings at least
        if 2 * (self.items + self.heldout) > self.words**self.length:
            raise ValueError(
                f"items: {self.items} and {self.heldout} held out may be more than half of the strings of "
                f"{self.length} symbols with {self.words} words a nonterminal; allowed: "
                f"together up to {self.words**self.length // 2}"
            )
        return self

    def build(self, seed: int) -> Language:
        """Draw the grammar and the strings."""
        generators = self.generators(seed)
        grammar = self.grammar(generators("rule"))
        generator = generators("strings")
        strings = first_distinct(
            lambda count: grammar.draw(count, self.length, generator), self.items + self.heldout
        )
        log_share = grammar.log_prefix_shares(strings)
        floor = log_share[:, :-1] - log_share[:, 1:]
        floor[: self.items] = listed_floor(strings[: self.items])
        heldout = (np.arange(len(strings)) >= self.items).astype(np.int64)
        rules = log2_sets(self.nonterminals**2, self.branches) + log2_sets(self.alphabet, self.words)
        return compose(
            self,
            sequences=FIRST_SYMBOL + strings,
            slices=np.broadcast_to(heldout[:, None], strings.shape),
            item_slice=heldout,
            goals={"rule/train": "", "rule/heldout": "rule"},
            train_items=self.items,
            bits=bits_of_first(np.exp(log_share[: self.items, -1])),
            rule_bits=self.nonterminals * rules,
            floor=np.maximum(floor, 0.0),
        )

    def grammar(self, generator: np.random.Generator) -> "Grammar":
        """Draw the rules."""
        n = self.nonterminals
        pairs = [generator.choice(n * n, self.branches, replace=False) for _ in range(n)]
        words = [generator.choice(self.alphabet, self.words, replace=False) for _ in range(n)]
        return Grammar(np.stack(pairs) // n, np.stack(pairs) % n, np.stack(words), self.alphabet)


@dataclass(frozen=True)
class Grammar:
    """left, right: [nonterminal, branch] nonterminals. words: [nonterminal, word] symbols below ``alphabet``."""

    left: Integers
    right: Integers
    words: Integers
    alphabet: int

    def _joined(self, left: Floats, right: Floats) -> Floats:
        """Derivations [..., nonterminal] from those of the left and the right part."""
        return (left[..., self.left] * right[..., self.right]).sum(-1)

    def counts(self, length: int) -> Floats:
        """[length + 1, nonterminal] derivations of all strings of each length (0 of length 0)."""
        counts = np.zeros((length + 1, len(self.words)))
        counts[1] = self.words.shape[1]
        for size in range(2, length + 1):
            counts[size] = sum(self._joined(counts[s], counts[size - s]) for s in range(1, size))
        return counts

    def draw(self, count: int, length: int, generator: np.random.Generator) -> Integers:
        """[count, length] symbols: strings of uniform random derivations from nonterminal 0."""
        counts = self.counts(length)
        strings = np.empty((count, length), dtype=np.int64)
        item, start = np.arange(count), np.zeros(count, dtype=np.int64)
        size, nonterminal = np.full(count, length), np.zeros(count, dtype=np.int64)
        while True:
            leaf = size == 1
            word = generator.integers(self.words.shape[1], size=int(leaf.sum()))
            strings[item[leaf], start[leaf]] = self.words[nonterminal[leaf], word]
            if leaf.all():
                return strings
            item, start, size, nonterminal = (x[~leaf] for x in (item, start, size, nonterminal))
            branch, split = self._branch(size, nonterminal, counts, generator)
            item = np.concatenate([item, item])
            start = np.concatenate([start, start + split])
            size = np.concatenate([split, size - split])
            nonterminal = np.concatenate([self.left[nonterminal, branch], self.right[nonterminal, branch]])

    def _branch(
        self, size: Integers, nonterminal: Integers, counts: Floats, generator: np.random.Generator
    ) -> tuple[Integers, Integers]:
        """A branch and the length of its left part for each node [node], in proportion to their derivations."""
        split = np.arange(1, len(counts) - 1)
        rest = (
            size[:, None] - split
        )  # at or below 0 where the left part would take everything: no derivations
        left = counts[split][None, :, :, None]
        right = np.where(rest[..., None] > 0, counts[np.maximum(rest, 0)], 0.0)
        pairs = (
            np.take_along_axis(
                np.broadcast_to(left[..., 0], right.shape), self.left[nonterminal][:, None, :], 2
            )
            * np.take_along_axis(right, self.right[nonterminal][:, None, :], 2)
        ).reshape(len(size), -1)
        cumulative = np.cumsum(pairs, axis=1)
        at = generator.random((len(size), 1)) * cumulative[:, -1:]
        chosen = (cumulative <= at).sum(axis=1)
        branches = self.left.shape[1]
        return chosen % branches, 1 + chosen // branches

    def log_prefix_shares(self, strings: Integers) -> Floats:
        """[item, length + 1] ln of the share of derivations whose first t symbols are the item's, for t = 0..length."""
        items, length = strings.shape
        counts = self.counts(length)
        leaf = np.zeros((self.alphabet, len(self.words)))
        for nonterminal, words in enumerate(self.words):
            leaf[words, nonterminal] = 1.0
        none = np.zeros((items, len(self.words)))
        inside = {(i, i + 1): leaf[strings[:, i]] for i in range(length)}
        for size in range(2, length + 1):
            for i in range(length - size + 1):
                splits = range(i + 1, i + size)
                joined = (self._joined(inside[i, s], inside[s, i + size]) for s in splits)
                inside[i, i + size] = sum(joined, start=none)
        shares = np.empty((items, length + 1))
        shares[:, 0] = counts[length, 0]
        shares[:, length] = inside[0, length][:, 0]
        for t in range(1, length):  # symbols from t on are wildcards
            crossing: dict[tuple[int, int], Floats] = {}
            for i in range(t - 1, -1, -1):
                for j in range(t + 1, length + 1):
                    joined = (
                        self._joined(
                            inside[i, s] if s <= t else crossing[i, s],
                            counts[j - s] if s >= t else crossing[s, j],
                        )
                        for s in range(i + 1, j)
                    )
                    crossing[i, j] = sum(joined, start=none)
            shares[:, t] = crossing[0, length][:, 0]
        return np.log(shares / counts[length, 0])


def bits_of_first(probability: Floats) -> float:
    """-log2 of the probability that the first distinct ones of a stream are just these strings, in whatever order.

    With a clock for each string that rings at the rate of its probability, it is the probability that all of these ring
    before any other: the integral over t > 0 of r exp(-r t) prod(1 - exp(-p t)), r = 1 - sum of p. (The trapezoid rule
    on ln t: the integrand falls off fast on both sides.)
    """
    coarse = np.linspace(-60.0, 100.0, 3201)
    values = _log_integrand(coarse, probability)
    near = np.flatnonzero(values > values.max() - 50)
    fine = np.linspace(coarse[near[0]] - 0.05, coarse[near[-1]] + 0.05, 4001)
    values = _log_integrand(fine, probability)
    integral = np.exp(values - values.max()).sum() * (fine[1] - fine[0])
    return -float(values.max() + math.log(integral)) / math.log(2)


def _log_integrand(log_t: Floats, probability: Floats) -> Floats:
    """ln of the integrand over ln t, in parts that fit into the cache."""
    rest = 1.0 - probability.sum()
    parts = np.array_split(np.exp(log_t)[:, None], 32)
    ring = np.concatenate([np.log(-np.expm1(-probability * part)).sum(1) for part in parts])
    return np.log(rest) - rest * np.exp(log_t) + ring + log_t
