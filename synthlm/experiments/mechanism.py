"""The mechanism study: why does an optimizer forget less? (claims C3, C4, C5, B1 to B4)

Nothing is trained twice: bases and finetuned models are those of the learning-forgetting study, and this one analyses
them. It adds variants of one base trained at perturbed weights (``noise``), and their finetuning by one arm.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from synthlm.config import Config, InputError
from synthlm.experiments.consistency import ConsistencySettings, ConsistencyStudy, FinetunedCell, succeeded
from synthlm.experiments.noise import NoiseBases, NoiseSettings
from synthlm.experiments.probing import OUTCOMES, Named, ended, goals_of, joined, outcomes, probe_rows
from synthlm.experiments.surroundings import Surroundings, SurroundingsSettings
from synthlm.geometry import GEOMETRIES
from synthlm.jobs import Finetune, Job, Pretrain, Probe, Trained
from synthlm.probes import AnyAnalysis
from synthlm.probes.activations import Activations
from synthlm.probes.curvature import Curvature, SpectralDensity
from synthlm.probes.updates import ALL, WHOLE, Updates
from synthlm.study import Results


class MechanismSettings(Config):
    """The section ``[mechanism]`` of a grid: the settings of each analysis; ``noise`` only where given.

    checkpoints: whether activations are followed over pretraining, or told of initial and final weights alone.
    """

    seeds: int = Field(3, ge=1)
    checkpoints: bool = True
    activations: Activations = Activations()
    updates: Updates = Updates()
    curvature: Curvature = Curvature()
    spectrum: SpectralDensity = SpectralDensity()
    surroundings: SurroundingsSettings = SurroundingsSettings()
    noise: NoiseSettings | None = None

    def check(self, consistency: ConsistencySettings) -> None:
        """What it names is there in the learning-forgetting study.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        try:
            if self.noise is not None:
                self.noise.check(consistency)
        except InputError as error:
            raise ValueError(f"mechanism.{error}") from None


OWN = ("norm", "relative", "reach", "moved")
"""Measures of an update that every geometry has; ``own/...`` is the one of the base's optimizer."""


@dataclass(frozen=True)
class Asked:
    """A probe, the base it is about, and the pretraining step it looks at."""

    base: str
    probe: Probe
    step: int

    @property
    def table(self) -> str:
        return self.probe.analysis.name


