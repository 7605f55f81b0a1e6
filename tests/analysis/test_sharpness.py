"""Average and worst-case sharpness against closed forms of quadratics and brute force."""

import sys
from pathlib import Path

import pytest
import torch

from synthlm.analysis.sharpness import ETA, average_sharpness, worst_sharpness

sys.path.insert(0, str(Path(__file__).parent))
from exact import Quadratic, exact_hessian, tiny


def convex(generator: torch.Generator, size: int = 12, matrix: int = 8) -> tuple[Quadratic, torch.Tensor]:
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    b = torch.randn(size, generator=generator, dtype=torch.float64)
    return Quadratic(root @ root.mT, b, matrix), torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("which", ["all", "matrix"])
def test_the_average_over_noise_is_half_the_scaled_trace(
    adaptive: bool, which: str, generator: torch.Generator
) -> None:
    quadratic, x = convex(generator)
    scale = (x.abs() + ETA) if adaptive else torch.ones_like(x)
    if which == "matrix":
        scale[8:] = 0
    sigma = 0.3
    estimate = average_sharpness(quadratic, x, sigma, generator, 2000, adaptive, which)
    wanted = sigma**2 / 2 * (quadratic.a.diagonal() * scale**2).sum().item()
    scaled = scale[:, None] * quadratic.a * scale
    error = sigma**2 * (scaled.square().sum() / 2 / 2000).sqrt().item()  # of d A d / 2, d Gaussian
    assert abs(estimate.mean - wanted) < 5 * error
    assert estimate.error == pytest.approx(error, rel=0.25)
    assert estimate.n == 2000


def test_small_noise_gives_the_models_trace(generator: torch.Generator) -> None:
    objective, flat = tiny(generator)
    before = flat.clone()
    sigma = 1e-3
    estimate = average_sharpness(objective, flat, sigma, generator, 300)
    wanted = sigma**2 / 2 * exact_hessian(objective, flat).trace().item()
    assert abs(estimate.mean - wanted) < 5 * estimate.error + 1e-3 * abs(wanted)
    assert torch.equal(flat, before)


def largest_rise(a: torch.Tensor, g: torch.Tensor, radius: float) -> float:
    """max of u . A u / 2 + g . u over the ball, A positive: from the secular equation, by bisection."""
    values, vectors = torch.linalg.eigh(a)
    c = vectors.T @ g
    low, high = values[-1].item(), values[-1].item() + g.norm().item() / radius
    for _ in range(200):
        middle = (low + high) / 2
        longer = ((c / (middle - values)).norm() > radius).item()
        low, high = (middle, high) if longer else (low, middle)
    u = vectors @ (c / (high - values))
    return (u @ a @ u / 2 + g @ u).item()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("which", ["all", "matrix"])
def test_the_worst_case_in_a_ball_is_the_exact_one(
    adaptive: bool, which: str, generator: torch.Generator
) -> None:
    quadratic, x = convex(generator)
    scale = (x.abs() + ETA) if adaptive else torch.ones_like(x)
    kept = slice(0, 8 if which == "matrix" else 12)
    a = (scale[:, None] * quadratic.a * scale)[kept, kept]
    g = (scale * (quadratic.a @ x + quadratic.b))[kept]
    radii = torch.tensor([0.05, 0.5, 2.0], dtype=torch.float64)
    worst = worst_sharpness(quadratic, x, radii, 200, adaptive, which)
    for k, radius in enumerate(radii.tolist()):
        wanted = largest_rise(a, g, radius)
        assert worst.rise[k].item() == pytest.approx(wanted, rel=1e-3)
        d = worst.perturbation[k]
        assert (d / scale).norm().item() <= radius * (1 + 1e-9)
        assert (quadratic.loss((x + d)[None]) - quadratic.loss(x[None])).item() == pytest.approx(
            worst.rise[k].item()
        )
        if which == "matrix":
            assert not d[8:].any()


def test_the_worst_case_of_a_model_beats_every_random_direction(generator: torch.Generator) -> None:
    objective, flat = tiny(generator)
    radius = 0.3
    worst = worst_sharpness(objective, flat, torch.tensor([radius]), 20).rise.item()
    random = torch.randn(2000, len(flat), generator=generator, dtype=torch.float64)
    random *= radius / random.norm(dim=1, keepdim=True)
    losses = torch.cat([objective.loss(flat + chunk) for chunk in random.split(100)])
    assert worst > (losses.max() - objective.loss(flat[None])).item() > 0


def test_adaptive_worst_case_is_blind_to_rescaled_weights(generator: torch.Generator) -> None:
    """x -> s x with L(x / s): the plain worst case changes, the adaptive one does not (but for eta)."""
    quadratic, x = convex(generator)
    x = x + 3 * x.sign()  # far from zero, where eta does not matter
    s = torch.logspace(-1, 1, 12, dtype=torch.float64)
    rescaled = Quadratic(quadratic.a / s[:, None] / s, quadratic.b / s, 8)
    radius = torch.tensor([0.1], dtype=torch.float64)
    plain, other = (worst_sharpness(q, y, radius, 100).rise for q, y in ((quadratic, x), (rescaled, s * x)))
    assert abs(plain / other - 1).item() > 0.05
    plain, other = (
        worst_sharpness(q, y, radius, 100, adaptive=True).rise for q, y in ((quadratic, x), (rescaled, s * x))
    )
    torch.testing.assert_close(plain, other, rtol=0.1, atol=0)


def test_an_overflowing_loss_is_an_infinite_rise(generator: torch.Generator) -> None:
    class Steep(Quadratic):
        def loss(self, flat: torch.Tensor) -> torch.Tensor:
            return super().loss(flat).exp()

    steep = Steep(torch.eye(4), torch.zeros(4), 4)
    x = torch.randn(4, generator=generator)
    worst = worst_sharpness(steep, x, torch.tensor([0.1, 50.0]), 5)
    assert worst.rise[0].isfinite()
    assert worst.rise[0] > 0
    assert worst.rise[1].isinf()
    assert worst.perturbation.isfinite().all()
