"""Lines and planes against closed forms of an exact quadratic, and on a real model against single evaluations."""

import pytest
import torch
from quadratics import LAYOUT, Quadratic

from synthlm import model
from synthlm.analysis import directions, landscape
from synthlm.analysis.objective import language_objective
from synthlm.geometry import GEOMETRIES
from synthlm.model import ModelConfig
from synthlm.tasks import Cipher


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_lines_through_a_quadratic_are_parabolas(generator: torch.Generator) -> None:
    objective = Quadratic(generator)
    base, rays = normal(generator, LAYOUT.size), normal(generator, 3, LAYOUT.size)
    radii = [-1.5, 0.0, 0.3, 2.0]
    found = landscape.lines(objective, base, rays, radii, width=5)
    assert found.loss.shape == found.accuracy.shape == (3, 4, 2)
    for s in range(2):
        h, offset = objective.hessians[s], base - objective.centres[s]
        for r, ray in enumerate(rays):
            wanted = [
                offset @ h @ offset / 2 + a * (offset @ h @ ray) + a * a * (ray @ h @ ray) / 2 for a in radii
            ]
            torch.testing.assert_close(found.loss[r, :, s], torch.stack(wanted))
    torch.testing.assert_close(found.accuracy, (-found.loss).exp())


def test_the_centre_is_never_touched_and_points_do_not_drift(generator: torch.Generator) -> None:
    objective = Quadratic(generator)
    base = normal(generator, LAYOUT.size)
    copy = base.clone()
    found = landscape.lines(objective, base, 1e8 * normal(generator, 40, LAYOUT.size), [1.0, 0.0])
    assert torch.equal(base, copy)
    assert (
        found.loss[:, 1] == objective.losses(base[None])
    ).all()  # subtracting 1e8 again would not give this


@pytest.mark.parametrize("width", [1, 3, 100])
def test_how_many_go_side_by_side_does_not_matter(width: int, generator: torch.Generator) -> None:
    config = ModelConfig(vocab=24, length=8, width=8, layers=1, heads=2, mlp=12)
    language = Cipher(tag=1, alphabet=8, length=3, items=30, heldout=9, probe=12).build(5)
    objective = language_objective(config, language)
    base = model.init(config, generator)
    rays = directions.gaussian(config.layout, 3, generator)
    found = landscape.lines(objective, base, rays, [0.0, 0.1, 0.5], width)
    for r in range(3):
        for k, radius in enumerate([0.0, 0.1, 0.5]):
            flat = (base + radius * rays[r])[None]
            torch.testing.assert_close(found.loss[r, k].float(), objective.losses(flat)[0])
            torch.testing.assert_close(found.accuracy[r, k].float(), objective.accuracies(flat)[0])


def test_the_steepest_direction_falls_fastest_at_first(generator: torch.Generator) -> None:
    """Among steps of one native size, to first order, each geometry's own step lowers the loss most."""
    objective = Quadratic(generator)
    base = normal(generator, LAYOUT.size)
    _, grad = directions.gradient(objective, base[None])
    grad[:, LAYOUT.matrix_size :] = 0
    rays = {name: directions.steepest(LAYOUT, geometry, grad) for name, geometry in GEOMETRIES.items()}
    for name, geometry in GEOMETRIES.items():
        same = torch.cat([directions.native(LAYOUT, geometry, ray) for ray in rays.values()])
        found = landscape.lines(objective, base, same, [1e-6])
        total = found.loss[:, 0] @ objective.share
        assert list(rays)[int(total.argmin())] == name


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("kind", ["relative", "native"])
def test_the_worst_line_is_above_every_line_of_its_size(
    name: str, kind: str, generator: torch.Generator
) -> None:
    objective, geometry = Quadratic(generator), GEOMETRIES[name]
    base, radii = normal(generator, LAYOUT.size), [0.05, 0.4]
    found = landscape.worst_lines(
        objective, objective, base, geometry, radii, kind, generator, steps=20, starts=2
    )
    assert found.loss.shape == (2, 2)
    worst = found.loss @ objective.share
    noise = normal(generator, 200, LAYOUT.size)
    if kind == "native":
        rays = directions.native(LAYOUT, geometry, noise)
    else:  # the ball lies within the Frobenius ball: rays shortened to reach its surface at most
        reach = directions.matrix_reach(LAYOUT, geometry).double()
        sizes = directions.norms(LAYOUT, directions.FROBENIUS, base[None]) / reach
        rays = directions.with_norms(LAYOUT, geometry, noise, sizes)
    random = landscape.lines(objective, base, rays, radii).loss @ objective.share
    assert (worst > random.max(0).values).all()


