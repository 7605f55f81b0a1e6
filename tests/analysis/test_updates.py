"""Update structure and effects: exact properties, explicit loops in numpy, finite differences."""

import math

import numpy as np
import pytest
import torch

from synthlm import evaluation, model
from synthlm.analysis.objective import language_objective
from synthlm.analysis.updates import (
    PER_MATRIX,
    effects,
    forward_kl,
    matrix_names,
    overlap,
    reference,
    second_order,
    update_structure,
)
from synthlm.geometry import GEOMETRIES
from synthlm.model import ModelConfig
from synthlm.tasks import Cipher, Facts, Language, Mixture

CONFIG = Mixture(
    parts=(
        Facts(tag=0, alphabet=8, items=12, key_length=2, value_length=1),
        Cipher(tag=1, alphabet=8, length=3, items=20, heldout=6, probe=8),
    )
)
MODEL = ModelConfig(vocab=24, length=8, width=8, layers=2, heads=2, mlp=12)
NAMES = matrix_names(MODEL.layout)


@pytest.fixture(scope="module")
def language() -> Language:
    return CONFIG.build(5)


@pytest.fixture
def base(generator):
    return model.init(MODEL, generator) + 0.1 * torch.randn(MODEL.layout.size, generator=generator)


def nudge(generator, scale=0.05, group="matrix"):
    d = scale * torch.randn(MODEL.layout.size, generator=generator)
    if group == "matrix":
        d[MODEL.layout.matrix_size :] = 0
    return d


def objective(language, dtype=torch.float64):
    return language_objective(MODEL, language, dtype=dtype)


def test_structure_of_updates_matrix_by_matrix(base, generator):
    updates = torch.stack([nudge(generator) for _ in range(3)])
    found = update_structure(updates, base[None], MODEL.layout)
    views, whole = MODEL.layout.views(updates.double()), MODEL.layout.views(base[None].double())
    for i, name in enumerate(NAMES):
        for run in range(3):
            d, w = views[name][run].numpy(), whole[name][0].numpy()
            singular = np.linalg.svd(d, compute_uv=False)
            assert found["norm/frobenius"][run, i].item() == pytest.approx(np.linalg.norm(d), rel=1e-10)
            assert found["norm/max"][run, i].item() == pytest.approx(np.abs(d).max(), rel=1e-10)
            assert found["norm/spectral"][run, i].item() == pytest.approx(singular[0], rel=1e-10)
            share = np.linalg.norm(d, 2) / np.linalg.norm(w, 2)
            assert found["relative/spectral"][run, i].item() == pytest.approx(share, rel=1e-10)
            assert found["relative/max"][run, i].item() == pytest.approx(
                np.abs(d).max() / np.abs(w).max(), rel=1e-10
            )
            rank = np.sum(singular**2) / singular[0] ** 2
            assert found["stable_rank"][run, i].item() == pytest.approx(rank, rel=1e-10)


