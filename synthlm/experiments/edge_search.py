"""Which settings the edge study trains with: a search of the same size for every task and optimizer.

A model groks only at some learning rates and weight decays. Each setting is tried on seeds that the study does not use
itself, with nothing recorded of the updates, so that no run chose its own settings and no statistic of the edge had a
say. The best is the one that generalizes late, after it has memorized, on most seeds, then on most seeds at all, then
soonest, then furthest. The rule is ours.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from synthlm.analysis.onsets import grok_step, rise_step
from synthlm.config import Config, parse
from synthlm.experiments.consistency import ModelSettings
from synthlm.experiments.sweep import Rule, mean
from synthlm.jobs import Pretrain, Training
from synthlm.model import ModelConfig
from synthlm.optimizers import OptimizerConfig
from synthlm.store import Record
from synthlm.study import Results
from synthlm.tasks import AnyLanguage, sizes

FIRST_SEED = 1000
"""Of the search; the study's own seeds count from 0."""

MEMORIZED = 0.99
"""Training accuracy from which the plateau counts."""

Condition = Literal["main", "control"]
CONDITIONS: tuple[Condition, ...] = ("main", "control")


class EdgeArm(Config):
    """An optimizer of the hidden matrices, searched over learning rates and decays, and the one beside it.

    Attributes:
        decays: share of the weights that decay takes in a step: learning rate times weight decay.
        aux: of embeddings, head and gains, with its own weight decay; the same in every setting.
    """

    optimizer: Rule
    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    decays: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(min_length=1)
    aux: OptimizerConfig

    @model_validator(mode="after")
    def _one_decay(self) -> "EdgeArm":
        if self.optimizer.weight_decay:
            given = self.optimizer.weight_decay
            raise ValueError(f"optimizer.weight_decay: {given} is what decays are for; allowed: 0")
        return self


class EdgeTask(Config):
    """Something to be learnt in one stroke.

    Attributes:
        language: its only ``heldout`` goal slice is what generalization is judged by.
        control: what the control lacks: ``decay`` (no weight decay) or ``layers`` (one layer).
        decays: whether the main runs have weight decay; False: no run has any.
        chance: held-out accuracy of a model that has found no rule.
        arms: names of arms that learn it; None: all.
    """

    language: AnyLanguage
    training: Training
    control: Literal["decay", "layers"] = "decay"
    decays: bool = True
    chance: float = Field(0.05, ge=0, lt=1)
    arms: tuple[str, ...] | None = None
    model: ModelSettings = ModelSettings()


@dataclass(frozen=True)
class RunLabel:
    """One run of the study. ``arm``: name of the optimizer's arm."""

    task: str
    arm: str
    condition: Condition
    seed: int


