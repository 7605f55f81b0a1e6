"""One loop for pretraining and finetuning: a batch of jobs of one shape, side by side on the run axis.

A run's numbers do not depend on which runs it shares the axis with: every product, norm and reduction is per run, and
random draws are derived per run, purpose and step. So batches may be formed freely, and a resumed or regrouped run ends
in the same bytes.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from synthlm import lora, optimizers, perturbation, resume, schedules, weights
from synthlm import model as transformer
from synthlm.evaluation import Probe, evaluate, log_probabilities
from synthlm.jobs import Finetune, Pretrain, Trained, evaluation_steps
from synthlm.lora import LoraConfig
from synthlm.optimizers import GroupOptimizer, OptimizerConfig
from synthlm.recording import EDGE, EdgeRecorder
from synthlm.seeds import numpy_generator, torch_generator
from synthlm.tasks import IGNORE, Language
from synthlm.trained import FINAL, JobStore, checkpoint_name, language_of, modes_name
from synthlm.weights import Group, Layout

ORDER_CHUNK = 256
"""Steps whose data order is drawn together; part of the arithmetic (a change needs a new schema number)."""


@dataclass
class Trainable:
    """What moves: a flat tensor ``[run, param]``, its layout, and the map from it to all weights by name."""

    flat: Tensor
    layout: Layout
    weights: Callable[[Tensor], Mapping[str, Tensor]]


@dataclass
class Run:
    """One job's history on the axis."""

    job: Trained
    rows: dict[str, list[Any]] = field(default_factory=dict)
    diverged_at: int | None = None
    stopped_at: int | None = None
    final: Tensor | None = None
    """Weights ``[param]`` when the run ended early; what the axis computes for it later is ignored."""

    @property
    def ended_at(self) -> int | None:
        return self.diverged_at if self.diverged_at is not None else self.stopped_at

    def add(self, step: int, role: str, columns: dict[str, list[Any]]) -> None:
        count = len(columns["slice"])
        head: dict[str, list[Any]] = {"step": [step] * count, "role": [role] * count}
        for name, values in (head | columns).items():
            self.rows.setdefault(name, []).extend(values)


class Order:
    """Which training items each step sees: int64 ``[run, batch]``, derived from (seed, stage, step) alone.

    Where a run's language prescribes the items of a step, these fill the batch, each equally often as far as it allows.

    Raises:
        ValueError: when prescribed items do not fit into the batch.
    """

    def __init__(self, languages: Sequence[Language], seeds: Sequence[int], stage: str, batch: int) -> None:
        self.seeds, self.stage, self.batch = list(seeds), stage, batch
        self.cumulative = [np.cumsum(language.train.weight) for language in languages]
        self.last = [int(np.flatnonzero(language.train.weight)[-1]) for language in languages]
        self.prescribed = [language.prescribed for language in languages]
        most = max((len(items) for each in self.prescribed for items in each.values()), default=0)
        if most > batch:
            raise ValueError(f"batch: {batch} is too small for the {most} items that a step must see")
        self.chunk = -1
        self.drawn = np.empty((0, 0, 0), dtype=np.int64)

    def __call__(self, step: int) -> np.ndarray:
        if step // ORDER_CHUNK != self.chunk:
            self.chunk = step // ORDER_CHUNK
            self.drawn = np.stack([self._draw(r) for r in range(len(self.seeds))], axis=1)
        drawn = self.drawn[step % ORDER_CHUNK]
        rows = {r: each[step] for r, each in enumerate(self.prescribed) if step in each}
        if rows:
            drawn = drawn.copy()
            for r, items in rows.items():
                drawn[r] = np.resize(items, self.batch)
        return drawn

    def _draw(self, r: int) -> np.ndarray:
        generator = numpy_generator(self.seeds[r], "order", self.stage, self.chunk)
        uniform = generator.random((ORDER_CHUNK, self.batch))
        index = np.searchsorted(self.cumulative[r], uniform * self.cumulative[r][-1], side="right")
        # rounding at the upper end must not reach items of weight 0
        return np.minimum(index, self.last[r])


def run_batch(
    jobs: Sequence[Trained],
    store: JobStore,
    device: str = "cpu",
    on_step: Callable[[int, int], None] = lambda step, total: None,
    save_seconds: float = 60.0,
) -> None:
    """Train jobs of one shape side by side and commit each to the store.

    Args:
        on_step: called with (steps done, steps in all) as training goes on.
        save_seconds: how often a resume point is written; it never changes a result.

    Raises:
        ValueError: when the jobs are not of one shape.
        InputError: when a base's weights are missing or damaged.
    """
    if len({job.shape for job in jobs}) != 1:
        raise ValueError("jobs of different shapes cannot share a run axis")
    loop = _Loop(jobs, store, device)
    loop.run(on_step, save_seconds)


