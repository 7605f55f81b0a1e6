"""Biographies: people, their attributes, and several ways to say each."""

import math
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from synthlm.tasks.assembly import assemble
from synthlm.tasks.keys import distinct_strings, log2_sets
from synthlm.tasks.language import Count, Integers, Language, SingleConfig


class Biographies(SingleConfig):
    """People x attributes, each told in several sentences, of which some are held out.

    A sentence is made of the template's words with the person's name among them, then the value, which is scored.
    Template j of an attribute has its own random words, and the name after the first j mod (words + 1) of them. Names
    use the lower half of the alphabet and words the upper half.

    people, attributes, templates: counts. heldout_templates: of each fact, so many random sentences are held out (0:
    none): the fact is told in other words, and these words with other people's names, so the sentence can be inferred.
    Where random choices leave a template that no training sentence uses, somebody random is told in it instead of
    another one; with too few people for that, the settings are refused.
    name_length, value_length, words: symbols. values: each attribute has so many possible values, a random set of
    strings; None: all strings.

    Bits, given names and templates: people * attributes * value_length * log2(alphabet) without ``values``. With it,
    of one attribute whose people have u different values, people * log2(values) + log2 binomial(s, values) - log2
    binomial(s - u, values - u), s = alphabet ** value_length: -log2 of the probability of just these facts, where the
    pool need not be known beyond the values in use. Rule bits: which templates tell the same attribute, log2 of
    (attributes * templates)! / (templates! ** attributes * attributes!).

    Source: bioS of arXiv 2404.05405 (there in English, with all sentences of a person in one text).
    """

    name: Literal["biographies"] = "biographies"
    people: Count = 64
    attributes: Count = 3
    templates: Count = 4
    heldout_templates: int = Field(default=1, ge=0)
    name_length: Count = 2
    value_length: Count = 2
    words: Count = 2
    values: Count | None = 32

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.heldout_templates >= self.templates:
            raise ValueError(
                f"heldout_templates: {self.heldout_templates} leaves no sentence of {self.templates} to train on; "
                f"allowed: 0..{self.templates - 1}"
            )
        told = self.templates - self.heldout_templates
        if self.people * told < self.templates:
            raise ValueError(
                f"people: {self.people}, each told in {told} of {self.templates} templates in training, leave "
                f"templates that only held-out sentences use; allowed: {-(-self.templates // told)} or more"
            )
        lower, upper = self.alphabet // 2, self.alphabet - self.alphabet // 2
        for field, wanted, base, length in (
            ("people", self.people, lower, self.name_length),
            ("templates", self.attributes * self.templates, upper, self.words),
            ("values", self.values or 1, self.alphabet, self.value_length),
        ):
            if wanted > base**length:
                raise ValueError(
                    f"{field}: {wanted} different ones are wanted, but there are {base**length} strings of "
                    f"{length} of {base} symbols"
                )
        return self

    def build(self, seed: int) -> Language:
        """Draw names, words, values, and which sentences of each fact are held out."""
        generators = self.generators(seed)
        lower = self.alphabet // 2
        names = distinct_strings(generators("names"), self.people, lower, self.name_length)
        sayings = self.attributes * self.templates
        words = lower + distinct_strings(generators("words"), sayings, self.alphabet - lower, self.words)
        values, bits = self._values(generators("values"))
        heldout = self._heldout(generators("heldout"))
        person, attribute, template = np.nonzero(~heldout)
        later = np.nonzero(heldout)
        person, attribute, template = (
            np.concatenate(pair) for pair in zip((person, attribute, template), later, strict=True)
        )
        said = words[attribute * self.templates + template]
        prompts = np.empty((len(person), self.words + self.name_length), dtype=np.int64)
        before = template % (self.words + 1)
        for split in range(self.words + 1):
            of = before == split
            parts = [said[of, :split], names[person[of]], said[of, split:]]
            prompts[of] = np.hstack(parts)
        trained = int((~heldout).sum())
        goals = {"rote": "rote"} | ({"rephrased/heldout": "rule"} if self.heldout_templates else {})
        groupings = math.factorial(sayings) // (
            math.factorial(self.templates) ** self.attributes * math.factorial(self.attributes)
        )
        return assemble(
            self,
            prompts=prompts,
            answers=values[person, attribute],
            item_slice=(np.arange(len(person)) >= trained).astype(np.int64),
            goals=goals,
            train_items=trained,
            bits=bits,
            rule_bits=math.log2(groupings),
        )

    def _heldout(self, generator: np.random.Generator) -> NDArray[np.bool_]:
        """[person, attribute, template] whether the sentence is held out; of each template somebody's is not."""
        shape = (self.people, self.attributes, self.templates)
        order = generator.permuted(np.broadcast_to(np.arange(self.templates), shape), axis=2)
        heldout = order >= self.templates - self.heldout_templates
        for attribute, template in np.argwhere(heldout.all(axis=0)):
            told = ~heldout[:, attribute]
            people, spare = np.nonzero(told & (told.sum(axis=0) > 1))
            which = generator.integers(len(people))
            heldout[people[which], attribute, template] = False
            heldout[people[which], attribute, spare[which]] = True
        return heldout

    def _values(self, generator: np.random.Generator) -> tuple[Integers, float]:
        """[person, attribute, value_length] and the bits they hold."""
        shape = (self.people, self.attributes, self.value_length)
        if self.values is None:
            return generator.integers(self.alphabet, size=shape), math.prod(shape) * math.log2(self.alphabet)
        drawn, bits = np.empty(shape, dtype=np.int64), 0.0
        space = self.alphabet**self.value_length
        for attribute in range(self.attributes):
            pool = distinct_strings(generator, self.values, self.alphabet, self.value_length)
            which = generator.integers(self.values, size=self.people)
            drawn[:, attribute] = pool[which]
            used = len(np.unique(which))
            bits += self.people * math.log2(self.values)
            bits += log2_sets(space, self.values) - log2_sets(space - used, self.values - used)
        return drawn, bits
