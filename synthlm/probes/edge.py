"""The spectral edge of a training run that recorded it: every window with its nulls, onsets under the nulls, its
modes."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from synthlm import schedules
from synthlm.analysis import edge_modes, nulls
from synthlm.analysis.edge_statistics import edge_statistics, grams, normalized, sound
from synthlm.analysis.hessian import Hessian
from synthlm.analysis.objective import LanguageObjective, evaluate_many
from synthlm.analysis.onsets import onset
from synthlm.analysis.spectral_edge import effective_dimensions
from synthlm.config import InputError
from synthlm.probes.analysis import Analysis, Columns, column
from synthlm.seeds import numpy_generator

if TYPE_CHECKING:
    from synthlm.jobs import Probe
    from synthlm.probes.subject import StoredSubject, Subject

NULLS = ("directions", "stationary")
BANDED = ("ratio", "share", "g23", "g23_share")
"""Statistics whose null median and interval are given: columns such as ``ratio/directions/mid``."""

POSITIONS = ("k_ratio", "k_mass", "k_bulk")
PLAIN = ("g23", "g23_share", "ratio", "share", *POSITIONS)
"""Statistics that are given of norm-normalized updates as well: columns such as ``g23/normalized``."""

SIGNALS: dict[str, bool] = {"g23": True, "g23_share": True, "ratio": False, "share": False}
"""Statistic -> whether it is its fall (or its rise) that is waited for. The fall of g23 is the paper's signal."""

QUANTILES = {"low": 0.025, "mid": 0.5, "high": 0.975}


def _recorded(probe: "Probe") -> None:
    if probe.subjects[0].training.edge is None:
        raise InputError("subjects: the first did not record its edge (training.edge)")


def _traces(subject: "StoredSubject") -> dict[str, dict[str, Any]]:
    """Traces of the recorded sets, with the effective ``dimension`` of their updates."""
    from synthlm.recording import EDGE, edge_rows

    columns = subject.store.table(subject.jobs[0].key, EDGE)
    if columns is None:
        raise InputError("subjects: the first did not record its edge (training.edge)")
    found = edge_rows(columns)
    edge = subject.jobs[0].training.edge
    if edge is not None:
        sizes = {entry.name: entry.size for entry in _trained_layout(subject.jobs[0]).entries}
        dimensions = effective_dimensions(sizes, edge.window, edge.sets, edge.sketch)
        found = {name: trace | {"dimension": dimensions[name]} for name, trace in found.items()}
    return found


def _full(rows: np.ndarray) -> bool:
    """Whether rows ``[record, lag]`` fill a window."""
    return len(rows) >= rows.shape[1] - 1


