"""A new rule from few examples: Muon on a Muon base, AdamW on an AdamW base, and crossed (claim C6).

The machinery is that of the learning-forgetting study: bases at their own best learning rate, a sweep for every base,
arm, language and number of examples. Only what a finetuning is judged by differs: accuracy on the held-out rule at the
end. Source: our own design; the claim is of arXiv 2605.06654, and the GSM8K table of arXiv 2502.16982 points the other
way.
"""

import math
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from synthlm.config import Config
from synthlm.experiments.consistency import (
    Arm,
    ConsistencySettings,
    ConsistencyStudy,
    Finetuning,
    ModelSettings,
    Pretraining,
    goal_rows,
    succeeded,
)
from synthlm.experiments.rote_rule import TunedOptimizer, sized
from synthlm.jobs import Finetune, Job, Pretrain, Training
from synthlm.optimizers import OptimizerConfig
from synthlm.store import Record
from synthlm.study import Results
from synthlm.tasks import AnySingle

LOSS_SHARE = 1e-3
"""What a nat of held-out loss counts against accuracy when learning rates are compared: it decides between equals."""


class SmallDataSettings(Config):
    """The section ``[tendency.small_data]``: each of ``languages``, with each number of ``examples``, by every arm."""

    model: ModelSettings = ModelSettings()
    pretraining: Pretraining
    training: Training
    aux: OptimizerConfig | None = None
    arms: dict[str, TunedOptimizer] = Field(min_length=1)
    languages: dict[str, AnySingle] = Field(min_length=1)
    examples: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)

    def as_consistency(self, seeds: int) -> ConsistencySettings:
        """The same as settings of the learning-forgetting study; languages are called ``NAME-EXAMPLES``.

        Raises:
            ValueError: when the settings do not fit together.
        """
        return ConsistencySettings(
            seeds=seeds,
            model=self.model,
            pretraining=self.pretraining,
            finetuning=Finetuning(
                training=self.training,
                aux=self.aux,
                languages={place(name, n): sized(self.languages[name], n) for name, n in self.cells()},
                arms={
                    name: Arm(optimizer=tuned.optimizer, sweep=tuned.sweep)
                    for name, tuned in self.arms.items()
                },
            ),
        )

    def cells(self) -> list[tuple[str, int]]:
        """(language, number of examples)."""
        return [(name, n) for name in self.languages for n in self.examples]


def place(language: str, examples: int) -> str:
    """The name of a language with so many examples."""
    return f"{language}-{examples}"


