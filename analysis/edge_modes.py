"""What the leading modes of the update window mean for the loss: gap flow, removal with controls, commutator defect.

Modes are unit vectors v_j in parameter space (``UpdateStream.modes``) with singular values sigma_j. Everything takes
gradients and Hessian-vector products as functions, so any model serves.

Axis names: ``mode`` from the largest sigma down, ``param``, ``control`` random directions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Gradient = Callable[[Tensor, Any], Tensor]
"""(weights ``[param]``, batch) -> gradient ``[param]`` of the loss on that batch."""

DEFECT_DRAWS = 9
DEFECT_STEP = 1e-3
"""Draws and step size of the commutator defect in the author's code."""

Kind = Literal["mode", "matched", "projected"]
Origin = Literal["update", "weights"]


@dataclass(frozen=True)
class AlongModes:
    """``curvature`` v_j^T H v_j and ``slope`` v_j . gradient, both ``[mode]``."""

    curvature: Tensor
    slope: Tensor


def along_modes(hessian: Callable[[Tensor], Tensor], gradient: Tensor, modes: Tensor) -> AlongModes:
    """Curvature and gradient along ``modes [mode, param]``.

    Args:
        hessian: ``[many, param] -> [many, param]``, such as ``synthlm.analysis.hessian.Hessian``.
        gradient: ``[param]``.
    """
    modes = modes.to(gradient)
    return AlongModes((hessian(modes) * modes).sum(1), modes @ gradient)


@dataclass(frozen=True)
class GapFlow:
    """The three terms of the change of g = sigma_k - sigma_(k+1) a step, each by itself."""

    asymmetry: float
    damping: float
    driving: float


def gap_flow(
    sigma: Tensor, along: AlongModes, k: int, lr: float, weight_decay: float, window: int
) -> GapFlow:
    """The gap flow equation of arXiv 2603.28964 (as its author's notes give it; the theorem's proof was not available):

        dg/dt = - lr (h_k - h_(k+1)) (sigma_k + sigma_(k+1)) / 2
                - lr ((h_k + h_(k+1)) / 2 + weight_decay) g
                + lr W (G_k^2 / sigma_k - G_(k+1)^2 / sigma_(k+1))

    with curvature h_j and gradient G_j along mode j: curvature asymmetry, damping, driving. It is derived for plain
    gradient descent recorded at every step. There the first two terms alone are the change on a quadratic loss
    (tested); the third, as it is written, has the units of a gradient where the others have those of an update, so the
    terms are not added up here.

    Args:
        sigma: ``[mode]``, k + 1 values at least. k: the gap's position, from 1.

    Raises:
        ValueError: when there is no mode k + 1.
    """
    if not 1 <= k < len(sigma):
        raise ValueError(f"k = {k}: a gap lies between modes 1 and {len(sigma)}")
    above, below = float(sigma[k - 1]), float(sigma[k])
    h, slope = along.curvature[k - 1 : k + 1].tolist(), along.slope[k - 1 : k + 1].tolist()
    return GapFlow(
        asymmetry=-lr * (h[0] - h[1]) * (above + below) / 2,
        damping=-lr * ((h[0] + h[1]) / 2 + weight_decay) * (above - below),
        driving=lr * window * (slope[0] ** 2 / above - slope[1] ** 2 / below),
    )


@dataclass(frozen=True)
class Removal:
    """Weights ``[param]`` from which something was taken, and the norm of what was taken.

    ``kind``: ``mode``: the part along a mode; ``matched``: as much, in a random direction (the control that counts);
    ``projected``: the part along a random direction, which is smaller by about sqrt(param) (the usual control).
    """

    kind: Kind
    origin: Origin
    mode: int
    weights: Tensor
    removed: float


def removals(
    flat: Tensor, modes: Tensor, start: Tensor, generator: torch.Generator, controls: int = 8
) -> Iterator[Removal]:
    """Remove each mode from the update since ``start`` and from the weights themselves, with controls of each.

    Random directions are Gaussian over the parameters that the modes have. Weights are always made from ``flat``.

    Args:
        flat: ``[param]``. modes: ``[mode, param]`` unit vectors. start: ``[param]`` weights before training.
        controls: random directions of each kind, for every mode.
    """
    support = (modes != 0).any(0).to(flat)
    origins: tuple[tuple[Origin, Tensor], ...] = (("update", flat - start), ("weights", flat))
    for j, mode in enumerate(modes.to(flat)):
        draws = torch.randn(controls, len(flat), generator=generator).to(flat) * support
        draws = draws / torch.linalg.vector_norm(draws, dim=1, keepdim=True)
        for origin, vector in origins:
            part = float(vector @ mode)
            yield Removal("mode", origin, j, flat - part * mode, abs(part))
            for draw in draws:
                yield Removal("matched", origin, j, flat - part * draw, abs(part))
            for draw in draws:
                chance = float(vector @ draw)
                yield Removal("projected", origin, j, flat - chance * draw, abs(chance))


def commutator_defect(
    gradient: Gradient, flat: Tensor, one: Any, other: Any, step: float = DEFECT_STEP
) -> float:
    """How much the order of two gradient steps matters: ||w_AB - w_BA|| / (||step g_A|| ||step g_B||).

    w_AB: after a step on batch A, then one on batch B; the norms are of the steps at w. For a quadratic loss it is
    ||H_B g_A - H_A g_B|| / (||g_A|| ||g_B||). Source: arXiv 2602.16746 and the author's code. NaN where a gradient is
    zero.

    Args:
        flat: ``[param]``; in float64 for small steps: the difference is of order step^2.
    """
    first, second = gradient(flat, one), gradient(flat, other)
    forward = flat - step * first
    forward = forward - step * gradient(forward, other)
    backward = flat - step * second
    backward = backward - step * gradient(backward, one)
    sizes = float(torch.linalg.vector_norm(step * first) * torch.linalg.vector_norm(step * second))
    difference = float(torch.linalg.vector_norm(forward - backward))
    return difference / sizes if sizes > 0 else float("nan")


def defect_median(
    gradient: Gradient,
    flat: Tensor,
    draw: Callable[[], Any],
    draws: int = DEFECT_DRAWS,
    step: float = DEFECT_STEP,
) -> tuple[float, list[float]]:
    """The median commutator defect over ``draws`` pairs of batches, and all of them.

    Args:
        draw: gives a fresh batch each time.
    """
    found = [commutator_defect(gradient, flat, draw(), draw(), step) for _ in range(draws)]
    return float(torch.tensor(found, dtype=torch.float64).median()), found