def test_worst_relative_balls_touch_the_frobenius_ball_from_inside(generator: torch.Generator) -> None:
    """At equal relative radius no geometry's ball holds more than the Frobenius ball, so its worst case is no worse."""
    objective = Quadratic(generator, floor=0.1)
    base = normal(generator, LAYOUT.size)
    worst = {
        name: landscape.worst_lines(
            objective, objective, base, geometry, [0.3], "relative", generator, steps=100, starts=2
        )
        for name, geometry in GEOMETRIES.items()
    }
    total = {name: (scores.loss @ objective.share).item() for name, scores in worst.items()}
    assert total["frobenius"] >= max(total["max"], total["spectral"])


# -- planes ----------------------------------------------------------------------------------------------------------


def test_a_plane_holds_the_three_models(generator: torch.Generator) -> None:
    objective = Quadratic(generator)
    three = normal(generator, 3, LAYOUT.size)
    plane = landscape.plane(objective, *three, points=9, margin=0.25)
    torch.testing.assert_close(plane.basis @ plane.basis.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(three[0] + plane.points @ plane.basis, three)
    assert plane.points[0].tolist() == [0, 0]
    assert plane.points[1, 0] > 0
    assert plane.points[1, 1].abs() < 1e-12
    assert plane.points[2, 1] > 0
    low, high = plane.points.amin(0), plane.points.amax(0)
    side = 1.5 * (high - low).max().item()
    for axis, grid in enumerate((plane.x, plane.y)):
        assert (grid[-1] - grid[0]).item() == pytest.approx(side)
        assert (grid[-1] + grid[0]).item() == pytest.approx((low + high)[axis].item())
        assert grid.diff().std() < 1e-12 * side
    for row in (0, 4, 8):
        for column in (1, 8):
            at = three[0] + plane.x[column] * plane.basis[0] + plane.y[row] * plane.basis[1]
            torch.testing.assert_close(plane.scores.loss[row, column], objective.losses(at[None])[0])


def test_a_plane_does_not_depend_on_where_the_space_is_turned(generator: torch.Generator) -> None:
    """Rotating weights and loss together changes neither coordinates nor scores."""
    objective = Quadratic(generator)
    three = normal(generator, 3, LAYOUT.size)
    q, _ = torch.linalg.qr(normal(generator, LAYOUT.size, LAYOUT.size))
    plane = landscape.plane(objective, *three, points=5)
    objective.hessians = q @ objective.hessians @ q.T
    objective.centres = objective.centres @ q.T
    turned = landscape.plane(objective, *(three @ q.T), points=5)
    torch.testing.assert_close(turned.points, plane.points)
    torch.testing.assert_close(turned.scores.loss, plane.scores.loss)


@pytest.mark.parametrize("case", ["same", "line", "none"])
def test_three_models_on_a_line_span_no_plane(case: str, generator: torch.Generator) -> None:
    base, step = normal(generator, 2, LAYOUT.size)
    ends = {"same": (base + step, base + step), "line": (base + step, base - 2 * step), "none": (base, base)}
    with pytest.raises(ValueError, match="span no plane"):
        landscape.plane(Quadratic(generator), base, *ends[case])
