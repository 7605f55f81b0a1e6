"""Three norms of a weight update, each with its dual, its steepest step and the activation size that fits.

An optimizer is nearly steepest descent in a norm on weight matrices. A geometry is that norm and what follows
from it, so that analyses are written over geometries and never over optimizer names. Three relations tie the
parts, with ``G`` a gradient, ``D`` an update and ``X`` the inputs of the layer:

- ``inner(step(G), G) == -dual(G)``: the step is the steepest one;
- ``norm(step(G)) == 1`` unless G is zero (then the step is zero);
- ``output_size(X D^T) <= norm(D) * activation_size(X)``: what an update can do to the layer's outputs.

``project`` and ``reach`` serve ascent within a ball of the norm.

The steepest-descent dictionary follows arXiv:2509.26030 (appendix A) and arXiv:2506.15054. All leading axes
are batch axes; the last two are (out, in) for weights and (token, in) for activations.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products over the last two axes: ``[..., out, in] x [..., out, in] -> [...]``."""
    return (a * b).sum(dim=(-2, -1))


def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1 for each entry, and NaN where the entry is not finite (``torch.sign`` hides NaN as 0)."""
    return x.sign().add_(x, alpha=0)


def svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD ``x = U diag(s) V^T`` of each matrix, in float32 or better.

    A matrix with a non-finite entry gets NaN factors: LAPACK would raise for the whole batch, so that one
    diverged run would take the others with it.

    Args:
        x: ``[..., m, n]``.

    Returns:
        ``U [..., m, k]``, ``s [..., k]`` descending, ``V^T [..., k, n]`` with k = min(m, n).
    """
    x, broken = without_broken(x)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    return (
        u.masked_fill_(broken, torch.nan),
        s.masked_fill_(broken[..., 0], torch.nan),
        vt.masked_fill_(broken, torch.nan),
    )


def singular_values(x: Tensor) -> Tensor:
    """Singular values of each matrix ``[..., m, n] -> [..., k]``, descending, as in :func:`svd` but faster."""
    x, broken = without_broken(x)
    return torch.linalg.svdvals(x).masked_fill(broken[..., 0], torch.nan)


