"""Geometries: steepest steps, dual norms and activation bounds, on fresh random input."""

import secrets

import pytest
import torch

from synthlm.geometry import GEOMETRIES, inner, polar

SHAPES = [(5, 9), (9, 5), (7, 7), (1, 6), (6, 1)]


@pytest.fixture
def generator():
    seed = secrets.randbits(48)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_step_is_a_unit_step_and_attains_the_dual_norm(name, shape, generator):
    geometry = GEOMETRIES[name]
    g = normal(generator, 4, *shape)
    step = geometry.step(g)
    torch.testing.assert_close(inner(step, g), -geometry.dual(g), rtol=1e-12, atol=0)
    torch.testing.assert_close(geometry.norm(step), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_no_other_unit_update_descends_faster(name, generator):
    geometry = GEOMETRIES[name]
    g = normal(generator, 6, 8)
    others = normal(generator, 500, 6, 8)
    others = others / geometry.norm(others)[:, None, None]
    assert (inner(others, g).abs() <= geometry.dual(g)).all()


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_activation_size_bounds_the_output_change(name, shape, generator):
    geometry = GEOMETRIES[name]
    d, x = normal(generator, 50, *shape), normal(generator, 50, 13, shape[1])
    bound = geometry.norm(d) * geometry.activation_size(x)
    assert (geometry.output_size(x @ d.mT) <= bound * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_activation_bound_is_attained(name, generator):
    """One token, and the update of norm 1 that answers it strongest; a looser size would leave a gap."""
    geometry = GEOMETRIES[name]
    x = normal(generator, 1, 6)
    answer = x.sign() if name == "max" else x / x.norm()
    d = torch.zeros(4, 6, dtype=torch.float64)
    d[2] = answer[0]
    torch.testing.assert_close(geometry.norm(d), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(geometry.output_size(x @ d.T), geometry.activation_size(x), rtol=1e-12, atol=0)


def test_norms_agree_with_independent_formulas(generator):
    g = normal(generator, 6, 4)
    eigenvalues = torch.linalg.eigvalsh(g.T @ g).clamp_min(0).sqrt()
    assert GEOMETRIES["max"].norm(g).item() == max(abs(v) for row in g.tolist() for v in row)
    torch.testing.assert_close(GEOMETRIES["spectral"].norm(g), eigenvalues.max(), rtol=1e-10, atol=0)
    torch.testing.assert_close(GEOMETRIES["spectral"].dual(g), eigenvalues.sum(), rtol=1e-10, atol=0)
    torch.testing.assert_close(GEOMETRIES["frobenius"].norm(g), (g * g).sum().sqrt(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_leading_axes_are_a_loop(name, generator):
    geometry = GEOMETRIES[name]
    d, x = normal(generator, 2, 3, 5, 7), normal(generator, 2, 3, 11, 7)
    for function, value in [
        (geometry.norm, d),
        (geometry.dual, d),
        (geometry.step, d),
        (geometry.activation_size, x),
        (geometry.output_size, x),
    ]:
        looped = torch.stack([torch.stack([function(value[i, j]) for j in range(3)]) for i in range(2)])
        torch.testing.assert_close(function(value), looped, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_zero_gradient_gives_a_zero_step(name):
    step = GEOMETRIES[name].step(torch.zeros(2, 4, 3, dtype=torch.float64))
    assert torch.equal(step.abs(), torch.zeros_like(step))


def test_polar_factor_leaves_out_directions_that_are_not_there(generator):
    left, right = normal(generator, 8, 2), normal(generator, 2, 5)
    sizes = torch.linalg.svdvals(polar(left @ right))
    expected = torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(sizes, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_matrix_leaves_the_others_alone(bad, generator):
    g = normal(generator, 3, 4, 6)
    broken = g.clone()
    broken[1, 2, 3] = bad
    for geometry in GEOMETRIES.values():
        for function in (geometry.step, geometry.norm, geometry.dual):
            value, expected = function(broken), function(g)
            assert not value[1].isfinite().all()
            assert torch.equal(value[[0, 2]], expected[[0, 2]])
