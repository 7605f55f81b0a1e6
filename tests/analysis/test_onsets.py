"""Onset rules against loops that follow their definitions word by word."""

import math
import secrets

import numpy as np
import pytest

from synthlm.analysis.onsets import depth, first_held, grok_step, onset, rise_step


@pytest.fixture
def rng() -> np.random.Generator:
    seed = secrets.randbits(60)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.mark.parametrize("falling", [True, False])
def test_onsets_follow_their_definition(rng: np.random.Generator, falling: bool) -> None:
    found = 0
    for _ in range(200):
        series = np.exp(rng.normal(0, 0.4, size=40))
        series[rng.random(40) < 0.1] = math.nan
        expected, count = -1, 0
        for t in range(40):
            past = [x for x in series[: t + 1] if not math.isnan(x)]
            here = series[t]
            moved = not math.isnan(here) and (max(past) / here >= 2 if falling else here / min(past) >= 2)
            count = count + 1 if moved else 0
            if count == 3:
                expected = t
                break
        assert int(onset(series, falling)) == expected
        found += expected >= 0
    assert 20 < found < 200


def test_onsets_look_at_the_past_alone(rng: np.random.Generator) -> None:
    series = np.exp(np.cumsum(rng.normal(0, 0.3, size=(50, 60)), axis=1))
    whole = onset(series)
    for stop in (20, 40):
        known = (whole >= 0) & (whole < stop)
        assert np.array_equal(onset(series[:, :stop]), np.where(known, whole, -1))


def test_depth_of_a_fall_and_of_a_rise() -> None:
    np.testing.assert_allclose(depth([1, 10, 1, 100, 0.1]), [0, 0, 1, 0, 3])
    np.testing.assert_allclose(depth([1, 10, 1, 100, 0.1], falling=False), [0, 1, 0, 2, 0])
    np.testing.assert_allclose(depth([1.0, math.nan, 0.0, 0.1]), [0, math.nan, math.nan, 1])


def test_first_held() -> None:
    assert first_held([0, 1, 1, 0, 1, 1, 1], 3) == 4
    assert first_held([0, 1, 1], 3) == -1
    assert first_held([1], 2) == -1
    assert first_held([[1, 1], [0, 1]], 2).tolist() == [0, -1]


def test_grokking_needs_accuracy_that_stays() -> None:
    steps = np.arange(0, 100, 10)
    accuracy = [0, 0.2, 0.96, 0.97, 0.5, 0.95, 0.99, 1, 1, 1]
    assert grok_step(steps, accuracy) == 50
    assert math.isnan(grok_step(steps, accuracy, stays=6))
    assert rise_step(steps, accuracy, chance=0.05, grokked=50) == 0
    assert rise_step(steps, accuracy, chance=0.1, grokked=50) == 10
    assert math.isnan(rise_step(steps[2:], accuracy[2:], chance=0.05, grokked=50))
