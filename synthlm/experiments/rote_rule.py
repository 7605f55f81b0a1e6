"""Rote against rule, from scratch: languages x number of rule examples x rote share x optimizers (claim C7).

A cell is a language with so many rule examples and such a share of rote. In every cell every optimizer has its own
learning-rate sweep, on seed 0, which widens itself when its best lies at an edge; the best rate is then run on all
seeds. Source: our own design; the conflicting predictions are those of arXiv 2605.06654, 2504.16041 and 2603.00742.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field, field_validator, model_validator

from synthlm.config import Config, InputError, parse
from synthlm.experiments.consistency import ModelSettings
from synthlm.experiments.sweep import Rule, Sweep, search
from synthlm.jobs import Pretrain, Training, element_wise
from synthlm.model import ModelConfig
from synthlm.optimizers import OptimizerConfig
from synthlm.store import Record
from synthlm.study import Results
from synthlm.tasks import AnySingle, Exceptions, LanguageConfig, Mixture, SingleConfig, build, sizes

FASTER = 0.01
"""What a learning rate's speed counts beside its final accuracy: it decides between equals, and little more."""


class TunedOptimizer(Config):
    """An optimizer of the hidden matrices, and the learning rates tried."""

    optimizer: Rule
    sweep: Sweep


class RoteAndRule(Config):
    """A rule to infer, something to learn by rote beside it, and how much of each.

    rule: its number of training items is set to each of ``items``. None: rote alone, and ``items`` sets its number.
    rote: facts, say, of another tag and label; a sequence is rote with probability ``shares``. Without it the rule must
    be *exceptions*, and the share of its training items that are exceptions is each of ``shares``.
    """

    rule: AnySingle | None = None
    rote: AnySingle | None = None
    items: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5,)

    @model_validator(mode="after")
    def _check(self) -> "RoteAndRule":
        if self.rule is None and self.rote is None:
            raise ValueError("give a rule, rote or both")
        if self.rote is None and not isinstance(self.rule, Exceptions):
            raise ValueError("rote: needed beside every rule but exceptions")
        try:
            for items, share in self.cells():
                self.at(items, share)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    def cells(self) -> list[tuple[int, float]]:
        """(rule examples, rote share) of each cell; of rote alone (items, 1)."""
        shares = self.shares if self.rule is not None else (1.0,)
        return [(items, share) for items in self.items for share in shares]

    def at(self, items: int, share: float) -> LanguageConfig:
        """The language of a cell.

        Raises:
            InputError: when the number of items does not suit the language.
        """
        if self.rule is None:
            return sized(self.rote, items)
        if isinstance(self.rule, Exceptions):
            return sized(self.rule, items, exceptions=max(1, round(share * items)))
        parts = (self.rote, sized(self.rule, items))
        return parse(Mixture, {"parts": parts, "weights": (share, 1 - share)}, "mixture")


def sized(language: Any, items: int, **others: int) -> SingleConfig:
    """The same language with so many training items, and other settings changed.

    Raises:
        InputError: when its number of training items cannot be set, or not to that.
    """
    data = language.model_dump() | others
    inner = data["rule"] if isinstance(language, Exceptions) else data
    if "items" in inner:
        inner["items"] = items
    elif "modulus" in inner:
        inner["train_fraction"] = items / inner["modulus"] ** 2
    elif "sources" in inner:
        inner["train_fraction"] = items / (inner["sources"] * inner["keys"])
    else:
        raise InputError(f"items: the number of training items of {language.name!r} cannot be set")
    return parse(type(language), data, language.name)


class MapSettings(Config):
    """The section ``[tendency.map]``: from-scratch training in every cell with every optimizer."""

    model: ModelSettings = ModelSettings()
    training: Training
    aux: OptimizerConfig
    optimizers: dict[str, TunedOptimizer] = Field(min_length=1)
    languages: dict[str, RoteAndRule] = Field(min_length=1)

    @field_validator("aux")
    @classmethod
    def _aux_rule(cls, value: OptimizerConfig) -> OptimizerConfig:
        return element_wise(value)

    def transformer(self) -> ModelConfig:
        """One architecture for every cell: the largest vocabulary and length."""
        shapes = [sizes(spec.at(*cell)) for spec in self.languages.values() for cell in spec.cells()]
        vocab, length = max(v for v, _ in shapes), max(t for _, t in shapes)
        return parse(ModelConfig, {"vocab": vocab, "length": length, **self.model.model_dump()}, "model")


@dataclass(frozen=True)
class Cell:
    """A language by name, with so many rule examples and such a share of rote, and an optimizer by name."""

    language: str
    items: int
    rote_share: float
    optimizer: str


