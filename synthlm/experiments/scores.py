"""Memorization item by item: counterfactual scores, exposure of canaries, bits stored, corruption by exceptions.

Parts of the tendency study. Each trains small models from scratch with every optimizer at its own best learning rate,
asks them about single items (the analysis ``items``) and turns the answers into scores of ``synthlm.analysis``.
"""

import math
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from synthlm.analysis.capacity import memorized_bits
from synthlm.analysis.memorization import counterfactual, exposure, queries
from synthlm.analysis.tendency import LEVELS, crossing
from synthlm.config import parse
from synthlm.experiments.rote_rule import sized
from synthlm.experiments.scratch import ScoredItems, Scratch
from synthlm.jobs import Pretrain, Probe
from synthlm.store import Record
from synthlm.study import Results
from synthlm.tasks import Canaries, Exceptions, Facts, LanguageConfig, Strings, Subset, build
from synthlm.tasks.subset import Parted

REFERENCE = "reference/heldout"
"""End of the name of the slice that canaries are ranked among."""


class CounterfactualSettings(Scratch):
    """The section ``[tendency.counterfactual]``: ``draws`` models a seed and optimizer, each on a random ``share`` of
    the language's training items. The learning rate is searched on the whole language."""

    language: Parted
    share: float = Field(0.5, gt=0, lt=1)
    draws: int = Field(20, ge=4)


class ExposureSettings(Scratch):
    """The section ``[tendency.exposure]``: canaries planted in another language, some more often than others. The
    learning rate is searched on that language alone, so that no canary has a say."""

    language: Canaries


class CapacitySettings(Scratch):
    """The section ``[tendency.capacity]``: pure rote of each number of ``items``; every size has its own search.

    Strings need a prefix: bits are counted symbol by symbol against uniform chance, but strings without keys are a set,
    whose bits are no such sum, so that a perfect memorizer would seem to store less than all.
    """

    language: Annotated[Facts | Strings, Field(discriminator="name")]
    items: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=2)

    @field_validator("language")
    @classmethod
    def _keyed(cls, value: Facts | Strings) -> Facts | Strings:
        if isinstance(value, Strings) and value.prefix == 0:
            raise ValueError(
                "prefix: 0 gives strings no keys, and the bits that a set of them holds are not counted symbol by"
                f" symbol; allowed: 1..{value.length - 1}"
                if value.length > 1
                else "length: 1 leaves no room for a prefix, which strings need here; allowed: 2 and more"
            )
        return value


class CorruptionSettings(Scratch):
    """The section ``[tendency.corruption]``: one language with each number of ``exceptions``; the smallest number (one,
    say) is the control of the others. Every number has its own search."""

    language: Exceptions
    exceptions: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=2)


class CounterfactualScores(ScoredItems):
    """The table ``counterfactual``: a row an item, seed and optimizer.

    Columns: job, seed, optimizer, lr, models, slice, item, n_with, n_without, with_item, without_item (share of those
    models that answer it right in every token), score, error (standard error over models). Held-out items have no model
    with them, hence no score.
    """

    NAME = "counterfactual"

    def __init__(self, settings: CounterfactualSettings, seeds: int) -> None:
        super().__init__(settings, seeds)
        self.settings = settings

    def describe(self) -> str:
        """What is run, in a sentence or two."""
        settings = self.settings
        return (
            f"Counterfactual scores: {settings.draws} models a seed and optimizer, each on a random"
            f" {settings.share:.0%} of the training items of {settings.language.label}; the learning rate is the best"
            " on the whole language."
        )

    def languages(self) -> list[LanguageConfig]:
        return [self.settings.language]

    def ensembles(
        self, language: LanguageConfig, optimizer: str, index: int
    ) -> Iterator[tuple[int, list[Pretrain]]]:
        for seed in range(self.seeds):
            subsets = [
                Subset(of=self.settings.language, share=self.settings.share, draw=draw)
                for draw in range(self.settings.draws)
            ]
            yield seed, [self.tuned.job(subset, optimizer, seed, index) for subset in subsets]

    def check(self) -> None:
        super().check()
        for optimizer in self.optimizers:
            next(self.ensembles(self.settings.language, optimizer, 0))

    def scores(
        self, rows: pd.DataFrame, language: LanguageConfig, probe: Probe, record: Record
    ) -> pd.DataFrame:
        """One row an item."""
        member, outcome = (
            rows.pivot(index="subject", columns="item", values=name).to_numpy()
            for name in ("trained", "exact")
        )
        found = counterfactual(member.astype(bool), outcome.astype(float))
        names = rows[rows["subject"] == rows["subject"].iloc[0]]
        return pd.DataFrame(
            {
                "slice": names["slice"].to_numpy(),
                "item": names["item"].to_numpy(),
                "n_with": found.n_with,
                "n_without": found.n_without,
                "with_item": found.with_item,
                "without_item": found.without_item,
                "score": found.score,
                "error": found.error,
            }
        )


