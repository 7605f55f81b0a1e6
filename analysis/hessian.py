"""Hessian-vector products of an objective's loss, several vectors side by side on the run axis.

The gradient's graph is built once and kept; each product is one backward pass through it (Pearlmutter 1994). So a
product costs less than one that starts from the loss, at the price of the graph's memory.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from synthlm.analysis.objective import WIDTH, Objective

Which = Literal["all", "matrix"]
Loss = Callable[[Tensor], Tensor]


class Hessian:
    """The symmetric operator ``v -> H v`` at one weight vector; the weights themselves are never changed.

    Args:
        objective: twice differentiable.
        flat: ``[param]``.
        which: ``all`` parameters, or the ``matrix`` group alone (the block of H that belongs to it).
        part: one slice's loss instead of the loss over all positions.
        width: products side by side; 1 where the objective has no run axis.

    Attributes:
        size: the operator's dimension.
        products: how many products were computed so far.

    Raises:
        ValueError: when ``flat`` is not one weight vector of the objective, or it has no slice ``part``.
    """

    def __init__(
        self,
        objective: Objective,
        flat: Tensor,
        which: Which = "all",
        part: str | None = None,
        width: int = WIDTH,
    ) -> None:
        layout = objective.layout
        if flat.shape != (layout.size,):
            raise ValueError(f"weights of shape {tuple(flat.shape)}, not ({layout.size},)")
        self.flat, self.products = flat.detach(), 0
        self.width = width if getattr(objective, "run_axis", True) else 1
        self.size = layout.size if which == "all" else layout.matrix_size
        self._losses = _losses(objective, part)
        self._kept: tuple[int, Tensor, Tensor] | None = None

    def __call__(self, vectors: Tensor) -> Tensor:
        """``[many, size] -> [many, size]``, in the weights' own type."""
        vectors = vectors.to(self.flat)
        self.products += len(vectors)
        runs = min(self.width, len(vectors))
        return torch.cat([self._product(chunk, runs) for chunk in vectors.split(runs)])

    def gradient(self) -> Tensor:
        """``[size]`` the loss's gradient."""
        total = torch.zeros_like(self.flat[: self.size])
        for loss in self._losses:
            x, whole = self._leaf(1)
            total += torch.autograd.grad(loss(whole).sum(), x)[0][0]
        return total

    def matrix(self) -> Tensor:
        """``[size, size]`` the Hessian itself, symmetrized; for small models."""
        dense = self(torch.eye(self.size))
        return (dense + dense.mT) / 2

    def _leaf(self, runs: int) -> tuple[Tensor, Tensor]:
        """What is differentiated, ``[run, size]``, and the weights ``[run, param]`` made from it."""
        x = self.flat[: self.size].repeat(runs, 1).requires_grad_()
        if self.size == len(self.flat):
            return x, x
        return x, torch.cat([x, self.flat[self.size :].expand(runs, -1)], dim=1)

    def _slope(self, loss: Loss, runs: int) -> tuple[Tensor, Tensor]:
        x, whole = self._leaf(runs)
        (gradient,) = torch.autograd.grad(loss(whole).sum(), x, create_graph=True)
        return x, gradient

    def _product(self, vectors: Tensor, runs: int) -> Tensor:
        if len(vectors) < runs:  # the last chunk: fill up rather than build another graph
            padded = torch.cat([vectors, vectors.new_zeros(runs - len(vectors), self.size)])
            return self._product(padded, runs)[: len(vectors)]
        if len(self._losses) > 1:  # data in parts: graphs are not kept, memory is one part's
            total = torch.zeros_like(vectors)
            for loss in self._losses:
                x, gradient = self._slope(loss, runs)
                total += torch.autograd.grad(gradient, x, vectors)[0]
            return total
        if self._kept is None or self._kept[0] != runs:
            self._kept = None  # let go of the old graph before the new one is built
            self._kept = (runs, *self._slope(self._losses[0], runs))
        _, x, gradient = self._kept
        return torch.autograd.grad(gradient, x, vectors, retain_graph=True)[0]


def _losses(objective: Objective, part: str | None) -> Sequence[Loss]:
    """Functions ``[run, param] -> [run]`` whose sum is the loss."""
    if part is None:
        return getattr(objective, "loss_parts", (objective.loss,))
    if part not in objective.slices:
        raise ValueError(f"no slice {part!r} among {objective.slices}")
    index = objective.slices.index(part)
    return (lambda flat: objective.losses(flat)[:, index],)
