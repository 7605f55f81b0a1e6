"""How much the loss rises around a model: on average over Gaussian noise, and at worst within a ball."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from synthlm.analysis.curvature import Estimate
from synthlm.analysis.hessian import Which
from synthlm.analysis.objective import WIDTH, Objective, evaluate_many

ETA = 0.01
"""Added to every weight's size in adaptive scaling, so that zeros move too (arXiv 2102.11600)."""


def adaptive_scale(flat: Tensor) -> Tensor:
    """``|w| + 0.01`` for each weight: ASAM's scaling operator, which makes sharpness blind to rescaled weights."""
    return flat.abs() + ETA


def _scale(objective: Objective, flat: Tensor, adaptive: bool, which: Which) -> Tensor:
    """[param] how far one unit of perturbation moves each weight: 0 outside the group."""
    scale = adaptive_scale(flat) if adaptive else torch.ones_like(flat)
    if which == "matrix":
        scale = scale.clone()
        scale[objective.layout.matrix_size :] = 0
    return scale


def average_sharpness(
    objective: Objective,
    flat: Tensor,
    sigma: float,
    generator: torch.Generator,
    pairs: int = 32,
    adaptive: bool = False,
    which: Which = "all",
    width: int = WIDTH,
) -> Estimate:
    """``E L(w + d) - L(w)``, d Gaussian with standard deviation ``sigma`` per weight, in nats.

    Each draw is used with both signs, which cancels the odd terms; ``n`` counts pairs. To second order this is
    ``sigma^2 / 2`` times the trace.

    Args:
        flat: ``[param]``.
        adaptive: the noise of a weight is also multiplied by :func:`adaptive_scale`.
        which: ``matrix``: only hidden matrices are perturbed.
    """
    scale = sigma * _scale(objective, flat, adaptive, which)

    def moved() -> Iterator[Tensor]:
        for _ in range(pairs):
            d = scale * torch.randn(len(flat), generator=generator, dtype=flat.dtype).to(flat)
            yield from (flat + d, flat - d)

    losses = evaluate_many(objective.loss, moved(), width).double()
    return Estimate.of(losses.view(pairs, 2).mean(1) - objective.loss(flat[None]).detach().double())


@dataclass(frozen=True)
class Worst:
    """The largest rise of the loss found within each ball.

    Attributes:
        rise: [radius] nats, at least 0.
        perturbation: [radius, param] where it was found.
    """

    rise: Tensor
    perturbation: Tensor


def worst_sharpness(
    objective: Objective,
    flat: Tensor,
    radii: Tensor,
    steps: int = 20,
    adaptive: bool = False,
    which: Which = "all",
) -> Worst:
    """``max L(w + d) - L(w)`` over ``||d|| <= radius``, by projected gradient ascent; a lower bound of the maximum.

    The first step is SAM's (arXiv 2010.01412), each further one a radius along the gradient and back onto the ball.
    With ``adaptive`` the ball is ``||d / (|w| + 0.01)|| <= radius`` (ASAM, arXiv 2102.11600).

    Args:
        flat: ``[param]``. radii: ``[radius]``, climbed side by side.
    """
    scale = _scale(objective, flat, adaptive, which)
    radius = radii.to(flat)[:, None]
    u = torch.zeros(len(radii), len(flat), dtype=flat.dtype, device=flat.device)
    best, where = torch.full((len(radii),), -torch.inf, dtype=torch.float64, device=flat.device), u.clone()
    start = objective.loss(flat[None]).detach().double()
    for step in range(steps + 1):
        moved = (flat + scale * u).requires_grad_()
        loss = objective.loss(moved)
        (gradient,) = torch.autograd.grad(loss.sum(), moved)
        rise = (loss.detach().double() - start).nan_to_num(torch.inf, posinf=torch.inf)
        better = rise > best
        best, where = torch.where(better, rise, best), torch.where(better[:, None], u, where)
        if step < steps:
            u = _onto_ball(u + radius * _unit(scale * gradient.nan_to_num(0, 0, 0)), radius)
    return Worst(best, scale * where)


def _unit(rows: Tensor) -> Tensor:
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def _onto_ball(rows: Tensor, radius: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norm > radius, rows * (radius / norm.clamp_min(torch.finfo(rows.dtype).tiny)), rows)
