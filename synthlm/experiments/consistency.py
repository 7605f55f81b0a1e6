"""The learning-forgetting study: does finetuning with the pretraining optimizer forget less? (claims C1, C2)

Bases are pretrained with each optimizer at its own best learning rate, then finetuned by every arm (full or LoRA, each
optimizer) over that arm's own learning rates; learning and forgetting are followed along each run. A sweep
whose best learning rate lies at an edge widens itself. Protocol: our reconstruction of arXiv 2605.06654, whose body
was not available; the tuning of every cell follows arXiv 2605.10468.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, field_validator, model_validator

from synthlm.bases import PASS_ACCURACY
from synthlm.config import Config, InputError, parse
from synthlm.experiments.sweep import Rule, Sweep, mean, search
from synthlm.frontier import run_area
from synthlm.jobs import Finetune, Full, Job, Method, Pretrain, Training, element_wise
from synthlm.lora import LoraConfig
from synthlm.model import ModelConfig
from synthlm.optimizers import OptimizerConfig
from synthlm.store import Record
from synthlm.study import Results
from synthlm.table import stacked
from synthlm.tasks import AnyLanguage, sizes


class Base(Config):
    """How a base is pretrained. ``match_loss_of`` stops it at another base's final loss (and takes its own sweep)."""

    optimizer: Rule
    sweep: Sweep
    match_loss_of: str | None = None


class Arm(Config):
    """How a base is finetuned."""

    method: Method = Full()
    optimizer: Rule
    sweep: Sweep


class Pretraining(Config):
    language: AnyLanguage
    training: Training
    aux: OptimizerConfig
    bases: dict[str, Base] = Field(min_length=1)

    @field_validator("aux")
    @classmethod
    def _aux_rule(cls, value: OptimizerConfig) -> OptimizerConfig:
        return element_wise(value)


class Finetuning(Config):
    training: Training
    aux: OptimizerConfig | None = None
    languages: dict[str, AnyLanguage] = Field(min_length=1)
    arms: dict[str, Arm] = Field(min_length=1)

    @field_validator("aux")
    @classmethod
    def _aux_rule(cls, value: OptimizerConfig | None) -> OptimizerConfig | None:
        return value and element_wise(value)


