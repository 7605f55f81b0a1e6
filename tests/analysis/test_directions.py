"""Directions: identities of the geometries on flat tensors, sizes and projections, against loops over matrices."""

import math

import pytest
import torch
from quadratics import LAYOUT, Quadratic

from synthlm.analysis import directions
from synthlm.analysis.ascent import EuclideanBall, MatrixBall, worst_case
from synthlm.geometry import GEOMETRIES, Geometry, inner

EACH = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
MATRICES = [entry.name for entry in LAYOUT.only("matrix").entries]


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def slow_norms(geometry: Geometry, flat: torch.Tensor) -> torch.Tensor:
    """[run, matrix] by one call for each matrix of each run."""
    views = LAYOUT.views(flat)
    return torch.stack(
        [torch.stack([geometry.norm(views[name][r]) for name in MATRICES]) for r in range(len(flat))]
    )


@EACH
def test_the_steepest_direction_attains_the_dual_norm_and_leaves_aux(
    geometry: Geometry, generator: torch.Generator
) -> None:
    grad = normal(generator, 3, LAYOUT.size)
    step = directions.steepest(LAYOUT, geometry, grad)
    assert not step[:, LAYOUT.matrix_size :].any()
    torch.testing.assert_close(slow_norms(geometry, step), torch.ones(3, 3, dtype=torch.float64))
    torch.testing.assert_close(directions.norms(LAYOUT, geometry, grad), slow_norms(geometry, grad))
    g, d = LAYOUT.views(grad), LAYOUT.views(step)
    for name in MATRICES:
        torch.testing.assert_close(inner(d[name], g[name]), -geometry.dual(g[name]))


@EACH
def test_sizes_relative_and_native(geometry: Geometry, generator: torch.Generator) -> None:
    base, d = normal(generator, LAYOUT.size), normal(generator, 4, LAYOUT.size)
    relative = directions.relative(LAYOUT, d, base)
    frobenius = GEOMETRIES["frobenius"]
    wanted = slow_norms(frobenius, base[None]).expand(4, -1)
    torch.testing.assert_close(slow_norms(frobenius, relative), wanted)
    native = directions.native(LAYOUT, geometry, d)
    torch.testing.assert_close(slow_norms(geometry, native), torch.ones(4, 3, dtype=torch.float64))
    for scaled in (relative, native):  # only lengths change, and no matrix turns
        assert not scaled[:, LAYOUT.matrix_size :].any()
        for name, view in LAYOUT.views(scaled).items():
            if name in MATRICES:
                cosine = torch.cosine_similarity(view.flatten(1), LAYOUT.views(d)[name].flatten(1))
                torch.testing.assert_close(cosine, torch.ones_like(cosine))
    again = directions.relative(LAYOUT, 7.5 * d, base)
    torch.testing.assert_close(again, relative)
    assert not directions.relative(LAYOUT, torch.zeros_like(d), base).any()


@EACH
def test_the_native_unit_makes_the_first_matrix_as_long_in_every_geometry(geometry: Geometry) -> None:
    unit = directions.native_unit(LAYOUT, geometry)
    assert unit * directions.matrix_reach(LAYOUT, geometry)[0].item() == pytest.approx(
        math.sqrt(min(LAYOUT.entries[0].shape))
    )


def test_filters_have_the_bases_norms(generator: torch.Generator) -> None:
    base, d = normal(generator, LAYOUT.size), normal(generator, 2, LAYOUT.size)
    d[0, LAYOUT.slices["b"].start : LAYOUT.slices["b"].start + 3] = 0  # the first row of b
    views = LAYOUT.views(directions.filter_normalized(LAYOUT, d, base))
    wanted = LAYOUT.views(base[None])
    for entry in LAYOUT.entries:
        for row in range(entry.shape[0]):
            if len(entry.shape) == 1:
                assert not views[entry.name].any()
            elif (entry.name, row) == ("b", 0):
                assert not views[entry.name][0, row].any()
                torch.testing.assert_close(
                    views[entry.name][1, row].norm(), wanted[entry.name][0, row].norm()
                )
            else:
                norms = views[entry.name][:, row].norm(dim=-1)
                torch.testing.assert_close(norms, wanted[entry.name][0, row].norm().expand(2))