class _Loop:
    def __init__(self, jobs: Sequence[Trained], store: JobStore, device: str) -> None:
        self.jobs, self.store, self.device = list(jobs), store, device
        first = jobs[0]
        self.training, self.model = first.training, first.model
        self.stage = first.kind
        seeds = [job.seed for job in jobs]
        languages = [language_of(job.language, job.seed) for job in jobs]
        self.order = Order(languages, seeds, self.stage, self.training.batch)
        tables = [language.train for language in languages]
        self.tokens = self._stack([table.tokens for table in tables])
        self.targets = self._stack([table.targets for table in tables])
        # the head is only needed from the first scored position on
        scored = np.flatnonzero((np.stack([t.targets for t in tables]) != IGNORE).any((0, 1)))
        self.first_scored = int(scored[0])
        self.length = int(scored[-1]) + 1
        self.runs = [Run(job) for job in jobs]
        self.trainable = self._trainable()
        self.groups = self._groups()
        self.state = [group.init(self.trainable.flat) for group, _ in self.groups]
        self.probes = self._probes(languages)
        self.base_log_p: Tensor | None = None
        self.step = 0
        self.seconds = 0.0
        clip = self.training.clip
        self.clip = None if clip is None else torch.full((len(jobs),), clip, device=device)
        self.evaluate_at = set(evaluation_steps(self.training, first.language))
        if isinstance(first, Pretrain) and first.stop_loss is not None:
            self.evaluate_at |= set(range(0, self.training.steps, max(1, self.training.steps // 100)))
        self.save_at = set(self.training.checkpoint_steps)
        edge = self.training.edge
        self.edge = None if edge is None else EdgeRecorder(edge, self.trainable.layout, len(jobs), device)

    def _stack(self, arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.device)

    def _trainable(self) -> Trainable:
        layout = self.model.layout
        if self.stage == "pretrain":
            rows = [transformer.init(self.model, torch_generator(job.seed, "init")) for job in self.jobs]
            return Trainable(torch.stack(rows).to(self.device), layout, layout.views)
        jobs = [job for job in self.jobs if isinstance(job, Finetune)]
        cache: dict[str, Tensor] = {}
        for job in jobs:
            if job.base.key not in cache:
                cache[job.base.key] = weights.load(self.store.weights(job.base.key), layout)
        base = torch.stack([cache[job.base.key] for job in jobs]).to(self.device)
        self.base_views = layout.views(base)
        method = jobs[0].method
        if isinstance(method, LoraConfig):
            rows = [lora.init(method, layout, torch_generator(job.seed, "lora")) for job in jobs]
            adapters, frozen, config = lora.layout(method, layout), self.base_views, method
            return Trainable(
                torch.stack(rows).to(self.device),
                adapters,
                lambda flat: lora.merge(config, frozen, adapters.views(flat)),
            )
        if jobs[0].aux is not None:
            return Trainable(base.clone(), layout, layout.views)
        matrices, frozen = layout.only("matrix"), self.base_views
        return Trainable(
            base[:, : layout.matrix_size].clone(), matrices, lambda flat: {**frozen, **matrices.views(flat)}
        )

    def _groups(self) -> list[tuple[GroupOptimizer, Tensor]]:
        """(optimizer, learning rates [run]) of the matrix group and, where it is trained, the aux group."""
        layout = self.trainable.layout
        configs: dict[Group, list[OptimizerConfig]] = {"matrix": [job.optimizer for job in self.jobs]}
        if layout.size > layout.matrix_size:
            configs["aux"] = [job.aux for job in self.jobs if job.aux is not None]
        return [
            (
                GroupOptimizer(layout, group, each),
                torch.tensor([config.lr for config in each], device=self.device),
            )
            for group, each in configs.items()
        ]

    def _probes(self, languages: list[Language]) -> dict[str, Probe]:
        if self.stage == "pretrain":
            return {"old": Probe(languages, self.device)}
        old = [
            language_of(job.base.language, job.base.seed) for job in self.jobs if isinstance(job, Finetune)
        ]
        return {"old": Probe(old, self.device), "new": Probe(languages, self.device)}

    def run(self, on_step: Callable[[int, int], None], save_seconds: float) -> None:
        self._resume()
        begun = saved = time.monotonic()
        steps = self.training.steps
        if self.stage == "finetune":
            with torch.no_grad():
                self.base_log_p = log_probabilities(self.model, self.base_views, self.probes["old"])
        if self.step == 0:
            self._evaluate()
            self._record()
        while self.step < steps and not self._all_ended():
            self._train_step()
            self.step += 1
            self._record()
            if self.step in self.evaluate_at:
                self._evaluate()
            if self.step in self.save_at:
                self._checkpoint()
            if time.monotonic() - saved > save_seconds:
                self._save()
                saved = time.monotonic()
            on_step(self.step, steps)
        self.seconds = (time.monotonic() - begun) / len(self.runs)
        for r in range(len(self.runs)):
            self._commit(r)

    def _train_step(self) -> None:
        flat = self.trainable.flat
        batch = self._batch()
        at = perturbation.point(
            self.training.perturb, flat, lambda here: self._gradient(here, *batch)[1], self._noise
        )
        per_run, grad = self._gradient(at, *batch)
        for r, finite in enumerate(torch.isfinite(per_run).tolist()):
            if not finite and self.runs[r].ended_at is None:
                self.runs[r].diverged_at = self.step
                self._end(r)
        if self.clip is not None:
            optimizers.clip_(grad, self.clip)
        factor = schedules.factor(self.step, self.training.steps, self.training.schedule)
        for (group, rate), state in zip(self.groups, self.state, strict=True):
            group.step(flat, grad, state, rate * factor)

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Tokens and targets of this step, int64 ``[run, batch, time]``; targets from the first scored position on."""
        index = torch.from_numpy(self.order(self.step)).to(self.device)[..., None]
        tokens = torch.take_along_dim(self.tokens, index, dim=1)[..., : self.length]
        targets = torch.take_along_dim(self.targets, index, dim=1)[..., self.first_scored : self.length]
        return tokens, targets

    def _gradient(self, at: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss ``[run]`` and gradient ``[run, param]`` at ``at [run, param]``."""
        flat = at.detach().requires_grad_()
        views = self.trainable.weights(flat)
        x = transformer.hidden(self.model, views, tokens)[:, :, self.first_scored :]
        logits = transformer.unembed(self.model, views, x)
        loss = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), ignore_index=IGNORE, reduction="none")
        # mean within a run, summed over runs: gradients stay independent
        per_run = loss.view(len(self.runs), -1).sum(1) / (targets != IGNORE).flatten(1).sum(1)
        (grad,) = torch.autograd.grad(per_run.sum(), flat)
        return per_run.detach(), grad

    def _noise(self) -> Tensor:
        """N(0, I) ``[run, param]`` for this step, each run's from its own seed."""
        rows = [
            torch.randn(
                self.trainable.layout.size,
                generator=torch_generator(run.job.seed, "noise", self.stage, self.step),
            )
            for run in self.runs
        ]
        return torch.stack(rows).to(self.device)

    def _record(self) -> None:
        """Take the weights of this step into the edge's trace."""
        if self.edge is None or not self.edge.due(self.step):
            return
        factor = schedules.factor(max(0, self.step - 1), self.training.steps, self.training.schedule)
        rates = (self.groups[0][1] * factor).tolist()
        going = [r for r, run in enumerate(self.runs) if run.ended_at is None]
        self.edge.record(self.step, self.trainable.flat, rates, going)

    def _all_ended(self) -> bool:
        return all(run.ended_at is not None for run in self.runs)

    def _end(self, r: int) -> None:
        self.runs[r].final = self.trainable.flat[r].detach().clone()

    def _views(self) -> Mapping[str, Tensor]:
        return self.trainable.weights(self.trainable.flat)

    @torch.no_grad()
    def _evaluate(self) -> None:
        views = self._views()
        going = [r for r, run in enumerate(self.runs) if run.ended_at is None]
        for role, probe in self.probes.items():
            log_p = log_probabilities(self.model, views, probe)
            base = self.base_log_p if role == "old" else None
            columns = evaluate(probe, log_p, base)
            for r in going:
                self.runs[r].add(self.step, role, columns[r])
        for r in going:
            self._mark(self.runs[r])
            if self.runs[r].ended_at is not None:
                self._end(r)

    def _mark(self, run: Run) -> None:
        """Mark a run that diverged at its last step, or that reached its stop loss."""
        count = len(self.probes["old"].slices)
        old = [i for i, role in enumerate(run.rows["role"]) if role == "old"][-count:]
        losses = [run.rows["loss"][i] for i in old]
        target = run.job.stop_loss if isinstance(run.job, Pretrain) else None
        if any(loss is None for loss in losses):
            run.diverged_at = self.step
        elif target is not None:
            goals = [run.rows["loss"][i] for i in old if run.rows["goal"][i]]
            if sum(goals) / len(goals) <= target:
                run.stopped_at = self.step

    def _checkpoint(self) -> None:
        for r, run in enumerate(self.runs):
            if run.ended_at is not None:
                continue
            path = self.store.partial(run.job.key) / checkpoint_name(self.step)
            weights.save(path, self.trainable.flat[r], self.trainable.layout)
            if self.edge is not None:
                self.edge.save_modes(path.with_name(modes_name(self.step)), r)

    def _save(self) -> None:
        """Write a resume point for each run: weights, optimizer state and history in one file, renamed into place."""
        for r, run in enumerate(self.runs):
            tensors = {"flat": self._final(r).cpu().clone()}
            for g, state in enumerate(self.state):
                cut = optimizers.cut(state, r)
                tensors |= {f"{g}.{name}": value.cpu().contiguous().clone() for name, value in cut.items()}
            history = {
                "step": self.step,
                "rows": run.rows,
                "diverged_at": run.diverged_at,
                "stopped_at": run.stopped_at,
            }
            if self.edge is not None:
                tensors |= self.edge.tensors(r)
                history[EDGE] = self.edge.columns[r]
            resume.write(self.store.partial(run.job.key), tensors, history)

    def _resume(self) -> None:
        """Go on from the runs' resume points when all have one at the same step; else begin anew."""
        found = [resume.read(self.store.partial(run.job.key)) for run in self.runs]
        points = [point for point in found if point is not None]
        if len(points) < len(self.runs) or len({history["step"] for _, history in points}) > 1:
            return
        self.step = points[0][1]["step"]
        for run, (tensors, history) in zip(self.runs, points, strict=True):
            run.rows, run.diverged_at = history["rows"], history["diverged_at"]
            run.stopped_at = history["stopped_at"]
            run.final = tensors["flat"].to(self.device) if run.ended_at is not None else None
        self.trainable.flat = torch.stack([tensors["flat"] for tensors, _ in points]).to(self.device)
        for g in range(len(self.state)):
            prefix = f"{g}."
            cuts = [
                {
                    name.removeprefix(prefix): value
                    for name, value in tensors.items()
                    if name.startswith(prefix)
                }
                for tensors, _ in points
            ]
            stacked = optimizers.stack(cuts)
            self.state[g] = {name: value.to(self.device) for name, value in stacked.items()}
        if self.edge is not None:
            self.edge.restore([tensors for tensors, _ in points], [history[EDGE] for _, history in points])

    def _final(self, r: int) -> Tensor:
        final = self.runs[r].final
        return self.trainable.flat[r] if final is None else final

    def _commit(self, r: int) -> None:
        run, key = self.runs[r], self.runs[r].job.key
        folder, partial = self.store.create(key), self.store.partial(key)
        end = run.ended_at if run.ended_at is not None else self.step
        status = "done" if run.diverged_at is None else "diverged"
        weights.save(folder / FINAL, self._final(r), self.trainable.layout)
        for path in sorted([*partial.glob("step-*.safetensors"), *partial.glob("modes-*.safetensors")]):
            path.replace(folder / path.name)
        if self.edge is not None:
            table = json.dumps(self.edge.columns[r], allow_nan=False)
            (folder / f"{EDGE}.json").write_text(table + "\n")
        (folder / "config.json").write_text(run.job.model_dump_json(indent=1) + "\n")
        (folder / "metrics.json").write_text(json.dumps(run.rows, allow_nan=False) + "\n")
        manifest = {
            "key": key,
            "kind": run.job.kind,
            "status": status,
            "diverged_at": run.diverged_at,
            "stopped": run.stopped_at is not None,
            "steps": end,
            "runs_side_by_side": len(self.runs),
            "seconds": self.seconds,
            "device": self.device,
            "torch": torch.__version__,
            "language_sha256": language_of(run.job.language, run.job.seed).sha256,
            "slices": {role: list(probe.slices) for role, probe in self.probes.items()},
            "files": [FINAL],
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        self.store.commit(key, folder)
