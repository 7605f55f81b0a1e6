"""Modular arithmetic on two numbers: learn the table from a part of its cells."""

import math
from typing import Literal

import numpy as np
from pydantic import Field

from synthlm.tasks.language import Generators
from synthlm.tasks.rules import Drawn, Rule, RuleLanguage

Operation = Literal["x+y", "x-y", "x*y", "2x+3y", "x^2+y^2", "x^2+xy+y^2", "ax+by+c"]

_TERMS: dict[str, tuple[int, int, int, int, int]] = {
    # coefficients of x, y, x^2, xy, y^2
    "x+y": (1, 1, 0, 0, 0),
    "x-y": (1, -1, 0, 0, 0),
    "x*y": (0, 0, 0, 1, 0),
    "2x+3y": (2, 3, 0, 0, 0),
    "x^2+y^2": (0, 0, 1, 0, 1),
    "x^2+xy+y^2": (0, 0, 1, 1, 1),
}


class ModularRule(Rule):
    """answer = operation(x, y) mod modulus, for a uniform random part of the modulus ** 2 pairs (x, y).

    Number n is symbol n. train_fraction: share of the pairs in training (rounded); all others are held out.
    operation: all are fixed but "ax+by+c", whose a, b in 1..modulus-1 and c in 0..modulus-1 are random: use
    it where another tag or label must mean another rule; its rule bits are log2((modulus - 1) ** 2 *
    modulus). A held-out pair is not a training pair, but in a symmetric operation (y, x) may be one, as is
    usual in this task.
    """

    name: Literal["modular"] = "modular"
    operation: Operation = "x+y"
    modulus: int = Field(default=53, ge=2, le=1024)
    train_fraction: float = Field(default=0.5, gt=0, lt=1)

    def check(self, alphabet: int) -> None:
        """Raise ValueError if the modulus exceeds the alphabet, or one part of the pairs is empty."""
        if self.modulus > alphabet:
            raise ValueError(
                f"modulus: {self.modulus} is more than the alphabet's {alphabet} symbols; "
                f"allowed: 2..{alphabet}"
            )
        pairs = self.modulus**2
        if not 0 < self.train_items < pairs:
            raise ValueError(
                f"train_fraction: {self.train_fraction} of {pairs} pairs is {self.train_items} training "
                f"pairs; allowed: fractions that give 1..{pairs - 1}"
            )

    @property
    def train_items(self) -> int:
        """Number of training pairs."""
        return round(self.train_fraction * self.modulus**2)

    def draw(self, alphabet: int, generators: Generators) -> Drawn:
        """Draw the split (and the coefficients, if random), and compute every answer."""
        p = self.modulus
        cells = generators("keys").permutation(p * p)
        x, y = cells // p, cells % p
        if self.operation == "ax+by+c":
            generator = generators("rule")
            a, b = generator.integers(1, p, size=2)
            answers = a * x + b * y + generator.integers(p)
            bits = math.log2((p - 1) ** 2 * p)
        else:
            terms = zip(_TERMS[self.operation], (x, y, x * x, x * y, y * y), strict=True)
            answers = sum((factor * term for factor, term in terms), start=np.zeros_like(x))
            bits = 0.0
        return Drawn(np.stack([x, y], axis=1), (answers % p)[:, None], self.train_items, p, bits)


class Modular(ModularRule, RuleLanguage):
    """Modular arithmetic on two numbers."""

    name: Literal["modular"] = "modular"