class SmallData(ConsistencyStudy):
    """Jobs and the table ``small_data``."""

    NAME = "small_data"

    def __init__(self, settings: SmallDataSettings, seeds: int) -> None:
        super().__init__(settings.as_consistency(seeds))
        self.small = settings

    def describe(self) -> str:
        """What is run, in a sentence or two."""
        small = self.small
        return (
            f"Few examples: bases {', '.join(small.pretraining.bases)}, each finetuned by {', '.join(small.arms)} on"
            f" {', '.join(small.languages)} with {', '.join(map(str, small.examples))} examples, {small.training.steps}"
            " steps. A seed's learning rate is the one that is best, by final held-out accuracy, on the other seeds."
        )

    def _score(self, job: Job, record: Record | None) -> float:
        if isinstance(job, Pretrain):
            return super()._score(job, record)
        if job.key not in self._scores:
            self._scores[job.key] = final_score(record)
        return self._scores[job.key]

    def tables(self, results: Results) -> dict[str, pd.DataFrame]:
        """``small_data``: the end of every finetuning, a row a job.

        Columns: job, seed, base, arm, language, examples, lr, chosen (the learning rate that is best on the other
        seeds), status, step (the last one evaluated), accuracy, loss, n (of held-out tokens of the new rule),
        train_accuracy (on its examples), kept (mean accuracy over the old goal slices).

        ``small_data_bases``: the bases they start from, a row a base and seed. Columns: job, seed, base, lr, status,
        accuracy (of the worst goal slice at the end), passed (whether that is enough; others are not finetuned).
        """
        names = {place(*cell): cell for cell in self.small.cells()}
        rows = []
        for cell in self.finetuned(results):
            language, examples = names[cell.language]
            picked = unseen_choice(
                {(job.seed, job.optimizer.lr): self._score(job, results(job)) for job in cell.jobs}
            )
            for job in cell.jobs:
                record = results(job)
                if record is not None:
                    head = {
                        "job": job.key[:12], "seed": job.seed, "base": cell.base, "arm": cell.arm,
                        "language": language, "examples": examples, "lr": job.optimizer.lr,
                        "chosen": picked[job.seed] == job.optimizer.lr,
                    }  # fmt: skip
                    rows.append(head | end_of(job, record))
        bases = self._pretrained(results)
        found = {self.NAME: pd.DataFrame(rows), f"{self.NAME}_bases": pd.DataFrame(bases)}
        return {name: table for name, table in found.items() if len(table)}

    def _pretrained(self, results: Results) -> list[dict[str, Any]]:
        """A row a base and seed that is done; of a base all of whose rates diverged, that of its lowest rate."""
        bases = self.chosen(results)
        for name in self.settings.pretraining.bases:
            jobs, best = self._base_search(name, results)
            if best is None and all(results(job) is not None for job in jobs):
                bases[name, jobs[0].seed] = jobs[0]
        rows = []
        for (name, seed), job in sorted(bases.items()):
            record = results(job)
            if record is not None:
                accuracy = goal_rows(record, "old", "accuracy")
                rows.append(
                    {
                        "job": job.key[:12], "seed": seed, "base": name, "lr": job.optimizer.lr,
                        "status": record.manifest["status"], "accuracy": min(accuracy[max(accuracy)]),
                        "passed": succeeded(record),
                    }
                )  # fmt: skip
        return rows


def final_score(record: Record | None) -> float:
    """Held-out accuracy at the end, less ``LOSS_SHARE`` of the loss; -inf for a run that diverged."""
    if record is None or record.manifest["status"] == "diverged":
        return -math.inf
    accuracy, loss = (goal_rows(record, "new", column) for column in ("accuracy", "loss"))
    last = max(accuracy)
    return float(np.mean(accuracy[last])) - LOSS_SHARE * float(np.mean(loss[last]))


def unseen_choice(scores: dict[tuple[int, float], float]) -> dict[int, float]:
    """Seed -> the learning rate with the best mean score over the other seeds; (seed, rate) -> score is given.

    So no seed's rate is chosen by its own held-out items. A single seed has no others and chooses by its own. Equal
    scores: the smaller rate.
    """
    seeds = sorted({seed for seed, _ in scores})
    rates = sorted({rate for _, rate in scores})
    chosen = {}
    for seed in seeds:
        others = [other for other in seeds if other != seed] or [seed]
        mean = {rate: float(np.mean([scores[other, rate] for other in others])) for rate in rates}
        chosen[seed] = max(rates, key=lambda rate, mean=mean: (mean[rate], -rate))  # type: ignore[misc]
    return chosen


def end_of(job: Finetune, record: Record) -> dict[str, Any]:
    """The last evaluation of a finetuning."""
    rows = pd.DataFrame(record.metrics)
    numbers = ["accuracy", "loss"]
    rows[numbers] = rows[numbers].astype(float)
    last = rows[rows["step"] == rows["step"].max()]
    new, old = last[last["role"] == "new"], last[last["role"] == "old"]
    rule = new[new["goal"] != ""]
    train = new[new["slice"].str.endswith("/train")]
    return {
        "status": record.manifest["status"],
        "step": int(last["step"].max()),
        "accuracy": float(rule["accuracy"].mean()),
        "loss": float(rule["loss"].mean()),
        "n": int(rule["n"].sum()),
        "train_accuracy": float(train["accuracy"].mean()),
        "kept": float(old.loc[old["goal"] != "", "accuracy"].mean()),
    }