class Edge(Analysis):
    """Every statistic of every window, beside its nulls and the same statistics of norm-normalized updates.

    samples: of each null, for every window.
    """

    REVISION: ClassVar[int] = 2  # the stationary null has a floor

    name: Literal["edge"] = "edge"
    samples: int = Field(99, ge=19)

    def check(self, probe: "Probe") -> None:
        """Refuse runs that did not record their edge."""
        _recorded(probe)

    def run(self, subject: "Subject") -> Columns:
        """One row a window and parameter set: step (the window's last), set, parameters, with a sketch their effective
        ``dimension``, and the columns of :meth:`windows`."""
        out: Columns = {}
        for name, trace in _traces(_stored(subject)).items():
            if not _full(trace["rows"]):
                continue
            rng = numpy_generator(_stored(subject).probe.seed, "probe", self.name, name)
            found = self.windows(trace["rows"], trace["dimension"], trace["lr"], rng)
            windows = len(found["share"])
            steps = trace["step"][-windows:]
            head = {
                "step": steps.tolist(),
                "set": [name] * windows,
                "parameters": [trace["parameters"]] * windows,
            }
            if trace["dimension"] != trace["parameters"]:
                head["dimension"] = [trace["dimension"]] * windows
            body = {key: _listed(values) for key, values in found.items()}
            for key, values in (head | body).items():
                out.setdefault(key, []).extend(values)
        return out

    def windows(
        self, rows: np.ndarray, dimension: float, lr: np.ndarray, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Column -> values ``[window]`` of one trace.

        The statistics of ``edge_statistics`` (``sigma_1`` ...), of ``PLAIN`` under ``/normalized``, of ``BANDED`` under
        each null, the nulls' mean k* (as ``k_ratio/stationary/mean``), and ``p``: of the largest ratio, against random
        directions. A window that holds an update of norm zero or that is not finite has no k* (0), and NaN for what
        follows from a spectrum and for its nulls.

        Args:
            rows: ``[record, lag]``. dimension: number of parameters, effective where they are sketched. lr: learning
                rates ``[record]``.
        """
        found = edge_statistics(rows, dimension, lr)
        sigma = found.pop("sigma")
        found |= {f"sigma_{j + 1}": sigma[:, j] for j in range(sigma.shape[1])}
        plain = edge_statistics(normalized(rows), dimension)
        found |= {f"{key}/normalized": plain[key] for key in PLAIN}
        for name, gram in nulls.window_nulls(rows, dimension, self.samples, rng).items():
            drawn = nulls.null_statistics(gram, dimension)
            void = np.isnan(drawn["share"]).any(0)
            for key in BANDED:
                bands = np.quantile(drawn[key], list(QUANTILES.values()), axis=0)
                found |= {f"{key}/{name}/{q}": band for q, band in zip(QUANTILES, bands, strict=True)}
            found |= {f"{key}/{name}/mean": np.where(void, np.nan, drawn[key].mean(0)) for key in POSITIONS}
            total = (drawn["sigma"] ** 2).sum(-1)
            for j in range(3):
                bands = np.quantile(drawn["sigma"][..., j] / np.sqrt(total), list(QUANTILES.values()), axis=0)
                found |= {f"sigma_{j + 1}/{name}/{q}": band for q, band in zip(QUANTILES, bands, strict=True)}
            if name == "directions":
                found["p"] = nulls.p_values(found["ratio"], drawn["ratio"])
        return found

    def cost(self, probe: "Probe") -> float:
        """Small beside training; a window takes about a millisecond."""
        edge = probe.subjects[0].training.edge
        records = 0 if edge is None else probe.subjects[0].training.steps // edge.every * len(edge.sets)
        return 2e6 * self.samples * records


class EdgeOnsets(Analysis):
    """When each signal's fall or rise is first known, in the run and in whole trajectories drawn from the nulls.

    samples: trajectories of each null. set: the parameter set.
    """

    REVISION: ClassVar[int] = 2  # null trajectories keep strong correlations

    name: Literal["edge-onsets"] = "edge-onsets"
    samples: int = Field(49, ge=1)
    set: str = "all"

    def check(self, probe: "Probe") -> None:
        """Refuse runs that did not record this set."""
        _recorded(probe)

    def run(self, subject: "Subject") -> Columns:
        """One row a source (observed, normalized, or a null), sample and signal: ``onset``, a step, None where there is
        none. No rows where no window is full of updates that are finite, or none of them has a length."""
        traces = _traces(_stored(subject))
        if self.set not in traces:
            raise InputError(f"set: {self.set!r} was not recorded; there are {', '.join(traces) or 'none'}")
        trace = traces[self.set]
        rows, dimension = trace["rows"], trace["dimension"]
        whole = int(
            np.isfinite(rows[:, 0]).sum()
        )  # a run that diverged ends with numbers that are not finite
        rows, steps = rows[:whole], trace["step"][:whole]
        out: Columns = {"source": [], "sample": [], "signal": [], "onset": []}
        if not _full(rows) or not sound(grams(rows)).any():
            return out
        rng = numpy_generator(_stored(subject).probe.seed, "probe", self.name)
        window = rows.shape[1] - 1
        measured = np.nanmean(nulls.lag_correlation(rows), axis=0)
        norms = np.sqrt(rows[:, 0])
        drawn = {"directions": np.array([1.0]), "stationary": measured}
        sources: list[tuple[str, int, np.ndarray]] = [
            ("observed", 0, rows),
            ("normalized", 0, normalized(rows)),
        ]
        sources += [
            (name, sample, nulls.trajectory(rng, norms, correlation, max(int(dimension), whole), window))
            for name, correlation in drawn.items()
            for sample in range(self.samples)
        ]
        for source, sample, drawn_rows in sources:
            found = nulls.null_statistics(grams(drawn_rows), dimension)
            for signal, falling in SIGNALS.items():
                at = int(onset(found[signal], falling))
                values = (source, sample, signal, int(steps[window - 1 + at]) if at >= 0 else None)
                for key, value in zip(out, values, strict=True):
                    out[key].append(value)
        return out

    def cost(self, probe: "Probe") -> float:
        """A whole trajectory of dot products for each sample."""
        edge = probe.subjects[0].training.edge
        records = 0 if edge is None else probe.subjects[0].training.steps // edge.every
        return 2.0 * self.samples * (4 * records**3 + 1e6 * records)


class EdgeModes(Analysis):
    """The modes kept at a checkpoint: curvature and slope, gap flow, the commutator defect, removal with controls.

    controls: random directions of each kind for every mode. draws, batch: pairs of mini-batches of the commutator
    defect, and their size. items: most items of each slice.
    """

    REVISION: ClassVar[int] = 2  # the learning rate of the gap flow follows its schedule

    name: Literal["edge-modes"] = "edge-modes"
    controls: int = Field(8, ge=1)
    draws: int = Field(edge_modes.DEFECT_DRAWS, ge=1)
    batch: int = Field(128, ge=1)
    items: int | None = Field(256, ge=1)

    def check(self, probe: "Probe") -> None:
        """Refuse checkpoints whose modes were not kept."""
        _recorded(probe)
        training = probe.subjects[0].training
        edge = training.edge
        if edge is None or not edge.modes:
            raise InputError("subjects: the first kept no modes (training.edge.modes)")
        first = edge.every * edge.window
        allowed = [step for step in training.checkpoint_steps if step >= first]
        if probe.step not in allowed:
            shown = ", ".join(map(str, allowed)) or "none"
            raise InputError(f"step: no modes were kept at {probe.step}; allowed: {shown}")

    def run(self, subject: "Subject") -> Columns:
        """One row a mode and kind: ``kind`` (mode, matched, projected, and ``defect`` with the median in ``value``),
        origin, mode (from 1), removed (norm), loss and accuracy after the removal, and for modes ``sigma``,
        ``curvature`` and ``slope`` on the training items; rows of kind ``flow`` hold the terms of the gap flow at k =
        mode in ``value`` (origin: asymmetry, damping, driving), at the learning rate of the last step. Loss and
        accuracy are of the held-out and training items that the model is evaluated on. Kind ``none``: nothing
        removed."""
        from synthlm.recording import load_modes
        from synthlm.trained import modes_name, weights_at

        held = _stored(subject)
        job = held.jobs[0]
        modes, sigma = load_modes(
            held.store.weights(job.key, modes_name(held.probe.step or 0)), _trained_layout(job)
        )
        flat, layout = subject.flat(), subject.layout
        if modes.shape[1] < layout.size:  # finetuning of the matrices alone, which come first
            modes = torch.cat([modes, modes.new_zeros(len(modes), layout.size - modes.shape[1])], dim=1)
        start = weights_at(job, held.store, 0) if job.kind == "pretrain" else subject.base()
        role: Literal["old", "new"] = "old" if job.kind == "pretrain" else "new"
        probed = subject.objective(role, items=self.items)
        trained = subject.objective(role, table="train", items=self.items)
        rows: Columns = {name: [] for name in ("kind", "origin", "mode", "removed", "loss", "accuracy")}
        rows |= {name: [] for name in ("sigma", "curvature", "slope", "value")}

        def add(kind: str, origin: str = "", mode: int = 0, **values: float) -> None:
            for key, items in rows.items():
                fixed = {"kind": kind, "origin": origin, "mode": mode}
                items.append(
                    fixed[key] if key in fixed else (column([values[key]])[0] if key in values else None)
                )

        hessian = Hessian(trained, flat)
        along = edge_modes.along_modes(hessian, hessian.gradient(), modes.to(flat))
        removed = list(
            edge_modes.removals(flat, modes, start.to(flat), subject.generator("controls"), self.controls)
        )
        points = torch.stack([flat, *(item.weights for item in removed)])
        loss, accuracy = evaluate_many(probed.loss, points), evaluate_many(probed.accuracy, points)
        add("none", loss=float(loss[0]), accuracy=float(accuracy[0]))
        for i, item in enumerate(removed, start=1):
            numbers = {"removed": item.removed, "loss": float(loss[i]), "accuracy": float(accuracy[i])}
            if item.kind == "mode":
                j = item.mode
                numbers |= {
                    "sigma": float(sigma[j]),
                    "curvature": float(along.curvature[j]),
                    "slope": float(along.slope[j]),
                }
            add(item.kind, item.origin, item.mode + 1, **numbers)
        edge, decay = job.training.edge, job.optimizer.weight_decay
        last = (held.probe.step or job.training.steps) - 1
        rate = job.optimizer.lr * schedules.factor(last, job.training.steps, job.training.schedule)
        for k in range(1, len(modes)):
            if edge is not None and float(sigma[k]) > 0:
                flow = edge_modes.gap_flow(sigma, along, k, rate, decay, edge.window)
                for term in ("asymmetry", "damping", "driving"):
                    add("flow", term, k, value=getattr(flow, term))
        add("defect", value=self._defect(held, flat))
        return rows

    def _defect(self, subject: "StoredSubject", flat: torch.Tensor) -> float:
        """The median commutator defect of mini-batches drawn as in training."""
        language = subject.language("old" if subject.jobs[0].kind == "pretrain" else "new")
        table = language.train
        rng = numpy_generator(subject.probe.seed, "probe", self.name, "batches")

        def draw() -> LanguageObjective:
            items = rng.choice(len(table.weight), self.batch, p=table.weight)
            return LanguageObjective(
                subject.model, table.take(items), language.slices, dtype=torch.float64, device=subject.device
            )

        def gradient(weights: torch.Tensor, batch: LanguageObjective) -> torch.Tensor:
            leaf = weights[None].requires_grad_()
            return torch.autograd.grad(batch.loss(leaf).sum(), leaf)[0][0]

        return edge_modes.defect_median(gradient, flat.double(), draw, self.draws)[0]

    def cost(self, probe: "Probe") -> float:
        """Forward passes over the probe for every removal, gradients of small batches for the defect."""
        edge = probe.subjects[0].training.edge
        modes = 0 if edge is None else edge.modes
        tokens = probe.model.length * (
            2 * modes * (1 + 2 * self.controls) * 500 + 12.0 * self.draws * self.batch
        )
        return tokens * probe.model.flops_per_token


def _stored(subject: "Subject") -> "StoredSubject":
    from synthlm.probes.subject import StoredSubject

    if not isinstance(subject, StoredSubject):
        raise InputError(
            "edge: only trainings of a store have a recorded edge; for a folder use 'synthlm edge'"
        )
    return subject


def _trained_layout(job: Any) -> Any:
    return job.model.layout if job.kind == "pretrain" else job.trained


def _listed(values: np.ndarray) -> list[Any]:
    return values.tolist() if values.dtype.kind == "i" else column(values)
