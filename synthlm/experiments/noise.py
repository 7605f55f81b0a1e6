"""Bases trained at perturbed weights (GO noise, SAM), their controls, and how much they forget (claim B4).

Every variant repeats the pretraining of one base of the learning-forgetting study, at its chosen learning rate and
with the same data order, changed in how gradients are taken, in the number of steps or in weight decay alone. One arm
finetunes each, with that arm's own sweep. Where gradients are taken is as in arXiv 2505.17646 (GO) and 2010.01412
(SAM); the controls are ours.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from pydantic import Field, model_validator

from synthlm.config import Config, InputError, choose, parse
from synthlm.experiments.consistency import (
    ConsistencySettings,
    ConsistencyStudy,
    FinetunedCell,
    area,
    result_rows,
    succeeded,
)
from synthlm.experiments.sweep import Sweep, mean, search
from synthlm.jobs import Finetune, Job, Pretrain
from synthlm.perturbation import Perturbation
from synthlm.study import Results
from synthlm.table import stacked


class Variant(Config):
    """How a base's pretraining is changed. ``steps``: factor on its number of steps (2: the equal-compute control of
    SAM, whose steps take two gradients). ``weight_decay``: in place of the optimizer's own."""

    perturb: Perturbation | None = None
    steps: float = Field(1.0, gt=0)
    weight_decay: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _changes(self) -> "Variant":
        if self.perturb is None and self.steps == 1 and self.weight_decay is None:
            raise ValueError("changes nothing: give perturb, steps or weight_decay")
        return self


class NoiseSettings(Config):
    """The section ``[mechanism.noise]``: variants of ``base``, finetuned on ``language`` by ``arm``.

    ``sweep``: the arm's learning rates here; its own when not given.
    """

    base: str
    arm: str
    language: str
    sweep: Sweep | None = None
    variants: dict[str, Variant] = Field(min_length=1)

    def check(self, consistency: ConsistencySettings) -> None:
        """The names are those of the learning-forgetting study, and variants have names of their own.

        Raises:
            InputError: naming the allowed ones.
        """
        known = {
            "base": list(consistency.pretraining.bases),
            "arm": list(consistency.finetuning.arms),
            "language": list(consistency.finetuning.languages),
        }
        for name, allowed in known.items():
            choose(f"noise.{name}", getattr(self, name), allowed)
        if consistency.pretraining.bases[self.base].match_loss_of is not None:
            raise InputError(
                f"noise.base: {self.base!r} is a control; choose a base with a search of its own"
            )
        for name in self.variants:
            if name in known["base"]:
                raise InputError(f"noise.variants.{name}: is the name of a base")


class NoiseBases:
    """Jobs and table of the variants; functions of finished results alone."""

    def __init__(self, settings: NoiseSettings, consistency: ConsistencyStudy) -> None:
        self.settings, self.consistency = settings, consistency
        self._scores: dict[str, float] = {}
        self._made: dict[tuple[Any, ...], Any] = {}

    def bases(self, results: Results) -> dict[tuple[str, int], Pretrain]:
        """(variant, seed) -> its pretraining, as soon as the base's learning rate is chosen."""
        chosen = self.consistency.chosen(results)
        return {
            (name, seed): self._pretrain(name, job)
            for name in self.settings.variants
            for (base, seed), job in chosen.items()
            if base == self.settings.base
        }

    def _pretrain(self, name: str, base: Pretrain) -> Pretrain:
        place = (name, base.key)
        if place in self._made:
            return self._made[place]
        variant = self.settings.variants[name]
        training = base.training.model_copy(
            update={
                "perturb": variant.perturb,
                "steps": max(1, round(variant.steps * base.training.steps)),
                "checkpoints": 0,
            }
        )
        optimizer = base.optimizer
        if variant.weight_decay is not None:
            optimizer = optimizer.model_copy(update={"weight_decay": variant.weight_decay})
        data: dict[str, Any] = {field: getattr(base, field) for field in ("seed", "model", "language", "aux")}
        data |= {"optimizer": optimizer, "training": training}
        return self._made.setdefault(place, parse(Pretrain, data, f"mechanism.noise.variants.{name}"))

    def cells(self, results: Results) -> Iterator[FinetunedCell]:
        """The variants whose bases are all trained, with their finetunings as far as known; ``best`` is empty before
        the search is over."""
        bases = self.bases(results)
        arm = self.consistency.settings.finetuning.arms[self.settings.arm]
        sweep = self.settings.sweep or arm.sweep
        for name in self.settings.variants:
            mine = [job for (variant, _), job in bases.items() if variant == name]
            records = [results(job) for job in mine]
            if not mine or any(record is None for record in records):
                continue
            sound = [job for job, record in zip(mine, records, strict=True) if succeeded(record)]
            if not sound:
                continue

            def at(index: int, sound: list[Pretrain] = sound) -> list[Finetune]:
                return [self._finetune(base, sweep.rate(index)) for base in sound]

            jobs, best = search(sweep, at, lambda jobs: self._mean_area(jobs, results), results)
            chosen = () if best is None else tuple(at(best))
            yield FinetunedCell(name, self.settings.language, self.settings.arm, chosen, tuple(jobs))

    def _finetune(self, base: Pretrain, rate: float) -> Finetune:
        place = (base.key, rate)
        if place in self._made:
            return self._made[place]
        fine = self.consistency.settings.finetuning
        arm = fine.arms[self.settings.arm]
        data = {
            "seed": base.seed,
            "base": base,
            "language": fine.languages[self.settings.language],
            "method": arm.method,
            "optimizer": arm.optimizer.at(rate),
            "aux": fine.aux,
            "training": fine.training,
        }
        return self._made.setdefault(place, parse(Finetune, data, "mechanism.noise"))

    def _mean_area(self, jobs: list[Finetune], results: Results) -> float:
        for job in jobs:
            if job.key not in self._scores:
                self._scores[job.key] = area(results(job))
        return mean(self._scores[job.key] for job in jobs)

    def jobs(self, results: Results) -> list[Job]:
        """Every job wanted, given what is known."""
        wanted: list[Job] = list(self.bases(results).values())
        for cell in self.cells(results):
            wanted += cell.jobs
        return wanted

    def table(self, results: Results) -> pd.DataFrame:
        """Rows like those of ``results``, with the variant as ``base``; the base itself and its own finetunings by
        the same arm stand beside them, as ``plain``."""
        parts = []

        def add(job: Pretrain | Finetune, base: str) -> None:
            record = results(job)
            if record is not None:
                tuned = isinstance(job, Finetune)
                columns = {
                    "base": base,
                    "arm": self.settings.arm if tuned else "",
                    "method": job.method.kind if isinstance(job, Finetune) else "",
                    "language": self.settings.language if tuned else "pretraining",
                    "chosen": not tuned,
                }
                parts.append(result_rows(job, record, columns))

        for (base, _), pretrained in self.consistency.chosen(results).items():
            if base == self.settings.base:
                add(pretrained, PLAIN)
        for cell in self.consistency.finetuned(results):
            if (cell.base, cell.arm, cell.language) == (
                self.settings.base,
                self.settings.arm,
                self.settings.language,
            ):
                for tuned in cell.jobs:
                    add(tuned, PLAIN)
        for (variant, _), pretrained in self.bases(results).items():
            add(pretrained, variant)
        for cell in self.cells(results):
            for tuned in cell.jobs:
                add(tuned, cell.base)
        return stacked(parts)


PLAIN = "plain"
"""The base as it is, among its variants."""
