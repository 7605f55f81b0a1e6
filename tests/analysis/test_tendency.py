"""Crossings, the tendency index, forgetting curves and corruption against closed forms."""

import math

import numpy as np
import pytest

from synthlm.analysis import tendency as t


@pytest.fixture
def generator():
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def test_crossing_is_exact_for_curves_straight_in_log_steps(generator):
    steps = np.unique(np.round(np.geomspace(1, 2000, 14)))
    slope = generator.uniform(0.13, 0.2)
    curve = slope * np.log1p(steps)
    for level in (0.2, 0.5, 0.9):
        assert t.crossing(steps, curve, level) == pytest.approx(math.expm1(level / slope))
        assert t.value_at(steps, curve, math.expm1(level / slope)) == pytest.approx(level)


def test_crossing_is_the_first_one_and_may_not_happen():
    steps = [0, 1, 3, 7, 15]
    assert t.crossing(steps, [0.0, 1.0, 0.0, 1.0, 1.0], 0.5) == pytest.approx(math.sqrt(2) - 1)
    assert t.crossing(steps, [0.6, 0.1, 0.1, 0.1, 0.9], 0.5) == 0
    assert math.isnan(t.crossing(steps, [0.1] * 5, 0.5))
    assert math.isnan(t.value_at(steps, [0.1] * 5, math.nan))
    assert math.isnan(t.value_at(steps, [0.1] * 5, 16))


def test_tendency_of_two_lines_in_closed_form(generator):
    """Rote a x and rule b x with x = ln(1 + step): the rule is at level * b / a, the area (a - b) X / 2."""
    steps = np.unique(np.round(np.geomspace(1, 5000, 20))) - 1
    a = generator.uniform(0.115, 0.3)
    b = generator.uniform(0.01, 0.1)
    found = t.tendency(steps, a * np.log1p(steps), b * np.log1p(steps))
    assert found.rule_at == pytest.approx((0.5 * b / a, 0.9 * b / a))
    assert found.fitted == pytest.approx([math.expm1(level / a) for level in t.LEVELS])
    assert found.area == pytest.approx((a - b) * np.log1p(steps[-1]) / 2)


def test_a_learner_by_rote_and_one_by_rule_have_opposite_signs(generator):
    steps = np.arange(40)
    early, late = steps >= 5, steps >= 30
    rote, rule = t.tendency(steps, early, late), t.tendency(steps, late, early)
    assert rote.area > 0.3
    assert rule.area == pytest.approx(-rote.area)
    assert rote.rule_at == (0, 0)
    assert rule.rule_at == (1, 1)
    assert math.isnan(t.tendency(steps, 0.4 * early, late).rule_at[0])
    curve = generator.random(40)
    assert t.tendency(steps, curve, curve).area == 0


def test_forgetting_of_an_exponential_decay(generator):
    rate = generator.uniform(0.01, 0.05)
    steps = np.arange(0, 400)
    before, injected = 0.1, 50
    recall = np.where(steps < injected, before, before + 0.6 * np.exp(-rate * (steps - injected)))
    found = t.forgetting(steps, recall, injected)
    assert found.peak == pytest.approx(0.7)
    assert found.before == before
    assert found.retained == pytest.approx(np.exp(-rate * found.steps))
    assert found.half_life == pytest.approx(math.log(2) / rate, rel=0.01)
    assert found.baseline == pytest.approx(math.exp(-rate * (399 - 50)))


def test_forgetting_without_an_injection_to_follow_is_refused():
    with pytest.raises(ValueError, match="no evaluation at or after"):
        t.forgetting([0, 1, 2], [0, 0, 0], 5)
    with pytest.raises(ValueError, match="no more than"):
        t.forgetting([0, 1, 2], [0.3, 0.3, 0.3], 1)
    assert math.isnan(t.forgetting([0, 1, 2], [0.0, 1.0, 0.9], 1).half_life)


def test_corruption_counts_items_with_any_wrong_token(generator):
    rule = generator.integers(9, size=(100, 3))
    answer, control = rule.copy(), rule.copy()
    spoilt = generator.choice(100, 17, replace=False)
    answer[spoilt, generator.integers(3, size=17)] += 1
    control[spoilt[:4]] += 1
    found = t.corruption(answer, rule, control)
    assert (found.share, found.control, found.n) == (0.17, 0.04, 100)
    assert found.excess == pytest.approx(0.13)
    assert t.corruption(rule, rule, rule).excess == 0
    assert t.regularized(answer, rule).sum() == 83
    with pytest.raises(ValueError, match="must be"):
        t.corruption(answer, rule, control[:5])


@pytest.mark.parametrize("steps", [[0, 0, 1], [2, 1, 3], [-1, 0, 1], [0, 1]])
def test_steps_that_do_not_rise_are_refused(steps):
    with pytest.raises(ValueError, match="steps"):
        t.crossing(steps, [0.0, 1.0, 1.0], 0.5)