@dataclass(frozen=True)
class Setting:
    """Learning rate and weight decay of the hidden matrices."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Milestones:
    """Steps at which a run gets somewhere, NaN where it does not."""

    memorized: float
    rise: float
    grokked: float

    @property
    def delayed(self) -> bool:
        """Whether it has memorized before it begins to generalize."""
        return math.isfinite(self.grokked) and self.memorized <= self.rise


class Search:
    """The settings of every task and arm, their trials, and the best once these are done."""

    def __init__(self, tasks: dict[str, EdgeTask], arms: dict[str, EdgeArm], seeds: int) -> None:
        self.tasks, self.arms, self.seeds = tasks, arms, seeds
        self.job = cache(self._job)
        self.trial = cache(self._trial)
        self._best: dict[tuple[str, str], Setting] = {}

    def describe(self) -> str:
        """The budget, in part of a sentence."""
        arm = next(iter(self.arms.values()))
        return (
            f"learning rate and weight decay of every task and optimizer are the best of {len(arm.rates)} x"
            f" {len(arm.decays)} on {self.seeds} seeds of the search's own"
        )

    def cells(self) -> Iterator[tuple[str, str]]:
        """Every task and arm that learns it."""
        for name, task in self.tasks.items():
            for arm in task.arms or tuple(self.arms):
                yield name, arm

    def settings(self, task: str, arm: str) -> list[Setting]:
        """Those that are tried."""
        given = self.arms[arm]
        decays = given.decays if self.tasks[task].decays else (0.0,)
        return [Setting(lr, float(f"{decay / lr:.4g}")) for lr in given.rates for decay in decays]

    def trials(self) -> Iterator[tuple[str, str, Setting, Pretrain]]:
        """Every trial of every task and arm; none where there is nothing to choose."""
        for task, arm in self.cells():
            settings = self.settings(task, arm)
            if len(settings) > 1:
                for setting in settings:
                    for seed in range(FIRST_SEED, FIRST_SEED + self.seeds):
                        yield task, arm, setting, self.trial(task, arm, setting, seed)

    def best(self, task: str, arm: str, results: Results) -> Setting | None:
        """The chosen setting, None while trials are missing."""
        settings = self.settings(task, arm)
        if len(settings) == 1:
            return settings[0]
        if (task, arm) not in self._best:
            scores = []
            for setting in settings:
                seeds = range(FIRST_SEED, FIRST_SEED + self.seeds)
                records = [results(self.trial(task, arm, setting, seed)) for seed in seeds]
                found = [record for record in records if record is not None]
                if len(found) < len(records):
                    return None
                scores.append(score([self._reached(task, record) for record in found]))
            self._best[task, arm] = settings[
                max(range(len(settings)), key=lambda place: (scores[place], -place))
            ]
        return self._best[task, arm]

    def rows(self, results: Results) -> list[pd.DataFrame]:
        """One row a trial that is done: job, task, arm, lr, weight_decay, seed, status, its milestones, heldout (at the
        end), chosen."""
        out = []
        for task, arm, setting, job in self.trials():
            record = results(job)
            if record is None:
                continue
            reached, heldout = self._reached(task, record)
            row = {
                "job": job.key[:12],
                "task": task,
                "arm": arm,
                "lr": setting.lr,
                "weight_decay": setting.weight_decay,
                "seed": job.seed,
                "status": record.manifest["status"],
                **vars(reached),
                "heldout": heldout,
                "chosen": setting == self.best(task, arm, results),
            }
            out.append(pd.DataFrame([row]))
        return out

    def _reached(self, task: str, record: Record) -> tuple[Milestones, float]:
        """A trial's milestones, and its held-out accuracy at the end."""
        curves = accuracy_curves(record)
        return milestones(curves, self.tasks[task].chance), float(curves["heldout"].iloc[-1])

    def _trial(self, task: str, arm: str, setting: Setting, seed: int) -> Pretrain:
        """A main run of which nothing is kept but its accuracy."""
        job = self.job(RunLabel(task, arm, "main", seed), setting)
        plain = job.training.model_copy(update={"edge": None, "checkpoints": 0})
        return job.model_copy(update={"training": plain})

    def _job(self, run: RunLabel, setting: Setting) -> Pretrain:
        """The training of a run under a setting.

        Raises:
            InputError: when the settings do not fit together.
        """
        task, arm = self.tasks[run.task], self.arms[run.arm]
        control = run.condition == "control"
        plain = not task.decays or (control and task.control == "decay")
        lacks: dict[str, Any] = {"weight_decay": 0.0} if plain else {}
        decay = {"weight_decay": setting.weight_decay} | lacks
        model = task.model.model_dump() | ({"layers": 1} if control and task.control == "layers" else {})
        vocab, length = sizes(task.language)
        data = {
            "seed": run.seed,
            "model": parse(ModelConfig, {"vocab": vocab, "length": length, **model}, "model"),
            "language": task.language,
            "optimizer": arm.optimizer.at(setting.lr).model_dump() | decay,
            "aux": arm.aux.model_dump() | lacks,
            "training": task.training,
        }
        return parse(Pretrain, data, f"tasks.{run.task}")


def score(trials: list[tuple[Milestones, float]]) -> tuple[float, ...]:
    """What a setting is ranked by, from the milestones and last held-out accuracy of its trials: seeds that generalized
    late, seeds that did at all, minus the mean step at which these had, mean accuracy."""
    made_it = [reached.grokked for reached, _ in trials if math.isfinite(reached.grokked)]
    soonest = -mean(made_it) if made_it else -math.inf
    late = sum(reached.delayed for reached, _ in trials)
    return late, len(made_it), soonest, mean(value if math.isfinite(value) else 0.0 for _, value in trials)


def milestones(curves: pd.DataFrame, chance: float) -> Milestones:
    """When a run of these accuracy curves memorizes, begins to generalize, and has done so."""
    step, heldout = curves["step"].to_numpy(), curves["heldout"].to_numpy()
    learnt = np.flatnonzero(curves["train"].to_numpy() >= MEMORIZED)
    grokked = grok_step(step, heldout)
    return Milestones(
        memorized=float(step[learnt[0]]) if len(learnt) else math.nan,
        rise=rise_step(step, heldout, chance, grokked),
        grokked=grokked,
    )


def accuracy_curves(record: Record) -> pd.DataFrame:
    """``step``, ``train`` and ``heldout`` accuracy, and ``train_loss`` and ``heldout_loss`` (nats per scored token):
    means over slices that end in /train and over the held-out goal slices of the language that is trained on."""
    table = pd.DataFrame(record.metrics)
    table = table[table["role"] == ("new" if "new" in set(table["role"]) else "old")]
    heldout = table[(table["goal"] != "") & table["slice"].str.endswith("/heldout")]
    rule = {name.rsplit("/", 1)[0] for name in set(heldout["slice"])}
    train = table[table["slice"].isin([f"{name}/train" for name in rule])]
    out = pd.DataFrame({"step": sorted(set(table["step"]))}).set_index("step")
    for name, rows in (("train", train), ("heldout", heldout)):
        means = rows.groupby("step")[["accuracy", "loss"]].mean()
        out[name], out[f"{name}_loss"] = means["accuracy"], means["loss"]
    return out.reset_index().astype({"step": "int64"})
