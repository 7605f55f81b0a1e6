"""Modes, gap flow, removals and the commutator defect against closed forms of quadratic losses."""

import math

import pytest
import torch
from torch import Tensor

from synthlm.analysis.edge_modes import (
    AlongModes,
    along_modes,
    commutator_defect,
    defect_median,
    gap_flow,
    removals,
)
from synthlm.analysis.spectral_edge import UpdateStream

P = 12


def symmetric(generator: torch.Generator) -> Tensor:
    a = torch.randn(P, P, generator=generator, dtype=torch.float64)
    return a + a.T


def test_the_commutator_defect_of_quadratics(generator: torch.Generator) -> None:
    """Batches are (H, b): loss w^T H w / 2 + b w, whose defect does not depend on the step."""
    batches = [(symmetric(generator), torch.randn(P, generator=generator).double()) for _ in range(2)]
    flat = torch.randn(P, generator=generator).double()

    def gradient(w: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return batch[0] @ w + batch[1]

    (h_a, _), (h_b, _) = batches
    g_a, g_b = gradient(flat, batches[0]), gradient(flat, batches[1])
    expected = float((h_b @ g_a - h_a @ g_b).norm() / (g_a.norm() * g_b.norm()))
    kept = flat.clone()
    for step in (1e-3, 0.1):
        assert commutator_defect(gradient, flat, *batches, step) == pytest.approx(expected, rel=1e-6)
    assert torch.equal(flat, kept)
    assert commutator_defect(gradient, flat, batches[0], batches[0]) == 0.0
    assert math.isnan(commutator_defect(lambda w, b: 0 * w, flat, *batches))
    order = iter([*batches, batches[0], batches[0], *reversed(batches)])
    median, found = defect_median(gradient, flat, lambda: next(order), draws=3)
    assert found[1] == 0.0
    assert median == pytest.approx(expected, rel=1e-6)


def test_curvature_and_slope_along_modes(generator: torch.Generator) -> None:
    h, g = symmetric(generator), torch.randn(P, generator=generator).double()
    modes = torch.linalg.qr(torch.randn(P, 3, generator=generator).double())[0].T
    along = along_modes(lambda vectors: vectors @ h, g, modes)
    for j, mode in enumerate(modes):
        assert float(along.curvature[j]) == pytest.approx(float(mode @ h @ mode))
        assert float(along.slope[j]) == pytest.approx(float(mode @ g))


def test_gap_flow_terms(generator: torch.Generator) -> None:
    sigma = torch.tensor([5.0, 3.0, 1.0])
    along = AlongModes(torch.tensor([0.5, 2.0, 4.0]), torch.tensor([1.0, -2.0, 3.0]))
    flow = gap_flow(sigma, along, k=2, lr=0.1, weight_decay=0.3, window=7)
    assert flow.asymmetry == pytest.approx(-0.1 * (2 - 4) * 2)
    assert flow.damping == pytest.approx(-0.1 * (3 + 0.3) * 2)
    assert flow.driving == pytest.approx(0.1 * 7 * (4 / 3 - 9 / 1))
    with pytest.raises(ValueError, match="k = 3"):
        gap_flow(sigma, along, k=3, lr=0.1, weight_decay=0.0, window=7)


def test_two_terms_are_the_change_under_gradient_descent_on_a_quadratic(generator: torch.Generator) -> None:
    """Curvatures of their own along two axes, far apart in scale: asymmetry and damping are the change to first order
    in the rate, with the slopes that there are."""
    lr, window = 1e-3, 4
    h = torch.tensor([0.9, 0.4]) + 0.2 * torch.rand(2, generator=generator)
    curvature = torch.zeros(P).double()
    curvature[:2] = h
    flat = torch.zeros(1, P).double()
    flat[0, :2] = torch.tensor([5.0, 0.01])
    stream = UpdateStream({"w": P}, 1, window)
    gaps, found = [], []
    for _ in range(window + 4):
        stream.push(flat)
        if stream.count >= window:
            modes, sigma = stream.modes("all", 2)
            gradient = curvature * flat[0]
            along = along_modes(lambda many: many * curvature, gradient, modes)
            found.append(gap_flow(sigma, along, 1, lr, 0.0, window))
            gaps.append(float(sigma[0] - sigma[1]))
        flat = flat - lr * curvature * flat
    assert float(along.slope.abs().max()) > 1
    assert gaps[1] - gaps[0] == pytest.approx(found[0].asymmetry + found[0].damping, rel=0.01)


def test_removals_take_what_they_say(generator: torch.Generator) -> None:
    flat, start = torch.randn(2, P, generator=generator).double()
    modes = torch.zeros(2, P).double()
    modes[:, 3:9] = torch.linalg.qr(torch.randn(6, 2, generator=generator).double())[0].T
    kept = flat.clone()
    found = list(removals(flat, modes, start, generator, controls=5))
    assert torch.equal(flat, kept)
    assert len(found) == 2 * 2 * (1 + 5 + 5)
    for item in found:
        vector = flat - start if item.origin == "update" else flat
        taken = flat - item.weights
        assert float(taken.norm()) == pytest.approx(item.removed)
        assert not taken[:3].any()
        assert not taken[9:].any()
        part = abs(float(vector @ modes[item.mode]))
        if item.kind == "mode":
            left = vector - taken
            assert abs(float(left @ modes[item.mode])) < 1e-12
            assert item.removed == pytest.approx(part)
        elif item.kind == "matched":
            assert item.removed == pytest.approx(part)
        else:
            assert float(taken @ vector) == pytest.approx(item.removed**2)
    directions = torch.stack([flat - i.weights for i in found if i.kind == "matched"])
    assert torch.linalg.matrix_rank(directions) == 6