def test_filter_normalized_slices_do_not_see_a_rescaling_of_two_layers(generator: torch.Generator) -> None:
    """relu(A x) B is unchanged when a filter of A grows and B shrinks: so is its filter-normalized neighbourhood."""
    base, d = normal(generator, LAYOUT.size), normal(generator, 1, LAYOUT.size)
    stretch = torch.ones(LAYOUT.size, dtype=torch.float64)
    stretch[LAYOUT.slices["a"]] = torch.arange(1.0, 5).repeat_interleave(6).double()
    plain = directions.filter_normalized(LAYOUT, d, base)
    torch.testing.assert_close(directions.filter_normalized(LAYOUT, d, base * stretch), plain * stretch)


def test_noise_times_rms_scales_with_each_tensor(generator: torch.Generator) -> None:
    base, d = normal(generator, LAYOUT.size), normal(generator, 2, LAYOUT.size)
    scaled = directions.times_rms(LAYOUT, d, base)
    for name, part in LAYOUT.slices.items():
        rms = math.sqrt(sum(x * x for x in base[part].tolist()) / (part.stop - part.start))
        torch.testing.assert_close(scaled[:, part], d[:, part] * rms, msg=name)


def test_whole_vectors_get_the_length_asked_for(generator: torch.Generator) -> None:
    d = normal(generator, 3, 50)
    d[1] = 0
    found = directions.of_length(d, torch.tensor([2.0, 5, 0.5]).double())
    torch.testing.assert_close(found.norm(dim=1), torch.tensor([2.0, 0, 0.5]).double())


def test_the_gradient_of_each_run_is_its_own(generator: torch.Generator) -> None:
    objective = Quadratic(generator)
    flat = normal(generator, 3, LAYOUT.size)
    loss, grad = directions.gradient(objective, flat)
    for r in range(3):
        each = sum(
            share * h @ (flat[r] - c)
            for share, h, c in zip(objective.share, objective.hessians, objective.centres, strict=True)
        )
        torch.testing.assert_close(grad[r], each)
    torch.testing.assert_close(loss, objective.loss(flat))
    assert not flat.requires_grad


# -- projections and balls -------------------------------------------------------------------------------------------


@EACH
def test_projection_gives_the_nearest_point_of_the_ball(
    geometry: Geometry, generator: torch.Generator
) -> None:
    d = 3 * normal(generator, 5, 4, 6)
    radius = 0.2 + 2 * torch.rand(5, generator=generator, dtype=torch.float64)
    near = geometry.project(d, radius)
    assert (geometry.norm(near) <= radius * (1 + 1e-12)).all()
    torch.testing.assert_close(geometry.project(near, radius), near)
    inside = d * (0.9 * radius / geometry.norm(d))[:, None, None]
    torch.testing.assert_close(geometry.project(inside, radius), inside)
    # the projection onto a convex set: the way there makes no acute angle with any way on inside the set
    others = normal(generator, 300, 5, 4, 6)
    others = others * (radius / geometry.norm(others))[..., None, None]
    assert (inner(d - near, others - near) <= 1e-10).all()


@EACH
def test_no_unit_update_reaches_farther(geometry: Geometry, generator: torch.Generator) -> None:
    g = normal(generator, 200, 4, 6)
    reach = geometry.reach(4, 6)
    extreme = geometry.step(g)
    torch.testing.assert_close(
        GEOMETRIES["frobenius"].norm(extreme), torch.full((200,), reach, dtype=torch.float64)
    )
    others = g / geometry.norm(g)[:, None, None]
    assert (GEOMETRIES["frobenius"].norm(others) <= reach * (1 + 1e-12)).all()


@EACH
def test_a_matrix_ball_is_a_loop_over_matrices(geometry: Geometry, generator: torch.Generator) -> None:
    radii = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    ball = MatrixBall(LAYOUT, geometry, radii)
    d = normal(generator, 2, LAYOUT.size)
    near, up = LAYOUT.views(ball.project(d)), LAYOUT.views(ball.ascend(d))
    for r in range(2):
        for m, name in enumerate(MATRICES):
            one = LAYOUT.views(d)[name][r]
            torch.testing.assert_close(near[name][r], geometry.project(one, radii[r, m]))
            torch.testing.assert_close(up[name][r], -radii[r, m] * geometry.step(one))
    assert not near["e"].any()
    assert not up["g"].any()
    torch.testing.assert_close(ball.take(slice(1, 2)).project(d[1:]), ball.project(d)[1:])


