"""Basins around a model, and what noise certifies about models near it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from synthlm.analysis import basins, directions
from synthlm.analysis.basins import Profile
from synthlm.analysis.certificate import certify
from synthlm.analysis.landscape import Scores
from synthlm.analysis.objective import Objective, evaluate_many
from synthlm.probes.analysis import Analysis, Columns
from synthlm.probes.landscape import score_rows, tuned_from_first

if TYPE_CHECKING:
    from synthlm.jobs import Probe
    from synthlm.probes.subject import Subject

Measure = Literal["loss", "accuracy"]
ALL = "all"
"""In the column ``slice``: the mean over slices."""

WORST = 30
"""The worst case's first grid is so many times finer: ascent falls out of a basin much sooner than noise."""

WIDTH_COLUMNS = ("measure", "tolerance", "width", "low", "high", "n", "bound")
PROFILE_COLUMNS = ("draw", "sigma", "loss", "accuracy")


class Basins(Analysis):
    """How the scores of the first subject fall with the size of a perturbation, and basin widths.

    Attributes:
        lowest, highest, count: the first grid of sigmas, per coordinate; for the worst case divided by WORST. A grid
            that does not hold the width by accuracy, mean over slices, is lengthened.
        draws: Gaussian directions of the most case. items: most items of each slice.
        loss, accuracy: tolerances: rise of the loss (nats per scored token), fall of the accuracy.
        scales: ``absolute``: noise of one sigma for all parameters; ``relative``: times each tensor's root mean square.
        steps, starts: of the ascent to the worst case.
    """

    name: Literal["basins"] = "basins"
    lowest: float = Field(4e-3, gt=0)
    highest: float = Field(0.5, gt=0)
    count: int = Field(12, ge=2)
    draws: int = Field(16, ge=1)
    items: int | None = Field(64, ge=1)
    loss: float = Field(0.1, gt=0)
    accuracy: float = Field(0.05, gt=0)
    scales: tuple[Literal["absolute", "relative"], ...] = ("absolute", "relative")
    steps: int = Field(8, ge=1)
    starts: int = Field(1, ge=1)

    @field_validator("highest")
    @classmethod
    def _ordered(cls, value: float, info: Any) -> float:
        if value <= info.data.get("lowest", 0):
            raise ValueError(f"{value} must be above lowest {info.data['lowest']}")
        return value

    def check(self, probe: "Probe") -> None:
        """Further subjects were finetuned from the first."""
        tuned_from_first(probe, self.name)

    def run(self, subject: "Subject") -> Columns:
        """Two sorts of rows (column ``row``), of every role that the first subject has.

        ``profile``: draw, sigma, loss, accuracy; sigma 0 is the centre (case ``centre``). ``width``: measure,
        tolerance, width, low, high, n (directions), bound, for every slice and for the mean over slices (``all``).
        Both: case (``most``, ``worst``, ``finetuning``), scale, subject (whose update it is; else 0), role, slice,
        parameters. The worst case climbs the loss of the role's own language.
        """
        base = subject.flat()
        rows: Columns = {
            name: []
            for name in (
                "row", "case", "scale", "subject", "role", "parameters", "slice", *PROFILE_COLUMNS, *WIDTH_COLUMNS,
            )
        }  # fmt: skip
        noise = directions.gaussian(subject.layout, self.draws, subject.generator("noise")).to(base)
        updates = {
            index: directions.of_length((subject.flat(index) - base)[None], math.sqrt(len(base)))
            for index in range(1, len(subject))
        }
        for role in subject.roles:
            objective = subject.objective(role, items=self.items)
            head = {"role": role, "subject": 0, "parameters": len(base)}
            for scale in self.scales:
                rays = noise if scale == "absolute" else directions.times_rms(subject.layout, noise, base)
                most = self._random(objective, base, rays)
                if scale == self.scales[0]:
                    centre = Scores(most.centre.loss[None], most.centre.accuracy[None])
                    found = Profile(
                        (0.0,), most.centre, Scores(centre.loss[:, None], centre.accuracy[:, None])
                    )
                    self._profile(rows, {**head, "case": "centre", "scale": ""}, objective, found)
                self._add(rows, {**head, "case": "most", "scale": scale}, objective, most)
            generator = subject.generator("worst", role)
            worst = self._bracketed(
                lambda sigmas, objective=objective, generator=generator: basins.worst_profile(
                    objective, base, sigmas, generator, self.steps, self.starts
                ),
                [sigma / WORST for sigma in self._sigmas()],
            )
            self._add(rows, {**head, "case": "worst", "scale": "absolute"}, objective, worst)
            for index, ray in updates.items():
                own = {**head, "subject": index, "case": "finetuning", "scale": "absolute"}
                self._add(rows, own, objective, self._random(objective, base, ray))
        return rows

    def _sigmas(self) -> list[float]:
        return [float(f"{sigma:.4g}") for sigma in np.geomspace(self.lowest, self.highest, self.count)]

    def _random(self, objective: Objective, base: Tensor, rays: Tensor) -> Profile:
        return self._bracketed(
            lambda sigmas: basins.random_profile(objective, base, rays, sigmas), self._sigmas()
        )

    def _bracketed(self, profile: Any, sigmas: list[float]) -> Profile:
        def fallen(found: Profile) -> tuple[bool, bool]:
            fall = found.falls("accuracy").mean((0, 2)) > self.accuracy
            return bool(fall[0]), bool(fall.any()) or float(found.centre.accuracy.mean()) <= self.accuracy

        return basins.bracketed(profile, sigmas, fallen, rounds=2)

    def _add(self, rows: Columns, head: dict[str, Any], objective: Objective, found: Profile) -> None:
        self._profile(rows, head, objective, found)
        for measure, tolerance in (("loss", self.loss), ("accuracy", self.accuracy)):
            falls = found.falls("loss" if measure == "loss" else "accuracy")
            parts: list[tuple[str, NDArray[np.float64]]] = [(ALL, falls.mean(-1))]
            parts += [(name, falls[..., i]) for i, name in enumerate(objective.slices)]
            for name, part in parts:
                width = basins.width(found.sigmas, part, tolerance)
                values = {
                    "row": "width", **head, "slice": name, "measure": measure, "tolerance": tolerance,
                    "width": width.value, "low": _finite(width.low), "high": _finite(width.high),
                    "n": width.n, "bound": width.bound,
                }  # fmt: skip
                for key in rows:
                    rows[key].append(values.get(key))

    def _profile(self, rows: Columns, head: dict[str, Any], objective: Objective, found: Profile) -> None:
        draws = found.scores.loss.shape[0]
        along: dict[str, Sequence[Any]] = {
            "draw": [draw for draw in range(draws) for _ in found.sigmas],
            "sigma": list(found.sigmas) * draws,
        }
        flat = Scores(found.scores.loss.flatten(0, 1), found.scores.accuracy.flatten(0, 1))
        score_rows(rows, {"row": "profile", **head}, along, objective.slices, flat)
        for name in WIDTH_COLUMNS:
            rows[name] += [None] * (len(rows["row"]) - len(rows[name]))

    def cost(self, probe: "Probe") -> float:
        """One pass over the items for each point, three for each step of an ascent."""
        others = len(probe.subjects) - 1
        passes = self.count * (self.draws * len(self.scales) + others + 3 * self.steps * self.starts)
        roles = 2 if probe.subjects[0].kind == "finetune" else 1
        tokens = 2 * (self.items or 1000) * probe.model.length
        return roles * passes * tokens * probe.model.flops_per_token


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Certificate(Analysis):
    """What the first subject's scores under noise guarantee for the others, and what became of them.

    Attributes:
        sigmas: noise per coordinate. trials: each with its own noise and example. gamma: a bound fails with at most
            this probability, over all sigmas together.
        draws: noises of every further subject's measured score. items: most items of each slice.
        fall: a certified radius keeps the noised score within this of the first subject's own score, without noise.
    """

    name: Literal["certificate"] = "certificate"
    sigmas: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04)
    trials: int = Field(500, ge=1)
    gamma: float = Field(0.05, gt=0, lt=1)
    draws: int = Field(4, ge=1)
    items: int | None = Field(32, ge=1)
    fall: float = Field(0.1, gt=0, lt=1)

    def check(self, probe: "Probe") -> None:
        """Further subjects were finetuned from the first."""
        tuned_from_first(probe, self.name)

    def run(self, subject: "Subject") -> Columns:
        """One row a subject and sigma; scores are accuracies on the old language's scored tokens.

        Columns subject, sigma, distance (l2, to the first), fall, accuracy (of the model itself); noised: its
        mean accuracy under noise; trials, successes, low, high: Clopper-Pearson at the first subject; radius,
        weak_radius: certified for an accuracy ``fall`` below the first's own; bound, weak_bound: certified at this
        distance.
        """
        base = subject.flat()
        objective = subject.objective("old", items=self.items)
        flats = torch.stack([subject.flat(index) for index in range(len(subject))])
        distances = torch.linalg.vector_norm((flats - base).double(), dim=1).tolist()
        plain = evaluate_many(objective.accuracy, flats).tolist()
        noise = directions.gaussian(subject.layout, self.draws, subject.generator("noise")).to(base)
        rows: Columns = {}
        for sigma in self.sigmas:
            found = certify(
                objective, base, sigma, self.trials, subject.generator("trials", str(sigma)),
                self.gamma / len(self.sigmas),
            )  # fmt: skip
            least = plain[0] - self.fall
            for index, flat in enumerate(flats):
                near = evaluate_many(objective.accuracy, (flat + sigma * draw for draw in noise))
                distance = float(distances[index])
                values: dict[str, Any] = {
                    "subject": index, "sigma": sigma, "distance": distance, "fall": self.fall,
                    "accuracy": plain[index], "noised": float(near.double().mean()), "trials": found.trials,
                    "successes": found.successes, "low": found.low, "high": found.high,
                    "radius": found.radius(least) if least > 0 else 0.0,
                    "weak_radius": found.weak_radius(least) if least > 0 else 0.0,
                    "bound": found.bound(distance), "weak_bound": found.weak_bound(distance),
                }  # fmt: skip
                for name, value in values.items():
                    rows.setdefault(name, []).append(value)
        return rows

    def cost(self, probe: "Probe") -> float:
        """One pass over the items for each trial and each noised subject."""
        passes = len(self.sigmas) * (self.trials + self.draws * len(probe.subjects))
        tokens = 2 * (self.items or 1000) * probe.model.length
        return passes * tokens * probe.model.flops_per_token