class MechanismStudy:
    """Jobs and tables; everything is a function of finished results, those of ``consistency`` among them."""

    def __init__(self, settings: MechanismSettings, consistency: ConsistencyStudy) -> None:
        self.settings, self.consistency = settings, consistency
        self.noise = None if settings.noise is None else NoiseBases(settings.noise, consistency)
        self.surroundings = Surroundings(settings.surroundings, self)
        self._made: dict[tuple[Any, ...], Probe] = {}

    def describe(self) -> str:
        """What is run, in one paragraph, for the report."""
        text = (
            "Mechanism: of the bases of the learning-forgetting study the activations over pretraining, the landscape,"
            " curvature and basins; of all its finetuned models the update. All are measured on probe items of the old"
            " language."
        )
        if self.settings.noise is not None:
            noise = self.settings.noise
            text += (
                f" Variants of the {noise.base} base ({', '.join(noise.variants)}), each finetuned on"
                f" {noise.language} by {noise.arm}."
            )
        return text

    def bases(self, results: Results) -> dict[tuple[str, int], Pretrain]:
        """(base, seed) -> its pretraining, of the bases that are trained and know their language."""
        return {
            place: job
            for place, job in self.consistency.chosen(results).items()
            if place[1] < self.settings.seeds and succeeded(results(job))
        }

    def jobs(self, results: Results) -> Sequence[Job]:
        """Every job wanted, given what is known."""
        wanted: list[Job] = [asked.probe for asked in self.asked(results)]
        wanted += self.surroundings.jobs(results)
        if self.noise is not None:
            wanted += self.noise.jobs(results)
        return list(dict.fromkeys(wanted))

    def asked(self, results: Results) -> Iterator[Asked]:
        """Every probe that can be asked for by now."""
        fine = self.consistency.settings.finetuning
        cells = self.consistency.finetuned(results)
        for (base, _), job in self.bases(results).items():
            yield from self._over_pretraining(base, job, results)
            yield self._ask(base, self.settings.spectrum, [job])
            mine = [cell for cell in cells if cell.base == base]
            if len(mine) == len(fine.languages) * len(fine.arms):  # every search on this base is over
                yield from self._finetuned(base, job, mine, results)

    def _finetuned(
        self, base: str, job: Pretrain, cells: list[FinetunedCell], results: Results
    ) -> Iterator[Asked]:
        def sound(jobs: Sequence[Finetune]) -> list[Finetune]:
            return [one for one in jobs if one.seed == job.seed and ended(results(one))]

        every = [one for cell in cells for one in sound(cell.jobs)]
        if every:
            yield self._ask(base, self.settings.updates, [job, *every])
        # any model of a language tells the probe which language's gradients to take
        by_language = {one.language: one for one in reversed(every)}
        yield self._ask(base, self.settings.curvature, [job, *by_language.values()])

    def _over_pretraining(self, base: str, job: Pretrain, results: Results) -> Iterator[Asked]:
        record = results(job)
        end = record.manifest["steps"] if record is not None else 0
        between = job.training.checkpoint_steps if self.settings.checkpoints else []
        for step in [0, *(step for step in between if step < end)]:
            yield self._ask(base, self.settings.activations, [job], step)
        yield self._ask(base, self.settings.activations, [job], None, end)

    def _ask(
        self,
        base: str,
        analysis: AnyAnalysis,
        subjects: Sequence[Trained],
        step: int | None = None,
        end: int = 0,
    ) -> Asked:
        place = (analysis, step, *(job.key for job in subjects))
        if place not in self._made:
            self._made[place] = Probe(
                seed=subjects[0].seed, subjects=tuple(subjects), step=step, analysis=analysis
            )
        return Asked(base, self._made[place], end if step is None else step)

    # -- tables ----------------------------------------------------------------------------------------------------

    def tables(self, results: Results) -> dict[str, pd.DataFrame]:
        """One table an analysis, of the rows of its probes (see ``probing.probe_rows`` and ``surroundings``), and:

        ``activations`` has columns step and goal too. ``updates``: a row a finetuned model and matrix.
        ``predictors``: a row a finetuned model, with OUTCOMES and all that may predict them. ``sharpness``: the
        rows of ``curvature`` along directions, a column a quantity. ``noise``: as ``results``, of the variants and
        of ``plain``.
        """
        named: Named = {job.key: cell for cell in self.consistency.finetuned(results) for job in cell.jobs}
        frames: dict[str, list[pd.DataFrame]] = {}
        for asked in self.asked(results):
            rows = probe_rows(asked.probe, results(asked.probe), asked.base, named)
            if len(rows) and asked.table == "activations":
                goals = goals_of(results(asked.probe.subjects[0]))
                rows = rows.assign(step=asked.step, goal=rows["slice"].map(goals).fillna(""))
            elif len(rows) and asked.table == "updates":
                told = pd.DataFrame([outcomes(results(job)) for job in asked.probe.subjects[1:]])
                rows = pd.concat([rows, told.loc[rows["subject"] - 1].set_index(rows.index)], axis=1)
            frames.setdefault(asked.table, []).append(rows)
        tables = {name: joined(rows) for name, rows in frames.items()}
        if len(tables.get("updates", ())):
            tables["updates"], tables["predictors"] = _models(tables["updates"])
        tables |= self.surroundings.tables(results)
        if len(tables.get("curvature", ())):
            tables["sharpness"] = _sharpness(tables["curvature"])
        if self.noise is not None:
            tables["noise"] = self.noise.table(results)
        return {name: table for name, table in tables.items() if len(table)}


DIRECTION = [
    "job", "seed", "base", "base_optimizer", "own", "gradient", "language", "geometry", "kind",
]  # fmt: skip
"""Columns that tell of a direction whose sharpness was measured."""


def _sharpness(curvature: pd.DataFrame) -> pd.DataFrame:
    rows = curvature[curvature["gradient"] != ""]
    wide = rows.pivot(index=DIRECTION, columns="quantity", values="value")
    return wide.rename_axis(columns=None).reset_index()


def _models(updates: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of matrices, and those of whole models with what their base's own geometry says of them."""
    whole = updates["matrix"] == ALL
    models = updates[whole].drop(columns="matrix").reset_index(drop=True)
    places = np.array([list(GEOMETRIES).index(own) for own in models["own"]])
    for name in OWN:
        values = models[[f"{name}/{geometry}" for geometry in GEOMETRIES]].to_numpy(dtype=float)
        models[f"own/{name}"] = values[np.arange(len(models)), places]
    return updates[~whole].drop(columns=[*WHOLE, *OUTCOMES]).reset_index(drop=True), models