def test_a_scaled_weight_moves_its_outputs_by_that_share(base, language, generator):
    """D = c W in one matrix: relative sizes and moved outputs are c in every geometry, zero elsewhere."""
    for name in ("blocks.0.attn.W_V", "blocks.1.mlp.W_out"):
        share, place = 0.3, NAMES.index(name)
        d = torch.zeros_like(base)
        where = MODEL.layout.slices[name]
        d[where] = share * base[where]
        relative = update_structure(d[None], base[None], MODEL.layout)
        found = effects(reference(objective(language), base), base + d)
        for key in GEOMETRIES:
            expected = torch.zeros(len(NAMES), dtype=torch.float64)
            expected[place] = share
            torch.testing.assert_close(relative[f"relative/{key}"][0], expected, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(found[f"moved/{key}"], expected, rtol=1e-5, atol=1e-7)


def test_effects_are_those_of_the_definitions(base, language, generator):
    tuned = base + nudge(generator)
    at = objective(language)
    found = effects(reference(at, base), tuned)
    before = {name: x.numpy() for name, x, _ in at.inputs(base[None])}
    after = {name: x.numpy() for name, x, _ in at.inputs(tuned[None])}
    old, new = MODEL.layout.views(base[None].double()), MODEL.layout.views(tuned[None].double())
    assert set(found) | set(update_structure(tuned[None] - base, base[None], MODEL.layout)) == set(PER_MATRIX)
    for i, name in enumerate(NAMES):
        x, w, changed = before[name], old[name][0].numpy(), new[name][0].numpy()
        d = (tuned - base)[MODEL.layout.slices[name]].double().numpy().reshape(w.shape)
        y, moved = x @ w.T, x @ d.T
        l1, l2 = np.abs(x).sum(1).mean(), np.linalg.norm(x, axis=1).mean()
        peak = np.abs(y).max(1).mean()
        expected = {
            "reach/max": np.abs(d).max() * l1 / peak,
            "reach/spectral": np.linalg.norm(d, 2) * l2 / np.linalg.norm(y, axis=1).mean(),
            "reach/frobenius": np.linalg.norm(d) * np.linalg.norm(x, 2) / np.linalg.norm(y),
            "moved/max": np.abs(moved).max(1).mean() / peak,
            "moved/spectral": np.linalg.norm(moved, axis=1).mean() / np.linalg.norm(y, axis=1).mean(),
            "moved/frobenius": np.linalg.norm(moved) / np.linalg.norm(y),
            "drift/inputs": np.linalg.norm(after[name] - x) / np.linalg.norm(x),
            "drift/outputs": np.linalg.norm(after[name] @ changed.T - y) / np.linalg.norm(y),
        }
        for key, value in expected.items():
            assert found[key][i].item() == pytest.approx(value, rel=1e-5, abs=1e-9), (name, key)
        for key in GEOMETRIES:
            assert found[f"moved/{key}"][i] <= found[f"reach/{key}"][i] * (1 + 1e-9)


def test_inputs_of_the_first_layer_do_not_drift_when_only_matrices_move(base, language, generator):
    found = effects(reference(objective(language), base), base + nudge(generator))
    for which in "QKV":
        i = NAMES.index(f"blocks.0.attn.W_{which}")
        assert found["drift/inputs"][i] == 0
        assert found["drift/outputs"][i].item() == pytest.approx(found["moved/frobenius"][i].item(), rel=1e-5)
    assert (found["drift/inputs"] > 0).sum() == len(NAMES) - 3


def test_no_update_has_no_effect(base, language):
    found = effects(reference(objective(language), base), base.clone())
    assert all((values == 0).all() for values in found.values())


def test_overlap_is_the_share_inside_the_span(generator):
    size, kept = 40, 6
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0].T
    inside, outside = basis[:kept], basis[kept:]
    part = torch.randn(5, kept, generator=generator, dtype=torch.float64) @ inside
    rest = torch.randn(5, size - kept, generator=generator, dtype=torch.float64) @ outside
    torch.testing.assert_close(overlap(part, inside), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(overlap(rest, inside), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    share = part.square().sum(1) / (part.square().sum(1) + rest.square().sum(1))
    torch.testing.assert_close(overlap(part + rest, inside), share)
    assert overlap(torch.zeros(1, size), inside).isnan().all()
    with pytest.raises(ValueError, match="not orthonormal"):
        overlap(part, 1.1 * inside)


def test_forward_kl_is_the_evaluations(base, language, generator):
    tuned = torch.stack([base, base + nudge(generator), base + nudge(generator, 0.3)])
    found = forward_kl(objective(language, torch.float32), base, tuned)
    probe = evaluation.Probe([language] * 3, "cpu")
    log_p = evaluation.log_probabilities(MODEL, MODEL.layout.views(tuned), probe)
    start = evaluation.log_probabilities(MODEL, MODEL.layout.views(base.repeat(3, 1)), probe)
    for run, row in enumerate(evaluation.evaluate(probe, log_p, start)):
        goals = [(kl, n) for kl, n, goal in zip(row["kl"], row["n"], row["goal"], strict=True) if goal]
        expected = sum(kl * n for kl, n in goals) / sum(n for _, n in goals)
        assert found[run].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert found[0].abs() < 1e-6
    assert (found[1:] > 0).all()


def test_the_second_order_estimate_of_a_quadratic_is_exact(generator):
    size = 12
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    hessian, gradient = root + root.T, torch.randn(size, generator=generator, dtype=torch.float64)
    d = torch.randn(4, size, generator=generator, dtype=torch.float64)
    first, second = second_order(gradient, lambda v: v @ hessian, d)
    for i in range(4):
        exact = gradient @ d[i] + d[i] @ hessian @ d[i] / 2
        assert (first + second)[i].item() == pytest.approx(exact.item(), rel=1e-12)


def test_the_second_order_estimate_of_a_model_is_right_to_third_order(base, language, generator):
    """Halving the update divides the estimate's error by eight."""
    at = objective(language)
    start = base.double()
    directions = [nudge(generator, 0.02, group="all").double() for _ in range(12)]

    def loss(flat):
        return at.loss(flat[None])[0]

    gradient = torch.func.grad(loss)(start)

    def product(v):
        return torch.stack([torch.autograd.functional.vhp(loss, start, row)[1] for row in v])

    errors = [
        0.0,
        0.0,
    ]  # summed over directions: the second derivative of relu^2 jumps, now along one, now the other
    for direction in directions:
        for place, scale in enumerate((0.1, 0.05)):
            first, second = second_order(gradient, product, scale * direction[None])
            change = loss(start + scale * direction) - loss(start)
            errors[place] += abs((first + second)[0].item() - change.item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.6)
