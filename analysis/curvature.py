"""Curvature of the loss: its trace, along given directions, and the step at which the loss begins to rise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from synthlm.analysis.hessian import Hessian
from synthlm.analysis.objective import WIDTH, Objective, evaluate_many

FURTHEST = 30
"""Doublings and halvings of the first step tried before a critical step is called infinite or zero."""


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` random draws and its standard error (NaN for one draw)."""

    mean: float
    error: float
    n: int

    @classmethod
    def of(cls, values: Tensor) -> "Estimate":
        """From independent draws ``[n]``."""
        values = values.double()
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(values.mean().item(), error, len(values))


@dataclass(frozen=True)
class Along:
    """First and second derivatives of the loss along directions v, which are not normalized.

    Attributes:
        slope: [direction] gradient . v, nats.
        curvature: [direction] v . H v, nats.
        length: [direction] Euclidean length of v.
    """

    slope: Tensor
    curvature: Tensor
    length: Tensor

    @property
    def normalized(self) -> Tensor:
        """[direction] the Rayleigh quotient ``v . H v / v . v``."""
        return self.curvature / self.length.square()


def curvature_along(hessian: Hessian, directions: Tensor) -> Along:
    """Derivatives along ``directions [direction, size]``, several side by side."""
    directions = directions.to(hessian.flat)
    curvature = (directions * hessian(directions)).sum(1)
    return Along(directions @ hessian.gradient(), curvature, torch.linalg.vector_norm(directions, dim=1))


def signs(hessian: Hessian, generator: torch.Generator, samples: int) -> Tensor:
    """Random signs ``[sample, size]`` (Rademacher vectors)."""
    drawn = torch.randint(0, 2, (samples, hessian.size), generator=generator)
    return (2 * drawn - 1).to(hessian.flat)


def trace(hessian: Hessian, generator: torch.Generator, samples: int = 32) -> Estimate:
    """The Hessian's trace: mean of ``z . H z`` over random signs z (Hutchinson 1989)."""
    values = [
        (z * hessian(z)).sum(1)
        for z in (
            signs(hessian, generator, min(hessian.width, samples - done))
            for done in range(0, samples, hessian.width)
        )
    ]
    return Estimate.of(torch.cat(values))


@dataclass(frozen=True)
class Critical:
    """Where the loss begins to rise along directions.

    Attributes:
        step: [direction] smallest multiple of the direction at which the loss is above its start: 0 when no step whose
            effect can be told from rounding lowers the loss, infinite when it never rises in the range searched.
        sharpness: [direction] ``2 / step``: for a quadratic loss and the step of plain gradient descent this is the
            curvature along the step, at most the largest eigenvalue.
    """

    step: Tensor
    sharpness: Tensor


def critical_sharpness(
    objective: Objective,
    flat: Tensor,
    directions: Tensor,
    first: float = 1.0,
    bisections: int = 12,
    width: int = WIDTH,
) -> Critical:
    """Critical step and sharpness (arXiv 2601.16979) by forward passes only.

    The step is doubled from ``first`` while the loss is not above its start, or halved until the loss falls below it;
    the bracket is then halved ``bisections`` times. A rise that ends again between two doublings goes unseen.

    Args:
        flat: ``[param]``. directions: ``[direction, param]``, such as an optimizer's update.
    """
    directions = directions.to(flat)
    single = objective.loss(flat[None]).detach()
    start, rounding = single.double(), 4 * torch.finfo(single.dtype).eps * single.double().abs()

    def change(steps: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the loss rises, and whether it clearly falls, at a step along each chosen direction."""
        rows = (flat + t * directions[i] for t, i in zip(steps[chosen].to(flat), chosen, strict=True))
        loss = evaluate_many(objective.loss, rows, width).double()
        return (loss > start) | ~loss.isfinite(), loss < start - rounding

    step = torch.full((len(directions),), float(first), dtype=torch.float64, device=flat.device)
    low, high = torch.zeros_like(step), torch.full_like(step, torch.inf)
    smallest, largest = first * 2.0**-FURTHEST, first * 2.0**FURTHEST
    while True:
        searching = ((low == 0) | high.isinf()) & (step >= smallest) & (step <= largest)
        chosen = searching.nonzero()[:, 0]
        if not len(chosen):
            break
        rose, fell = change(step, chosen)
        low[chosen] = torch.where(fell, step[chosen], low[chosen])
        high[chosen] = torch.where(rose, step[chosen], high[chosen])
        step[chosen] *= torch.where(high[chosen].isinf(), 2.0, 0.5)
    bracketed = ((low > 0) & high.isfinite()).nonzero()[:, 0]
    for _ in range(bisections if len(bracketed) else 0):
        middle = (low + high) / 2
        rose, _ = change(middle, bracketed)
        low[bracketed] = torch.where(rose, low[bracketed], middle[bracketed])
        high[bracketed] = torch.where(rose, middle[bracketed], high[bracketed])
    found = torch.where(high.isinf() | (low == 0), torch.where(high.isinf(), high, low), (low + high) / 2)
    return Critical(found, 2 / found)
