"""Curvature by products against the exact Hessian of a tiny model in float64, and against closed forms."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from synthlm.analysis.curvature import critical_sharpness, curvature_along, trace
from synthlm.analysis.hessian import Hessian
from synthlm.analysis.lanczos import spectrum, top_eigenpairs, tridiagonal
from synthlm.analysis.objective import language_objective

sys.path.insert(0, str(Path(__file__).parent))
from exact import LANGUAGE, MODEL, Quadratic, exact_hessian, tiny


def random_quadratic(generator: torch.Generator, size: int = 30, matrix: int = 20) -> Quadratic:
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return Quadratic(a + a.mT, torch.randn(size, generator=generator, dtype=torch.float64), matrix)


def test_products_are_those_of_the_exact_hessian(generator: torch.Generator) -> None:
    objective, flat = tiny(generator)
    before = flat.clone()
    exact = exact_hessian(objective, flat)
    vectors = torch.randn(5, len(flat), generator=generator, dtype=torch.float64)
    for width in (1, 2, 8):
        hessian = Hessian(objective, flat, width=width)
        torch.testing.assert_close(hessian(vectors), vectors @ exact, rtol=1e-9, atol=1e-10)
        assert hessian.products == 5
    assert torch.equal(flat, before)
    assert exact.abs().max() > 0.1


def test_the_matrix_group_is_its_own_block(generator: torch.Generator) -> None:
    objective, flat = tiny(generator)
    m = objective.layout.matrix_size
    assert 0 < m < len(flat)
    exact = exact_hessian(objective, flat)[:m, :m]
    hessian = Hessian(objective, flat, "matrix", width=3)
    assert hessian.size == m
    torch.testing.assert_close(hessian.matrix(), exact, rtol=1e-9, atol=1e-10)


def test_one_slice_has_its_own_hessian_and_the_slices_add_up(generator: torch.Generator) -> None:
    objective, flat = tiny(generator)
    v = torch.randn(1, len(flat), generator=generator, dtype=torch.float64)
    parts = torch.stack([Hessian(objective, flat, part=name)(v)[0] for name in objective.slices])
    share = torch.tensor(objective.counts, dtype=torch.float64)
    torch.testing.assert_close((share / share.sum()) @ parts, Hessian(objective, flat)(v)[0])
    with pytest.raises(ValueError, match="no slice 'x'"):
        Hessian(objective, flat, part="x")
    with pytest.raises(ValueError, match="weights of shape"):
        Hessian(objective, flat[None])


def test_float32_products_agree_with_float64(generator: torch.Generator) -> None:
    objective, flat = tiny(generator)
    single = language_objective(MODEL, LANGUAGE.build(2))
    v = torch.randn(3, len(flat), generator=generator)
    found = Hessian(single, flat.float())(v)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), Hessian(objective, flat)(v), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("end", ["largest", "smallest", "magnitude"])
def test_the_outermost_eigenpairs(end: str, generator: torch.Generator) -> None:
    objective, flat = tiny(generator)
    values, vectors = torch.linalg.eigh(exact_hessian(objective, flat))
    order = {
        "largest": torch.argsort(-values),
        "smallest": torch.argsort(values),
        "magnitude": torch.argsort(-values.abs()),
    }[end][:4]
    pairs = top_eigenpairs(Hessian(objective, flat), generator, 4, end, tolerance=1e-9)
    torch.testing.assert_close(pairs.values, values[order], rtol=1e-7, atol=1e-8)
    overlap = (pairs.vectors * vectors[:, order].T).sum(1).abs()
    torch.testing.assert_close(overlap, torch.ones_like(overlap), rtol=1e-6, atol=1e-6)
    assert (pairs.residuals < 1e-6).all()


def test_eigenvalues_do_not_depend_on_the_start_and_repeat_to_the_bit(generator: torch.Generator) -> None:
    objective, flat = tiny(generator)
    first, again, other = (
        top_eigenpairs(Hessian(objective, flat), torch.Generator().manual_seed(seed), 3, tolerance=1e-9)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.vectors, again.vectors)
    torch.testing.assert_close(first.values, other.values, rtol=1e-7, atol=1e-9)


def test_broken_weights_give_nan_and_no_error(generator: torch.Generator) -> None:
    objective, flat = tiny(generator)
    flat[0] = torch.nan
    hessian = Hessian(objective, flat)
    assert top_eigenpairs(hessian, generator, 2).values.isnan().all()
    assert spectrum(hessian, generator, 2, 5).nodes.isnan().all()
    assert np.isnan(trace(hessian, generator, 2).mean)


def test_curvature_along_directions(generator: torch.Generator) -> None:
    objective, flat = tiny(generator)
    exact = exact_hessian(objective, flat)
    gradient = torch.autograd.functional.jacobian(lambda x: objective.loss(x[None])[0], flat)
    v = torch.randn(3, len(flat), generator=generator, dtype=torch.float64) * torch.tensor([[0.1], [1], [9]])
    along = curvature_along(Hessian(objective, flat, width=2), v)
    torch.testing.assert_close(along.slope, v @ gradient)
    torch.testing.assert_close(along.curvature, ((v @ exact) * v).sum(1))
    torch.testing.assert_close(along.normalized, ((v @ exact) * v).sum(1) / (v * v).sum(1))


def test_the_trace_is_within_its_standard_error(generator: torch.Generator) -> None:
    objective, flat = tiny(generator)
    exact = exact_hessian(objective, flat)
    estimate = trace(Hessian(objective, flat, width=7), generator, 400)
    # the variance of z H z over random signs is twice the sum of squares off the diagonal
    wanted = (2 * (exact.square().sum() - exact.diagonal().square().sum()) / 400).sqrt().item()
    assert estimate.n == 400
    assert estimate.error == pytest.approx(wanted, rel=0.3)
    assert abs(estimate.mean - exact.trace().item()) < 5 * wanted


def test_the_trace_of_a_diagonal_matrix_needs_one_sample(generator: torch.Generator) -> None:
    d = torch.randn(12, generator=generator, dtype=torch.float64)
    hessian = Hessian(Quadratic(d.diag(), torch.zeros_like(d), 12), torch.zeros_like(d))
    assert trace(hessian, generator, 1).mean == pytest.approx(d.sum().item())
    assert np.isnan(trace(hessian, generator, 1).error)


def test_full_lanczos_finds_the_whole_spectrum_and_its_weights(generator: torch.Generator) -> None:
    m = 40
    q, _ = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64))
    spread = torch.linspace(-1, 9, m, dtype=torch.float64) ** 3
    hessian = Hessian(
        Quadratic((q * spread) @ q.mT, torch.zeros(m, dtype=torch.float64), m), torch.zeros(m).double()
    )
    starts = torch.randn(2, m, generator=generator, dtype=torch.float64)
    diagonal, beside = tridiagonal(hessian, starts, m)
    for p in range(2):
        dense = diagonal[p].diag() + beside[p].diag(1) + beside[p].diag(-1)
        values, vectors = torch.linalg.eigh(dense)
        torch.testing.assert_close(values, spread, rtol=1e-8, atol=1e-8)
        unit = starts[p] / starts[p].norm()
        torch.testing.assert_close(vectors[0].square(), (unit @ q).square(), rtol=1e-5, atol=1e-8)


def test_quadrature_moments_are_those_of_the_probe_vectors(generator: torch.Generator) -> None:
    """k steps integrate polynomials up to degree 2k - 1 exactly: only squared first components do."""
    objective, flat = tiny(generator)
    exact = exact_hessian(objective, flat)
    seed = generator.initial_seed()
    found = spectrum(Hessian(objective, flat, width=2), torch.Generator().manual_seed(seed), 3, 6)
    again = torch.Generator().manual_seed(seed)
    z = torch.cat([(2 * torch.randint(0, 2, (k, len(flat)), generator=again) - 1).double() for k in (2, 1)])
    power = z.clone()
    for degree in range(12):
        wanted = (z * power).sum(1) / len(flat)
        torch.testing.assert_close(found.moment(degree), wanted, rtol=1e-7, atol=1e-9)
        power = power @ exact
    torch.testing.assert_close(found.weights.sum(1), torch.ones(3, dtype=torch.float64))


def test_the_density_is_that_of_the_exact_eigenvalues(generator: torch.Generator) -> None:
    objective, flat = tiny(generator)
    values = torch.linalg.eigvalsh(exact_hessian(objective, flat))
    found = spectrum(Hessian(objective, flat), generator, 60, 60)
    width = 0.05 * (values[-1] - values[0]).item()
    grid = torch.linspace(values[0].item() - 5 * width, values[-1].item() + 5 * width, 400).double()
    kernel = torch.exp(-((grid[:, None] - values) / width).square() / 2) / (width * (2 * torch.pi) ** 0.5)
    density = found.density(grid, width)
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-3)
    # total variation between the broadened densities
    assert torch.trapezoid((density - kernel.mean(1)).abs(), grid).item() / 2 < 0.05


def test_an_exhausted_krylov_space_leaves_no_spurious_weight(generator: torch.Generator) -> None:
    """Three distinct eigenvalues: three nodes carry all weight, whatever the number of steps."""
    m = 30
    q, _ = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64))
    spread = torch.tensor([-1.0, 2.0, 7.0], dtype=torch.float64).repeat(10)
    hessian = Hessian(Quadratic((q * spread) @ q.mT, torch.zeros(m).double(), m), torch.zeros(m).double())
    found = spectrum(hessian, generator, 2, 12)
    for value in (-1.0, 2.0, 7.0):
        near = (found.nodes - value).abs() < 1e-6
        assert (found.weights * near).sum(1).min() > 0.01
    near = sum((found.nodes - value).abs() < 1e-6 for value in (-1.0, 2.0, 7.0))
    torch.testing.assert_close((found.weights * near).sum(1), torch.ones(2, dtype=torch.float64))


def test_the_critical_step_of_a_quadratic(generator: torch.Generator) -> None:
    """L(x + t v) = L(x) + t s + t^2 c / 2 is above its start from t = -2 s / c on."""
    quadratic = random_quadratic(generator)
    x = torch.randn(30, generator=generator, dtype=torch.float64)
    v = torch.randn(12, 30, generator=generator, dtype=torch.float64)
    v *= torch.logspace(-3, 3, 12, dtype=torch.float64)[:, None]
    slope = v @ (quadratic.a @ x + quadratic.b)
    v[slope > 0] *= -1
    slope, curvature = -slope.abs(), ((v @ quadratic.a) * v).sum(1)
    found = critical_sharpness(quadratic, x, v, bisections=40, width=5)
    wanted = torch.where(curvature > 0, -2 * slope / curvature, torch.inf)
    torch.testing.assert_close(found.step, wanted, rtol=1e-9, atol=0)
    gradient_step = -(quadratic.a @ x + quadratic.b)[None]
    sharpness = critical_sharpness(quadratic, x, gradient_step, bisections=40).sharpness.item()
    along = (gradient_step @ quadratic.a @ gradient_step.mT / gradient_step.square().sum()).item()
    assert sharpness == pytest.approx(max(along, 0), rel=1e-9)


def test_uphill_from_the_start_has_no_critical_step(generator: torch.Generator) -> None:
    a = torch.eye(10)
    quadratic = Quadratic(a, torch.zeros(10), 10, c=1.0)
    x = torch.randn(10, generator=generator)
    found = critical_sharpness(quadratic, x, torch.stack([x, -x, torch.zeros(10)]))
    assert found.step[0].item() == 0
    assert found.step[1].item() == pytest.approx(2, rel=1e-3)
    assert found.step[2].isinf()
    assert found.sharpness.tolist() == [float("inf"), pytest.approx(1, rel=1e-3), 0]


def test_the_critical_step_of_a_model_lies_where_a_fine_scan_says(generator: torch.Generator) -> None:
    objective, flat = tiny(generator)
    hessian = Hessian(objective, flat)
    step = -hessian.gradient()[None]
    found = critical_sharpness(objective, flat, step, bisections=30)
    scan = torch.linspace(1e-3, 1.5, 1500).double() * found.step
    losses = objective.loss(flat + scan[:, None] * step)
    above = losses > objective.loss(flat[None])
    first = scan[above.nonzero()[0, 0]].item()
    assert found.step.item() == pytest.approx(first, rel=3e-3)
