"""Distinct random keys, and how many bits a set of them holds."""

import math
from collections.abc import Callable

import numpy as np

from synthlm.tasks.language import Integers


def distinct_strings(generator: np.random.Generator, count: int, alphabet: int, length: int) -> Integers:
    """Draw [count, length] strings of symbols 0..alphabet-1, uniform among all that have no string twice.

    Raises:
        ValueError: there are fewer than ``count`` such strings.
    """
    space = alphabet**length
    if count > space:
        raise ValueError(f"count: {count} is more than the {space} strings of {length} of {alphabet} symbols")
    if space < 2**62:
        ranks = generator.choice(space, count, replace=False)
        return ranks[:, None] // alphabet ** np.arange(length) % alphabet
    while True:  # a repeat among so many strings is next to impossible: once is nearly always enough
        strings = generator.integers(alphabet, size=(count, length))
        if len(np.unique(strings, axis=0)) == count:
            return strings


def covering_strings(generator: np.random.Generator, count: int, alphabet: int, length: int) -> Integers:
    """As ``distinct_strings``, but every symbol occurs in the first ``ceil(alphabet / length)`` strings."""
    rows = -(-alphabet // length)
    filler = generator.integers(alphabet, size=rows * length - alphabet)
    cover = np.concatenate([generator.permutation(alphabet), filler]).reshape(rows, length)
    strings = np.concatenate([cover, distinct_strings(generator, count, alphabet, length)])
    first = np.unique(strings, axis=0, return_index=True)[1]
    return strings[np.sort(first)][:count]


def first_distinct(draw: Callable[[int], Integers], count: int) -> Integers:
    """The first ``count`` distinct rows of a stream of independent draws; ``draw(n)`` gives n rows more.

    There must be that many. So rows come out in the order of sampling without replacement, each time in proportion to
    what the draws' distribution gives to the rows that are left.
    """
    rows = draw(count)
    while True:
        first = np.sort(np.unique(rows, axis=0, return_index=True)[1])
        if len(first) >= count:
            return rows[first[:count]]
        rows = np.concatenate([rows[first], draw(count)])


def log2_sets(space: int, count: int) -> float:
    """Bits of a uniform random set of ``count`` among ``space`` things: log2 binomial(space, count)."""
    return math.fsum(math.log2(space - i) - math.log2(i + 1) for i in range(count))