class ExposureScores(ScoredItems):
    """The table ``exposure``: a row a canary, seed and optimizer.

    Columns: job, seed, optimizer, lr, models, item, repeats, references, loss (nats of the whole string), right (share
    of its tokens), exact, exposure (bits, at most log2(references + 1)), samples (how many samples of the model, given
    the tag, contain the string with probability 0.5).
    """

    NAME = "exposure"

    def __init__(self, settings: ExposureSettings, seeds: int) -> None:
        super().__init__(settings, seeds)
        self.settings = settings

    def describe(self) -> str:
        """What is run, in a sentence or two."""
        language = self.settings.language
        return (
            f"Exposure: {language.each} canaries of {language.length} random symbols for each number of repeats"
            f" ({', '.join(f'{repeat:g}' for repeat in language.repeats)}) among {language.background.label}, ranked"
            f" among {language.references} strings never trained on; the learning rate is the best on"
            f" {language.background.label} alone."
        )

    def languages(self) -> list[LanguageConfig]:
        return [self.settings.language.background]

    def ensembles(
        self, language: LanguageConfig, optimizer: str, index: int
    ) -> Iterator[tuple[int, list[Pretrain]]]:
        for seed in range(self.seeds):
            yield seed, [self.tuned.job(self.settings.language, optimizer, seed, index)]

    def check(self) -> None:
        super().check()
        for optimizer in self.optimizers:
            next(self.ensembles(self.settings.language, optimizer, 0))

    def scores(
        self, rows: pd.DataFrame, language: LanguageConfig, probe: Probe, record: Record
    ) -> pd.DataFrame:
        """One row a canary."""
        label = f"{self.settings.language.label}/"
        mine = rows[rows["slice"].str.startswith(label)]
        references = mine[mine["slice"] == label + REFERENCE]
        canaries = mine[mine["slice"] != label + REFERENCE].reset_index(drop=True)
        found = exposure(canaries["loss"].to_numpy(), references["loss"].to_numpy())
        repeats = canaries["slice"].str.rpartition("/x")[2].astype(float)
        samples = queries(-canaries["loss"].to_numpy(), 0.5)
        kept = canaries[["item", "loss", "right", "exact"]]
        return kept.assign(repeats=repeats, references=len(references), exposure=found, samples=samples)


