"""Activation statistics: closed forms, an independent reference in numpy and scipy, slices, weight structure."""

import math
import secrets

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from synthlm.analysis.activations import ALL, SIZES, STATISTICS, by_slice, input_statistics, paired_sizes
from synthlm.analysis.structure import STRUCTURE, structure
from synthlm.geometry import GEOMETRIES


@pytest.fixture
def rng():
    seed = secrets.randbits(48)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def reference(x):
    """Each statistic from its definition, token by token."""
    tokens, features = x.shape
    rms = math.sqrt(np.mean(x**2))
    l1 = np.array([np.linalg.norm(row, 1) for row in x])
    l2 = np.array([np.linalg.norm(row, 2) for row in x])
    singular = scipy.linalg.svdvals(x)
    return {
        "rms": rms,
        "l1": l1.mean() / math.sqrt(features),
        "l2": l2.mean(),
        "operator": singular[0] / math.sqrt(tokens),
        "density": np.mean(l1[l2 > 0] / l2[l2 > 0]) / math.sqrt(features),
        "outlier": np.abs(x).max() / rms,
        "kurtosis": scipy.stats.kurtosis(x.ravel(), fisher=False),
        "small": np.mean(np.abs(x) < 0.1 * rms),
        "stable_rank": np.sum(singular**2) / singular[0] ** 2,
    }


@pytest.mark.parametrize("shape", [(40, 7), (5, 12), (1, 6), (9, 1)])
def test_statistics_are_those_of_the_definitions(shape, rng):
    """Batched over matrices, skewed and shifted input with a token of zeros; agreement to 1e-10."""
    x = rng.normal(size=(3, *shape)) ** 3 + rng.normal()
    if shape[0] > 1:
        x[0, 0] = 0
    found = input_statistics(torch.from_numpy(x))
    assert tuple(found) == STATISTICS
    for i in range(3):
        for name, expected in reference(x[i]).items():
            assert found[name][i].item() == pytest.approx(expected, rel=1e-10), name


def test_statistics_of_a_constant_input(rng):
    value = rng.uniform(0.1, 5)
    found = {k: v.item() for k, v in input_statistics(torch.full((30, 16), value)).items()}
    assert found["rms"] == pytest.approx(value, rel=1e-6)
    assert found["l1"] == pytest.approx(4 * value, rel=1e-6)
    assert found["l2"] == pytest.approx(4 * value, rel=1e-6)
    assert found["operator"] == pytest.approx(4 * value, rel=1e-6)
    assert found["density"] == pytest.approx(1)
    assert found["outlier"] == pytest.approx(1)
    assert math.isnan(found["kurtosis"])
    assert found["small"] == 0
    assert found["stable_rank"] == pytest.approx(1)


def test_statistics_of_one_hot_inputs(rng):
    """Each feature equally often: all tokens orthogonal or equal, so every direction is as strong as the others."""
    features, times, value = 8, 5, rng.uniform(0.5, 2)
    x = value * torch.eye(features, dtype=torch.float64).repeat(times, 1)
    found = {k: v.item() for k, v in input_statistics(x).items()}
    assert found["rms"] == pytest.approx(value / math.sqrt(features))
    assert found["l1"] == pytest.approx(value / math.sqrt(features))
    assert found["l2"] == pytest.approx(value)
    assert found["operator"] == pytest.approx(value / math.sqrt(features))
    assert found["density"] == pytest.approx(1 / math.sqrt(features))
    assert found["outlier"] == pytest.approx(math.sqrt(features))
    p = 1 / features
    assert found["kurtosis"] == pytest.approx((1 - 3 * p * (1 - p)) / (p * (1 - p)))  # Bernoulli(p)
    assert found["small"] == pytest.approx(1 - p)
    assert found["stable_rank"] == pytest.approx(features)


def test_statistics_of_a_gaussian_input(rng):
    sigma, tokens, features = rng.uniform(0.5, 2), 4000, 64
    found = input_statistics(torch.from_numpy(sigma * rng.normal(size=(tokens, features))))
    mean_norm = sigma * math.sqrt(2) * math.exp(math.lgamma(32.5) - math.lgamma(32))
    assert found["rms"].item() == pytest.approx(sigma, rel=0.02)
    assert found["l1"].item() == pytest.approx(sigma * math.sqrt(2 / math.pi) * 8, rel=0.02)
    assert found["l2"].item() == pytest.approx(mean_norm, rel=0.02)
    edge = 1 + math.sqrt(features / tokens)  # Marchenko-Pastur
    assert found["operator"].item() == pytest.approx(sigma * edge, rel=0.03)
    assert found["kurtosis"].item() == pytest.approx(3, rel=0.05)
    assert found["small"].item() == pytest.approx(math.erf(0.1 / math.sqrt(2)), rel=0.05)
    assert found["stable_rank"].item() == pytest.approx(features / edge**2, rel=0.05)


def test_only_some_statistics_depend_on_scale(rng):
    x = torch.from_numpy(rng.normal(size=(20, 6)))
    one, four = input_statistics(x), input_statistics(4 * x)
    for name in STATISTICS:
        factor = 4 if name in ("rms", "l1", "l2", "operator") else 1
        torch.testing.assert_close(four[name], factor * one[name], rtol=1e-12, atol=0)


