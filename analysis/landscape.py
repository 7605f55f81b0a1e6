"""Loss and accuracy along lines and on planes through a weight vector.

Every point is made from a copy of the centre, never by undoing a perturbation, and many are evaluated side by side on
the run axis. Scores are absolute.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synthlm.analysis import directions
from synthlm.analysis.ascent import MatrixBall, worst_case
from synthlm.analysis.objective import Objective, evaluate_many
from synthlm.geometry import Geometry


@dataclass(frozen=True)
class Scores:
    """``loss [..., slice]`` (nats per scored position) and ``accuracy [..., slice]``, float64 on the CPU."""

    loss: Tensor
    accuracy: Tensor

    def view(self, *shape: int) -> "Scores":
        """The leading axes as ``shape``."""
        return Scores(self.loss.unflatten(0, shape), self.accuracy.unflatten(0, shape))


@dataclass(frozen=True)
class Plane:
    """Scores on a grid of the plane through three weight vectors.

    Attributes:
        x: ``[column]`` and ``y [row]``: coordinates along ``basis``, in the l2 norm of weight space.
        scores: ``[row, column, slice]``.
        points: ``[3, 2]`` the coordinates of the origin and of the two others.
        basis: ``[2, param]`` orthonormal: the first towards the second vector, the second in the third's half.
    """

    x: Tensor
    y: Tensor
    scores: Scores
    points: Tensor
    basis: Tensor


def score(objective: Objective, flats: Tensor | Iterable[Tensor], width: int = 8) -> Scores:
    """Scores ``[many, slice]`` of many weight vectors ``[param]``, ``width`` side by side."""

    def both(flat: Tensor) -> Tensor:
        return torch.stack([part.detach().cpu().double() for part in objective.scores(flat)])

    found = evaluate_many(lambda flat: both(flat).transpose(0, 1), flats, width)
    return Scores(found[:, 0], found[:, 1])


def lines(objective: Objective, base: Tensor, rays: Tensor, radii: Sequence[float], width: int = 8) -> Scores:
    """Scores ``[ray, radius, slice]`` at ``base + radius * ray`` for each of ``rays [ray, param]`` and each radius."""

    def points() -> Iterator[Tensor]:
        for ray in rays:
            for radius in radii:
                yield base + radius * ray

    return score(objective, points(), width).view(len(rays), len(radii))


def worst_lines(
    objective: Objective,
    ascended: Objective,
    base: Tensor,
    geometry: Geometry,
    radii: Sequence[float],
    kind: str,
    generator: torch.Generator,
    steps: int = 10,
    starts: int = 1,
    width: int = 8,
) -> Scores:
    """Scores ``[radius, slice]`` at the worst perturbation found within each ball of a geometry.

    Args:
        ascended: the objective whose loss the ascent climbs; ``objective`` is what is then scored.
        kind: ``relative``: the largest ball of the geometry within the Frobenius ball of so many times each matrix's
            own norm; ``native``: the ball of so much norm in every matrix.
    """
    layout = objective.layout
    if kind == "relative":
        sizes = directions.norms(layout, directions.FROBENIUS, base[None])
        sizes = sizes / directions.matrix_reach(layout, geometry).to(sizes)
    else:
        sizes = torch.ones(1, len(layout.only("matrix").entries), dtype=base.dtype, device=base.device)
    ball = MatrixBall(layout, geometry, torch.as_tensor(radii).to(sizes)[:, None] * sizes)
    found, _ = worst_case(ascended, base, ball, len(radii), generator, steps, starts, width)
    return score(objective, base + found, width)


def plane(
    objective: Objective,
    base: Tensor,
    first: Tensor,
    second: Tensor,
    points: int = 21,
    margin: float = 0.3,
    width: int = 8,
) -> Plane:
    """The plane through three weight vectors ``[param]``: ``base`` at the origin, ``first`` on the positive x axis.

    Args:
        points: grid points along each axis.
        margin: how far the grid, a square, goes beyond the three points, as a share of their larger extent.

    Raises:
        ValueError: when the three lie on one line.
    """
    a, b = (first - base).double(), (second - base).double()
    length = torch.linalg.vector_norm(a)
    along = a / length
    across = b - (b @ along) * along
    height = torch.linalg.vector_norm(across)
    # float32 weights fix a direction to about 1e-7 of their own size
    least = 1e-6 * max(float(torch.linalg.vector_norm(b)), float(torch.linalg.vector_norm(base)))
    if not (float(length) > least and float(height) > least):
        raise ValueError("the base and the two models lie on one line: they span no plane")
    basis = torch.stack([along, across / height])
    corners = torch.stack([torch.zeros_like(a), a, b]) @ basis.T
    low, high = corners.amin(0), corners.amax(0)
    half = (0.5 + margin) * (high - low).max()
    x, y = (
        torch.linspace(float(middle - half), float(middle + half), points, dtype=torch.float64)
        for middle in (low + high) / 2
    )
    steps = basis.to(base.dtype)
    cells = (base + float(u) * steps[0] + float(v) * steps[1] for v in y for u in x)
    scores = score(objective, cells, width).view(points, points)
    return Plane(x, y, scores, corners.cpu(), basis)
