"""Floors and bits of generated languages against enumeration of every string."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthlm.seeds import numpy_generator
from synthlm.tasks import Dyck, Language, Pcfg, build
from synthlm.tasks.assembly import listed_floor
from synthlm.tasks.keys import first_distinct, log2_sets
from synthlm.tasks.pcfg import Grammar, bits_of_first

SEEDS = st.integers(0, 2**40)
String = tuple[int, ...]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    seed = int(np.random.SeedSequence().entropy) % 2**32
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def conditionals(probability: Mapping[String, float]) -> dict[String, dict[int, float]]:
    """Prefix -> next symbol -> probability, by summing over all strings."""
    mass: dict[String, float] = defaultdict(float)
    for string, p in probability.items():
        for t in range(len(string) + 1):
            mass[string[:t]] += p
    table: dict[String, dict[int, float]] = defaultdict(dict)
    for prefix, p in mass.items():
        if prefix:
            table[prefix[:-1]][prefix[-1]] = p / mass[prefix[:-1]]
    return table


def strings_of(language: Language, suffix: str) -> tuple[list[String], np.ndarray]:
    """Strings of the items with positions in slices that end so, and their floors [item, time]."""
    indices = [i for i, name in enumerate(language.slices) if name.endswith(suffix)]
    of = np.isin(language.probe.slices, indices).any(axis=1)
    return [tuple(row) for row in (language.probe.targets[of] - 16).tolist()], language.probe.floor[of]


def assert_floors(language: Language, probability: Mapping[String, float]) -> None:
    """Held-out floors are -ln p(symbol | prefix) of the rule, training floors those of the list of items."""
    for suffix, truth in (
        ("/heldout", conditionals(probability)),
        ("/train", conditionals(dict.fromkeys(strings_of(language, "/train")[0], 1.0))),
    ):
        strings, floors = strings_of(language, suffix)
        expected = [[-math.log(truth[s[:t]][s[t]]) for t in range(len(s))] for s in strings]
        np.testing.assert_allclose(floors, expected, rtol=1e-9, atol=1e-12)


def all_dyck(kinds: int, pairs: int, depth: int) -> list[String]:
    found = []
    for string in product(range(2 * kinds), repeat=2 * pairs):
        stack: list[int] = []
        for symbol in string:
            if symbol % 2 == 0:
                stack.append(symbol)
                if len(stack) > depth:
                    break
            elif not stack or stack.pop() != symbol - 1:
                break
        else:
            if not stack:
                found.append(string)
    return found


@pytest.mark.parametrize(
    ("kinds", "pairs", "depth"), [(1, 4, 4), (1, 5, 2), (2, 3, 3), (2, 3, 2), (2, 3, 1), (3, 2, 2)]
)
def test_dyck_against_all_strings(kinds: int, pairs: int, depth: int) -> None:
    every = all_dyck(kinds, pairs, depth)
    count = len(every)
    config = Dyck(
        kinds=kinds, pairs=pairs, depth=depth, items=count // 2, heldout=count - count // 2, alphabet=6
    )
    assert config.strings == count
    language = build(config, numpy_generator(0, "any").integers(2**40))
    train, held = strings_of(language, "/train")[0], strings_of(language, "/heldout")[0]
    assert sorted(train + held) == sorted(every)
    assert_floors(language, dict.fromkeys(every, 1.0))
    assert language.bits == pytest.approx(math.log2(math.comb(count, count // 2)))
    ways = conditionals(dict.fromkeys(every, 1.0))
    for row, slices in zip(language.probe.targets - 16, language.probe.slices, strict=True):
        string = tuple(row.tolist())
        for t, index in enumerate(slices):
            forced = len(ways[string[:t]]) == 1 and string[t] % 2 == 1
            assert ("/rule/" in language.slices[index]) == forced


def test_dyck_strings_may_be_long() -> None:
    language = build(Dyck(pairs=400, items=5, heldout=2, kinds=2), 0)
    for string in [s for part in ("free/train", "free/heldout") for s in strings_of(language, part)[0]]:
        assert len(string) == 800
        stack: list[int] = []
        for symbol in string:
            if symbol % 2 == 0:
                stack.append(symbol)
                assert len(stack) <= 4
            else:
                assert stack.pop() == symbol - 1
        assert not stack
    # Chebyshev: strings of n pairs nested at most 4 deep have the generating function of a continued fraction
    series = [1] + [0] * 400
    for _ in range(4):  # 1 / (1 - 2 x f), with f of one depth less
        inner, series = [2 * c for c in series], [1] + [0] * 400
        for n in range(1, 401):
            series[n] = sum(inner[k] * series[n - 1 - k] for k in range(n))
    assert Dyck(pairs=400, kinds=2).strings == series[400]


def test_dyck_strings_are_uniform_whatever_their_brackets() -> None:
    config = Dyck(kinds=2, pairs=2, depth=2, items=2, heldout=1, alphabet=5, brackets="random")
    shapes: Counter = Counter()
    brackets: Counter = Counter()
    for seed in range(800):
        for string in strings_of(build(config, seed), "/train")[0]:
            first_of: dict[int, int] = {}
            pattern = tuple(first_of.setdefault(symbol, len(first_of)) for symbol in string)
            shapes[pattern] += 1
            brackets[string[0]] += 1
    # ()() and (()) for either kind; ()[] and ([]) look alike here
    expected = {(0, 1, 0, 1): 400, (0, 0, 1, 1): 400, (0, 1, 2, 3): 800}
    assert set(shapes) == set(expected)
    assert sum((shapes[s] - n) ** 2 / n for s, n in expected.items()) < 25, shapes  # 2 dof: p < 4e-6
    assert len(brackets) == 5
    assert build(config, 0).rule_bits == pytest.approx(math.log2(5 * 4 * 3 * 2 / 2))


def derivations(grammar: Grammar, nonterminal: int, length: int) -> Counter[String]:
    """String -> number of its derivations, by recursion over trees."""
    if length == 1:
        return Counter({(int(word),): 1 for word in grammar.words[nonterminal]})
    found: Counter[String] = Counter()
    for a, b in zip(grammar.left[nonterminal], grammar.right[nonterminal], strict=True):
        for split in range(1, length):
            for x, m in derivations(grammar, int(a), split).items():
                for y, n in derivations(grammar, int(b), length - split).items():
                    found[x + y] += m * n
    return found


TINY = Pcfg(nonterminals=3, branches=2, words=2, length=4, items=5, heldout=3, alphabet=4)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_pcfg_against_all_derivations(seed: int) -> None:
    language = build(TINY, seed)
    grammar = TINY.grammar(TINY.generators(seed)("rule"))
    counts = derivations(grammar, 0, 4)
    assert grammar.counts(4)[4, 0] == counts.total()
    assert_floors(language, {s: n / counts.total() for s, n in counts.items()})
    rules = math.comb(9, 2) * math.comb(4, 2)
    assert language.rule_bits == pytest.approx(3 * math.log2(rules))
    chance = [counts[s] / counts.total() for s in strings_of(language, "/train")[0]]
    assert language.bits == pytest.approx(-math.log2(first_by_orderings(chance)), abs=1e-6)


def first_by_orderings(chance: list[float]) -> float:
    """Probability that the first distinct ones of a stream are these: the sum over the orders they may come in."""
    total = 0.0
    for order in permutations(chance):
        before, p = 0.0, 1.0
        for each in order:
            p *= each / (1 - before)
            before += each
        total += p
    return total


def test_bits_of_first_against_orderings_and_sets(rng: np.random.Generator) -> None:
    for count in (1, 2, 4, 6):
        for scale in (0.02, 0.5, 0.999):
            chance = rng.dirichlet(np.full(count, 0.4)) * scale + 1e-6
            expected = -math.log2(first_by_orderings(chance.tolist()))
            assert bits_of_first(chance) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    # equal probabilities: a uniform random set
    for space, count in ((50, 20), (10**6, 3000), (10**12, 2000), (3000, 2900)):
        chance = np.full(count, 1 / space)
        assert bits_of_first(chance) == pytest.approx(log2_sets(space, count), rel=1e-6)


def test_pcfg_strings_come_as_often_as_their_derivations(rng: np.random.Generator) -> None:
    grammar = TINY.grammar(rng)
    counts = derivations(grammar, 0, 4)
    drawn = Counter(map(tuple, grammar.draw(20_000, 4, rng).tolist()))
    assert set(drawn) <= set(counts)
    expected = {s: 20_000 * n / counts.total() for s, n in counts.items()}
    chi2 = sum((drawn[s] - e) ** 2 / e for s, e in expected.items())
    freedom = len(expected) - 1
    assert chi2 < freedom + 6 * math.sqrt(2 * freedom) + 12, (chi2, freedom)


@pytest.mark.parametrize("name", ["dyck", "pcfg"])
def test_no_predictor_does_better_than_the_floor_on_fresh_strings(
    name: str, rng: np.random.Generator
) -> None:
    """The best predictor fitted to as many held-out strings as there are, and random ones, lose more than the floor."""
    if name == "dyck":
        config = Dyck(kinds=2, pairs=3, depth=2, items=10, heldout=10)
        every = all_dyck(2, 3, 2)
        probability = dict.fromkeys(every, 1 / len(every))
    else:
        config = TINY
        grammar = TINY.grammar(rng)
        counts = derivations(grammar, 0, 4)
        probability = {s: n / counts.total() for s, n in counts.items()}
    truth = conditionals(probability)
    floor = sum(p * -math.log(truth[s[:t]][s[t]]) for s, p in probability.items() for t in range(len(s)))
    entropy = -sum(p * math.log(p) for p in probability.values())
    assert floor == pytest.approx(entropy)
    alphabet = sorted({symbol for s in probability for symbol in s})
    sample = rng.choice(len(probability), size=4000, p=list(probability.values()))
    fitted = conditionals(Counter(list(probability)[i] for i in sample))
    noisy = {
        prefix: dict(
            zip(alphabet, rng.dirichlet([50 * after.get(a, 0) + 0.1 for a in alphabet]), strict=True)
        )
        for prefix, after in truth.items()
    }
    for predictor in (fitted, noisy):
        loss = sum(
            p * -math.log(max(predictor.get(s[:t], {}).get(s[t], 0), 1e-9))
            for s, p in probability.items()
            for t in range(len(s))
        )
        assert loss >= floor - 1e-9
    if name == "dyck":
        held = np.concatenate([strings_of(build(config, seed), "/heldout")[1].sum(1) for seed in range(100)])
        assert abs(held.mean() - entropy) < 5 * held.std() / math.sqrt(len(held)) + 1e-9


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, items=st.integers(1, 40), time=st.integers(1, 5), symbols=st.integers(1, 4))
def test_listed_floor_is_the_code_length_of_the_list(seed: int, items: int, time: int, symbols: int) -> None:
    generator = np.random.default_rng(seed)
    strings = generator.integers(symbols, size=(items, time))
    weight = generator.dirichlet(np.ones(items))
    mass: Counter = Counter()
    for string, w in zip(map(tuple, strings.tolist()), weight, strict=True):
        mass[string] += w
    truth = conditionals(mass)
    expected = [[-math.log(truth[s[:t]][s[t]]) for t in range(time)] for s in map(tuple, strings.tolist())]
    np.testing.assert_allclose(listed_floor(strings, weight), expected, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, space=st.integers(1, 12))
def test_first_distinct_rows_come_in_order(seed: int, space: int) -> None:
    generator = np.random.default_rng(seed)
    stream: list[int] = []

    def draw(count: int) -> np.ndarray:
        stream.extend(generator.integers(space, size=count).tolist())
        return np.array(stream[-count:])[:, None]

    rows = first_distinct(draw, space)[:, 0].tolist()
    assert rows == list(dict.fromkeys(stream))
    assert log2_sets(2 * space, space) == pytest.approx(math.log2(math.comb(2 * space, space)), abs=1e-9)