class RoteRuleMap:
    """Jobs and the table ``tendency``."""

    def __init__(self, settings: MapSettings, seeds: int) -> None:
        self.settings, self.seeds = settings, seeds
        self.model = settings.transformer()
        self._made: dict[tuple[Cell, int, int], Pretrain] = {}
        self._scores: dict[str, float] = {}

    def describe(self) -> str:
        """What is run, in a sentence or two."""
        settings = self.settings
        rates = ", ".join(
            f"{name} ({tuned.sweep.count} rates from {tuned.sweep.lowest:g} to {tuned.sweep.highest:g})"
            for name, tuned in settings.optimizers.items()
        )
        return (
            f"From scratch: {rates} on {', '.join(settings.languages)}, "
            f"{len(list(self.cells()))} cells of language, rule examples, rote share and optimizer, "
            f"{settings.training.steps} steps, width {self.model.width}, {self.model.layers} layers, "
            f"{self.model.layout.size:,} parameters. Each cell's learning rate is the best on seed 0 by final accuracy "
            f"(mean over rote recall and held-out rule; speed decides between equals), then run on {self.seeds} seeds."
        )

    def cells(self) -> Iterator[Cell]:
        """Every cell, languages first."""
        for name, spec in self.settings.languages.items():
            for items, share in spec.cells():
                for optimizer in self.settings.optimizers:
                    yield Cell(name, items, share, optimizer)

    def job(self, cell: Cell, seed: int, index: int) -> Pretrain:
        """The job of a cell at a place of its sweep.

        Raises:
            InputError: when the settings do not fit together.
        """
        place = (cell, seed, index)
        if place not in self._made:
            tuned = self.settings.optimizers[cell.optimizer]
            data = {
                "seed": seed,
                "model": self.model,
                "language": self.settings.languages[cell.language].at(cell.items, cell.rote_share),
                "optimizer": tuned.optimizer.at(tuned.sweep.rate(index)),
                "aux": self.settings.aux,
                "training": self.settings.training,
            }
            self._made[place] = parse(Pretrain, data, f"tendency.map.languages.{cell.language}")
        return self._made[place]

    def _search(self, cell: Cell, results: Results) -> tuple[list[Pretrain], int | None]:
        return search(
            self.settings.optimizers[cell.optimizer].sweep,
            lambda index: [self.job(cell, 0, index)],
            lambda jobs: self._score(jobs[0], results(jobs[0])),
            results,
        )

    def _score(self, job: Pretrain, record: Record | None) -> float:
        if job.key not in self._scores:
            self._scores[job.key] = rate_score(record)
        return self._scores[job.key]

    def _runs(self, cell: Cell, results: Results) -> list[tuple[Pretrain, bool]]:
        """(job, whether it is of the chosen rate) of a cell, as far as known."""
        swept, best = self._search(cell, results)
        chosen = [] if best is None else [self.job(cell, seed, best) for seed in range(self.seeds)]
        return [(job, job in chosen) for job in dict.fromkeys([*swept, *chosen])]

    def jobs(self, results: Results) -> Sequence[Pretrain]:
        """Every job wanted, given what is known."""
        return [job for cell in self.cells() for job, _ in self._runs(cell, results)]

    def table(self, results: Results) -> pd.DataFrame:
        """Tidy results, a row per job, evaluation step and slice.

        Columns: job, seed, language, items, rote_share, optimizer, lr, chosen (of the cell's learning rate?), status,
        step, slice, goal ("rote": recall; "rule": held out; "": only shown), train_share (of the scored training tokens
        that are of this slice, 0 for held-out ones), loss, floor, accuracy, exact, n (scored tokens).
        """
        frames = []
        for cell in self.cells():
            for job, chosen in self._runs(cell, results):
                record = results(job)
                if record is not None:
                    frames.append(_rows(cell, job, chosen, record))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def rate_score(record: Record | None) -> float:
    """What a learning rate is judged by: the final mean accuracy over goal slices, and ``FASTER`` times its mean over
    ln(1 + step); -inf for a run that diverged.
    """
    if record is None or record.manifest["status"] == "diverged":
        return -math.inf
    rows = record.metrics
    by_step: dict[int, list[float]] = {}
    for step, goal, accuracy in zip(rows["step"], rows["goal"], rows["accuracy"], strict=True):
        if goal:
            by_step.setdefault(step, []).append(accuracy)
    steps = sorted(by_step)
    curve = [float(np.mean(by_step[step])) for step in steps]
    x = np.log1p(steps)
    return curve[-1] + FASTER * float(np.trapezoid(curve, x) / (x[-1] - x[0]))


@lru_cache(maxsize=1024)
def train_shares(language: LanguageConfig) -> dict[str, float]:
    """Slice -> its share of the scored training tokens. Of seed 0: it follows from the settings, but for
    the share of forced brackets.
    """
    drawn = build(language, 0)
    weight = drawn.train.weight[:, None] * drawn.train.scored
    return {
        name: float(weight[drawn.train.slices == index].sum() / weight.sum())
        for index, name in enumerate(drawn.slices)
    }


def _rows(cell: Cell, job: Pretrain, chosen: bool, record: Record) -> pd.DataFrame:
    shares = train_shares(job.language)
    head = {
        "job": job.key[:12],
        "seed": job.seed,
        "language": cell.language,
        "items": cell.items,
        "rote_share": cell.rote_share,
        "optimizer": cell.optimizer,
        "lr": job.optimizer.lr,
        "chosen": chosen,
        "status": record.manifest["status"],
    }
    rows = record.metrics
    body: dict[str, Any] = {name: rows[name] for name in ("step", "slice", "goal")}
    body["train_share"] = [shares[name] for name in rows["slice"]]
    body |= {name: np.array(rows[name], dtype=float) for name in ("loss", "floor", "accuracy", "exact")}
    return pd.DataFrame(head | body | {"n": rows["n"]})
