"""Memorization item by item: counterfactual scores, exposure of canaries, bits stored (parts of the tendency study).

Each part trains small models from scratch with every optimizer at its own best learning rate, asks them about single
items (the analysis ``items``) and turns the answers into scores of ``synthlm.analysis.memorization`` and ``capacity``.
"""

import abc
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from synthlm.analysis.capacity import memorized_bits
from synthlm.analysis.memorization import counterfactual, exposure
from synthlm.config import Config, parse
from synthlm.experiments.consistency import ModelSettings
from synthlm.experiments.rote_rule import TunedOptimizer, rate_score, sized
from synthlm.experiments.sweep import search
from synthlm.jobs import Pretrain, Probe, Training, element_wise
from synthlm.model import ModelConfig
from synthlm.optimizers import OptimizerConfig
from synthlm.probes.items import Items
from synthlm.study import Results
from synthlm.tasks import Canaries, Facts, LanguageConfig, Strings, Subset, build, sizes
from synthlm.tasks.subset import Parted

REFERENCE = "reference/heldout"
"""End of the name of the slice that canaries are ranked among."""


class Scratch(Config):
    """Training from scratch. ``optimizers``: of the hidden matrices, each with the learning rates tried."""

    model: ModelSettings = ModelSettings()
    training: Training
    aux: OptimizerConfig
    optimizers: dict[str, TunedOptimizer] = Field(min_length=1)

    @field_validator("aux")
    @classmethod
    def _aux_rule(cls, value: OptimizerConfig) -> OptimizerConfig:
        return element_wise(value)


class CounterfactualSettings(Scratch):
    """The section ``[tendency.counterfactual]``: ``draws`` models a seed and optimizer, each on a random ``share`` of
    the language's training items. The learning rate is searched on the whole language."""

    language: Parted
    share: float = Field(0.5, gt=0, lt=1)
    draws: int = Field(20, ge=4)


class ExposureSettings(Scratch):
    """The section ``[tendency.exposure]``: canaries planted in another language, some more often than others."""

    language: Canaries


class CapacitySettings(Scratch):
    """The section ``[tendency.capacity]``: pure rote of each number of ``items``; every size has its own search."""

    language: Annotated[Facts | Strings, Field(discriminator="name")]
    items: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=2)


class Tuned:
    """Jobs of one language: each optimizer's sweep on seed 0, and its best learning rate on every seed."""

    def __init__(self, settings: Scratch, where: str) -> None:
        self.settings, self.where = settings, where
        self._made: dict[tuple[LanguageConfig, str, int, int], Pretrain] = {}
        self._scores: dict[str, float] = {}

    def job(self, language: LanguageConfig, optimizer: str, seed: int, index: int) -> Pretrain:
        """One training at a place of the optimizer's sweep.

        Raises:
            InputError: when the settings do not fit together.
        """
        place = (language, optimizer, seed, index)
        if place not in self._made:
            vocab, length = sizes(language)
            shape = {"vocab": vocab, "length": length, **self.settings.model.model_dump()}
            tuned = self.settings.optimizers[optimizer]
            data = {
                "seed": seed,
                "model": parse(ModelConfig, shape, f"{self.where}.model"),
                "language": language,
                "optimizer": tuned.optimizer.at(tuned.sweep.rate(index)),
                "aux": self.settings.aux,
                "training": self.settings.training,
            }
            self._made[place] = parse(Pretrain, data, self.where)
        return self._made[place]

    def search(
        self, language: LanguageConfig, optimizer: str, results: Results
    ) -> tuple[list[Pretrain], int | None]:
        """The sweep on seed 0 as far as known, and the best place once it is over."""

        def score(jobs: list[Pretrain]) -> float:
            job = jobs[0]
            if job.key not in self._scores:
                self._scores[job.key] = rate_score(results(job))
            return self._scores[job.key]

        sweep = self.settings.optimizers[optimizer].sweep
        return search(sweep, lambda index: [self.job(language, optimizer, 0, index)], score, results)