class ModelSettings(Config):
    """The architecture; vocabulary and length follow from the languages."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    mlp: int = 256
    activation: str = "relu2"
    positions: str = "learned"
    tied: bool = False


class ConsistencySettings(Config):
    """The section ``[consistency]`` of a grid."""

    seeds: int = Field(3, ge=1)
    model: ModelSettings = ModelSettings()
    pretraining: Pretraining
    finetuning: Finetuning

    @model_validator(mode="after")
    def _consistent(self) -> "ConsistencySettings":
        languages = [self.pretraining.language, *self.finetuning.languages.values()]
        if len({sizes(language)[0] for language in languages}) > 1:
            raise ValueError("finetuning.languages: every language needs the pretraining language's alphabet")
        names = self.pretraining.bases
        for name, base in names.items():
            target = base.match_loss_of
            if target is not None and (target not in names or names[target].match_loss_of is not None):
                plain = [other for other, spec in names.items() if spec.match_loss_of is None]
                raise ValueError(
                    f"pretraining.bases.{name}.match_loss_of: {target!r} is not one of {', '.join(plain)}"
                )
        try:  # every job of the first seed, so that whatever does not fit is said before anything runs
            study = ConsistencyStudy(self)
            for name in names:
                pretrained = study.pretrain(name, 0, 0)
                for language in self.finetuning.languages:
                    for arm in self.finetuning.arms:
                        study.finetune(pretrained, language, arm, 0)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    def transformer(self) -> ModelConfig:
        shapes = [
            sizes(language) for language in (self.pretraining.language, *self.finetuning.languages.values())
        ]
        vocab, length = max(v for v, _ in shapes), max(t for _, t in shapes)
        return parse(ModelConfig, {"vocab": vocab, "length": length, **self.model.model_dump()}, "model")


@dataclass(frozen=True)
class FinetunedCell:
    """Finetunings of one base by one arm. ``best``: at the chosen learning rate, one a seed; ``jobs``: all of them."""

    base: str
    language: str
    arm: str
    best: tuple[Finetune, ...]
    jobs: tuple[Finetune, ...]


class ConsistencyStudy:
    """Jobs and table of one grid. Everything is a function of finished results, so a killed study just goes on."""

    def __init__(self, settings: ConsistencySettings) -> None:
        self.settings = settings
        self.model = settings.transformer()
        self._made: dict[tuple[Any, ...], Any] = {}
        self._scores: dict[str, float] = {}

    def describe(self) -> str:
        """What is run, in one paragraph, for the report."""
        grid = self.settings
        pre, fine = grid.pretraining, grid.finetuning
        return (
            f"Learning and forgetting: {grid.seeds} seeds; bases {', '.join(pre.bases)}; arms {', '.join(fine.arms)}; "
            f"finetuning languages {', '.join(fine.languages)}; model width {self.model.width}, "
            f"{self.model.layers} layers, {self.model.layout.size:,} parameters; {pre.training.steps} "
            f"pretraining and {fine.training.steps} finetuning steps. Every base and every cell (base, arm, "
            f"language) has its own learning-rate sweep, widened when its best lies at an edge. A base's rate is "
            f"chosen on seed 0 by final loss, a cell's by the area under its frontier; a base has succeeded with "
            f"accuracy {PASS_ACCURACY} in every goal slice."
        )

    # -- pretraining -------------------------------------------------------------------------------------------------

    def pretrain(self, name: str, seed: int, index: int, stop_loss: float | None = None) -> Pretrain:
        """The job of a base at a place of its sweep.

        Raises:
            InputError: when the settings do not fit together.
        """
        place = (name, seed, index, stop_loss)
        if place in self._made:
            return self._made[place]
        pre = self.settings.pretraining
        base = pre.bases[name]
        data = {
            "seed": seed,
            "model": self.model,
            "language": pre.language,
            "optimizer": base.optimizer.at(base.sweep.rate(index)),
            "aux": pre.aux,
            "training": pre.training,
            "stop_loss": stop_loss,
        }
        return self._made.setdefault(place, parse(Pretrain, data, f"pretraining.bases.{name}"))

    def _base_search(self, name: str, results: Results) -> tuple[list[Pretrain], int | None]:
        """The sweep on seed 0 as far as known, and the best place once the sweep is over."""
        sweep = self.settings.pretraining.bases[name].sweep
        return search(
            sweep,
            lambda index: [self.pretrain(name, 0, index)],
            lambda jobs: mean(self._score(job, results(job)) for job in jobs),
            results,
        )

    def _bases(self, results: Results) -> tuple[list[Job], dict[tuple[str, int], Pretrain]]:
        """Pretraining jobs wanted, and the chosen job of each (base, seed) that is decided."""
        wanted: list[Job] = []
        chosen: dict[tuple[str, int], Pretrain] = {}
        best: dict[str, int] = {}
        for name, base in self.settings.pretraining.bases.items():
            if base.match_loss_of is None:
                jobs, index = self._base_search(name, results)
                wanted += jobs
                if index is not None:
                    best[name] = index
        for name, index in best.items():
            for seed in range(self.settings.seeds):
                chosen[name, seed] = self.pretrain(name, seed, index)
        for name, base in self.settings.pretraining.bases.items():
            target = base.match_loss_of
            if target is None or target not in best:
                continue
            # the sweep of a matched base is the one of a base with equal settings, stopped at the target's loss
            jobs, index = self._base_search(name, results)
            wanted += jobs
            for seed in range(self.settings.seeds):
                record = results(chosen[target, seed])
                if record is not None and index is not None and math.isfinite(_final_loss(record)):
                    chosen[name, seed] = self.pretrain(name, seed, index, stop_loss=_final_loss(record))
        return list(dict.fromkeys([*wanted, *chosen.values()])), chosen

    # -- finetuning --------------------------------------------------------------------------------------------------

    def finetune(self, base: Pretrain, language: str, arm: str, index: int) -> Finetune:
        """The job of an arm on a base at a place of the arm's sweep.

        Raises:
            InputError: when the settings do not fit together.
        """
        place = (base.key, language, arm, index)
        if place in self._made:
            return self._made[place]
        fine = self.settings.finetuning
        data = {
            "seed": base.seed,
            "base": base,
            "language": fine.languages[language],
            "method": fine.arms[arm].method,
            "optimizer": fine.arms[arm].optimizer.at(fine.arms[arm].sweep.rate(index)),
            "aux": fine.aux,
            "training": fine.training,
        }
        return self._made.setdefault(place, parse(Finetune, data, f"finetuning.arms.{arm}"))

    def _score(self, job: Job, record: Record | None) -> float:
        """What a learning rate is judged by, larger is better; worked out once a job."""
        if job.key not in self._scores:
            self._scores[job.key] = -_final_loss(record) if isinstance(job, Pretrain) else area(record)
        return self._scores[job.key]

    def _cells(
        self, chosen: dict[tuple[str, int], Pretrain], results: Results
    ) -> Iterator[tuple[str, str, str, list[Finetune], list[Finetune]]]:
        """Each (base, language, arm) whose bases are trained, with its jobs as far as known, and those of the best
        learning rate once the search is over (one a seed)."""
        for name in self.settings.pretraining.bases:
            seeds = range(self.settings.seeds)
            bases = [chosen[name, seed] for seed in seeds if (name, seed) in chosen]
            records = [results(base) for base in bases]
            if any(record is None for record in records) or not all(
                (name, seed) in chosen or self._has_no_target(name, seed, chosen, results) for seed in seeds
            ):
                continue
            sound = [base for base, record in zip(bases, records, strict=True) if succeeded(record)]
            if not sound:
                continue
            for language in self.settings.finetuning.languages:
                for arm, spec in self.settings.finetuning.arms.items():

                    def at(
                        index: int, language: str = language, arm: str = arm, sound: Any = sound
                    ) -> list[Finetune]:
                        return [self.finetune(base, language, arm, index) for base in sound]

                    def score(jobs: list[Finetune]) -> float:
                        return mean(self._score(job, results(job)) for job in jobs)

                    jobs, best = search(spec.sweep, at, score, results)
                    yield name, language, arm, jobs, [] if best is None else at(best)

    def _has_no_target(
        self, name: str, seed: int, chosen: dict[tuple[str, int], Pretrain], results: Results
    ) -> bool:
        """Whether a base to be stopped at another's loss will never be trained: the other diverged."""
        target = self.settings.pretraining.bases[name].match_loss_of
        if target is None or (target, seed) not in chosen:
            return False
        record = results(chosen[target, seed])
        return record is not None and not math.isfinite(_final_loss(record))

    def jobs(self, results: Results) -> Sequence[Job]:
        """Every job wanted, given what is known; more are wanted once a search's results are in."""
        wanted, chosen = self._bases(results)
        for _, _, _, jobs, _ in self._cells(chosen, results):
            wanted += jobs
        return list(dict.fromkeys(wanted))

    def chosen(self, results: Results) -> dict[tuple[str, int], Pretrain]:
        """(base, seed) -> the pretraining job that stands for it, as far as decided."""
        return self._bases(results)[1]

    def finetuned(self, results: Results) -> list[FinetunedCell]:
        """The cells whose learning-rate search is over."""
        _, chosen = self._bases(results)
        return [
            FinetunedCell(base, language, arm, tuple(best), tuple(jobs))
            for base, language, arm, jobs, best in self._cells(chosen, results)
            if best
        ]

    def tables(self, results: Results) -> dict[str, pd.DataFrame]:
        """``results``: one row per job, evaluation step and slice."""
        return {"results": self._table(results)}

    def _table(self, results: Results) -> pd.DataFrame:
        wanted, chosen = self._bases(results)
        picked = {job.key for job in chosen.values()}
        labels = {job.key: name for (name, _), job in chosen.items()}
        for name in self.settings.pretraining.bases:
            labels |= {job.key: name for job in self._base_search(name, results)[0] if job.key not in labels}
        parts = []
        for job in wanted:
            record = results(job)
            if record is not None and isinstance(job, Pretrain):
                columns = {"base": labels[job.key], "arm": "", "method": "", "language": "pretraining"}
                parts.append(result_rows(job, record, columns | {"chosen": job.key in picked}))
        for base, language, arm, jobs, _ in self._cells(chosen, results):
            for job in jobs:
                record = results(job)
                if record is not None:
                    columns = {"base": base, "arm": arm, "method": job.method.kind, "language": language}
                    parts.append(result_rows(job, record, columns | {"chosen": False}))
        return stacked(parts)


