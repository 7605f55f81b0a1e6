"""Matrix functions batched over any leading axes, in which one broken matrix leaves the others alone."""

import torch
from torch import Tensor

from synthlm.geometry import without_broken

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def newton_schulz(x: Tensor, steps: int = 5) -> Tensor:
    """Nearly ``U V^T`` by matrix products alone: singular values come to about 0.7 to 1.2, not onto 1.

    ``X <- a X + (b A + c A^2) X`` with ``A = X X^T`` and Jordan's coefficients
    (https://kellerjordan.github.io/posts/muon), from X scaled to Frobenius norm 1. Singular values under
    about 1e-3 of that norm stay below 0.7. In float32 at
    least: in bfloat16 the result depends on the order of operations.

    Args:
        x: ``[..., m, n]``; each matrix is treated on its own. Zero matrices give zeros.
    """
    a, b, c = NEWTON_SCHULZ
    work = x.flatten(0, -3)
    if work.dtype != torch.float64:
        work = work.float()
    tall = work.shape[-2] > work.shape[-1]
    if tall:
        work = work.mT  # the Gram matrix is taken over the short side
    work = work / torch.linalg.vector_norm(work, dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = torch.bmm(work, work.mT)
        work = torch.baddbmm(work, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), work, beta=a)
    return (work.mT if tall else work).reshape(x.shape).to(x.dtype)


def eigh(x: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues ``[..., n]`` and eigenvectors ``[..., n, n]`` of symmetric ``[..., n, n]``.

    A matrix with a non-finite entry gets NaN, where LAPACK would raise for the whole batch.
    """
    finite, broken = without_broken(x)
    values, vectors = torch.linalg.eigh(finite)
    return values.masked_fill_(broken[..., 0], torch.nan), vectors.masked_fill_(broken, torch.nan)


def inverse_fourth_root(x: Tensor, ridge: Tensor) -> Tensor:
    """``(x + ridge I)^(-1/4)`` of positive semidefinite ``[..., n, n]``; ``ridge`` is ``[..., 1, 1]``.

    Rounding can leave eigenvalues of x just below zero; they count as zero.
    """
    values, vectors = eigh(x)
    roots = (values.clamp_min(0) + ridge[..., 0]).sqrt().sqrt().reciprocal()
    return ((vectors * roots[..., None, :]) @ vectors.mT).to(x.dtype)
