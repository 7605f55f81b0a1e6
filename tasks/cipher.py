"""Cipher: every symbol is replaced by another, then shifted by an amount that depends on its position."""

import math
from typing import Literal

import numpy as np

from synthlm.tasks.keys import covering_strings
from synthlm.tasks.language import Integers
from synthlm.tasks.rules import RuleLanguage, StringRule


class CipherRule(StringRule):
    """answer[i] = (permutation[key[i]] + shift[i]) mod alphabet, the permutation uniform.

    shift: "random": uniform, save that shift[0] = 0 (a common shift is part of the permutation); "position":
    shift[i] = i; "none". keys: "random": uniform strings; "covering": every symbol occurs in some training
    string, so that with few items no held-out answer depends on a symbol never seen (needs items * length >=
    alphabet).

    Rule bits: log2(alphabet!), and (length - 1) * log2(alphabet) more with a random shift.
    """

    name: Literal["cipher"] = "cipher"
    shift: Literal["random", "position", "none"] = "random"
    keys: Literal["random", "covering"] = "random"

    def check(self, alphabet: int) -> None:
        """Raise ValueError if there are too few strings, or too few in training to cover the alphabet."""
        super().check(alphabet)
        if self.keys == "covering" and self.items * self.length < alphabet:
            raise ValueError(
                f"items: {self.items} strings of length {self.length} cannot cover an alphabet of "
                f"{alphabet}; allowed with keys='covering': at least {-(-alphabet // self.length)}"
            )

    def draw_keys(self, alphabet: int, generator: np.random.Generator) -> Integers:
        """[items + heldout, length] distinct strings, the training strings first."""
        if self.keys == "random":
            return super().draw_keys(alphabet, generator)
        keys = covering_strings(generator, self.items + self.heldout, alphabet, self.length)
        return np.concatenate([generator.permutation(keys[: self.items]), keys[self.items :]])

    def rewrite(
        self, strings: Integers, alphabet: int, generator: np.random.Generator
    ) -> tuple[Integers, float]:
        """Draw permutation and shifts; return the enciphered strings and the rule's bits."""
        permutation = generator.permutation(alphabet)
        bits = math.log2(math.factorial(alphabet))
        shift = np.zeros(self.length, dtype=np.int64)
        if self.shift == "position":
            shift = np.arange(self.length)
        elif self.shift == "random":
            shift[1:] = generator.integers(alphabet, size=self.length - 1)
            bits += (self.length - 1) * math.log2(alphabet)
        return (permutation[strings] + shift) % alphabet, bits


class Cipher(CipherRule, RuleLanguage):
    """A cipher on random strings."""

    name: Literal["cipher"] = "cipher"
