"""Loss and accuracy along directions and on planes around a model."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from synthlm.analysis import directions, landscape
from synthlm.analysis.landscape import Scores
from synthlm.analysis.objective import Objective
from synthlm.config import InputError, canonical_json
from synthlm.geometry import GEOMETRIES
from synthlm.probes.analysis import Analysis, Columns, column

if TYPE_CHECKING:
    from synthlm.jobs import Probe
    from synthlm.probes.subject import Subject

Kind = Literal["relative", "native", "filter", "path"]
RADII = (0.02, 0.04, 0.08, 0.12, 0.18, 0.27, 0.4, 0.6)
PATH = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def tuned_from_first(probe: "Probe", name: str, fewest: int = 0) -> None:
    """Refuse subjects after the first that were not finetuned from it.

    Raises:
        InputError: naming the subject, or how many there are.
    """
    first, *others = probe.subjects
    for job in others:
        if job.kind != "finetune" or job.base.key != first.key:
            raise InputError(
                f"{name}: every further subject must be finetuned from the first, not {job.label}"
            )
    if len(others) < fewest:
        raise InputError(f"{name}: needs {fewest} models finetuned from the first, not {len(others)}")


def new_objectives(subject: "Subject", **options: Any) -> dict[int, Objective]:
    """The finetuning languages: index of the first subject that learnt each -> its objective."""
    found: dict[int, Objective] = {}
    if "new" in subject.roles:
        found[0] = subject.objective("new", **options)
    jobs = getattr(subject, "jobs", ())
    seen: set[str] = set()
    for index in range(1, len(subject)):
        language = f"{canonical_json(jobs[index].language)} {jobs[index].seed}"
        if language not in seen:
            found[index] = subject.objective("new", index=index, **options)
        seen.add(language)
    return found


def score_rows(
    rows: Columns,
    head: dict[str, Any],
    along: dict[str, Sequence[Any]],
    slices: Sequence[str],
    scores: Scores,
) -> None:
    """Add a row for every point and slice: ``along`` tells of each point, ``scores`` are [point, slice]."""
    points, count = scores.loss.shape
    for name, value in head.items():
        rows.setdefault(name, []).extend([value] * points * count)
    for name, values in along.items():
        rows.setdefault(name, []).extend(value for value in values for _ in range(count))
    rows.setdefault("slice", []).extend(list(slices) * points)
    rows.setdefault("loss", []).extend(column(scores.loss.flatten()))
    rows.setdefault("accuracy", []).extend(column(scores.accuracy.flatten()))


class Landscape(Analysis):
    """The old language's scores along lines from the first subject.

    Attributes:
        radii: of the slices. ``relative``: in Frobenius norms of each hidden matrix. ``native``: in each geometry's own
            norm, times the fixed factor ``directions.native_unit``. ``filter``: in norms of each filter.
        path: where the finetuned models' updates are walked to; 1 is the finetuned model.
        draws: Gaussian directions. items: most items of each slice.
        steps, starts: of the ascent to the worst case in each geometry's ball.
    """

    name: Literal["landscape"] = "landscape"
    kinds: tuple[Literal["relative", "native", "filter"], ...] = ("relative", "native")
    radii: tuple[float, ...] = RADII
    path: tuple[float, ...] = PATH
    draws: int = Field(8, ge=1)
    items: int | None = Field(64, ge=1)
    steps: int = Field(6, ge=1)
    starts: int = Field(1, ge=1)

    def check(self, probe: "Probe") -> None:
        """Further subjects were finetuned from the first."""
        tuned_from_first(probe, self.name)

    def run(self, subject: "Subject") -> Columns:
        """Columns direction (centre, gaussian, gradient, update, worst), kind (of radius), geometry, subject, draw,
        radius, slice, loss, accuracy; scores are of the old language.

        ``gradient``: the step that is steepest for the finetuning loss of that subject's language. ``worst`` climbs the
        old loss. ``geometry`` is empty where none is meant. Directions move hidden matrices alone (``path``: whatever
        moved).
        """
        base, layout = subject.flat(), subject.layout
        old = subject.objective("old", items=self.items)
        rows: Columns = {}
        centre = landscape.score(old, base[None])
        head: dict[str, Any] = {"direction": "centre", "kind": "", "geometry": "", "subject": 0}
        score_rows(rows, head, {"draw": [0], "radius": [0.0]}, old.slices, centre)
        for head, rays, radii in self._rays(subject, base):
            scores = landscape.lines(old, base, rays, radii)
            along: dict[str, Sequence[Any]] = {
                "draw": [draw for draw in range(len(rays)) for _ in radii],
                "radius": list(radii) * len(rays),
            }
            flat = Scores(scores.loss.flatten(0, 1), scores.accuracy.flatten(0, 1))
            score_rows(rows, head, along, old.slices, flat)
        for kind in self.kinds:
            for name, geometry in GEOMETRIES.items() if kind != "filter" else ():
                unit = directions.native_unit(layout, geometry) if kind == "native" else 1.0
                radii = [radius * unit for radius in self.radii]
                scores = landscape.worst_lines(
                    old, old, base, geometry, radii, kind, subject.generator("worst", kind, name),
                    self.steps, self.starts,
                )  # fmt: skip
                head = {"direction": "worst", "kind": kind, "geometry": name, "subject": 0}
                along = {"draw": [0] * len(radii), "radius": radii}
                score_rows(rows, head, along, old.slices, scores)
        return rows

    def _rays(self, subject: "Subject", base: Tensor) -> Iterator[tuple[dict[str, Any], Tensor, list[float]]]:
        """What each line is, its rays ``[draw, param]`` and its radii."""
        layout = subject.layout
        noise = directions.gaussian(layout, self.draws, subject.generator("gaussian")).to(base)
        found = [("gaussian", "", 0, noise)]
        for index, objective in new_objectives(subject, table="train", items=self.items).items():
            _, grad = directions.gradient(objective, base[None])
            for name, geometry in GEOMETRIES.items():
                found.append(("gradient", name, index, directions.steepest(layout, geometry, grad)))
        for index in range(1, len(subject)):
            update = (subject.flat(index) - base)[None]
            found.append(("update", "", index, update))
            yield (
                {"direction": "update", "kind": "path", "geometry": "", "subject": index},
                update,
                [*self.path],
            )
        for direction, own, index, rays in found:
            head = {"direction": direction, "subject": index}
            for kind in self.kinds:
                if kind == "relative":
                    sized = directions.relative(layout, rays, base)
                    yield {**head, "kind": kind, "geometry": own}, sized, [*self.radii]
                elif kind == "filter":
                    sized = directions.filter_normalized(
                        layout, directions.map_matrices(layout, rays, _same), base
                    )
                    yield {**head, "kind": kind, "geometry": own}, sized, [*self.radii]
                else:
                    for name, geometry in GEOMETRIES.items():
                        if own in ("", name):
                            unit = directions.native_unit(layout, geometry)
                            sized = directions.native(layout, geometry, rays)
                            radii = [radius * unit for radius in self.radii]
                            yield {**head, "kind": kind, "geometry": name}, sized, radii

    def cost(self, probe: "Probe") -> float:
        """One pass over the items for each point, three for each step of an ascent."""
        others, count = len(probe.subjects) - 1, len(self.radii) * len(self.kinds)
        lines = 3 * self.draws + 3 + 3 * others + 9 * self.steps * self.starts
        tokens = 2 * (self.items or 1000) * probe.model.length
        return (lines * count + others * len(self.path)) * tokens * probe.model.flops_per_token


def _same(x: Tensor) -> Tensor:
    return x


class Plane(Analysis):
    """Scores on the plane through the first subject and two models finetuned from it.

    Attributes:
        points: along each axis. margin: how far beyond the models, as a share of their larger extent. items: most of
        each slice.
    """

    name: Literal["plane"] = "plane"
    points: int = Field(15, ge=2)
    margin: float = Field(0.2, ge=0)
    items: int | None = Field(64, ge=1)

    def check(self, probe: "Probe") -> None:
        """Two further subjects, finetuned from the first.

        Raises:
            InputError: when there are others.
        """
        tuned_from_first(probe, self.name, fewest=2)
        if len(probe.subjects) > 3:
            raise InputError(f"plane: needs three subjects, not {len(probe.subjects)}")

    def run(self, subject: "Subject") -> Columns:
        """Columns what (``grid`` or ``model``), subject (its index at models; -1 on the grid), x, y (l2 distance in
        weight space), role, slice, loss, accuracy. ``new`` is the language of the second subject."""
        flats = [subject.flat(index) for index in range(3)]
        rows: Columns = {}
        for role in ("old", "new"):
            index = 0 if role == "old" else 1
            objective = subject.objective(role, index=index, items=self.items)
            try:
                plane = landscape.plane(
                    objective, flats[0], flats[1], flats[2], points=self.points, margin=self.margin
                )
            except ValueError as error:
                raise InputError(f"plane: {error}") from None
            grid = {
                "x": [x for _ in range(self.points) for x in plane.x.tolist()],
                "y": [y for y in plane.y.tolist() for _ in range(self.points)],
            }
            flat = Scores(plane.scores.loss.flatten(0, 1), plane.scores.accuracy.flatten(0, 1))
            score_rows(
                rows, {"what": "grid", "role": role}, {"subject": [-1] * len(grid["x"]), **grid},
                objective.slices, flat,
            )  # fmt: skip
            models = {"x": plane.points[:, 0].tolist(), "y": plane.points[:, 1].tolist()}
            scores = landscape.score(objective, torch.stack(flats))
            head = {"what": "model", "role": role}
            score_rows(rows, head, {"subject": [0, 1, 2], **models}, objective.slices, scores)
        return rows

    def cost(self, probe: "Probe") -> float:
        """One pass over the items of both languages for each point."""
        tokens = 4 * (self.items or 1000) * probe.model.length
        return self.points**2 * tokens * probe.model.flops_per_token
