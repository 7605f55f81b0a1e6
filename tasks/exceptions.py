"""Exceptions: a rule that some training keys break, as irregular verbs do."""

import math
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from synthlm.tasks.assembly import assemble
from synthlm.tasks.cipher import CipherRule
from synthlm.tasks.language import Count, Integers, Language, SingleConfig
from synthlm.tasks.modular import ModularRule

REGULAR, HELDOUT, EXCEPTION = 0, 1, 2


class Exceptions(SingleConfig):
    """A rule that some random training keys break: their answer is random instead.

    An exception's answer is uniform among all answers but the rule's. It differs from the rule's somewhere,
    not everywhere: whoever follows the rule gets (v ** (n-1) - 1) / (v ** n - 1) of an exception's n tokens
    right, for v values a token.

    Bits, given the keys and the rule: which m of the t training keys are exceptions, log2 binomial(t, m), and
    their answers, m * log2(v ** n - 1).

    Exceptions are listed, not a further law: no held-out key is one. So the floor of held-out items is 0, as
    for any rule. A learner cannot know that from training items alone; if it takes a held-out key for an
    exception with probability m/t, its loss there is above the floor, and that excess is the corruption to be
    measured.
    """

    name: Literal["exceptions"] = "exceptions"
    rule: Annotated[CipherRule | ModularRule, Field(discriminator="name")] = CipherRule()
    exceptions: Count = 64

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.rule.check(self.alphabet)
        most = self.rule.train_items - 1
        if self.exceptions > most:
            raise ValueError(
                f"exceptions: {self.exceptions} leaves no regular item among the rule's {most + 1} training "
                f"items; allowed: 1..{most}"
            )
        return self

    def build(self, seed: int) -> Language:
        """Draw the rule, its items and the exceptions."""
        generators = self.generators(seed)
        drawn = self.rule.draw(self.alphabet, generators)
        generator = generators("exceptions")
        chosen = generator.choice(drawn.train_items, self.exceptions, replace=False)
        answers = drawn.answers.copy()
        width = answers.shape[1]
        answers[chosen] = (
            answers[chosen] + _nonzero(generator, len(chosen), drawn.values, width)
        ) % drawn.values
        item_slice = np.where(np.arange(len(answers)) < drawn.train_items, REGULAR, HELDOUT)
        item_slice[chosen] = EXCEPTION
        which = math.log2(math.comb(drawn.train_items, self.exceptions))
        return assemble(
            self,
            prompts=drawn.keys,
            answers=answers,
            item_slice=item_slice,
            goals={"rule/train": "", "rule/heldout": "rule", "exception": "rote"},
            train_items=drawn.train_items,
            bits=which + self.exceptions * math.log2(drawn.values**width - 1),
            rule_bits=drawn.rule_bits,
        )

    def bits_of(self, language: Language, kept: Integers) -> float:
        """Bits of some of the training items: which of them are exceptions, and the answers of these."""
        total, odd = len(language.train.key), int((language.train.item_slice[kept] == EXCEPTION).sum())
        which = math.log2(math.comb(total, self.exceptions))
        answer = (language.bits - which) / self.exceptions
        # the other half of which: the ways to place the exceptions among the keys left out
        return which - math.log2(math.comb(total - len(kept), self.exceptions - odd)) + odd * answer


def _nonzero(generator: np.random.Generator, count: int, values: int, width: int) -> Integers:
    """[count, width] uniform among all rows but zeros: added modulo ``values``, they change every row."""
    rows = generator.integers(values, size=(count, width))
    while (zero := ~rows.any(axis=1)).any():
        rows[zero] = generator.integers(values, size=(int(zero.sum()), width))
    return rows
