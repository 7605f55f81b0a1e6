"""Canaries: random strings planted in another language, some more often than others, some never."""

import math
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from synthlm.tasks.assembly import compose, listed_floor
from synthlm.tasks.facts import Facts
from synthlm.tasks.keys import distinct_strings, log2_sets
from synthlm.tasks.language import FIRST_SYMBOL, Count, Language, SingleConfig
from synthlm.tasks.mixture import AnySingle, join


class Canaries(SingleConfig):
    """Random strings planted in another language, some more often than others, and some never.

    There are ``each`` canaries for every number of ``repeats``. One with r repeats is drawn r times as often as a
    training item of the background is on average. ``references`` further strings are never trained on: what a
    canary is ranked among, for its exposure. Every symbol of a string is scored, and all of it is what is to be
    remembered.

    length: symbols in a string. tag, label: of the strings; the background has others.

    Bits beyond the background's: log2 of the number of ways to choose the canaries, repeats told apart. The floor of
    references is log(alphabet).

    Source: canaries and exposure, arXiv 1802.08232; repeats on a logarithmic scale as in arXiv 2202.07646.
    """

    name: Literal["canaries"] = "canaries"
    tag: int = Field(default=11, ge=0, lt=12)
    background: AnySingle = Facts()
    repeats: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(1, 2, 4, 8, 16, 32), min_length=1)
    each: Count = 8
    references: Count = 255
    length: Count = 4

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.background.tag == self.tag or self.background.label == self.label:
            raise ValueError("background: it needs another tag and label than the canaries'")
        if len(set(self.repeats)) < len(self.repeats):
            raise ValueError(f"repeats: {list(self.repeats)} has a number twice")
        wanted, space = len(self.repeats) * self.each + self.references, self.alphabet**self.length
        if wanted > space:
            raise ValueError(
                f"references: {wanted} canaries and references are more than the {space} strings of length "
                f"{self.length} over an alphabet of {self.alphabet}"
            )
        return self

    @property
    def tags(self) -> dict[int, str]:
        """Tag -> label of the sequences marked by it."""
        return {**self.background.tags, self.tag: self.label}

    def build(self, seed: int) -> Language:
        """Draw the background and the strings."""
        background = self.background.build(seed)
        canaries = self._strings(seed)
        planted = self.each * sum(self.repeats)
        items = len(background.train.key)
        share = planted / (planted + items)
        return join(self, [background, canaries], [1 - share, share])

    def _strings(self, seed: int) -> Language:
        planted = self.each * len(self.repeats)
        count = planted + self.references
        generator = self.generators(seed)("strings")
        strings = distinct_strings(generator, count, self.alphabet, self.length)
        group = np.concatenate([np.repeat(np.arange(len(self.repeats)), self.each),
                                np.full(self.references, len(self.repeats))])  # fmt: skip
        weight = np.repeat(np.array(self.repeats, dtype=np.float64), self.each)
        weight /= weight.sum()
        floor = np.full(strings.shape, math.log(self.alphabet))
        floor[:planted] = listed_floor(strings[:planted], weight)
        left, bits = self.alphabet**self.length, 0.0
        for _ in self.repeats:
            bits += log2_sets(left, self.each)
            left -= self.each
        names = [f"rote/x{repeat:g}" for repeat in self.repeats]
        return compose(
            self,
            sequences=FIRST_SYMBOL + strings,
            slices=np.broadcast_to(group[:, None], strings.shape),
            item_slice=group,
            goals={**dict.fromkeys(names, "rote"), "reference/heldout": ""},
            train_items=planted,
            bits=bits,
            rule_bits=0.0,
            floor=floor,
            weight=weight,
        )
