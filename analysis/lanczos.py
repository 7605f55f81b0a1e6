"""Eigenvalues of the Hessian from products alone: its ends by Lanczos, its density by stochastic quadrature."""

import inspect
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from synthlm.analysis.curvature import signs
from synthlm.analysis.hessian import Hessian

Floats = NDArray[np.float64]
End = Literal["largest", "smallest", "magnitude"]

_ENDS = {"largest": "LA", "smallest": "SA", "magnitude": "LM"}
_TAKES_RNG = "rng" in inspect.signature(eigsh).parameters  # scipy 1.17


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues of one end of the spectrum, the outermost first; NaN where Lanczos did not converge.

    Attributes:
        values: [pair] nats per squared unit of weight.
        vectors: [pair, size] of length 1.
        residuals: [pair] ``||H v - value v||``.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


def top_eigenpairs(
    hessian: Hessian,
    generator: torch.Generator,
    count: int = 5,
    end: End = "largest",
    tolerance: float = 1e-4,
    restarts: int = 50,
) -> Eigenpairs:
    """The outermost eigenvalues and their vectors by implicitly restarted Lanczos (ARPACK through scipy).

    Args:
        generator: of the start vector.
        count: less than the Hessian's size.
        tolerance: relative accuracy of the eigenvalues.
        restarts: most of them; what has not converged then is NaN.
    """
    device, dtype = hessian.flat.device, hessian.flat.dtype
    start = torch.randn(hessian.size, generator=generator, dtype=torch.float64).numpy()
    values, vectors = np.full(count, np.nan), np.full((hessian.size, count), np.nan)

    def product(v: Floats) -> Floats:
        return (
            hessian(torch.as_tensor(v.reshape(1, -1), dtype=dtype, device=device))[0].double().cpu().numpy()
        )

    if np.isfinite(product(start)).all():
        operator = LinearOperator((hessian.size,) * 2, matvec=product, dtype=np.float64)
        options = {"rng": np.random.default_rng(0)} if _TAKES_RNG else {}
        try:
            found = eigsh(
                operator, count, which=_ENDS[end], v0=start, tol=tolerance, maxiter=restarts, **options
            )
        except ArpackNoConvergence as error:
            found = error.eigenvalues, error.eigenvectors
        order = {
            "largest": np.argsort(-found[0]),
            "smallest": np.argsort(found[0]),
            "magnitude": np.argsort(-np.abs(found[0])),
        }[end]
        values[: len(order)], vectors[:, : len(order)] = found[0][order], found[1][:, order]
    held = torch.from_numpy(values).to(device)
    rows = torch.from_numpy(np.ascontiguousarray(vectors.T)).to(device)
    residuals = torch.linalg.vector_norm(hessian(rows).double() - held[:, None] * rows, dim=1)
    return Eigenpairs(held, rows.to(dtype), residuals)


@dataclass(frozen=True)
class Spectrum:
    """Quadrature of the spectral density: each probe vector's nodes and weights.

    Attributes:
        nodes: [probe, step] Ritz values, ascending.
        weights: [probe, step] of sum 1: squared first components of the tridiagonal matrix's eigenvectors.
        size: the Hessian's dimension.
    """

    nodes: Tensor
    weights: Tensor
    size: int

    def moment(self, power: int) -> Tensor:
        """[probe] estimates of the mean of ``eigenvalue ** power`` (exact up to ``2 steps - 1``, for that probe)."""
        return (self.weights * self.nodes**power).sum(1)

    def density(self, grid: Tensor, width: float) -> Tensor:
        """``[point] -> [point]`` probability density of an eigenvalue, each node broadened to a Gaussian.

        Args:
            width: the Gaussian's standard deviation, in units of an eigenvalue.
        """
        offset = (grid[:, None] - self.nodes.reshape(1, -1)) / width
        kernel = torch.exp(-offset.square() / 2) / (width * (2 * torch.pi) ** 0.5)
        return kernel @ self.weights.reshape(-1) / len(self.weights)


def tridiagonal(hessian: Hessian, starts: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Lanczos with full reorthogonalization from each of ``starts [probe, size]``, side by side.

    Returns:
        The diagonal ``[probe, step]`` and the off-diagonal ``[probe, step - 1]`` in float64. Where the Krylov space is
        exhausted early, what follows is 0 and decoupled.
    """
    basis = torch.zeros(steps, *starts.shape, dtype=starts.dtype, device=starts.device)
    diagonal = torch.zeros(len(starts), steps, dtype=torch.float64, device=starts.device)
    beside = torch.zeros_like(diagonal)
    basis[0] = starts / torch.linalg.vector_norm(starts, dim=1, keepdim=True)
    largest = torch.zeros_like(diagonal[:, 0])
    for k in range(steps):
        r = hessian(basis[k])
        largest = torch.maximum(largest, torch.linalg.vector_norm(r, dim=1).double())
        diagonal[:, k] = (r * basis[k]).sum(1).double()
        for _ in range(2):  # once leaves rounding errors that grow (Giraud et al. 2005: twice is enough)
            r = r - torch.einsum("kps,kp->ps", basis[: k + 1], torch.einsum("kps,ps->kp", basis[: k + 1], r))
        if k + 1 < steps:
            norm = torch.linalg.vector_norm(r, dim=1)
            ended = norm.double() <= 10 * torch.finfo(r.dtype).eps * largest
            norm = norm.masked_fill(ended, 0)
            beside[:, k] = norm.double()
            basis[k + 1] = torch.where(ended[:, None], 0, r / norm[:, None])
    return diagonal, beside[:, : steps - 1]


def spectrum(hessian: Hessian, generator: torch.Generator, probes: int = 8, steps: int = 40) -> Spectrum:
    """The spectral density by stochastic Lanczos quadrature (Ubaru, Chen, Saad 2017; arXiv 1901.10159).

    Args:
        generator: of the probe vectors (random signs).
        steps: Lanczos steps, at most the Hessian's size.
    """
    steps = min(steps, hessian.size)
    nodes, weights = [], []
    for done in range(0, probes, hessian.width):
        starts = signs(hessian, generator, min(hessian.width, probes - done))
        diagonal, beside = tridiagonal(hessian, starts, steps)
        if not bool(diagonal.isfinite().all()):
            nodes.append(torch.full_like(diagonal, torch.nan))
            weights.append(torch.full_like(diagonal, torch.nan))
            continue
        dense = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
        values, vectors = torch.linalg.eigh(dense)
        nodes.append(values)
        weights.append(vectors[:, 0, :].square())
    return Spectrum(torch.cat(nodes), torch.cat(weights), hessian.size)
