"""Automaton: which states does a finite automaton go through while it reads a string?"""

import math
from typing import Literal

import numpy as np
from pydantic import Field

from synthlm.tasks.language import Booleans, Generators, Integers
from synthlm.tasks.rules import Drawn, RuleLanguage, StringRule

RARE = 1e-3
"""Share of tables that reach every state, below which drawing one by trial would take too long."""


class Automaton(StringRule, RuleLanguage):
    """A random deterministic automaton reads a string; its states, or its last state, are the answer.

    It starts in state 0 and reads symbols 0..symbols-1; state q is told by symbol q. score: "each": the state after
    each symbol; "final": the last one alone. transitions: "random": each symbol takes each state to any state;
    "permutation": each symbol permutes the states; both uniform among the tables by which every state can be reached;
    "parity": symbol 1 flips between two states and symbol 0 does not (the same for every seed and tag; needs two
    states and two symbols).

    Of a held-out string, states after a beginning that some training string has stand in the training data: they are a
    slice of their own, ``rule/shown``, and no one's goal.

    Rule bits: log2 of the number of tables (0 for parity). length >= states, so that every entry of the table can show.

    Source: automata as sequence tasks, arXiv 2210.10749; parity, arXiv 2207.08799. The draw is our own.
    """

    name: Literal["automaton"] = "automaton"
    states: int = Field(default=5, ge=2)
    symbols: int = Field(default=3, ge=1)
    transitions: Literal["random", "permutation", "parity"] = "random"
    score: Literal["each", "final"] = "each"
    length: int = Field(default=8, ge=1)

    def check(self, alphabet: int) -> None:
        """Raise ValueError if symbols, states, length or the number of strings do not fit."""
        if self.transitions == "parity" and (self.states, self.symbols) != (2, 2):
            raise ValueError(
                f"transitions: 'parity' needs states=2 and symbols=2, not {self.states} and {self.symbols}"
            )
        for field, value in (("states", self.states), ("symbols", self.symbols)):
            if value > alphabet:
                raise ValueError(
                    f"{field}: {value} is more than the alphabet's {alphabet} symbols; allowed: up to {alphabet}"
                )
        if self.states > self.length:
            raise ValueError(
                f"states: {self.states} is more than length {self.length}; allowed: 2..{self.length}"
            )
        if self.transitions == "random":
            connected = connected_tables(self.states, self.symbols, permutations=False)
            if connected < RARE * self.states ** (self.states * self.symbols):
                raise ValueError(
                    f"states: too few of all tables of {self.states} states and {self.symbols} symbols reach every "
                    "state; allowed: fewer states, more symbols, or transitions='permutation'"
                )
        super().check(self.symbols)

    def draw(self, alphabet: int, generators: Generators) -> Drawn:
        """Draw the table and the strings, and run the automaton."""
        strings = self.draw_keys(self.symbols, generators("keys"))
        answers, rule_bits = self.rewrite(strings, self.symbols, generators("rule"))
        return Drawn(strings, answers, self.items, self.states, rule_bits)

    def shown(self, drawn: Drawn) -> Booleans | None:
        """Held-out states after a beginning that a training string has."""
        if self.score == "final":
            return None
        shown = np.zeros(drawn.answers.shape, dtype=bool)
        for position in range(drawn.keys.shape[1]):
            beginning = np.unique(drawn.keys[:, : position + 1], axis=0, return_inverse=True)[1].reshape(-1)
            trained = np.isin(beginning, beginning[: drawn.train_items])
            shown[drawn.train_items :, position] = trained[drawn.train_items :]
        return shown

    def rewrite(
        self, strings: Integers, alphabet: int, generator: np.random.Generator
    ) -> tuple[Integers, float]:
        """Draw the table; return the states [item, length or 1] and the table's bits."""
        table = self._table(generator)
        state = np.zeros(len(strings), dtype=np.int64)
        states = np.empty_like(strings)
        for position in range(strings.shape[1]):
            state = table[state, strings[:, position]]
            states[:, position] = state
        if self.transitions == "parity":
            bits = 0.0
        else:
            bits = math.log2(connected_tables(self.states, self.symbols, self.transitions == "permutation"))
        return states if self.score == "each" else states[:, -1:], bits

    def _table(self, generator: np.random.Generator) -> Integers:
        """[state, symbol] -> state."""
        shape = (self.states, self.symbols)
        if self.transitions == "parity":
            return np.array([[0, 1], [1, 0]])
        while True:
            if self.transitions == "random":
                table = generator.integers(self.states, size=shape)
            else:
                table = generator.permuted(np.broadcast_to(np.arange(self.states)[:, None], shape), axis=0)
            reached = {0}
            while len(more := reached | set(table[list(reached)].ravel().tolist())) > len(reached):
                reached = more
            if len(reached) == self.states:
                return table


def connected_tables(states: int, symbols: int, permutations: bool) -> int:
    """How many transition tables reach every state from state 0.

    Of all tables, those that reach just a given set of j states, 0 among them, have any of the connected tables on it,
    and any entries at the other states; permutations map these among themselves. So the rest can be taken off.
    """
    counts: dict[int, int] = {}
    for n in range(1, states + 1):

        def free(rest: int, n: int = n) -> int:
            """Tables' entries at the states that are not reached."""
            return math.factorial(rest) ** symbols if permutations else n ** (symbols * rest)

        smaller = sum(math.comb(n - 1, j - 1) * counts[j] * free(n - j) for j in range(1, n))
        counts[n] = (math.factorial(n) ** symbols if permutations else n ** (n * symbols)) - smaller
    return counts[states]