# -- worst case ------------------------------------------------------------------------------------------------------


def test_the_worst_case_around_a_minimum_is_the_top_eigenvector(generator: torch.Generator) -> None:
    objective = Quadratic(generator)
    objective.centres[1] = objective.centres[0]
    objective.spike(generator)
    radii = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    found, loss = worst_case(
        objective, objective.centres[0], EuclideanBall(radii), 3, generator, steps=300, starts=2
    )
    top = torch.linalg.eigvalsh(objective.hessian)[-1]
    torch.testing.assert_close(loss, radii**2 * top / 2, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.norm(dim=1), radii)


def test_the_worst_case_away_from_a_minimum_solves_the_trust_region(generator: torch.Generator) -> None:
    """Against the root of the secular equation: d = (mu - H)^-1 g with |d| = radius and mu above all eigenvalues."""
    objective = Quadratic(generator)
    base = normal(generator, LAYOUT.size)
    radius = 2.0
    loss, grad = directions.gradient(objective, base[None])
    values, vectors = torch.linalg.eigh(objective.hessian)
    g = vectors.T @ grad[0]
    low, high = values[-1].item(), values[-1].item() + grad.norm().item() / radius
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if (g / (mu - values)).norm() > radius else (low, mu)
    d = g / (high - values)
    wanted = loss[0] + g @ d + (values * d * d).sum() / 2
    ball = EuclideanBall(torch.tensor([radius], dtype=torch.float64))
    _, found = worst_case(objective, base, ball, 1, generator, steps=400, starts=2)
    assert found.item() <= wanted.item() * (1 + 1e-9)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-3)


@EACH
def test_the_worst_case_lies_in_the_ball_and_is_worse_than_every_random_direction(
    geometry: Geometry, generator: torch.Generator
) -> None:
    objective = Quadratic(generator)
    base = normal(generator, LAYOUT.size)
    radii = 0.5 + torch.rand(1, 3, generator=generator, dtype=torch.float64)
    ball = MatrixBall(LAYOUT, geometry, radii.expand(3, -1))
    found, loss = worst_case(objective, base, ball, 3, generator, steps=30, starts=2, width=2)
    assert (directions.norms(LAYOUT, geometry, found) <= radii * (1 + 1e-9)).all()
    torch.testing.assert_close(objective.loss(base + found), loss)
    noise = normal(generator, 500, LAYOUT.size)
    random = directions.with_norms(LAYOUT, geometry, noise, radii)
    assert (loss.min() > objective.loss(base + random)).all()
    assert (loss.min() > objective.loss(base + ball.take(slice(0, 1)).ascend(noise))).all()


def test_more_ascent_never_finds_less(generator: torch.Generator) -> None:
    objective = Quadratic(generator)
    base = normal(generator, LAYOUT.size)
    ball = EuclideanBall(torch.ones(2, dtype=torch.float64))
    seed = int(torch.randint(2**31, (), generator=generator))
    losses = [
        worst_case(objective, base, ball, 2, torch.Generator().manual_seed(seed), steps=20, starts=starts)[1]
        for starts in (1, 2, 3)
    ]
    assert (losses[0] <= losses[1]).all()
    assert (losses[1] <= losses[2]).all()


def test_a_loss_that_breaks_does_not_count_as_the_worst(generator: torch.Generator) -> None:
    class Breaking(Quadratic):
        def loss(self, flat: torch.Tensor) -> torch.Tensor:
            loss = super().loss(flat)
            return torch.where((flat - self.centres[0]).norm(dim=1) > 0.5, loss * torch.nan, loss)

    objective = Breaking(generator)
    ball = EuclideanBall(torch.tensor([0.4, 1.0], dtype=torch.float64))
    found, loss = worst_case(objective, objective.centres[0], ball, 2, generator, steps=5)
    assert loss.isfinite().all()
    assert found.isfinite().all()
    assert found[1].norm() <= 0.5
