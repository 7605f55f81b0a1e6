"""Subset: another language, trained on a random share of its items; for counterfactual scores."""

from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from synthlm.seeds import numpy_generator
from synthlm.tasks.automaton import Automaton
from synthlm.tasks.cipher import Cipher
from synthlm.tasks.dyck import Dyck
from synthlm.tasks.exceptions import Exceptions
from synthlm.tasks.facts import Facts
from synthlm.tasks.language import Language, LanguageConfig, Table
from synthlm.tasks.modular import Modular
from synthlm.tasks.random_strings import Strings
from synthlm.tasks.recall import Recall
from synthlm.tasks.routing import Routing
from synthlm.tasks.strings import Copy, Reverse, Sort

Parted = Annotated[
    Facts
    | Strings
    | Cipher
    | Modular
    | Reverse
    | Sort
    | Copy
    | Recall
    | Automaton
    | Dyck
    | Routing
    | Exceptions,
    Field(discriminator="name"),
]
"""Languages of which a random part has a known number of bits (not so biographies and pcfg)."""


class Subset(LanguageConfig):
    """Another language, trained on a random share of its items and evaluated on all.

    Of the training items of ``of``, ``share`` (rounded) are in; the ``draw`` chooses them; rule, items and probe
    are those of ``of`` at this seed, so that a score with an item in training can be set against one without it.
    Items that are in have the keys of ``Language.train``. Floors are those of the whole language. Languages that
    differ in ``draw`` alone have equal shapes.

    Bits: those of the items that are in.

    Source: subset ensembles of Feldman and Zhang, arXiv 2008.03703, and of counterfactual memorization, arXiv
    2112.12938.
    """

    name: Literal["subset"] = "subset"
    of: Parted = Facts()
    share: float = Field(default=0.5, gt=0, le=1)
    draw: int = Field(default=0, ge=0)

    @property
    def tags(self) -> dict[int, str]:
        """Tag -> label of the sequences marked by it."""
        return self.of.tags

    @property
    def tag(self) -> int:
        """The tag of the whole language."""
        return self.of.tag

    @property
    def label(self) -> str:
        """The label of the whole language."""
        return self.of.label

    @property
    def alphabet(self) -> int:
        """Number of symbols."""
        return self.of.alphabet

    def build(self, seed: int) -> Language:
        """Draw the whole language, then the items to train on."""
        whole = _whole(self.of, seed)
        table = whole.train
        generator = numpy_generator(seed, "subset", self.label, self.tag, self.draw)
        count = max(1, round(self.share * len(table.key)))
        kept = np.sort(generator.permutation(len(table.key))[:count])
        weight = table.weight[kept] / table.weight[kept].sum()
        part = table.take(kept)
        return Language(
            config=self,
            vocab=whole.vocab,
            length=whole.length,
            slices=whole.slices,
            goals=whole.goals,
            train=Table(part.tokens, part.targets, part.slices, weight, part.floor, part.key),
            probe=whole.probe,
            bits=self.of.bits_of(whole, kept),
            rule_bits=whole.rule_bits,
        )


@lru_cache(maxsize=4)
def _whole(of: Any, seed: int) -> Language:
    """Built once for all draws from it."""
    return of.build(seed)