def test_zeros_and_broken_inputs_give_nan_for_their_matrix_alone(rng):
    x = torch.from_numpy(rng.normal(size=(3, 10, 4)))
    x[1] = 0
    x[2, 3, 1] = math.inf
    found = input_statistics(x)
    alone = input_statistics(x[0])
    for name in STATISTICS:
        torch.testing.assert_close(found[name][0], alone[name], rtol=1e-12, atol=0)
    assert found["l2"][1] == 0
    for name in ("density", "outlier", "kurtosis", "small", "stable_rank"):
        assert found[name][1].isnan()
    assert found["stable_rank"][2].isnan()
    with pytest.raises(ValueError, match="hold no number"):
        input_statistics(torch.zeros(0, 4))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_paired_sizes_bound_outputs_and_do_not_count_tokens(name, rng):
    x = torch.from_numpy(rng.normal(size=(2, 11, 5)))
    sizes = paired_sizes(x)[name]
    torch.testing.assert_close(paired_sizes(x.repeat(1, 7, 1))[name], sizes, rtol=1e-12, atol=0)
    d = torch.from_numpy(rng.normal(size=(2, 3, 5)))
    geometry = GEOMETRIES[name]
    outputs = geometry.output_size(x @ d.mT) / (math.sqrt(11) if name == "frobenius" else 1)
    assert (outputs <= geometry.norm(d) * sizes * (1 + 1e-12)).all()


def test_paired_sizes_are_the_statistics_of_that_name(rng):
    x = torch.from_numpy(rng.normal(size=(13, 9)))
    sizes, found = paired_sizes(x), input_statistics(x)
    torch.testing.assert_close(sizes["max"], 3 * found["l1"])
    torch.testing.assert_close(sizes["spectral"], found["l2"])
    torch.testing.assert_close(sizes["frobenius"], found["operator"])


def test_slices_keep_their_tokens_apart(rng):
    x = torch.from_numpy(rng.normal(size=(30, 4)))
    other = torch.from_numpy(rng.normal(size=(30, 6)))
    index = torch.from_numpy(rng.integers(-1, 2, size=30))
    index[:3] = torch.tensor([-1, 0, 1])
    rows = list(by_slice([("a", x, index), ("b", x, index), ("c", other, index)], ("rote", "rule", "none")))
    found = {(row.matrix, row.slice): row for row in rows}
    assert {row.slice for row in rows} == {ALL, "rote", "rule"}
    for matrix, inputs in (("a", x), ("b", x), ("c", other)):
        for part, chosen in ((ALL, index >= 0), ("rote", index == 0), ("rule", index == 1)):
            row, expected = found[matrix, part], input_statistics(inputs[chosen])
            assert set(row.values) == {*STATISTICS, *SIZES}
            for name in STATISTICS:
                assert row.values[name] == pytest.approx(expected[name].item(), rel=1e-12)
            assert row.values["size/spectral"] == pytest.approx(expected["l2"].item())
            assert row.n == int(chosen.sum())


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (1, 5), (7, 7)])
def test_structure_of_a_matrix_with_known_singular_values(shape, rng):
    rank = min(shape)
    values = np.sort(rng.uniform(0.1, 3, size=(4, rank)))[:, ::-1]
    left = np.linalg.qr(rng.normal(size=(4, shape[0], shape[0])))[0][:, :, :rank]
    right = np.linalg.qr(rng.normal(size=(4, shape[1], shape[1])))[0][:, :, :rank]
    matrices = left * values[:, None, :] @ right.swapaxes(1, 2)
    found = structure(torch.from_numpy(matrices))
    assert tuple(found) == STRUCTURE
    for i in range(4):
        energy = values[i] ** 2
        assert found["norm/spectral"][i].item() == pytest.approx(values[i, 0], rel=1e-10)
        assert found["norm/frobenius"][i].item() == pytest.approx(math.sqrt(energy.sum()), rel=1e-10)
        assert found["norm/max"][i].item() == pytest.approx(np.abs(matrices[i]).max(), rel=1e-10)
        assert found["stable_rank"][i].item() == pytest.approx(energy.sum() / energy[0], rel=1e-10)
        entropy = scipy.stats.entropy(energy) / math.log(rank) if rank > 1 else 0.0
        assert found["entropy"][i].item() == pytest.approx(entropy, rel=1e-10, abs=1e-12)


def test_structure_of_rank_one_orthogonal_and_zero_matrices(rng):
    one = np.outer(rng.normal(size=6), rng.normal(size=4))
    orthogonal = np.linalg.qr(rng.normal(size=(6, 4)))[0]
    found = structure(torch.from_numpy(np.stack([one, orthogonal, np.zeros((6, 4))])))
    assert found["stable_rank"][:2].tolist() == pytest.approx([1, 4])
    assert found["entropy"][:2].tolist() == pytest.approx([0, 1], abs=1e-10)
    assert found["norm/max"][2] == 0
    assert found["stable_rank"][2].isnan()
    assert found["entropy"][2].isnan()