def goal_rows(record: Record, role: str, column: str) -> dict[int, list[float]]:
    """Step -> the column's values over the goal slices of a role (None becomes NaN)."""
    rows = record.metrics
    out: dict[int, list[float]] = {}
    for step, found, goal, value in zip(rows["step"], rows["role"], rows["goal"], rows[column], strict=True):
        if found == role and goal:
            out.setdefault(step, []).append(math.nan if value is None else value)
    return out


def _final_loss(record: Record | None) -> float:
    """Mean loss over the pretraining goal slices at the last step; infinite for a run that diverged."""
    if record is None or record.manifest["status"] == "diverged":
        return math.inf
    losses = goal_rows(record, "old", "loss")
    return float(np.mean(losses[max(losses)]))


def succeeded(record: Record | None) -> bool:
    """Whether a base knows its language: accuracy at least ``PASS_ACCURACY`` in every goal slice at the end."""
    if record is None or record.manifest["status"] == "diverged":
        return False
    accuracy = goal_rows(record, "old", "accuracy")
    return min(accuracy[max(accuracy)]) >= PASS_ACCURACY


def area(record: Record | None) -> float:
    """Area under one run's learning-forgetting frontier: what a cell's learning rate is judged by."""
    if record is None:
        return -math.inf
    new, old = goal_rows(record, "new", "accuracy"), goal_rows(record, "old", "accuracy")
    steps = sorted(new)
    return run_area(*(np.array([np.mean(rows[step]) for step in steps]) for rows in (new, old)))


def result_rows(
    job: Pretrain | Finetune, record: Record, columns: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """A part of the tidy results: what all rows of one trained job share, and their columns.

    ``columns``: its base, arm, method, language and ``chosen``.
    """
    rank = job.method.rank if isinstance(job, Finetune) and isinstance(job.method, LoraConfig) else 0
    head = {
        "job": job.key[:12],
        "kind": job.kind,
        "seed": job.seed,
        **{name: columns[name] for name in ("base", "arm", "method")},
        "optimizer": job.optimizer.name,
        "rank": rank,
        "language": columns["language"],
        "lr": job.optimizer.lr,
        "steps_total": job.training.steps,
        "status": record.manifest["status"],
        "chosen": columns["chosen"],
    }
    names = ("step", "role", "slice", "goal", "loss", "floor", "accuracy", "exact", "kl", "n")
    return head, {name: record.metrics[name] for name in names}