class CapacityScores(ScoredItems):
    """The table ``capacity``: a row a number of items, seed and optimizer.

    Columns: job, seed, optimizer, lr, models, items, parameters, exact_bits (what a perfect memorizer stores), bits
    (stored: items that the model finds less likely than chance count 0), net_bits (they count below 0), recall (share
    of tokens), exposures (how often an item was seen on average).
    """

    NAME = "capacity"

    def __init__(self, settings: CapacitySettings, seeds: int) -> None:
        super().__init__(settings, seeds)
        self.settings = settings
        self._languages: list[LanguageConfig] = [
            # every item is counted, none is sampled
            sized(settings.language.model_copy(update={"probe": None}), items)
            for items in settings.items
        ]

    def describe(self) -> str:
        """What is run, in a sentence or two."""
        sizes_ = ", ".join(map(str, self.settings.items))
        return f"Capacity: {self.settings.language.label} of {sizes_} items, each size with its own search."

    def languages(self) -> list[LanguageConfig]:
        return self._languages

    def scores(
        self, rows: pd.DataFrame, language: LanguageConfig, probe: Probe, record: Record
    ) -> pd.DataFrame:
        """One row."""
        job = probe.subjects[0]
        chance = rows["tokens"].to_numpy() * math.log(self.settings.language.alphabet)
        loss = rows["loss"].to_numpy()
        items = len(rows)
        return pd.DataFrame(
            {
                "items": [items],
                "parameters": job.model.layout.size,
                "exact_bits": build(language, job.seed).bits,
                "bits": memorized_bits(loss, chance),
                "net_bits": memorized_bits(loss, chance, clip=False),
                "recall": np.average(rows["right"], weights=rows["tokens"]),
                "exposures": job.training.steps * job.training.batch / items,
            }
        )


class CorruptionScores(ScoredItems):
    """The table ``corruption``: a row a number of exceptions, seed and optimizer.

    Columns: job, seed, optimizer, lr, models, exceptions, items (all training items), heldout (held-out items), wrong
    (share of held-out regular items not answered as the rule says in every token), control (the same share with
    the fewest exceptions, this optimizer and seed; NaN while it is not known), excess (wrong minus control), exact
    (share of exceptions answered right in every token), fitted_50, fitted_90 (steps after which recall of exceptions
    first reaches 50% and 90%; NaN if never).

    Definition: ``synthlm.analysis.tendency.corruption``.
    """

    NAME = "corruption"

    def __init__(self, settings: CorruptionSettings, seeds: int) -> None:
        super().__init__(settings, seeds)
        self.settings = settings
        whole = settings.language.model_dump()
        self._languages: list[LanguageConfig] = [
            parse(Exceptions, whole | {"exceptions": count}, "tendency.corruption.language")
            for count in settings.exceptions
        ]

    def describe(self) -> str:
        """What is run, in a sentence or two."""
        counts = ", ".join(map(str, self.settings.exceptions))
        return (
            f"Corruption: {self.settings.language.label} with {counts} exceptions, each with its own search."
        )

    def languages(self) -> list[LanguageConfig]:
        return self._languages

    def scores(
        self, rows: pd.DataFrame, language: LanguageConfig, probe: Probe, record: Record
    ) -> pd.DataFrame:
        """One row, as yet without its control."""
        label = self.settings.language.label
        exact = rows.groupby("slice")["exact"].agg(["mean", "size"])
        metrics = record.metrics
        steps, recall = zip(
            *[
                (step, accuracy)
                for step, name, accuracy in zip(
                    metrics["step"], metrics["slice"], metrics["accuracy"], strict=True
                )
                if name == f"{label}/exception" and accuracy is not None
            ],
            strict=True,
        )
        heldout = exact.loc[f"{label}/rule/heldout"]
        row = {
            "exceptions": [getattr(language, "exceptions", 0)],
            "items": self.settings.language.rule.train_items,
            "heldout": int(heldout["size"]),
            "wrong": 1 - heldout["mean"],
            "exact": exact.loc[f"{label}/exception", "mean"],
        }
        fitted = {f"fitted_{level:.0%}".removesuffix("%"): crossing(steps, recall, level) for level in LEVELS}
        return pd.DataFrame(row | fitted)

    def table(self, results: Results) -> pd.DataFrame:
        """The rows, each with its control."""
        rows = super().table(results)
        if rows.empty:
            return rows
        fewest = rows[rows["exceptions"] == min(self.settings.exceptions)]
        control = fewest[["seed", "optimizer", "wrong"]].rename(columns={"wrong": "control"})
        rows = rows.merge(control, on=["seed", "optimizer"], how="left")
        return rows.assign(excess=rows["wrong"] - rows["control"])
