"""Directions in weight space, flat ``[many, param]``, and the sizes that make them comparable.

Geometries are norms of matrices, so directions taken from them move hidden matrices alone: their ``aux`` part is zero.
A size is either *relative* (each matrix at the Frobenius norm of the base's matrix: scale-free, and equal for all
geometries) or *native* (each matrix at norm 1 in a geometry: what one optimizer step of rate 1 does).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from synthlm.analysis.objective import Objective
from synthlm.geometry import GEOMETRIES, Geometry
from synthlm.weights import Layout

FROBENIUS = GEOMETRIES["frobenius"]


def gaussian(
    layout: Layout, count: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """``[count, param]`` draws of N(0, I) over all parameters, on the CPU."""
    return torch.randn(count, layout.size, generator=generator, dtype=dtype)


def gradient(objective: Objective, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Loss ``[run]`` and its gradient ``[run, param]`` at ``flat [run, param]``, each run its own."""
    at = flat.detach().requires_grad_()
    loss = objective.loss(at)
    (grad,) = torch.autograd.grad(loss.sum(), at)
    return loss.detach(), grad


def per_matrix(layout: Layout, flat: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``[run, matrix]``: a function ``[run, stack, out, in] -> [run, stack]`` of every hidden matrix, in order."""
    return torch.cat([function(block.view(flat)) for block in layout.blocks()], dim=1)


def map_matrices(layout: Layout, flat: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``[run, param]``: a function ``[run, stack, out, in] ->`` same of every hidden matrix; ``aux`` zero."""
    out = torch.zeros_like(flat)
    for block in layout.blocks():
        block.view(out).copy_(function(block.view(flat)))
    return out


def scale_matrices(layout: Layout, flat: Tensor, factor: Tensor) -> Tensor:
    """Every hidden matrix of ``[run, param]`` times ``factor [run or 1, matrix]``; ``aux`` zero."""
    out = torch.zeros_like(flat)
    start = 0
    for block in layout.blocks():
        part = factor[:, start : start + block.count, None, None]
        block.view(out).copy_(block.view(flat) * part)
        start += block.count
    return out


def norms(layout: Layout, geometry: Geometry, flat: Tensor) -> Tensor:
    """``[run, matrix]``: every hidden matrix's norm in a geometry."""
    return per_matrix(layout, flat, geometry.norm)


def steepest(layout: Layout, geometry: Geometry, grad: Tensor) -> Tensor:
    """The step of norm 1 in every hidden matrix that descends steepest; ``aux`` zero. ``[run, param]`` both."""
    return map_matrices(layout, grad, geometry.step)


def with_norms(layout: Layout, geometry: Geometry, d: Tensor, sizes: Tensor) -> Tensor:
    """Every hidden matrix of ``d [run, param]`` rescaled to norm ``sizes [run or 1, matrix]``; zero ones stay zero."""
    have = norms(layout, geometry, d)
    return scale_matrices(layout, d, torch.where(have > 0, sizes / have, torch.zeros_like(have)))


def relative(layout: Layout, d: Tensor, base: Tensor) -> Tensor:
    """Every hidden matrix of ``d [run, param]`` at the Frobenius norm of the same matrix of ``base [param]``."""
    return with_norms(layout, FROBENIUS, d, norms(layout, FROBENIUS, base[None]))


def native(layout: Layout, geometry: Geometry, d: Tensor) -> Tensor:
    """Every hidden matrix of ``d [run, param]`` at norm 1 in a geometry."""
    return with_norms(layout, geometry, d, torch.ones(1, 1, dtype=d.dtype, device=d.device))


def matrix_reach(layout: Layout, geometry: Geometry) -> Tensor:
    """``[matrix]``: the largest Frobenius norm that an update of norm 1 can have, for every hidden matrix."""
    return torch.tensor(
        [geometry.reach(*block.shape) for block in layout.blocks() for _ in range(block.count)]
    )


def native_unit(layout: Layout, geometry: Geometry) -> float:
    """The native radius at which the first hidden matrix's longest update is as long as one of spectral norm 1.

    It depends on shapes alone, so that one grid of native radii serves all models of a form, and fits all geometries.
    """
    block = layout.blocks()[0]
    return math.sqrt(min(block.shape)) / geometry.reach(*block.shape)


def filter_normalized(layout: Layout, d: Tensor, base: Tensor) -> Tensor:
    """Every filter of ``d [run, param]`` at the norm of the base's filter; parameters with one axis zero.

    A filter is a row: one output's weights, or one token's embedding. Source: Li et al. 2018, arXiv 1712.09913.
    """
    here, wanted = layout.views(d), layout.views(base[None])
    out = {}
    for entry in layout.entries:
        piece = here[entry.name]
        if len(entry.shape) < 2:
            out[entry.name] = torch.zeros_like(piece)
            continue
        rows = piece.flatten(2)
        have = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        want = torch.linalg.vector_norm(wanted[entry.name].flatten(2), dim=-1, keepdim=True)
        out[entry.name] = (rows * torch.where(have > 0, want / have, 0)).view_as(piece)
    return layout.join(out)


def times_rms(layout: Layout, d: Tensor, base: Tensor) -> Tensor:
    """Every parameter tensor of ``d [run, param]`` times the root mean square of the base's: a scale-free sigma.

    Rescaling a tensor of the model then rescales its noise alike; a noise of one sigma for all does not. Our choice.
    """
    wanted = layout.views(base[None])
    pieces = layout.views(d)
    return layout.join({name: piece * wanted[name].square().mean().sqrt() for name, piece in pieces.items()})


def of_length(d: Tensor, length: Tensor | float) -> Tensor:
    """Each whole vector of ``d [run, param]`` at l2 norm ``length`` (``[run]`` or a number); zero stays zero."""
    size = torch.linalg.vector_norm(d, dim=1)
    return d * torch.where(size > 0, length / size, torch.zeros_like(size))[:, None]
