"""The worst perturbation within a ball, sought by projected steepest ascent.

What is found is a lower bound on the worst case: every iterate lies in the ball and the best one is returned.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from synthlm.analysis import directions
from synthlm.analysis.objective import Objective
from synthlm.geometry import Geometry
from synthlm.weights import Layout

FIRST_START = 0.01
"""The first start's distance from the centre, in radii: off a stationary point, else nearly the gradient there."""


class Ball(Protocol):
    """Balls of perturbations, one a run."""

    def ascend(self, grad: Tensor) -> Tensor:
        """The perturbation in each ball along which the loss rises steepest: ``[run, param]`` both."""
        ...

    def project(self, d: Tensor) -> Tensor:
        """The nearest perturbation in each ball: ``[run, param]`` both."""
        ...

    def take(self, runs: slice) -> "Ball":
        """The balls of some runs."""
        ...


@dataclass(frozen=True)
class MatrixBall:
    """Every hidden matrix within ``radii [run, matrix]`` in a geometry's norm; ``aux`` does not move."""

    layout: Layout
    geometry: Geometry
    radii: Tensor

    def ascend(self, grad: Tensor) -> Tensor:
        unit = directions.steepest(self.layout, self.geometry, grad)
        return directions.scale_matrices(self.layout, unit, -self.radii)

    def project(self, d: Tensor) -> Tensor:
        out = torch.zeros_like(d)
        start = 0
        for block in self.layout.blocks():
            radius = self.radii[:, start : start + block.count]
            block.view(out).copy_(self.geometry.project(block.view(d), radius))
            start += block.count
        return out

    def take(self, runs: slice) -> "MatrixBall":
        return MatrixBall(self.layout, self.geometry, self.radii[runs])


@dataclass(frozen=True)
class EuclideanBall:
    """All parameters together within the l2 norm ``radii [run]``."""

    radii: Tensor

    def ascend(self, grad: Tensor) -> Tensor:
        return directions.of_length(grad, self.radii)

    def project(self, d: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(d, dim=1)
        return d * torch.where(size > self.radii, self.radii / size, torch.ones_like(size))[:, None]

    def take(self, runs: slice) -> "EuclideanBall":
        return EuclideanBall(self.radii[runs])


def worst_case(
    objective: Objective,
    base: Tensor,
    ball: Ball,
    runs: int,
    generator: torch.Generator,
    steps: int = 10,
    starts: int = 1,
    width: int = 8,
) -> tuple[Tensor, Tensor]:
    """The perturbation of highest loss found in each of ``runs`` balls around ``base [param]``.

    Projected steepest ascent: d <- project(d + rate * ascend(gradient)), with a rate that falls from 1 linearly to
    1/steps, so that the first step reaches the boundary and later ones refine. Starts are the balls' steps along
    Gaussian draws: the first close to the centre, the others on the boundary. Runs go ``width`` side by side.

    Args:
        ball: of ``runs`` radii.
        steps: gradients a start.

    Returns:
        Perturbations ``[run, param]`` (the zero one where no finite loss was met) and their losses ``[run]``.
    """
    found, losses = [], []
    for first in range(0, runs, width):
        some = slice(first, min(first + width, runs))
        part = ball.take(some)
        count = some.stop - some.start
        best = torch.zeros(count, len(base), dtype=base.dtype, device=base.device)
        loss = torch.full((count,), -torch.inf, dtype=base.dtype, device=base.device)
        for start in range(starts):
            noise = directions.gaussian(objective.layout, count, generator, base.dtype).to(base.device)
            d = part.ascend(noise) * (FIRST_START if start == 0 else 1)
            best, loss = _climb(objective, base, part, d, steps, best, loss)
        found.append(best)
        losses.append(loss)
    return torch.cat(found), torch.cat(losses)


def _climb(
    objective: Objective, base: Tensor, ball: Ball, d: Tensor, steps: int, best: Tensor, best_loss: Tensor
) -> tuple[Tensor, Tensor]:
    """The best of what is known and all iterates from the start ``d``."""

    def keep(value: Tensor) -> None:
        nonlocal best, best_loss
        better = (value > best_loss) & value.isfinite()
        best = torch.where(better[:, None], d, best)
        best_loss = torch.where(better, value, best_loss)

    for step in range(steps):
        value, grad = directions.gradient(objective, base + d)
        keep(value.to(best_loss.dtype))
        d = ball.project(d + (1 - step / steps) * ball.ascend(grad.to(d.dtype)))
    with torch.no_grad():
        keep(objective.loss(base + d).to(best_loss.dtype))
    return best, best_loss
