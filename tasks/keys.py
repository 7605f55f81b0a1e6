"""Distinct random keys."""

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
