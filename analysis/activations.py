"""Statistics of what enters each hidden matrix, and the activation size that fits each geometry.

Axis names: ``token`` rows, ``in`` features; all leading axes are batch axes. All arithmetic is in float64.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synthlm.geometry import GEOMETRIES

STATISTICS = (
    "rms", "l1", "l2", "operator", "density", "outlier", "kurtosis", "small", "stable_rank",
)  # fmt: skip
"""Names of what :func:`input_statistics` returns."""

SIZES = tuple(f"size/{name}" for name in GEOMETRIES)
"""Names of the paired sizes beside them."""

SMALL = 0.1
"""An entry below this share of the RMS counts as small."""

ALL = "all"
"""The slice of all tokens."""


def input_statistics(x: Tensor) -> dict[str, Tensor]:
    """Statistics of inputs ``[..., token, in]`` -> name -> ``[...]``.

    With d features and T tokens:

    - ``rms``: root mean square of the entries.
    - ``l1``: mean over tokens of the l1 norm over sqrt(d); ``l2``: mean over tokens of the l2 norm.
    - ``operator``: largest singular value over sqrt(T): the root mean square over tokens along the strongest
      direction.
    - ``density``: mean over tokens, those of zeros left out, of l1 / (sqrt(d) l2): 1 when all entries have one size,
      1/sqrt(d) when one alone is not zero.
    - ``outlier``: largest absolute entry over the RMS.
    - ``kurtosis``: fourth central moment over the squared variance, of all entries together; 3 for a Gaussian.
    - ``small``: share of the entries below ``SMALL`` times the RMS.
    - ``stable_rank``: squared Frobenius norm over squared largest singular value.

    NaN where a statistic does not exist (no token, all zeros, for ``kurtosis`` no variance). Our choice of
    statistics; outliers and kurtosis as in the literature on quantization.

    Raises:
        ValueError: when there is no token or no feature.
    """
    tokens, features = x.shape[-2:]
    if not tokens or not features:
        raise ValueError(f"inputs of shape {tuple(x.shape)} hold no number")
    x = x.double()
    size = x.abs()
    square = x.square()
    mean_square = square.mean((-2, -1))
    rms = mean_square.sqrt()
    l1, l2 = size.sum(-1), square.sum(-1).sqrt()
    alive = l2 > 0
    density = torch.where(alive, l1 / l2.masked_fill(~alive, 1), 0).sum(-1) / alive.sum(-1)
    deviation = (x - x.mean((-2, -1), keepdim=True)).square()
    variance = deviation.mean((-2, -1))
    # a spread of rounding alone is no variance
    variance = variance.masked_fill(variance <= 1e-24 * mean_square, torch.nan)
    top = _largest_squared_singular_value(x)
    root = features**0.5
    return {
        "rms": rms,
        "l1": l1.mean(-1) / root,
        "l2": l2.mean(-1),
        "operator": (top / tokens).sqrt(),
        "density": density / root,
        "outlier": size.amax((-2, -1)) / rms,
        "kurtosis": deviation.square().mean((-2, -1)) / variance.square(),
        "small": torch.where(
            rms > 0, (size < SMALL * rms[..., None, None]).double().mean((-2, -1)), torch.nan
        ),
        "stable_rank": mean_square * (tokens * features) / top,
    }


def _largest_squared_singular_value(x: Tensor) -> Tensor:
    """From the smaller Gram matrix: cheap, and as exact as needed for the largest one (float64)."""
    gram = x.mT @ x if x.shape[-1] <= x.shape[-2] else x @ x.mT
    broken = ~torch.isfinite(gram).all(-1).all(-1)
    top = torch.linalg.eigvalsh(gram.masked_fill(broken[..., None, None], 0))[..., -1]
    return top.clamp(min=0).masked_fill(broken, torch.nan)


def paired_sizes(x: Tensor) -> dict[str, Tensor]:
    """The activation size of each geometry, ``[..., token, in]`` -> geometry -> ``[...]``, whatever the token count.

    ``geometry.activation_size`` of X over that of as many inputs of one feature that is 1: a mean over tokens
    stays what it is, an operator norm is divided by sqrt(tokens). So equal inputs, repeated, have an equal size.
    Our choice.
    """
    x = x.double()
    ones = torch.ones(x.shape[-2], 1, dtype=x.dtype, device=x.device)
    return {
        name: geometry.activation_size(x) / geometry.activation_size(ones)
        for name, geometry in GEOMETRIES.items()
    }


@dataclass(frozen=True)
class Row:
    """Statistics and paired sizes (``size/GEOMETRY``) of one matrix's inputs over the ``n`` tokens of a slice."""

    matrix: str
    slice: str
    n: int
    values: Mapping[str, float]


def by_slice(inputs: Iterable[tuple[str, Tensor, Tensor]], slices: Sequence[str]) -> Iterator[Row]:
    """Statistics of each matrix's inputs, over all tokens (``ALL``) and slice by slice.

    Args:
        inputs: (matrix, X ``[token, in]``, slice of each token ``[token]``), as an objective's ``inputs`` gives
            them. Tokens with a slice index below 0 belong to none, and are left out. Matrices that share one X
            share the work.
        slices: names, in the order of the indices. A slice without tokens gives no row.
    """
    known: dict[tuple[int, int], list[tuple[str, int, Mapping[str, float]]]] = {}
    held: list[Tensor] = []  # keeps inputs alive, so that no other gets their address
    for matrix, x, index in inputs:
        place = (x.data_ptr(), index.data_ptr())
        if place not in known:
            held += [x, index]
            known[place] = list(_rows(x, index, slices))
        for part, n, values in known[place]:
            yield Row(matrix, part, n, values)


def _rows(x: Tensor, index: Tensor, slices: Sequence[str]) -> Iterator[tuple[str, int, Mapping[str, float]]]:
    parts = {ALL: index >= 0} | {name: index == i for i, name in enumerate(slices)}
    for part, chosen in parts.items():
        rows = x[chosen]
        if len(rows):
            sizes = {f"size/{name}": size for name, size in paired_sizes(rows).items()}
            found = input_statistics(rows) | sizes
            yield part, len(rows), {name: value.item() for name, value in found.items()}
