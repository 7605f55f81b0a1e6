"""Curvature and sharpness of a model's old loss, and the spectrum of its Hessian."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from synthlm.analysis import directions
from synthlm.analysis.curvature import Estimate, critical_sharpness, curvature_along, trace
from synthlm.analysis.hessian import Hessian, Which
from synthlm.analysis.lanczos import spectrum, top_eigenpairs
from synthlm.analysis.objective import WIDTH, Objective
from synthlm.analysis.sharpness import average_sharpness, worst_sharpness
from synthlm.geometry import GEOMETRIES
from synthlm.probes.analysis import Analysis, Columns, column
from synthlm.probes.landscape import new_objectives, tuned_from_first

if TYPE_CHECKING:
    from synthlm.jobs import Probe
    from synthlm.probes.subject import Subject

HEAD: dict[str, Any] = {"gradient": "", "geometry": "", "kind": "", "subject": 0, "index": 0, "radius": None}


class Curvature(Analysis):
    """How curved and how sharp the old loss is around the first subject.

    Attributes:
        which: the parameters of eigenvalues, trace and sharpness: hidden matrices, or all.
        eigenvalues: so many of the largest. samples: of the trace.
        items: most items of each slice. steps: of the ascent to the worst case.
        sigmas, adaptive_sigmas: noise per weight of average sharpness, plain and times ``|w| + 0.01``. pairs: of draws.
        radii, adaptive_radii: of the balls of worst-case sharpness (0.05 in arXiv 2010.01412, 0.5 to 2 in 2102.11600).
    """

    name: Literal["curvature"] = "curvature"
    which: Which = "matrix"
    items: int | None = Field(128, ge=1)
    eigenvalues: int = Field(5, ge=0)
    samples: int = Field(16, ge=0)
    sigmas: tuple[float, ...] = (0.01,)
    adaptive_sigmas: tuple[float, ...] = (0.1,)
    pairs: int = Field(16, ge=1)
    radii: tuple[float, ...] = (0.05, 0.2)
    adaptive_radii: tuple[float, ...] = (0.5, 2.0)
    steps: int = Field(10, ge=1)

    def check(self, probe: "Probe") -> None:
        """Further subjects were finetuned from the first."""
        tuned_from_first(probe, self.name)

    def run(self, subject: "Subject") -> Columns:
        """A row a number: columns quantity, gradient, geometry, kind, subject, index, radius, value, error, n.

        quantity ``eigenvalue`` (index: its rank), ``residual`` (of that eigenpair), ``trace`` (with its standard error
        over n samples), ``average`` and ``worst`` sharpness (radius: noise per weight, or of the ball; kind ``plain``
        or ``adaptive``), all of the old loss in nats.

        And of the steepest step of a gradient (of the ``old`` training loss, or of the ``new`` one of that subject's
        language) in each geometry, every hidden matrix at norm 1 in it (kind ``native``) or at its own Frobenius norm
        (``relative``): ``slope`` and ``curvature`` of the old loss along it, ``rayleigh`` (curvature over squared
        length), and the ``critical`` sharpness, 2 / the smallest step at which the old loss rises (None: at any step).
        """
        base, objective = subject.flat(), subject.objective("old", items=self.items)
        rows: Columns = {name: [] for name in ("quantity", *HEAD, "value", "error", "n")}
        for told in (
            *self._spectral(subject, objective, base),
            *self._around(subject, objective, base),
            *self._along(subject, objective, base),
        ):
            for name, value in {**HEAD, "error": None, "n": None, **told}.items():
                rows[name].append(value)
        for name in ("value", "error"):
            rows[name] = column([float("nan") if value is None else float(value) for value in rows[name]])
        return rows

    def _spectral(self, subject: "Subject", objective: Objective, base: Tensor) -> Iterator[dict[str, Any]]:
        hessian = Hessian(objective, base, self.which)
        if self.eigenvalues:
            count = min(self.eigenvalues, hessian.size - 1)
            pairs = top_eigenpairs(hessian, subject.generator("start"), count)
            for index in range(count):
                for quantity, values in (("eigenvalue", pairs.values), ("residual", pairs.residuals)):
                    yield {"quantity": quantity, "index": index, "value": values[index].item()}
        if self.samples:
            found = trace(hessian, subject.generator("trace"), self.samples)
            yield {"quantity": "trace", **_estimate(found)}

    def _around(self, subject: "Subject", objective: Objective, base: Tensor) -> Iterator[dict[str, Any]]:
        for kind, sigmas in (("plain", self.sigmas), ("adaptive", self.adaptive_sigmas)):
            for sigma in sigmas:
                generator = subject.generator("average", kind)  # the same noise at every size
                found = average_sharpness(
                    objective, base, sigma, generator, self.pairs, kind == "adaptive", self.which
                )
                yield {"quantity": "average", "kind": kind, "radius": sigma, **_estimate(found)}
        for kind, radii in (("plain", self.radii), ("adaptive", self.adaptive_radii)):
            if radii:
                sizes = torch.tensor(radii)
                worst = worst_sharpness(objective, base, sizes, self.steps, kind == "adaptive", self.which)
                for radius, rise in zip(radii, worst.rise.tolist(), strict=True):
                    yield {"quantity": "worst", "kind": kind, "radius": radius, "value": rise}

    def _along(self, subject: "Subject", objective: Objective, base: Tensor) -> Iterator[dict[str, Any]]:
        heads, steps = [], []
        old = subject.objective("old", table="train", items=self.items)
        new = new_objectives(subject, table="train", items=self.items)
        for gradient, index, source in (("old", 0, old), *(("new", i, each) for i, each in new.items())):
            _, grad = directions.gradient(source, base[None])
            for name, geometry in GEOMETRIES.items():
                step = directions.steepest(subject.layout, geometry, grad)
                for kind in ("native", "relative"):
                    steps.append(
                        step if kind == "native" else directions.relative(subject.layout, step, base)
                    )
                    heads.append({"gradient": gradient, "subject": index, "geometry": name, "kind": kind})
        rays = torch.cat(steps)
        along = curvature_along(Hessian(objective, base), rays)
        critical = critical_sharpness(objective, base, rays, first=0.01)
        told = {
            "slope": along.slope,
            "curvature": along.curvature,
            "rayleigh": along.normalized,
            "critical": critical.sharpness,
        }
        for place, head in enumerate(heads):
            for quantity, values in told.items():
                yield {"quantity": quantity, **head, "value": values[place].item()}

    def cost(self, probe: "Probe") -> float:
        """Hessian-vector products (some 15 for an eigenvalue) and forward passes over the items."""
        rays = 6 * len(probe.subjects)
        products = 15 * self.eigenvalues + self.samples + rays
        passes = 2 * self.pairs * (len(self.sigmas) + len(self.adaptive_sigmas)) + 25 * rays
        climbs = 3 * self.steps * (len(self.radii) + len(self.adaptive_radii))
        tokens = 2 * (self.items or 1000) * probe.model.length
        return (6 * products + passes + climbs) * tokens * probe.model.flops_per_token


def _estimate(found: Estimate) -> dict[str, Any]:
    return {"value": found.mean, "error": found.error, "n": found.n}


class SpectralDensity(Analysis):
    """The density of the old loss's Hessian eigenvalues around the first subject, by stochastic Lanczos quadrature.

    Attributes:
        which: hidden matrices, or all parameters. items: most items of each slice.
        probes: random vectors. steps: of Lanczos for each.
        points: of the density's grid. broadening: standard deviation of the Gaussian that a node becomes, as a share of
            the nodes' range; the grid goes three of them beyond.
    """

    name: Literal["spectrum"] = "spectrum"
    which: Which = "matrix"
    items: int | None = Field(128, ge=1)
    probes: int = Field(4, ge=1)
    steps: int = Field(40, ge=2)
    points: int = Field(200, ge=2)
    broadening: float = Field(0.01, gt=0)

    def run(self, subject: "Subject") -> Columns:
        """Columns what, probe, eigenvalue, weight: of what ``node`` the quadrature's nodes and weights (sum 1 for a
        probe), of ``density`` the broadened probability density (``weight``, per unit of eigenvalue; probe -1)."""
        objective = subject.objective("old", items=self.items)
        hessian = Hessian(objective, subject.flat(), self.which, width=min(self.probes, WIDTH))
        found = spectrum(hessian, subject.generator("probes"), self.probes, self.steps)
        steps = found.nodes.shape[1]
        rows: Columns = {
            "what": ["node"] * found.nodes.numel(),
            "probe": [probe for probe in range(self.probes) for _ in range(steps)],
            "eigenvalue": column(found.nodes.flatten()),
            "weight": column(found.weights.flatten()),
        }
        low, high = found.nodes.min().item(), found.nodes.max().item()
        if bool(found.nodes.isfinite().all()) and high > low:
            width = self.broadening * (high - low)
            grid = torch.linspace(low - 3 * width, high + 3 * width, self.points, dtype=torch.float64)
            rows["what"] += ["density"] * self.points
            rows["probe"] += [-1] * self.points
            rows["eigenvalue"] += column(grid)
            rows["weight"] += column(found.density(grid.to(found.nodes.device), width))
        return rows

    def cost(self, probe: "Probe") -> float:
        """Hessian-vector products over the items."""
        tokens = 2 * (self.items or 1000) * probe.model.length
        return 6 * self.probes * self.steps * tokens * probe.model.flops_per_token
