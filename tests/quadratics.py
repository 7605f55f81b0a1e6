"""Objectives with closed forms: an exactly quadratic loss, and a linear rule for which noise is solvable by hand."""

from collections.abc import Iterator

import torch
from torch import Tensor

from synthlm.weights import Entry, Layout

LAYOUT = Layout([
    Entry("a", (4, 6), "matrix"), Entry("b", (6, 3), "matrix"), Entry("c", (4, 6), "matrix"),
    Entry("e", (5, 2), "aux"), Entry("g", (3,), "aux"),
])  # fmt: skip


class Quadratic:
    """Losses 1/2 (w - c_s)^T H_s (w - c_s) for two slices; the total weighs them by ``counts``."""

    slices = ("one", "two")
    counts = (3, 1)

    def __init__(self, generator: torch.Generator, layout: Layout = LAYOUT, floor: float = 0.0) -> None:
        self.layout = layout
        p = layout.size
        roots = torch.randn(2, p, p, generator=generator, dtype=torch.float64) / p**0.5
        self.hessians = roots @ roots.mT + floor * torch.eye(p, dtype=torch.float64)
        self.centres = torch.randn(2, p, generator=generator, dtype=torch.float64)
        self.share = torch.tensor(self.counts, dtype=torch.float64) / sum(self.counts)
        self.position_slice = torch.tensor([0, 0, 0, 1])
        self.position_item = torch.arange(4)

    @property
    def hessian(self) -> Tensor:
        """Of the total loss, [param, param]."""
        return torch.einsum("s,sij->ij", self.share, self.hessians)

    def spike(self, generator: torch.Generator, height: float = 4.0) -> None:
        """Add one direction of higher curvature, so that the top eigenvector stands apart from the next."""
        v = torch.randn(self.layout.size, generator=generator, dtype=torch.float64)
        self.hessians = self.hessians + height * torch.outer(v, v) / v.square().sum()

    def losses(self, flat: Tensor) -> Tensor:
        d = flat.double()[:, None] - self.centres
        return torch.einsum("rsi,sij,rsj->rs", d, self.hessians, d) / 2

    def loss(self, flat: Tensor) -> Tensor:
        return self.losses(flat) @ self.share

    def accuracies(self, flat: Tensor) -> Tensor:
        """A smooth stand-in: exp(-loss)."""
        return (-self.losses(flat)).exp()

    def accuracy(self, flat: Tensor) -> Tensor:
        return self.accuracies(flat) @ self.share

    def scores(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        return self.losses(flat), self.accuracies(flat)

    def log_probabilities(self, flat: Tensor) -> Tensor:
        raise AssertionError("not asked for")

    def trials(self, flat: Tensor) -> Tensor:
        raise AssertionError("not asked for")

    def inputs(self, flat: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        raise AssertionError("not asked for")
