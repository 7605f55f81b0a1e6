"""What the parts of the tendency study share that ask for single items of models trained from scratch."""

import abc
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from pydantic import Field, field_validator

from synthlm.config import Config, parse
from synthlm.experiments.consistency import ModelSettings
from synthlm.experiments.rote_rule import TunedOptimizer, rate_score
from synthlm.experiments.sweep import search
from synthlm.jobs import Pretrain, Probe, Training, element_wise
from synthlm.model import ModelConfig
from synthlm.optimizers import OptimizerConfig
from synthlm.probes.items import Items
from synthlm.store import Record
from synthlm.study import Results
from synthlm.tasks import LanguageConfig, sizes


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
    """What the parts share: searches, then trainings at the best rate."""

    NAME: str
    """Of its section and of its table."""

    def __init__(self, settings: Scratch, seeds: int) -> None:
        self.seeds = seeds
        self.optimizers = settings.optimizers
        self.tuned = Tuned(settings, f"tendency.{self.NAME}")

    @abc.abstractmethod
    def languages(self) -> list[LanguageConfig]:
        """Those whose learning rates are searched."""

    @abc.abstractmethod
    def describe(self) -> str:
        """What is run, in a sentence or two."""

    @abc.abstractmethod
    def table(self, results: Results) -> pd.DataFrame:
        """Tidy rows of what is done, led by job, seed, optimizer and lr."""

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

    def trained(self, results: Results) -> Iterator[tuple[LanguageConfig, str, int, list[Pretrain]]]:
        """(language, optimizer, seed, models) at the best rate of every search that is over."""
        for language in self.languages():
            for optimizer in self.optimizers:
                _, best = self.tuned.search(language, optimizer, results)
                if best is not None:
                    for seed, models in self.ensembles(language, optimizer, best):
                        yield language, optimizer, seed, models

    def jobs(self, results: Results) -> Sequence[Any]:
        """Every job wanted, given what is known."""
        wanted: list[Any] = []
        for language in self.languages():
            for optimizer in self.optimizers:
                wanted += self.tuned.search(language, optimizer, results)[0]
        for _, _, _, models in self.trained(results):
            wanted += models
        return list(dict.fromkeys(wanted))


class ScoredItems(Part):
    """A part whose models are asked about single items, once all of an ensemble are done."""

    def __init__(self, settings: Scratch, seeds: int) -> None:
        super().__init__(settings, seeds)
        self._probes: dict[tuple[str, ...], Probe] = {}

    @abc.abstractmethod
    def scores(
        self, rows: pd.DataFrame, language: LanguageConfig, probe: Probe, record: Record
    ) -> pd.DataFrame:
        """The scores behind one probe's rows of items; ``record`` is of its first subject's training."""

    def asked(self, results: Results) -> Iterator[tuple[LanguageConfig, str, int, Probe]]:
        """(language, optimizer, seed, probe) of every ensemble that is done and did not diverge as a whole."""
        for language, optimizer, seed, models in self.trained(results):
            records = [results(model) for model in models]
            sound = [
                model
                for model, record in zip(models, records, strict=True)
                if record is not None and record.manifest["status"] != "diverged"
            ]
            if sound and all(record is not None for record in records):
                yield language, optimizer, seed, self._probe(sound)

    def _probe(self, subjects: list[Pretrain]) -> Probe:
        place = tuple(job.key for job in subjects)
        if place not in self._probes:
            self._probes[place] = Probe(seed=subjects[0].seed, subjects=tuple(subjects), analysis=Items())
        return self._probes[place]

    def jobs(self, results: Results) -> Sequence[Any]:
        """Every job wanted, given what is known."""
        return [*super().jobs(results), *(probe for _, _, _, probe in self.asked(results))]

    def table(self, results: Results) -> pd.DataFrame:
        """The scores of all models that were asked, led by job (the probe), seed, optimizer, lr and models (behind a
        row)."""
        frames = []
        for language, optimizer, seed, probe in self.asked(results):
            record, trained = results(probe), results(probe.subjects[0])
            if record is None or trained is None:
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
            scored = self.scores(rows, language, probe, trained)
            frames.append(pd.concat([pd.DataFrame(head, index=scored.index), scored], axis=1))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
