"""Injection: random strings that the training of another language sees in one step only."""

import math
from dataclasses import replace
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from synthlm.schedules import log_spaced
from synthlm.tasks.assembly import compose, listed_floor
from synthlm.tasks.facts import Facts
from synthlm.tasks.keys import distinct_strings, log2_sets
from synthlm.tasks.language import FIRST_SYMBOL, Count, Language, SingleConfig
from synthlm.tasks.mixture import AnySingle, join


class Injection(SingleConfig):
    """Random strings that the training of another language sees in one step only, to follow how they are forgotten.

    The training step after the first ``step`` ones, or so many consecutive steps as there are ``repeats``, sees the
    ``items`` strings and nothing else, each equally often as far as the batch allows; no other step sees any of them
    (weight 0). ``references`` further strings are drawn alike and never trained on: the difference of both losses is
    what is remembered of the injected strings themselves, rather than of what all such strings share. A training of
    ``step`` steps or fewer is the same without injection. Every symbol of a string is scored; strings count to no
    goal.

    length: symbols in a string. tag, label: of the strings; the background has others.

    Bits beyond the background's: log2 of the number of ways to choose the injected strings. The floor of references is
    log(alphabet).

    Source: a special batch injected once, arXiv 2205.10770; references as those of canaries, arXiv 1802.08232.
    """

    name: Literal["injection"] = "injection"
    tag: int = Field(default=11, ge=0, lt=12)
    background: AnySingle = Facts()
    step: int = Field(default=100, ge=0)
    repeats: Count = 1
    items: Count = 16
    references: Count = 256
    length: Count = 4

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.background.tag == self.tag or self.background.label == self.label:
            raise ValueError("background: it needs another tag and label than the injected strings'")
        wanted, space = self.items + self.references, self.alphabet**self.length
        if wanted > space:
            raise ValueError(
                f"references: {wanted} injected strings and references are more than the {space} strings of length "
                f"{self.length} over an alphabet of {self.alphabet}"
            )
        return self

    @property
    def tags(self) -> dict[int, str]:
        """Tag -> label of the sequences marked by it."""
        return {**self.background.tags, self.tag: self.label}

    @property
    def least_batch(self) -> int:
        """All injected strings are in one batch."""
        return self.items

    @property
    def end(self) -> int:
        """Steps of training after which the injection is over."""
        return self.step + self.repeats

    def evaluation_steps(self, steps: int) -> list[int]:
        """Right before the injection, right after it, and from there on twice per doubling of the time since."""
        if self.end > steps:
            return []
        left = steps - self.end
        since = log_spaced(2 + round(2 * math.log2(left)), left) if left else []
        return [self.step, self.end, *(self.end + each for each in since)]

    def build(self, seed: int) -> Language:
        """Draw the background and the strings."""
        background = self.background.build(seed)
        joined = join(self, [background, self._strings(seed)], [1.0, 0.0])
        injected = len(background.train.key) + np.arange(self.items)
        injected.flags.writeable = False
        return replace(joined, prescribed=dict.fromkeys(range(self.step, self.end), injected))

    def _strings(self, seed: int) -> Language:
        generator = self.generators(seed)("strings")
        strings = distinct_strings(generator, self.items + self.references, self.alphabet, self.length)
        group = (np.arange(len(strings)) >= self.items).astype(np.int64)
        floor = np.full(strings.shape, math.log(self.alphabet))
        floor[: self.items] = listed_floor(strings[: self.items])
        return compose(
            self,
            sequences=FIRST_SYMBOL + strings,
            slices=np.broadcast_to(group[:, None], strings.shape),
            item_slice=group,
            goals={INJECTED: "", REFERENCE: ""},
            train_items=self.items,
            bits=log2_sets(self.alphabet**self.length, self.items),
            rule_bits=0.0,
            floor=floor,
        )


INJECTED, REFERENCE = "injected", "reference/heldout"
"""Ends of the names of the slices of injected strings and of references."""