class Part(abc.ABC):
    """What the parts share: searches, then trainings at the best rate, then probes of those that are done."""

    NAME: str
    """Of its section and of its table."""

    def __init__(self, settings: Scratch, seeds: int) -> None:
        self.seeds = seeds
        self.optimizers = settings.optimizers
        self.tuned = Tuned(settings, f"tendency.{self.NAME}")
        self._probes: dict[tuple[str, ...], Probe] = {}

    @abc.abstractmethod
    def languages(self) -> list[LanguageConfig]:
        """Those whose learning rates are searched."""

    @abc.abstractmethod
    def describe(self) -> str:
        """What is run, in a sentence or two."""

    @abc.abstractmethod
    def scores(self, rows: pd.DataFrame, language: LanguageConfig, probe: Probe) -> pd.DataFrame:
        """The scores behind one probe's rows of items."""

    def check(self) -> None:
        """Make a job of each language and optimizer.

        Raises:
            InputError: when the settings do not fit together.
        """
        for language in self.languages():
            for optimizer in self.optimizers:
                self.tuned.job(language, optimizer, 0, 0)

    def ensembles(
        self, language: LanguageConfig, optimizer: str, index: int
    ) -> Iterator[tuple[int, list[Pretrain]]]:
        """Each seed, and its models that are asked together, at a place of the sweep."""
        for seed in range(self.seeds):
            yield seed, [self.tuned.job(language, optimizer, seed, index)]

    def asked(
        self, results: Results
    ) -> Iterator[tuple[LanguageConfig, str, int, list[Pretrain], Probe | None]]:
        """(language, optimizer, seed, models, probe) as far as known; no probe before all its models are done, or when
        all diverged."""
        for language in self.languages():
            for optimizer in self.optimizers:
                _, best = self.tuned.search(language, optimizer, results)
                if best is None:
                    continue
                for seed, models in self.ensembles(language, optimizer, best):
                    records = [results(model) for model in models]
                    sound = [
                        model
                        for model, record in zip(models, records, strict=True)
                        if record is not None and record.manifest["status"] != "diverged"
                    ]
                    ready = sound and all(record is not None for record in records)
                    yield language, optimizer, seed, models, self._probe(sound) if ready else None

    def _probe(self, subjects: list[Pretrain]) -> Probe:
        place = tuple(job.key for job in subjects)
        if place not in self._probes:
            self._probes[place] = Probe(seed=subjects[0].seed, subjects=tuple(subjects), analysis=Items())
        return self._probes[place]

    def jobs(self, results: Results) -> Sequence[Any]:
        """Every job wanted, given what is known."""
        wanted: list[Any] = []
        for language in self.languages():
            for optimizer in self.optimizers:
                wanted += self.tuned.search(language, optimizer, results)[0]
        for _, _, _, models, probe in self.asked(results):
            wanted += [*models, *([] if probe is None else [probe])]
        return list(dict.fromkeys(wanted))

    def table(self, results: Results) -> pd.DataFrame:
        """The scores of all models that were asked, led by job (the probe), seed, optimizer, lr and models (behind a
        row)."""
        frames = []
        for language, optimizer, seed, _, probe in self.asked(results):
            record = None if probe is None else results(probe)
            if probe is None or record is None:
                continue
            first = probe.subjects[0]
            head = {
                "job": probe.key[:12],
                "seed": seed,
                "optimizer": optimizer,
                "lr": first.optimizer.lr,
                "models": len(probe.subjects),
            }
            rows = pd.DataFrame(record.metrics)
            rows["loss"] = rows["loss"].astype(float)
            scored = self.scores(rows, language, probe)
            frames.append(pd.concat([pd.DataFrame(head, index=scored.index), scored], axis=1))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


class CounterfactualScores(Part):
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

    def scores(self, rows: pd.DataFrame, language: LanguageConfig, probe: Probe) -> pd.DataFrame:
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


class ExposureScores(Part):
    """The table ``exposure``: a row a canary, seed and optimizer.

    Columns: job, seed, optimizer, lr, models, item, repeats, references, loss (nats of the whole string), right (share
    of its tokens), exact, exposure (bits, at most log2(references + 1)).
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
            f" among {language.references} strings never trained on."
        )

    def languages(self) -> list[LanguageConfig]:
        return [self.settings.language]

    def scores(self, rows: pd.DataFrame, language: LanguageConfig, probe: Probe) -> pd.DataFrame:
        """One row a canary."""
        label = f"{self.settings.language.label}/"
        mine = rows[rows["slice"].str.startswith(label)]
        references = mine[mine["slice"] == label + REFERENCE]
        canaries = mine[mine["slice"] != label + REFERENCE].reset_index(drop=True)
        found = exposure(canaries["loss"].to_numpy(), references["loss"].to_numpy())
        repeats = canaries["slice"].str.rpartition("/x")[2].astype(float)
        kept = canaries[["item", "loss", "right", "exact"]]
        return kept.assign(repeats=repeats, references=len(references), exposure=found)


class CapacityScores(Part):
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

    def scores(self, rows: pd.DataFrame, language: LanguageConfig, probe: Probe) -> pd.DataFrame:
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
