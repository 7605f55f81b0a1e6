"""Recall, extraction, counterfactual scores and exposure against brute force and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats

from synthlm.analysis import memorization as m


@pytest.fixture
def generator():
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def test_recall_and_exact_match_count_scored_tokens_only(generator):
    right = generator.random((3, 20, 6)) < 0.8
    scored = generator.random((20, 6)) < 0.5
    scored[:, -1] = True
    for run in range(3):
        hits = [right[run, i, t] for i in range(20) for t in range(6) if scored[i, t]]
        assert m.recall(right, scored)[run] == pytest.approx(sum(hits) / len(hits))
        exact = [all(right[run, i, t] for t in range(6) if scored[i, t]) for i in range(20)]
        assert m.exact_match(right, scored)[run].tolist() == exact
    assert np.isnan(m.recall(right, np.zeros((20, 6), bool))).all()


def _lookup(generator, vocab, time):
    """A model with random scores for each prefix, as a function of the prefix's sum and length."""
    scores = generator.normal(size=(time + 1, vocab * time + 1, vocab))
    return lambda tokens: scores[tokens.shape[1], tokens.sum(1)]


def test_greedy_takes_the_best_token_of_its_own_prefix(generator):
    predict = _lookup(generator, 5, 8)
    prefix = generator.integers(5, size=(7, 3))
    out = m.greedy(predict, prefix, 4)
    assert out.shape == (7, 4)
    for item in range(7):
        sequence = list(prefix[item])
        for _ in range(4):
            scores = predict(np.array([sequence]))[0]
            sequence.append(int(max(range(5), key=lambda token, s=scores: s[token])))
        assert out[item].tolist() == sequence[3:]
    assert m.greedy(predict, prefix, 0).shape == (7, 0)


def test_extraction_is_all_teacher_forced_tokens_right(generator):
    """A greedy continuation equals the item exactly when each of its tokens is the best one after the item's prefix."""
    predict = _lookup(generator, 3, 6)
    items = generator.integers(3, size=(400, 5))
    best = np.stack([predict(items[:, :t]).argmax(-1) for t in range(2, 5)], 1)
    expected = (best == items[:, 2:]).all(1)
    assert expected.any()
    assert not expected.all()
    assert (m.extracted(predict, items, 2) == expected).all()
    with pytest.raises(ValueError, match="k: 5 must be between 1 and 4"):
        m.extracted(predict, items, 5)


def test_discoverable_is_the_binomial_chance_of_one_hit(generator):
    p_z = generator.random(200) ** 4
    for n in (1, 3, 40):
        for p in (0.1, 0.5, 0.9):
            chance = 1 - scipy.stats.binom.pmf(0, n, p_z)
            clear = abs(chance - p) > 1e-9
            assert (m.discoverable(np.log(p_z), n, p) == (chance >= p))[clear].all()


def test_discoverable_keeps_its_digits_for_tiny_probabilities():
    # 1 - (1 - e**-60)**n reaches 0.5 at n = ln 2 * e**60; the direct formula rounds 1 - e**-60 to 1
    n = math.log(2) * math.exp(60)
    assert m.discoverable(-60.0, int(n * 1.001), 0.5)
    assert not m.discoverable(-60.0, int(n * 0.999), 0.5)


def test_queries_are_the_fewest_that_discover(generator):
    log_p = np.log(generator.uniform(0.001, 0.9, size=100))
    for p in (0.05, 0.5, 0.99):
        found = m.queries(log_p, p)
        for z, n in zip(log_p, found, strict=True):
            chances = 1 - (1 - math.exp(z)) ** np.arange(1, 20000)
            expected = 1 + int(np.argmax(chances >= p))
            assert abs(n - expected) <= (1 if abs(chances[expected - 1] - p) < 1e-9 else 0)
    assert m.queries(0.0, 0.5) == 1
    assert m.queries(-np.inf, 0.5) == np.inf


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1])
def test_probabilities_outside_are_refused(p):
    with pytest.raises(ValueError, match="p: "):
        m.discoverable(-1.0, 3, p)


def test_numbers_that_are_no_log_probability_are_refused():
    with pytest.raises(ValueError, match="above 0"):
        m.discoverable(0.3, 3, 0.5)
    with pytest.raises(ValueError, match="n: 0"):
        m.discoverable(-0.3, 0, 0.5)


def test_counterfactual_scores_are_differences_of_means(generator):
    member = generator.random((30, 12)) < 0.6
    outcome = generator.random((30, 12))
    found = m.counterfactual(member, outcome)
    for item in range(12):
        a = [outcome[k, item] for k in range(30) if member[k, item]]
        b = [outcome[k, item] for k in range(30) if not member[k, item]]
        assert found.score[item] == pytest.approx(np.mean(a) - np.mean(b))
        # the unpooled (Welch) standard error, as scipy computes it
        t = scipy.stats.ttest_ind(a, b, equal_var=False)
        assert found.score[item] / found.error[item] == pytest.approx(t.statistic)
        assert (found.n_with[item], found.n_without[item]) == (len(a), len(b))


def test_counterfactual_finds_the_truth_within_its_error(generator):
    """Outcomes drawn with known probabilities: standardized errors of the score have variance one."""
    truth_in, truth_out = generator.uniform(0.3, 0.7, (2, 3000))
    member = generator.random((60, 3000)) < 0.5
    outcome = generator.random((60, 3000)) < np.where(member, truth_in, truth_out)
    found = m.counterfactual(member, outcome)
    z = (found.score - (truth_in - truth_out)) / found.error
    assert abs(z.mean()) < 5 / math.sqrt(3000)
    assert 0.9 < z.std() < 1.15


def test_counterfactual_without_a_side_is_unknown():
    member = np.array([[True, True, False], [True, False, False], [True, True, False]])
    found = m.counterfactual(member, np.array([[1, 1, 0], [1, 0, 1], [1, 1, 0]]))
    assert np.isnan(found.score).tolist() == [True, False, True]
    assert found.score[1] == 1
    assert np.isnan(found.error).all()
    with pytest.raises(ValueError, match="must both be"):
        m.counterfactual(member, np.zeros((3, 2)))


def test_exposure_is_the_rank_among_the_references(generator):
    references = generator.normal(size=63)
    canary = generator.normal(size=10)
    for loss, bits in zip(canary, m.exposure(canary, references), strict=True):
        rank = sorted([*references, loss]).index(loss) + 1
        assert bits == pytest.approx(math.log2(64) - math.log2(rank))
    assert m.exposure([-99.0], references) == pytest.approx(6)
    assert m.exposure([99.0], references) == pytest.approx(0)


def test_exposure_of_untrained_canaries_is_that_of_a_uniform_rank(generator):
    losses = generator.normal(size=(4000, 32))
    found = m.exposure(losses[:, :1], losses[:, 1:])
    expected = np.mean(np.log2(32) - np.log2(np.arange(1, 33)))
    assert found.mean() == pytest.approx(expected, abs=5 * found.std() / math.sqrt(4000))


def test_equal_losses_share_the_mean_rank():
    assert m.exposure([1.0], np.ones(7)) == pytest.approx(math.log2(8) - math.log2(4.5))
    assert m.exposure([1.0], [0.0, 1.0, 2.0]) == pytest.approx(2 - math.log2(2.5))
    assert np.isnan(m.exposure([np.nan, 1.0], [1.0, 2.0])).tolist() == [True, False]
    with pytest.raises(ValueError, match="at least one"):
        m.exposure([1.0], [])