def without_broken(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each non-finite matrix of ``[..., m, n]`` replaced by zeros, and the mask ``[..., 1, 1]`` of these."""
    broken = ~torch.isfinite(x).all(-1, keepdim=True).all(-2, keepdim=True)
    x = x.masked_fill(broken, 0)
    return x if x.dtype == torch.float64 else x.float(), broken


def polar(x: Tensor) -> Tensor:
    """``U V^T`` from the exact SVD of each matrix ``[..., m, n]``, over its nonzero singular values.

    A singular value counts as zero below ``s_max * max(m, n) * epsilon``: there U and V are arbitrary. So a
    zero matrix gives zeros.
    """
    u, s, vt = svd(x)
    kept = s > s[..., :1] * (max(x.shape[-2:]) * torch.finfo(s.dtype).eps)
    return ((u * torch.where(s.isnan(), s, kept)[..., None, :]) @ vt).to(x.dtype)


class Geometry(ABC):
    """A norm on weight matrices and what follows from it; see the module's text for the relations."""

    name: str

    @abstractmethod
    def norm(self, d: Tensor) -> Tensor:
        """Size of an update: ``[..., out, in] -> [...]``."""

    @abstractmethod
    def dual(self, g: Tensor) -> Tensor:
        """Dual norm, the largest ``inner(d, g)`` over updates d of norm 1: ``[..., out, in] -> [...]``."""

    @abstractmethod
    def step(self, g: Tensor) -> Tensor:
        """The update of norm 1 that descends steepest: ``[..., out, in] -> [..., out, in]``."""

    @abstractmethod
    def project(self, d: Tensor, radius: Tensor) -> Tensor:
        """The update of norm at most ``radius`` nearest to d in Frobenius norm; ``radius`` is ``[...]`` or ``[]``."""

    @abstractmethod
    def reach(self, out: int, inner: int) -> float:
        """Largest Frobenius norm among (out, in) updates of norm 1."""

    @abstractmethod
    def activation_size(self, x: Tensor) -> Tensor:
        """How far an update of norm 1 can move the outputs: ``[..., token, in] -> [...]``."""

    @abstractmethod
    def output_size(self, y: Tensor) -> Tensor:
        """The size of outputs that ``norm * activation_size`` bounds: ``[..., token, out] -> [...]``."""


class MaxGeometry(Geometry):
    """Largest absolute entry. Sign descent; Adam without averaging."""

    name = "max"

    def norm(self, d: Tensor) -> Tensor:
        return d.abs().amax(dim=(-2, -1))

    def dual(self, g: Tensor) -> Tensor:
        return g.abs().sum(dim=(-2, -1))

    def step(self, g: Tensor) -> Tensor:
        return -sign(g)

    def project(self, d: Tensor, radius: Tensor) -> Tensor:
        """Clips entries."""
        limit = radius[..., None, None]
        return torch.maximum(torch.minimum(d, limit), -limit)

    def reach(self, out: int, inner: int) -> float:
        return math.sqrt(out * inner)

    def activation_size(self, x: Tensor) -> Tensor:
        """Mean over tokens of the l1 norm."""
        return x.abs().sum(-1).mean(-1)

    def output_size(self, y: Tensor) -> Tensor:
        """Mean over tokens of the largest absolute entry."""
        return y.abs().amax(-1).mean(-1)


class SpectralGeometry(Geometry):
    """Largest singular value. Muon; Shampoo without accumulation."""

    name = "spectral"

    def norm(self, d: Tensor) -> Tensor:
        return singular_values(d)[..., 0]

    def dual(self, g: Tensor) -> Tensor:
        """The nuclear norm: the sum of the singular values."""
        return singular_values(g).sum(-1)

    def step(self, g: Tensor) -> Tensor:
        return -polar(g)

    def project(self, d: Tensor, radius: Tensor) -> Tensor:
        """Clips singular values."""
        u, s, vt = svd(d)
        return ((u * torch.minimum(s, radius[..., None])[..., None, :]) @ vt).to(d.dtype)

    def reach(self, out: int, inner: int) -> float:
        return math.sqrt(min(out, inner))

    def activation_size(self, x: Tensor) -> Tensor:
        """Mean over tokens of the l2 norm."""
        return torch.linalg.vector_norm(x, dim=-1).mean(-1)

    def output_size(self, y: Tensor) -> Tensor:
        """Mean over tokens of the l2 norm."""
        return torch.linalg.vector_norm(y, dim=-1).mean(-1)


class FrobeniusGeometry(Geometry):
    """Root of the sum of squares, which is its own dual. Plain gradient descent."""

    name = "frobenius"

    def norm(self, d: Tensor) -> Tensor:
        return torch.linalg.vector_norm(d, dim=(-2, -1))

    def dual(self, g: Tensor) -> Tensor:
        return self.norm(g)

    def step(self, g: Tensor) -> Tensor:
        size = self.norm(g)[..., None, None]
        return -g / size.masked_fill(size == 0, 1)

    def project(self, d: Tensor, radius: Tensor) -> Tensor:
        """Scales down."""
        size = self.norm(d)
        return d * torch.where(size > radius, radius / size, torch.ones_like(size))[..., None, None]

    def reach(self, out: int, inner: int) -> float:
        return 1.0

    def activation_size(self, x: Tensor) -> Tensor:
        """The operator norm of X."""
        return singular_values(x)[..., 0]

    def output_size(self, y: Tensor) -> Tensor:
        """The Frobenius norm over tokens and outputs."""
        return torch.linalg.vector_norm(y, dim=(-2, -1))


GEOMETRIES: dict[str, Geometry] = {
    geometry.name: geometry for geometry in (MaxGeometry(), SpectralGeometry(), FrobeniusGeometry())
}
