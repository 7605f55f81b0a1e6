"""The structure of weight matrices and of their updates: sizes in every geometry, stable rank, spectral entropy."""

import math

import torch
from torch import Tensor

from synthlm.geometry import GEOMETRIES, singular_values

SPECTRUM = ("stable_rank", "entropy")
"""What :func:`structure` tells besides the norms."""

STRUCTURE = (*(f"norm/{name}" for name in GEOMETRIES), *SPECTRUM)
"""Names of what :func:`structure` returns."""


def structure(matrices: Tensor) -> dict[str, Tensor]:
    """Sizes and spectral shape of each matrix: ``[..., out, in]`` -> name -> ``[...]`` in float64.

    - ``norm/GEOMETRY``: the norm of each geometry (``synthlm.geometry``), in units of a weight.
    - ``stable_rank``: sum of squared singular values over the largest, between 1 and min(out, in).
    - ``entropy``: that of the squared singular values' shares over log min(out, in), between 0 (rank one) and 1
      (all equal); after arXiv 2502.16982, section on SVD entropy.

    A zero matrix has norms 0 and NaN for the rest, as has one with a non-finite entry throughout.
    """
    matrices = matrices.double()
    found = {f"norm/{name}": geometry.norm(matrices) for name, geometry in GEOMETRIES.items()}
    energy = singular_values(matrices).square()
    total = energy.sum(-1)
    share = energy / total[..., None]
    spread = -torch.special.xlogy(share, share).sum(-1)
    kinds = min(matrices.shape[-2:])
    found["stable_rank"] = total / energy[..., 0]
    found["entropy"] = spread / math.log(kinds) if kinds > 1 else torch.zeros_like(total)
    return found
