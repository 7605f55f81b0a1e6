"""Learning-rate schedules: bounds, ends, warmup and smoothness, for any setting."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthlm.config import InputError, parse
from synthlm.schedules import ScheduleConfig, factor

configs = st.builds(
    ScheduleConfig,
    shape=st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    warmup_fraction=st.floats(0, 0.5),
    decay_fraction=st.floats(0.01, 0.5),
    final=st.floats(1e-3, 1),
)


@given(configs, st.integers(1, 300))
def test_factor_is_positive_and_at_most_one_and_ends_at_final(config, total):
    factors = [factor(step, total, config) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[-1] == (1.0 if config.shape == "constant" else config.final)


@given(configs, st.integers(20, 300))
def test_factor_has_no_jumps(config, total):
    """No step changes the factor by more than the steepest part of its shape."""
    warm = round(config.warmup_fraction * total)
    decay = {
        "constant": math.inf,
        "linear": total - 1 - warm,
        "cosine": (total - 1 - warm) * 2 / math.pi,
        "wsd": min(max(1, round(config.decay_fraction * total)), total - 1 - warm),
    }[config.shape]
    largest = max(1 / (warm + 1), (1 - config.final) / decay)
    factors = [factor(step, total, config) for step in range(total)]
    assert all(abs(b - a) <= largest + 1e-12 for a, b in pairwise(factors))


@given(configs, st.integers(20, 300))
def test_warmup_is_linear_and_what_follows_never_grows(config, total):
    factors = [factor(step, total, config) for step in range(total)]
    warm = round(config.warmup_fraction * total)
    assert factors[:warm] == pytest.approx([(step + 1) / (warm + 1) for step in range(warm)], rel=1e-12)
    assert factors[warm] == 1
    assert all(a >= b - 1e-15 for a, b in pairwise(factors[warm:]))


def test_known_values():
    cosine = ScheduleConfig(shape="cosine", final=0.2)
    assert factor(50, 101, cosine) == pytest.approx(0.6, rel=1e-12)
    assert factor(25, 101, cosine) == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2, rel=1e-12)
    assert factor(25, 101, ScheduleConfig(shape="linear", final=0.2)) == pytest.approx(0.8, rel=1e-12)
    wsd = ScheduleConfig(shape="wsd", warmup_fraction=0.1, decay_fraction=0.2, final=0.5)
    values = [factor(step, 100, wsd) for step in (4, 10, 79, 89, 99)]
    assert values == pytest.approx([5 / 11, 1, 1, 0.75, 0.5], rel=1e-12)


@pytest.mark.parametrize("step", [-1, 10])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match="outside a run of 10"):
        factor(step, 10, ScheduleConfig())


def test_bad_settings_are_named():
    with pytest.raises(InputError, match=r"shape.*did you mean 'cosine'"):
        parse(ScheduleConfig, {"shape": "cosin"}, "schedule")
    with pytest.raises(InputError, match=r"warmup_fraction 0.5 \+ decay_fraction 0.6"):
        parse(ScheduleConfig, {"shape": "wsd", "warmup_fraction": 0.5, "decay_fraction": 0.6}, "schedule")
