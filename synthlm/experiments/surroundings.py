"""What surrounds a base: landscapes, planes, basins and certificates; part of the mechanism study (B1 to B4)."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pandas as pd

from synthlm.config import Config
from synthlm.experiments.consistency import ConsistencyStudy, FinetunedCell, succeeded
from synthlm.experiments.noise import NoiseBases
from synthlm.experiments.probing import ended, joined
from synthlm.jobs import Finetune, Job, Pretrain, Probe, Trained
from synthlm.probes import AnyAnalysis
from synthlm.probes.basins import Basins, Certificate
from synthlm.probes.landscape import Landscape, Plane
from synthlm.study import Results

PLAIN = "plain"
"""In the column ``variant``: the base as it is."""


class SurroundingsSettings(Config):
    """The section ``[mechanism.surroundings]``: the settings of each analysis; one that is set to false is left out."""

    landscape: Landscape | bool = Landscape()
    plane: Plane | bool = Plane()
    basins: Basins | bool = Basins()
    certificate: Certificate | bool = Certificate()


class Models(Protocol):
    """What the mechanism study knows of the models that are analysed."""

    consistency: ConsistencyStudy
    noise: NoiseBases | None

    def bases(self, results: Results) -> dict[tuple[str, int], Pretrain]:
        """(base, seed) -> its pretraining, of the bases that are trained and know their language."""
        ...


class Surroundings:
    """Probes and tables; functions of finished results alone."""

    def __init__(self, settings: SurroundingsSettings, models: Models) -> None:
        self.models = models
        self.landscape = _given(settings.landscape, Landscape)
        self.plane = _given(settings.plane, Plane)
        self.basins = _given(settings.basins, Basins)
        self.certificate = _given(settings.certificate, Certificate)
        self._made: dict[tuple[Any, ...], Probe] = {}

    def _probe(self, analysis: AnyAnalysis, subjects: Sequence[Trained]) -> Probe:
        place = (analysis, *(job.key for job in subjects))
        if place not in self._made:
            self._made[place] = Probe(seed=subjects[0].seed, subjects=tuple(subjects), analysis=analysis)
        return self._made[place]

    def _best(self, results: Results) -> Iterator[tuple[str, Pretrain, list[tuple[FinetunedCell, Finetune]]]]:
        """Every base whose searches are over, with its best finetuned models that went to their end."""
        fine = self.models.consistency.settings.finetuning
        cells = self.models.consistency.finetuned(results)
        for (name, seed), base in self.models.bases(results).items():
            mine = [cell for cell in cells if cell.base == name]
            best = [
                (cell, job) for cell in mine for job in cell.best if job.seed == seed and ended(results(job))
            ]
            if best and len(mine) == len(fine.languages) * len(fine.arms):
                yield name, base, best

    def probes(self, results: Results) -> Iterator[tuple[str, dict[str, Any], Probe]]:
        """Every probe that can be asked for by now: (table, columns that lead its rows, probe)."""
        for name, base, best in self._best(results):
            full = [(cell, job) for cell, job in best if job.method.kind == "full"]
            own = [(cell, job) for cell, job in full if job.optimizer.name == base.optimizer.name]
            if self.landscape is not None:
                probe = self._probe(self.landscape, [base, *(job for _, job in full)])
                yield "landscape", _head(name, base), probe
            if self.basins is not None:
                probe = self._probe(self.basins, [base, *(job for _, job in best)])
                yield "basins", _head(name, base), probe
                for cell, job in own:
                    yield "basins", _head(name, base, cell), self._probe(self.basins, [job])
            if self.certificate is not None:
                probe = self._probe(self.certificate, [base, *(job for _, job in best)])
                yield "certificate", _head(name, base), probe
            pair = _pair(own, full)
            if self.plane is not None and base.seed == 0 and pair is not None:
                yield "plane", _head(name, base), self._probe(self.plane, [base, *pair])
        noise = self.models.noise
        if noise is not None and self.basins is not None:
            for (variant, _), base in noise.bases(results).items():
                if succeeded(results(base)):
                    head = _head(noise.settings.base, base) | {"variant": variant}
                    yield "basins", head, self._probe(self.basins, [base])

    def jobs(self, results: Results) -> list[Job]:
        """Every job wanted, given what is known."""
        return [probe for _, _, probe in self.probes(results)]

    def tables(self, results: Results) -> dict[str, pd.DataFrame]:
        """``landscape``, ``plane``, ``basins`` and ``certificate``: the rows of the analyses of these names.

        They are led by job, seed, base, base_optimizer, own (the base's geometry), variant (of training noise), perturb
        (where its gradients were taken), centre (``pretrained`` or ``finetuned``), language and arm (of a finetuned
        centre). The finetuned model that a row speaks of has of_model, of_language, of_arm, of_method, of_optimizer
        (empty: it speaks of the centre).
        """
        labels: dict[str, dict[str, str]] = {}
        for cell in self.models.consistency.finetuned(results):
            labels |= {job.key: _of(cell, job) for job in cell.jobs}
        frames: dict[str, list[pd.DataFrame]] = {
            name: [] for name in ("landscape", "plane", "basins", "certificate")
        }
        for table, head, probe in self.probes(results):
            record = results(probe)
            if record is not None:
                rows = pd.DataFrame(record.metrics)
                frames[table].append(labelled(rows, {"job": probe.key[:12], **head}, probe, labels))
        return {name: joined(each) for name, each in frames.items()}


def labelled(
    rows: pd.DataFrame, head: dict[str, Any], probe: Probe, labels: dict[str, dict[str, str]]
) -> pd.DataFrame:
    """A probe's rows led by ``head`` and, in place of ``subject``, the labels of the finetuned model they speak of."""
    of = [labels[probe.subjects[i].key] if i > 0 else NONE for i in rows["subject"]]
    led = pd.DataFrame(head, index=rows.index)
    return pd.concat([led, pd.DataFrame(of, index=rows.index), rows.drop(columns="subject")], axis=1)


def _given(value: Any, kind: type[Any]) -> Any:
    """The settings of an analysis; its defaults for ``true``, None for ``false``."""
    if isinstance(value, bool):
        return kind() if value else None
    return value


def _head(name: str, base: Pretrain, cell: FinetunedCell | None = None) -> dict[str, Any]:
    return {
        "seed": base.seed, "base": name, "base_optimizer": base.optimizer.name,
        "own": base.optimizer.rule.geometry, "variant": PLAIN,
        "perturb": "" if base.training.perturb is None else base.training.perturb.label,
        "centre": "pretrained" if cell is None else "finetuned",
        "language": "" if cell is None else cell.language, "arm": "" if cell is None else cell.arm,
    }  # fmt: skip


NONE = {"of_model": "", "of_language": "", "of_arm": "", "of_method": "", "of_optimizer": ""}


def _of(cell: FinetunedCell, job: Finetune) -> dict[str, str]:
    return {
        "of_model": job.key[:12], "of_language": cell.language, "of_arm": cell.arm,
        "of_method": job.method.label, "of_optimizer": job.optimizer.name,
    }  # fmt: skip


def _pair(
    own: Sequence[tuple[FinetunedCell, Finetune]], full: Sequence[tuple[FinetunedCell, Finetune]]
) -> tuple[Finetune, Finetune] | None:
    """The best model of the base's own optimizer and of another, both finetuned in full on one language."""
    for cell, job in own:
        for other, second in full:
            if other.language == cell.language and second.optimizer.name != job.optimizer.name:
                return job, second
    return None
