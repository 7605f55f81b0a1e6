"""Mixture: several languages in one stream, told apart by their tags."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from synthlm.tasks.automaton import Automaton
from synthlm.tasks.biographies import Biographies
from synthlm.tasks.cipher import Cipher
from synthlm.tasks.dyck import Dyck
from synthlm.tasks.exceptions import Exceptions
from synthlm.tasks.facts import Facts
from synthlm.tasks.language import IGNORE, PAD, Integers, Language, LanguageConfig, Table
from synthlm.tasks.modular import Modular
from synthlm.tasks.pcfg import Pcfg
from synthlm.tasks.random_strings import Strings
from synthlm.tasks.recall import Recall
from synthlm.tasks.routing import Routing
from synthlm.tasks.strings import Copy, Reverse, Sort
from synthlm.tasks.subset import Subset

AnySingle = Annotated[
    Facts
    | Strings
    | Biographies
    | Cipher
    | Modular
    | Reverse
    | Sort
    | Copy
    | Recall
    | Automaton
    | Dyck
    | Pcfg
    | Routing
    | Exceptions
    | Subset,
    Field(discriminator="name"),
]
"""Any language that is no mixture, chosen by ``name``."""


class Mixture(LanguageConfig):
    """Several languages in one stream, told apart by their tags.

    A sequence is drawn from part i with probability weights[i] / sum(weights).
    parts: two or more languages with distinct tags and labels. weights: one a part, above 0; none: all equal.
    Shorter sequences are padded on the right. The probe holds every slice of every part; bits add up.
    """

    name: Literal["mixture"] = "mixture"
    parts: tuple[AnySingle, ...] = Field(default=(Facts(tag=0), Modular(tag=1)), min_length=2)
    weights: tuple[Annotated[float, Field(gt=0)], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weights and len(self.weights) != len(self.parts):
            raise ValueError(
                f"weights: {len(self.weights)} given for {len(self.parts)} parts; "
                "allowed: one a part, or none"
            )
        for field in ("tag", "label"):
            given = [getattr(part, field) for part in self.parts]
            twice = sorted({value for value in given if given.count(value) > 1})
            if twice:
                raise ValueError(
                    f"parts: {field} {twice[0]!r} is used twice; allowed: a different one in each part"
                )
        return self

    @property
    def tags(self) -> dict[int, str]:
        """Tag -> label of every part."""
        return {part.tag: part.label for part in self.parts}

    @property
    def alphabet(self) -> int:
        """The largest alphabet of a part."""
        return max(part.alphabet for part in self.parts)

    @property
    def shares(self) -> tuple[float, ...]:
        """Probability of each part."""
        weights = self.weights or (1.0,) * len(self.parts)
        return tuple(weight / sum(weights) for weight in weights)

    def build(self, seed: int) -> Language:
        """Draw every part (each as it would be alone) and join them."""
        return join(self, [part.build(seed) for part in self.parts], self.shares)


def join(config: LanguageConfig, parts: Sequence[Language], shares: Sequence[float]) -> Language:
    """One language of several with distinct tags and labels; ``shares`` are their probabilities in training."""
    length = max(part.length for part in parts)
    goals = {name: goal for part in parts for name, goal in part.goals.items()}
    probe = _join([part.probe for part in parts], parts, length, [1.0 / len(parts)] * len(parts))
    return Language(
        config=config,
        vocab=max(part.vocab for part in parts),
        length=length,
        slices=tuple(goals),
        goals=goals,
        train=_join([part.train for part in parts], parts, length, shares),
        probe=probe.take(np.arange(len(probe.key))),
        bits=sum(part.bits for part in parts),
        rule_bits=sum(part.rule_bits for part in parts),
    )


def _join(tables: Sequence[Table], parts: Sequence[Language], length: int, shares: Sequence[float]) -> Table:
    """Stack tables (one a part); ``shares`` are the parts' probabilities."""
    slices: list[Integers] = []
    keys: list[Integers] = []
    first_slice = first_key = 0
    for table, part in zip(tables, parts, strict=True):
        slices.append(np.where(table.slices >= 0, table.slices + first_slice, -1))
        keys.append(table.key + first_key)
        first_slice += len(part.slices)
        first_key += 1 + int(max(part.train.key.max(), part.probe.key.max()))
    weights = [table.weight * share for table, share in zip(tables, shares, strict=True)]
    return Table(
        tokens=_pad([table.tokens for table in tables], length, PAD),
        targets=_pad([table.targets for table in tables], length, IGNORE),
        slices=_pad(slices, length, -1),
        weight=np.concatenate(weights),
        floor=_pad([table.floor for table in tables], length, 0),
        key=np.concatenate(keys),
    )


def _pad(arrays: Sequence[np.ndarray], length: int, value: int) -> np.ndarray:
    """Stack [item, time] arrays, filled up on the right to ``length``."""
    return np.concatenate(
        [np.pad(array, ((0, 0), (0, length - array.shape[1])), constant_values=value) for array in arrays]
    )
