"""Memorized bits and the capacity plateau against closed forms and brute force."""

import math

import numpy as np
import pytest

from synthlm.analysis.capacity import memorized_bits, plateau
from synthlm.tasks import Facts


@pytest.fixture
def generator():
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def test_a_perfect_memorizer_has_the_exact_bits_of_the_language():
    language = Facts(items=50, alphabet=32, value_length=2).build(0)
    reference = np.full(50, 2 * math.log(32))
    assert memorized_bits(np.zeros(50), reference) == pytest.approx(language.bits)
    assert memorized_bits(reference, reference) == 0


def test_bits_are_summed_over_items_and_clipped_per_item(generator):
    model, reference = generator.random((3, 40)) * 5, generator.random(40) * 5
    for run in range(3):
        gains = [math.log2(math.exp(-a) / math.exp(-b)) for a, b in zip(model[run], reference, strict=True)]
        assert memorized_bits(model, reference)[run] == pytest.approx(sum(max(0, g) for g in gains))
        assert memorized_bits(model, reference, clip=False)[run] == pytest.approx(sum(gains))


def test_no_model_of_uniform_answers_stores_net_bits_it_was_not_told(generator):
    """Averaged over all equally likely answers, the net bits of any prediction are at most 0 (Gibbs' inequality)."""
    logits = generator.normal(size=(200, 16))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    net = [memorized_bits(-log_p[:, a], np.full(200, math.log(16)), clip=False) for a in range(16)]
    assert np.mean(net) < 0


def test_the_plateau_of_noise_free_bits_is_the_capacity():
    exact = np.array([100.0, 200, 400, 800, 1600, 3200])
    found = plateau(exact, np.minimum(exact, 700))
    assert found.capacity == pytest.approx(700)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.seen
    assert found.per_parameter(350) == pytest.approx(2)


def test_without_a_plateau_capacity_is_a_lower_bound():
    exact = np.array([100.0, 200, 400])
    found = plateau(exact, exact)
    assert found.capacity == pytest.approx(400)
    assert not found.seen


def test_the_fit_is_the_global_optimum(generator):
    for _ in range(20):
        exact = np.sort(np.exp(generator.uniform(2, 8, size=9)))
        stored = np.minimum(exact, np.exp(generator.uniform(2, 8))) * np.exp(generator.normal(0, 0.5, 9))
        found = plateau(generator.permuted(exact), stored)  # any order of sizes, here a wrong pairing too
        assert np.isfinite(found.capacity)
        found = plateau(exact, stored)
        levels = np.exp(np.linspace(1, 9, 4001))
        error = ((np.log(stored) - np.log(np.minimum(exact, levels[:, None]))) ** 2).mean(1)
        assert found.error**2 <= error.min() + 1e-12
        assert found.error**2 == pytest.approx(error.min(), rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("stored", [[1.0], [1.0, 0.0], [1.0, math.nan]])
def test_what_has_no_logarithm_is_refused(stored):
    with pytest.raises(ValueError, match="stored"):
        plateau([1.0, 2.0], stored)
