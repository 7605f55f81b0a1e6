"""The study of memorization: which optimizer learns by rote, which finds the rule, and when? (claims C6, C7)"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from pydantic import Field, model_validator

from synthlm.config import Config, InputError
from synthlm.experiments.injection import InjectionScores, InjectionSettings
from synthlm.experiments.rote_rule import MapSettings, RoteRuleMap
from synthlm.experiments.scores import (
    CapacityScores,
    CapacitySettings,
    CorruptionScores,
    CorruptionSettings,
    CounterfactualScores,
    CounterfactualSettings,
    ExposureScores,
    ExposureSettings,
)
from synthlm.experiments.scratch import Part
from synthlm.experiments.small_data import SmallData, SmallDataSettings
from synthlm.study import Results


class TendencySettings(Config):
    """The section ``[tendency]`` of a grid; each part only where given.

    map: training from scratch in every cell of language, data size, rote share and optimizer. small_data: finetuning on
    a new rule from few examples. counterfactual, exposure, capacity, corruption: memorization item by item. injection:
    how strings seen once are forgotten.
    """

    seeds: int = Field(3, ge=1)
    map: MapSettings | None = None
    small_data: SmallDataSettings | None = None
    counterfactual: CounterfactualSettings | None = None
    exposure: ExposureSettings | None = None
    capacity: CapacitySettings | None = None
    corruption: CorruptionSettings | None = None
    injection: InjectionSettings | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "TendencySettings":
        try:  # every job of the first seed, so that whatever does not fit is said before anything runs
            study = TendencyStudy(self)
            if study.map is not None:
                for cell in study.map.cells():
                    study.map.job(cell, 0, 0)
            for part in study.scores:
                part.check()
        except InputError as error:
            raise ValueError(str(error)) from None
        return self


class TendencyStudy:
    """Jobs and tables of the parts that are given."""

    def __init__(self, settings: TendencySettings) -> None:
        self.settings = settings
        self.map = None if settings.map is None else RoteRuleMap(settings.map, settings.seeds)
        seeds = settings.seeds
        self.small_data = None if settings.small_data is None else SmallData(settings.small_data, seeds)
        self.scores: list[Part] = []
        if settings.counterfactual is not None:
            self.scores.append(CounterfactualScores(settings.counterfactual, seeds))
        if settings.exposure is not None:
            self.scores.append(ExposureScores(settings.exposure, seeds))
        if settings.capacity is not None:
            self.scores.append(CapacityScores(settings.capacity, seeds))
        if settings.corruption is not None:
            self.scores.append(CorruptionScores(settings.corruption, seeds))
        if settings.injection is not None:
            self.scores.append(InjectionScores(settings.injection, seeds))

    def describe(self) -> str:
        """What is run, in one paragraph, for the report."""
        texts = [f"Rote and rule: {self.settings.seeds} seeds."]
        if self.map is not None:
            texts.append(self.map.describe())
        if self.small_data is not None:
            texts.append(self.small_data.describe())
        return " ".join([*texts, *(part.describe() for part in self.scores)])

    def jobs(self, results: Results) -> Sequence[Any]:
        """Every job wanted, given what is known."""
        parts = [part for part in (self.map, self.small_data, *self.scores) if part is not None]
        return list(dict.fromkeys(job for part in parts for job in part.jobs(results)))

    def tables(self, results: Results) -> dict[str, pd.DataFrame]:
        """``tendency``: training from scratch; ``small_data``, ``small_data_bases``, ``counterfactual``,
        ``exposure``, ``capacity``, ``corruption``, ``injection``."""
        tables = {} if self.map is None else {"tendency": self.map.table(results)}
        if self.small_data is not None:
            tables |= self.small_data.tables(results)
        tables |= {part.NAME: part.table(results) for part in self.scores}
        return {name: table for name, table in tables.items() if len(table)}
