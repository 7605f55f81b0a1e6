"""Forgetting curves: strings injected once into the training on another language, and what is left of them after it.

A part of the tendency study (arXiv 2205.10770).
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from synthlm.analysis.tendency import forgetting
from synthlm.config import InputError
from synthlm.experiments.scratch import Part, Scratch
from synthlm.jobs import Pretrain
from synthlm.store import Record
from synthlm.study import Results
from synthlm.tasks import Injection, LanguageConfig
from synthlm.tasks.injection import INJECTED, REFERENCE


class InjectionSettings(Scratch):
    """The section ``[tendency.injection]``: strings injected once. The learning rate is searched on the background
    alone."""

    language: Injection


class InjectionScores(Part):
    """The table ``injection``: a row per job and evaluation step.

    Columns: job, seed, optimizer, lr, status, items, references (numbers of strings), chance (bits of a string that is
    guessed), step, since (steps since the injection began: 0 right before it, ``repeats`` of the language right after
    it, below 0 earlier), injected, reference (loss, bits per string), remembered (reference minus injected), retained
    (share that is left of what the injection added to ``remembered``, 1 right after it; NaN before it, or if it added
    nothing), half_life (steps from right after the injection on until half is left; NaN if never), background
    (accuracy, mean over its goal slices). Losses that are not finite are NaN.

    Definition of the last: ``synthlm.analysis.tendency.forgetting``, on remembered bits in place of recall.
    """

    NAME = "injection"

    def __init__(self, settings: InjectionSettings, seeds: int) -> None:
        super().__init__(settings, seeds)
        self.settings = settings
        self.language = settings.language

    def describe(self) -> str:
        """What is run, in a sentence or two."""
        language = self.language
        seen = "one step" if language.repeats == 1 else f"{language.repeats} steps"
        return (
            f"Forgetting: {language.items} strings of {language.length} random symbols, all that {seen} of training on"
            f" {language.background.label} see{'s' if language.repeats == 1 else ''} after the first {language.step},"
            f" and {language.references} never trained on; the learning rate is the best on"
            f" {language.background.label} alone."
        )

    def languages(self) -> list[LanguageConfig]:
        return [self.language.background]

    def ensembles(
        self, language: LanguageConfig, optimizer: str, index: int
    ) -> Iterator[tuple[int, list[Pretrain]]]:
        for seed in range(self.seeds):
            yield seed, [self.tuned.job(self.language, optimizer, seed, index)]

    def check(self) -> None:
        super().check()
        steps = self.settings.training.steps
        if self.language.end >= steps:
            raise InputError(
                f"tendency.injection.language.step: {self.language.step} leaves no step after the injection; allowed:"
                f" 0..{steps - 1 - self.language.repeats}"
            )
        for optimizer in self.optimizers:
            next(self.ensembles(self.language, optimizer, 0))

    def table(self, results: Results) -> pd.DataFrame:
        """The rows of all models that are trained."""
        frames = []
        for _, optimizer, seed, models in self.trained(results):
            for job in models:
                record = results(job)
                if record is not None:
                    head = {
                        "job": job.key[:12],
                        "seed": seed,
                        "optimizer": optimizer,
                        "lr": job.optimizer.lr,
                        "status": record.manifest["status"],
                        "items": self.language.items,
                        "references": self.language.references,
                        "chance": self.language.length * math.log2(self.language.alphabet),
                    }
                    rows = self._rows(record)
                    frames.append(pd.concat([pd.DataFrame(head, index=rows.index), rows], axis=1))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _rows(self, record: Record) -> pd.DataFrame:
        metrics = pd.DataFrame(record.metrics).astype({"loss": float, "accuracy": float})
        losses = metrics.pivot(index="step", columns="slice", values="loss")
        steps = losses.index.to_numpy()
        bits = self.language.length / math.log(2)
        injected, reference = (
            losses[f"{self.language.label}/{name}"].to_numpy() * bits for name in (INJECTED, REFERENCE)
        )
        remembered = reference - injected
        retained, half_life = self._retained(steps, remembered)
        background = metrics[metrics["goal"] != ""].groupby("step")["accuracy"].mean()
        return pd.DataFrame(
            {
                "step": steps,
                "since": steps - self.language.step,
                "injected": injected,
                "reference": reference,
                "remembered": remembered,
                "retained": retained,
                "half_life": half_life,
                "background": background.reindex(steps).to_numpy(),
            }
        )

    def _retained(self, steps: np.ndarray, remembered: np.ndarray) -> tuple[np.ndarray, float]:
        """The share [step] that is left, and the half life; NaN where they are not defined."""
        retained = np.full(len(steps), math.nan)
        # while it lasts it is neither before nor after
        known = np.isfinite(remembered) & ((steps <= self.language.step) | (steps >= self.language.end))
        try:
            found = forgetting(steps[known], remembered[known], self.language.end)
        except ValueError:
            return retained, math.nan
        retained[known & (steps >= self.language.end)] = found.retained
        return retained, found.half_life
