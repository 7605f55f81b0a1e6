"""The spectral edge study: does the gap of the update window move before a model generalizes? (claims S1, S2, S3)

Tasks that are grokked, or whose accuracy rises at once, are learnt by several optimizers, each run beside a control
that should not get there (no weight decay, or one layer instead of more). Every run records its updates; nulls are
drawn for each window and for whole trajectories; at checkpoints the leading modes are removed, with controls. Runs that
made it are then finetuned on something new, for the forgetting phase. Learning rate and weight decay of every task and
optimizer are the best of a search on seeds of its own, the same number of settings for all. Protocol: our
reconstruction of arXiv 2603.28964, with nulls and controls that are ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from synthlm.config import Config, InputError, parse
from synthlm.edge_scores import RUN, pairs
from synthlm.experiments.consistency import ConsistencyStudy
from synthlm.experiments.edge_search import (
    CONDITIONS,
    EdgeArm,
    EdgeTask,
    Milestones,
    RunLabel,
    Search,
    accuracy_curves,
    milestones,
)
from synthlm.jobs import Finetune, Full, Pretrain, Probe, Trained, Training
from synthlm.probes.edge import Edge, EdgeModes, EdgeOnsets
from synthlm.store import Record
from synthlm.study import Results

NEW_TAG, NEW_LABEL = 1, "new"


class Forgetting(Config):
    """Finetuning of the main runs that generalized, on the same kind of language drawn anew, without weight decay."""

    training: Training
    tasks: tuple[str, ...] | None = None


class EdgeSettings(Config):
    """The section of a grid file.

    Attributes:
        search_seeds: on which each setting of an arm is tried before the study's own runs.
        samples: of each null, for every window. trajectories: whole ones of each null, for lead times.
        modes: arms whose checkpoints' modes are removed; the tasks' trainings must keep some.
    """

    seeds: int = Field(3, ge=1)
    search_seeds: int = Field(2, ge=1)
    arms: dict[str, EdgeArm] = Field(min_length=1)
    tasks: dict[str, EdgeTask] = Field(min_length=1)
    forgetting: Forgetting | None = None
    samples: int = Field(99, ge=19)
    trajectories: int = Field(19, ge=1)
    modes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "EdgeSettings":
        budgets = {name: (len(arm.rates), len(arm.decays)) for name, arm in self.arms.items()}
        if len(set(budgets.values())) > 1:
            told = "; ".join(f"{name} {rates} and {decays}" for name, (rates, decays) in budgets.items())
            raise ValueError(f"arms: all need as many rates and as many decays to choose from, not {told}")
        for name, task in self.tasks.items():
            for arm in task.arms or ():
                _known(f"tasks.{name}.arms", arm, self.arms)
            if task.training.edge is None:
                raise ValueError(f"tasks.{name}.training.edge: required, but not given")
            if task.control == "decay" and not task.decays:
                raise ValueError(
                    f"tasks.{name}.control: the main runs have no decay that a control could lack"
                )
            if task.control == "layers" and task.model.layers < 2:
                raise ValueError(
                    f"tasks.{name}.model.layers: the control has one layer, so at least 2 are needed"
                )
        for arm in self.modes:
            _known("modes", arm, self.arms)
        for name in (self.forgetting and self.forgetting.tasks) or ():
            _known("forgetting.tasks", name, self.tasks)
        if self.forgetting is not None and self.forgetting.training.edge is None:
            raise ValueError("forgetting.training.edge: required, but not given")
        try:  # every job of the first seed, so that whatever does not fit is said before anything runs
            study = EdgeStudy(self)
            for run in study.runs():
                if run.seed == 0:
                    for setting in study.search.settings(run.task, run.arm):
                        job = study.search.job(run, setting)
                    if study.forgets(run):
                        study.finetune(run, job)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self


def _known(field: str, name: str, allowed: Mapping[str, Any]) -> None:
    if name not in allowed:
        raise ValueError(f"{field}: {name!r} is not one of {', '.join(allowed)}")


class EdgeStudy:
    """Jobs and tables; everything is a function of finished results.

    Args:
        consistency: when the grid has that study, its best finetuning runs of every base's first seeds are run again
            with their edge recorded, for the forgetting phase.
    """

    def __init__(self, settings: EdgeSettings, consistency: ConsistencyStudy | None = None) -> None:
        self.settings, self.consistency = settings, consistency
        self.search = Search(settings.tasks, settings.arms, settings.search_seeds)
        self._made: dict[Any, Any] = {}

    def describe(self) -> str:
        """What is run, in one paragraph, for the report."""
        given = self.settings
        return (
            f"Spectral edge: {given.seeds} seeds; tasks {', '.join(given.tasks)}; optimizers"
            f" {', '.join(given.arms)}; {self.search.describe()}; each run beside a control; {given.samples}"
            f" samples of each null a window, {given.trajectories} whole trajectories of each null a run."
        )

    # -- jobs --------------------------------------------------------------------------------------------------------

    def runs(self) -> Iterator[RunLabel]:
        """Every pretraining run."""
        for task, arm in self.search.cells():
            for seed in range(self.settings.seeds):
                for condition in CONDITIONS:
                    yield RunLabel(task, arm, condition, seed)

    def forgets(self, run: RunLabel) -> bool:
        """Whether this run is to be finetuned once it has generalized."""
        forgetting = self.settings.forgetting
        if forgetting is None or run.condition == "control":
            return False
        return forgetting.tasks is None or run.task in forgetting.tasks

    def pretrain(self, run: RunLabel, results: Results) -> Pretrain | None:
        """The training of a run, at the best setting of its task and arm; None while that is not known."""
        setting = self.search.best(run.task, run.arm, results)
        return None if setting is None else self.search.job(run, setting)

    def finetune(self, run: RunLabel, base: Pretrain) -> Finetune:
        """The finetuning of a run on its language drawn anew.

        Raises:
            InputError: when the settings do not fit together.
        """
        place = (base.key, "finetune")
        if place in self._made:
            return self._made[place]
        forgetting = self.settings.forgetting
        language: Any = base.language
        data = {
            "seed": run.seed,
            "base": base,
            "language": language.fresh(NEW_TAG, NEW_LABEL),
            "optimizer": base.optimizer.model_dump() | {"weight_decay": 0.0},
            "aux": base.aux.model_dump() | {"weight_decay": 0.0},
            "training": forgetting and forgetting.training,
        }
        return self._made.setdefault(place, parse(Finetune, data, "forgetting"))

    def _probe(self, job: Trained, analysis: Edge | EdgeOnsets | EdgeModes, step: int | None = None) -> Probe:
        place = (job.key, analysis.name, step)
        if place not in self._made:
            self._made[place] = Probe(subjects=(job,), analysis=analysis, step=step)
        return self._made[place]

    def _windows(self, job: Trained) -> Probe:
        return self._probe(job, Edge(samples=self.settings.samples))

    def _onsets(self, job: Pretrain) -> Probe:
        return self._probe(job, EdgeOnsets(samples=self.settings.trajectories))

    def _modes(self, run: RunLabel, job: Pretrain) -> list[Probe]:
        edge = job.training.edge
        if run.arm not in self.settings.modes or edge is None or not edge.modes:
            return []
        kept = [step for step in job.training.checkpoint_steps if step >= edge.every * edge.window]
        return [self._probe(job, EdgeModes(), step) for step in kept]

    def jobs(self, results: Results) -> Sequence[Any]:
        """The searches, every run and its analyses, finetuning once it is known which runs generalized."""
        wanted: list[Any] = [job for _, _, _, job in self.search.trials()]
        for run in self.runs():
            job = self.pretrain(run, results)
            if job is None:
                continue
            wanted.append(job)
            record = results(job)
            if record is None or record.manifest["status"] == "diverged":
                continue
            wanted += [self._windows(job), self._onsets(job), *self._modes(run, job)]
            if self.forgets(run) and np.isfinite(self.milestones(run, record).grokked):
                tuned = self.finetune(run, job)
                wanted += self._forgotten(tuned, results)
        for _, tuned in self._from_consistency(results):
            wanted += self._forgotten(tuned, results)
        return list(dict.fromkeys(wanted))

    def _forgotten(self, tuned: Finetune, results: Results) -> list[Any]:
        """A finetuning, and its analysis once it is done."""
        record = results(tuned)
        done = record is not None and record.manifest["status"] != "diverged"
        return [tuned, self._windows(tuned)] if done else [tuned]

    def _from_consistency(self, results: Results) -> Iterator[tuple[dict[str, Any], Finetune]]:
        """The first study's best full finetuning of every cell, its edge recorded, with its labels."""
        forgetting = self.settings.forgetting
        if self.consistency is None or forgetting is None:
            return
        for cell in self.consistency.finetuned(results):
            for job in cell.best:
                if isinstance(job.method, Full):
                    place = (job.key, "recorded")
                    if place not in self._made:
                        training = job.training.model_copy(update={"edge": forgetting.training.edge})
                        data = job.model_dump() | {"training": training}
                        self._made[place] = parse(Finetune, data, "forgetting")
                    arm = f"{cell.base} to {cell.arm.removeprefix('full-')}"
                    labels = {"task": cell.language, "arm": arm, "seed": job.seed, "source": "consistency"}
                    yield labels, self._made[place]

    # -- tables ------------------------------------------------------------------------------------------------------

    def milestones(self, run: RunLabel, record: Record) -> Milestones:
        """When a run memorizes, begins to generalize, and has done so."""
        return milestones(accuracy_curves(record), self.settings.tasks[run.task].chance)

    def tables(self, results: Results) -> dict[str, pd.DataFrame]:
        """Tidy tables; each row names its ``job``.

        ``edge_search``: one row a trial of the search. ``edge_runs``: one row a run: its settings and milestones, and
        ``horizon`` and ``deadline``, where the main run of the same task, arm and seed begins to rise and has grokked.
        ``edge_windows``: every window, with its ``phase``, the run's milestones, and accuracy and loss at the last
        evaluation. ``edge_onsets`` (with horizon, deadline, and ``why`` a pair does not count) and ``edge_modes``: rows
        of those analyses.
        """
        frames: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
        frames["edge_search"] = self.search.rows(results)
        for run in self.runs():
            job = self.pretrain(run, results)
            record = None if job is None else results(job)
            if job is not None and record is not None:
                self._add_run(frames, run, job, record, results)
        for labels, tuned in self._from_consistency(results):
            self._add_forgetting(frames, tuned, labels, results)
        found = {
            name: pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["job"])
            for name, rows in frames.items()
        }
        if frames["edge_onsets"]:
            found["edge_onsets"] = found["edge_onsets"].merge(pairs(found["edge_runs"]), on=RUN)
        return found

    def _add_run(
        self,
        frames: dict[str, list[pd.DataFrame]],
        run: RunLabel,
        job: Pretrain,
        record: Record,
        results: Results,
    ) -> None:
        main = _main(run)
        beside = self.pretrain(main, results)
        twin = None if beside is None else results(beside)
        own = self.milestones(run, record)
        theirs = self.milestones(main, twin) if twin is not None else Milestones(*[float("nan")] * 3)
        labels = {"job": job.key[:12], **vars(run), "source": "edge"}
        marks = {**vars(own), "horizon": theirs.rise, "deadline": theirs.grokked}
        optimizer = {"lr": job.optimizer.lr, "weight_decay": job.optimizer.weight_decay}
        frames["edge_runs"].append(
            pd.DataFrame([labels | optimizer | {"status": record.manifest["status"]} | marks])
        )
        found = results(self._windows(job))
        if found is not None and found.metrics:  # a run that diverged at once fills no window
            rows = _with_curves(pd.DataFrame(found.metrics), record).assign(**labels, **marks)
            rows["phase"] = _phases(rows["step"].to_numpy(), own)
            frames["edge_windows"].append(rows)
        if (found := results(self._onsets(job))) is not None:
            frames["edge_onsets"].append(
                pd.DataFrame(found.metrics).assign(**labels | {"source": found.metrics["source"]})
            )
        for probe in self._modes(run, job):
            if (found := results(probe)) is not None:
                frames["edge_modes"].append(
                    pd.DataFrame(found.metrics).assign(**labels, **marks, step=probe.step)
                )
        if self.forgets(run):
            self._add_forgetting(frames, self.finetune(run, job), {**vars(run), "source": "edge"}, results)

    def _add_forgetting(
        self, frames: dict[str, list[pd.DataFrame]], tuned: Finetune, labels: dict[str, Any], results: Results
    ) -> None:
        record, windows = results(tuned), results(self._windows(tuned))
        if record is not None and windows is not None and windows.metrics:
            rows = _with_curves(pd.DataFrame(windows.metrics), record)
            names = {"job": tuned.key[:12], "condition": "finetuned", "phase": "forgetting"}
            frames["edge_windows"].append(rows.assign(**labels | names))


TABLES = ("edge_search", "edge_runs", "edge_windows", "edge_onsets", "edge_modes")


def _main(run: RunLabel) -> RunLabel:
    """The main run beside a run."""
    return RunLabel(run.task, run.arm, "main", run.seed)


def _phases(step: np.ndarray, at: Milestones) -> np.ndarray:
    """The phase of windows that end at ``step``: fitting, plateau, transition, after; in a run that does not generalize
    the plateau lasts."""
    out = np.full(len(step), "fitting", dtype=object)
    if np.isfinite(at.memorized):
        out[step > at.memorized] = "plateau"
    if np.isfinite(at.grokked):
        out[step > (at.rise if np.isfinite(at.rise) else 0)] = "transition"
        out[step > at.grokked] = "after"
    return out


def _with_curves(windows: pd.DataFrame, record: Record) -> pd.DataFrame:
    """Windows with accuracy and loss at the last evaluation up to each one's end."""
    windows = windows.sort_values(["step", "set"], kind="stable")
    return pd.merge_asof(windows, accuracy_curves(record), on="step")
