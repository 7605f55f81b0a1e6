"""Strings, biographies, recall, automaton, routing, subset, canaries, injection: against plain loops and
enumeration."""

import dataclasses
import io
import math
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from synthlm.config import InputError, parse
from synthlm.tasks import (
    IGNORE,
    Automaton,
    Biographies,
    Canaries,
    Cipher,
    Dyck,
    Exceptions,
    Facts,
    Injection,
    Language,
    Mixture,
    Pcfg,
    Recall,
    Routing,
    Sort,
    Strings,
    Subset,
    Table,
    build,
    describe,
    render,
)
from synthlm.tasks.automaton import connected_tables

SEEDS = st.integers(0, 2**40)
SMALL = {
    "strings": Strings(items=30, length=4, alphabet=5),
    "prefixed": Strings(items=30, length=5, prefix=3, alphabet=5, label="prefixed", tag=1),
    "biographies": Biographies(people=9, attributes=2, templates=3, alphabet=12, values=5, tag=2),
    "recall": Recall(pairs=3, queries=2, keys=5, values=4, items=40, heldout=11, alphabet=9, tag=3),
    "automaton": Automaton(states=4, symbols=2, length=6, items=30, heldout=12, alphabet=8, tag=4),
    "parity": Automaton(
        transitions="parity", states=2, symbols=2, length=6, items=30, heldout=12, alphabet=8, score="final",
        label="parity", tag=5,
    ),
    "dyck": Dyck(kinds=2, pairs=4, depth=3, items=60, heldout=20, alphabet=7, brackets="random", tag=6),
    "pcfg": Pcfg(nonterminals=3, branches=2, words=3, length=5, items=40, heldout=15, alphabet=8, tag=7),
    "routing": Routing(sources=4, keys=6, rank=3, alphabet=8, tag=8),
}  # fmt: skip
SMALL["subset"] = Subset(of=SMALL["strings"], share=0.4)
SMALL["canaries"] = Canaries(
    background=SMALL["routing"], repeats=(1, 3), each=2, references=7, length=3, alphabet=6, tag=10
)
SMALL["injection"] = Injection(
    background=SMALL["routing"], step=5, repeats=2, items=4, references=9, length=3, alphabet=6, tag=10
)
SMALL["mixture"] = Mixture(
    parts=(
        *(SMALL[name] for name in list(SMALL)[1:9]),
        Subset(of=Facts(items=20, alphabet=5, tag=9)),
        SMALL["strings"],
    )
)


def items_of(language: Language, name: str, role: str = "probe") -> list[tuple[tuple[int, ...], ...]]:
    """(all tokens, scored tokens) of each item with a position in that slice, tag and specials included."""
    table, index = getattr(language, role), language.slices.index(name)
    found = []
    for tokens, targets, slices in zip(table.tokens, table.targets, table.slices, strict=True):
        if (slices == index).any():
            scored = [t for t in range(len(tokens)) if targets[t] != IGNORE]
            whole = [*tokens[: scored[-1] + 1].tolist(), int(targets[scored[-1]])]
            found.append((tuple(whole), tuple(int(targets[t]) for t in scored)))
    return found


@pytest.mark.parametrize("name", SMALL)
def test_shapes_depend_on_settings_only_and_every_table_is_sound(name: str) -> None:
    first, second = build(SMALL[name], 1), build(SMALL[name], 2)
    assert first.sha256 == build(SMALL[name], 1).sha256 != second.sha256
    assert (first.slices, first.goals, first.vocab) == (second.slices, second.goals, second.vocab)
    for role in ("train", "probe"):
        one, two = getattr(first, role), getattr(second, role)
        for field in dataclasses.fields(Table):
            a, b = getattr(one, field.name), getattr(two, field.name)
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert one.scored.sum() == two.scored.sum(), "runs of different seeds are evaluated side by side"
        assert (one.floor[~one.scored] == 0).all()
        for index in range(len(first.slices)):
            assert (first.probe.slices == index).any()
    assert set(first.config.tags) == {int(tag) - 4 for tag in first.train.tokens[:, 0]}


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_nothing_held_out_is_in_training(name: str, seed: int) -> None:
    language = build(SMALL[name], seed)
    trained = set(map(tuple, np.hstack([language.train.tokens, language.train.targets]).tolist()))
    assert len(trained) == len(language.train.key)
    for slice_name in language.slices:
        if slice_name.endswith("/heldout"):
            index = language.slices.index(slice_name)
            of = (language.probe.slices == index).any(axis=1)
            rows = np.hstack([language.probe.tokens, language.probe.targets])[of].tolist()
            assert trained.isdisjoint(map(tuple, rows))
            assert not np.isin(language.probe.key[of], language.train.key).any()


@pytest.mark.parametrize("name", SMALL)
def test_it_is_described(name: str) -> None:
    language = build(SMALL[name], 0)
    description = describe(language, samples=1)
    assert sum(row.share for row in description.slices) == pytest.approx(1)
    assert sum(row.scored_tokens for row in description.slices) == language.probe.scored.sum()
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(render(description))
    text = console.export_text()
    assert all(slice_name in text for slice_name in language.slices)
    for sample in description.samples:
        label = sample.slice.split("/")[0]
        assert sample.words[0] == (f"<{label}>", False)
        assert any(scored for _, scored in sample.words)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, prefix=st.integers(0, 2))
def test_strings_are_distinct_and_hold_log2_of_the_number_of_sets(seed: int, prefix: int) -> None:
    config = Strings(items=6, length=3, prefix=prefix, alphabet=3 if prefix != 1 else 6)
    language = build(config, seed)
    strings = items_of(language, "strings/rote")
    assert len({whole[1 : 1 + (prefix or 3)] for whole, _ in strings}) == 6
    assert all(scored == whole[1 + prefix :] for whole, scored in strings)
    if prefix:
        assert language.bits == pytest.approx(6 * (3 - prefix) * math.log2(config.alphabet))
        assert not language.train.floor.any()
    else:
        assert language.bits == pytest.approx(math.log2(math.comb(27, 6)))
        # all by heart: each of six equally likely strings costs ln 6 in the end
        np.testing.assert_allclose(language.train.floor.sum(1), math.log(6))


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_a_fact_is_told_alike_in_every_sentence_and_in_other_words_than_held_out(seed: int) -> None:
    config = SMALL["biographies"]
    language = build(config, seed)
    facts: dict[tuple, set] = {}
    told: Counter = Counter()
    shown, hidden = (items_of(language, f"biographies/{part}") for part in ("rote", "rephrased/heldout"))
    phrases = set()
    for whole, answer in shown + hidden:
        prompt = whole[1 : whole.index(1)]
        name = tuple(t for t in prompt if t - 16 < 6)
        words = tuple(t for t in prompt if t - 16 >= 6)
        assert (len(name), len(words)) == (2, 2)
        start = next(i for i in range(3) if prompt[i : i + 2] == name)
        assert answer == whole[whole.index(1) + 1 :]
        phrases.add((words, start))
        facts.setdefault((name, answer), set()).add((words, start))
        told[name] += 1
    assert len(phrases) == 6
    assert set(told.values()) == {6}
    assert (len(shown), len(hidden)) == (9 * 2 * 2, 9 * 2)
    # phrases fall into two groups of three that tell the same attribute
    groups = {frozenset(said) for said in facts.values() if len(said) == 3}
    if len(groups) == 2:
        assert set().union(*groups) == phrases
    assert language.rule_bits == pytest.approx(math.log2(math.factorial(6) / (6 * 6 * 2)))


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, templates=st.integers(2, 5), more=st.integers(0, 2), data=st.data())
def test_held_out_sentences_use_words_of_training_however_few_the_people(
    seed: int, templates: int, more: int, data: st.DataObject
) -> None:
    hidden = data.draw(st.integers(1, templates - 1))
    people = -(-templates // (templates - hidden)) + more
    few = {"people": people, "templates": templates, "heldout_templates": hidden, "attributes": 2}
    language = build(Biographies(alphabet=24, **few), seed)

    def phrases(table: Table) -> list[tuple[int, ...]]:
        return [tuple(t for t in row if t - 16 >= 12) for row in table.tokens[:, 1:5].tolist()]

    heldout = (language.probe.slices == 1).any(axis=1)
    said = phrases(language.train)
    assert set(phrases(language.probe.take(np.flatnonzero(heldout)))) <= set(said)
    assert len(set(said)) == 2 * templates
    assert heldout.sum() == people * 2 * hidden
    per_person = Counter(
        tuple(t for t in row if t - 16 < 12) for row in language.train.tokens[:, 1:5].tolist()
    )
    assert set(per_person.values()) == {2 * (templates - hidden)}
    if people > 1 and more == 0:
        words = [*few.items(), ("people", people - 1)]
        with pytest.raises(InputError, match=f"allowed: {people} or more"):
            parse(Biographies, dict(words), "language")


def test_biographies_of_many_people_are_drawn_as_ever() -> None:
    """Digests from before somebody had to be told in each template: these draws were so by themselves."""
    assert build(Biographies(), 0).sha256.startswith("b1b58a1ae5ed6081")
    assert build(Biographies(people=32), 3).sha256.startswith("5c3b7a2711665268")


def test_bits_of_pooled_values_against_all_pools() -> None:
    config = Biographies(people=4, attributes=1, templates=1, heldout_templates=0, alphabet=4, words=1,
                         name_length=2, value_length=1, values=2)  # fmt: skip
    pools = list(combinations(range(4), 2))
    for seed in range(12):
        language = build(config, seed)
        said = [answer[0] - 16 for _, answer in items_of(language, "biographies/rote")]
        chance = sum(all(v in pool for v in said) * 0.5**4 for pool in pools) / len(pools)
        assert language.bits == pytest.approx(-math.log2(chance))


def test_names_and_free_values_are_uniform() -> None:
    config = Biographies(people=3, attributes=2, alphabet=6, values=None, value_length=1, templates=2)
    language = build(config, 0)
    assert language.bits == pytest.approx(3 * 2 * math.log2(6))
    answers: Counter = Counter()
    for seed in range(200):
        for _, answer in items_of(build(config, seed), "biographies/rephrased/heldout"):
            answers[answer] += 1
    assert sum((n - 200) ** 2 / 200 for n in answers.values()) < 30, answers  # 5 dof: p < 2e-5
    assert len(answers) == 6


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, pairs=st.integers(1, 4), queries=st.integers(1, 4))
def test_recall_answers_stand_in_the_context(seed: int, pairs: int, queries: int) -> None:
    queries = min(queries, pairs)
    config = Recall(pairs=pairs, queries=queries, keys=6, values=6, items=20, heldout=6, alphabet=12)
    language = build(config, seed)
    contexts = []
    for name in ("recall/rule/train", "recall/rule/heldout"):
        for whole, answers in items_of(language, name):
            separator = whole.index(1)
            given_, asked = whole[1:separator], whole[separator + 1 :]
            context = dict(zip(given_[::2], given_[1::2], strict=True))
            assert len(context) == pairs
            assert all(k - 16 < 6 <= v - 16 for k, v in context.items())
            assert len(set(asked[::2])) == queries
            assert answers == asked[1::2] == tuple(context[k] for k in asked[::2])
            contexts.append(frozenset(context.items()))
    assert len(set(contexts)) == len(contexts) == 26
    assert language.bits == language.rule_bits == 0


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, transitions=st.sampled_from(["random", "permutation", "parity"]), final=st.booleans())
def test_automata_are_one_table_run_from_state_0(seed: int, transitions: str, final: bool) -> None:
    size = {"states": 2, "symbols": 2} if transitions == "parity" else {"states": 3, "symbols": 2}
    sizes = {"items": 24, "heldout": 8, "length": 5, "alphabet": 4}
    score = "final" if final else "each"
    config = Automaton(transitions=transitions, score=score, **size, **sizes)
    running = Automaton(transitions=transitions, score="each", **size, **sizes)
    table: dict[tuple[int, int], int] = {}
    runs = {}
    for name in ("rule/train", "rule/heldout"):
        for whole, _ in items_of(build(running, seed), f"automaton/{name}"):
            string, states = [t - 16 for t in whole[1 : whole.index(1)]], whole[whole.index(1) + 1 :]
            before = [0, *(t - 16 for t in states)]
            runs[tuple(string)] = before[-1]
            for t, symbol in enumerate(string):
                assert table.setdefault((before[t], symbol), before[t + 1]) == before[t + 1]
            if transitions == "parity":
                assert before[1:] == [sum(string[: t + 1]) % 2 for t in range(5)]
    assert len(runs) == 32, "every string of two symbols"
    assert {state for state, _ in table} == set(range(size["states"])), "every state is reached"
    if transitions == "permutation":
        for symbol in (0, 1):
            assert {table[state, symbol] for state in range(3)} == {0, 1, 2}
    for name in ("rule/train", "rule/heldout"):
        for whole, states in items_of(build(config, seed), f"automaton/{name}"):
            string = tuple(t - 16 for t in whole[1 : whole.index(1)])
            assert states[-1] - 16 == runs[string]
            assert len(states) == 1 if final else 1 <= len(states) <= 5


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, symbols=st.integers(2, 3), items=st.integers(1, 7))
def test_no_beginning_of_a_training_string_is_held_out(seed: int, symbols: int, items: int) -> None:
    """What a table of all beginnings seen in training answers is not scored as held out; everything else is."""
    length = 4
    sizes = {"items": items, "heldout": symbols**length - items, "length": length, "alphabet": 4}
    language = build(
        Automaton(states=3, symbols=symbols, transitions="permutation", probe=None, **sizes), seed
    )
    separator = 1 + length
    shown = {tuple(row[1 : 2 + t]) for row in language.train.tokens.tolist() for t in range(length)}
    probe = language.probe
    heldout = probe.slices == language.slices.index("automaton/rule/heldout")
    train = probe.slices == language.slices.index("automaton/rule/train")
    assert language.goals["automaton/rule/shown"] == ""
    for tokens, new, old in zip(probe.tokens.tolist(), heldout, train, strict=True):
        fresh = [tuple(tokens[1 : 2 + t]) not in shown for t in range(length)]
        if old.any():
            assert old[separator:].all()
        else:
            assert new[separator:].tolist() == fresh
            assert fresh[-1]


@pytest.mark.parametrize(("states", "symbols"), [(1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (2, 3), (4, 1)])
def test_connected_tables_are_counted(states: int, symbols: int) -> None:
    def reached(table: tuple[tuple[int, ...], ...]) -> bool:
        seen, new = {0}, [0]
        while new:
            more = {table[symbol][new[-1]] for symbol in range(symbols)} - seen
            new = [*new[:-1], *more]
            seen |= more
        return len(seen) == states

    maps = list(product(range(states), repeat=states))
    onto = [m for m in maps if len(set(m)) == states]
    assert connected_tables(states, symbols, False) == sum(map(reached, product(maps, repeat=symbols)))
    assert connected_tables(states, symbols, True) == sum(map(reached, product(onto, repeat=symbols)))


def test_automata_are_uniform_among_connected_tables() -> None:
    config = Automaton(states=2, symbols=2, length=3, items=7, heldout=1, alphabet=2)
    drawn: Counter = Counter()
    for seed in range(600):
        language = build(config, seed)
        table = {}
        for name in ("rule/train", "rule/heldout"):
            for whole, _ in items_of(language, f"automaton/{name}"):
                string, before = whole[1 : whole.index(1)], [16, *whole[whole.index(1) + 1 :]]
                table |= {(before[t], string[t]): before[t + 1] for t in range(3)}
        drawn[tuple(table[key] for key in sorted(table))] += 1
    assert language.rule_bits == pytest.approx(math.log2(12))
    assert len(drawn) == 12
    assert sum((n - 50) ** 2 / 50 for n in drawn.values()) < 40, drawn  # 11 dof: p < 4e-5


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, sources=st.integers(1, 5), keys=st.integers(2, 9), fraction=st.floats(0.5, 0.9))
def test_routing_is_one_map_for_every_source(seed: int, sources: int, keys: int, fraction: float) -> None:
    trained = round(fraction * sources * keys)
    if not keys <= trained < sources * keys:
        return
    rank = 1 + seed % keys
    config = Routing(sources=sources, keys=keys, rank=rank, train_fraction=fraction, alphabet=9)
    language = build(config, seed)
    table: dict[int, int] = {}
    train, held = (items_of(language, f"routing/rule/{part}") for part in ("train", "heldout"))
    for (_, _, key, _, value), answer in train:
        assert answer == (value,)
        assert table.setdefault(key, value) == value
    assert len(table) == keys, "every key is trained with some source, so every held-out pair can be inferred"
    assert all(table[whole[2]] == answer[0] for whole, answer in held)
    assert len(set(table.values())) == rank
    assert (len(train), len(held)) == (trained, sources * keys - trained)


def test_routing_maps_are_uniform_and_their_bits_counted() -> None:
    config = Routing(sources=2, keys=3, rank=2, alphabet=3, train_fraction=0.5)
    maps = {m for m in product(range(3), repeat=3) if len(set(m)) == 2}
    drawn: Counter = Counter()
    for seed in range(720):
        language = build(config, seed)
        table = {whole[2]: answer[0] for whole, answer in items_of(language, "routing/rule/train")}
        drawn[tuple(table[16 + key] - 16 for key in range(3))] += 1
    assert set(drawn) == maps
    assert language.rule_bits == pytest.approx(math.log2(len(maps)))
    assert sum((n - 40) ** 2 / 40 for n in drawn.values()) < 50, drawn  # 17 dof: p < 5e-5


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, share=st.floats(0.05, 1), draw=st.integers(0, 9))
def test_subsets_train_on_a_part_and_evaluate_on_all(seed: int, share: float, draw: int) -> None:
    of = Facts(items=20, alphabet=5, frequency="zipf", tail=0.2)
    whole, part = build(of, seed), build(Subset(of=of, share=share, draw=draw), seed)
    kept = np.isin(whole.train.key, part.train.key)
    assert kept.sum() == len(part.train.key) == max(1, round(share * 20))
    for field in dataclasses.fields(Table):
        np.testing.assert_array_equal(getattr(part.probe, field.name), getattr(whole.probe, field.name))
        if field.name != "weight":
            np.testing.assert_array_equal(
                getattr(part.train, field.name), getattr(whole.train, field.name)[kept]
            )
    np.testing.assert_allclose(part.train.weight, whole.train.weight[kept] / whole.train.weight[kept].sum())
    assert part.bits == pytest.approx(whole.bits * kept.sum() / 20)
    assert (part.rule_bits, part.slices, part.goals) == (whole.rule_bits, whole.slices, whole.goals)


def test_every_item_is_as_often_in_as_the_share_says() -> None:
    inside = np.zeros(24)
    for draw in range(300):
        language = build(Subset(of=Strings(items=24, length=3), share=0.25, draw=draw), 5)
        inside += np.isin(language.probe.key, language.train.key)
    assert inside.sum() == 300 * 6
    assert ((inside - 75) ** 2 / (75 * 0.75)).sum() * 23 / 24 < 60, inside  # 23 dof: p < 4e-5


def test_bits_of_a_part_of_the_exceptions_against_enumeration() -> None:
    of = Exceptions(rule={"name": "cipher", "items": 7, "heldout": 2, "length": 2}, exceptions=3, alphabet=3)
    for draw in range(8):
        language = build(Subset(of=of, share=0.6, draw=draw), 1)
        odd = language.train.item_slice == language.slices.index("exceptions/exception")
        ways = [set(c) for c in combinations(range(7), 3)]
        alike = [w for w in ways if all((i in w) == odd[i] for i in range(4))]
        expected = math.log2(len(ways) / len(alike)) + odd.sum() * math.log2(3**2 - 1)
        assert language.bits == pytest.approx(expected)
    for of in (Dyck(items=40, heldout=10, pairs=3), Strings(items=40, length=3, alphabet=5)):
        space = of.strings if isinstance(of, Dyck) else 5**3
        assert build(Subset(of=of), 0).bits == pytest.approx(math.log2(math.comb(space, 20)))
    assert build(Subset(of=Sort(order="random")), 0).bits == 0


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_canaries_are_drawn_as_often_as_they_are_repeated(seed: int) -> None:
    background = Cipher(items=50, heldout=10, length=2, alphabet=9)
    config = Canaries(background=background, repeats=(1, 2, 8), each=3, references=20, length=3, alphabet=7)
    language = build(config, seed)
    weight = language.train.weight
    of_background = language.train.tokens[:, 0] == 4
    base = weight[of_background]
    assert np.ptp(base) < 1e-12
    for repeats in (1, 2, 8):
        index = language.slices.index(f"canaries/rote/x{repeats}")
        of = language.train.item_slice == index
        assert of.sum() == 3
        np.testing.assert_allclose(weight[of], repeats * base[0])
    strings = Counter(
        whole
        for name in language.slices
        if name.startswith("canaries")
        for whole, _ in items_of(language, name)
    )
    assert set(strings.values()) == {1}
    assert len(strings) == 9 + 20
    reference = language.probe.slices == language.slices.index("canaries/reference/heldout")
    np.testing.assert_allclose(language.probe.floor[reference], math.log(7))
    ways = math.comb(343, 3) * math.comb(340, 3) * math.comb(337, 3)
    assert language.bits == pytest.approx(math.log2(ways))


@settings(max_examples=10, deadline=None)
@given(
    seed=SEEDS,
    step=st.integers(0, 300),
    repeats=st.integers(1, 3),
    items=st.integers(1, 20),
    references=st.integers(1, 20),
)
def test_injected_strings_are_seen_in_their_steps_alone(
    seed: int, step: int, repeats: int, items: int, references: int
) -> None:
    background = Facts(items=30, alphabet=9, frequency="zipf")
    config = Injection(
        background=background, step=step, repeats=repeats, items=items, references=references, length=3, alphabet=7
    )  # fmt: skip
    language, alone = build(config, seed), build(background, seed)
    assert sorted(language.prescribed) == list(range(step, step + repeats))
    train = language.train
    injected = train.item_slice == language.slices.index("injection/injected")
    for indices in language.prescribed.values():
        assert indices.tolist() == np.flatnonzero(injected).tolist()
    assert injected.sum() == items
    assert not train.weight[injected].any()
    np.testing.assert_array_equal(train.weight[~injected], alone.train.weight)
    np.testing.assert_array_equal(train.tokens[~injected][:, : alone.length], alone.train.tokens)
    found = {
        name: items_of(language, f"injection/{name}", "probe") for name in ("injected", "reference/heldout")
    }
    assert {name: len(each) for name, each in found.items()} == {
        "injected": items, "reference/heldout": references,
    }  # fmt: skip
    strings = [whole for each in found.values() for whole, _ in each]
    assert len(set(strings)) == items + references
    assert set(items_of(language, "injection/injected", "train")) == set(found["injected"])
    assert all(
        whole[0] == 4 + 11 and whole[1:] == scored for each in found.values() for whole, scored in each
    )
    assert all(16 <= symbol < 16 + 7 for whole in strings for symbol in whole[1:])
    probe = language.probe
    np.testing.assert_allclose(probe.floor[probe.slices == len(language.slices) - 1], math.log(7))
    # all by heart: each of the equally likely strings costs ln of their number in the end
    known = (probe.slices == len(language.slices) - 2).any(axis=1)
    np.testing.assert_allclose(probe.floor[known].sum(1), math.log(items), atol=1e-9)
    assert language.bits == pytest.approx(alone.bits + math.log2(math.comb(343, items)))
    strings_count_to_none = {"injection/injected": "", "injection/reference/heldout": ""}
    assert dict(language.goals) == dict(alone.goals) | strings_count_to_none


@given(step=st.integers(0, 400), repeats=st.integers(1, 5), steps=st.integers(1, 500))
def test_an_injection_asks_for_evaluations_around_itself(step: int, repeats: int, steps: int) -> None:
    asked = Injection(step=step, repeats=repeats).evaluation_steps(steps)
    if step + repeats > steps:
        assert asked == []
        return
    assert asked[:2] == [step, step + repeats]
    assert asked == sorted(set(asked))
    assert asked[-1] == steps
    since = np.array(asked[1:]) - (step + repeats)
    assert (since[1:] <= 1.42 * since[:-1] + 1.25).all(), "twice per doubling, to the next whole step"
    assert len(asked) <= 5 + 2 * math.log2(steps)


def test_prescribed_items_are_training_items_and_part_of_the_digest() -> None:
    language = build(SMALL["injection"], 0)
    assert dataclasses.replace(language, prescribed={}).sha256 != language.sha256
    count = len(language.train.key)
    for wrong in ({-1: np.array([0])}, {0: np.array([count])}, {0: np.array([], dtype=np.int64)}):
        with pytest.raises(ValueError, match="prescribed"):
            dataclasses.replace(language, prescribed=wrong)


@pytest.mark.parametrize(
    ("cls", "data", "words"),
    [
        (Strings, {"prefix": 8}, ["prefix", "8", "0..7"]),
        (Strings, {"items": 30, "alphabet": 5, "prefix": 2}, ["items", "30", "1..25"]),
        (Biographies, {"heldout_templates": 4}, ["heldout_templates", "4", "0..3"]),
        (Biographies, {"people": 20, "alphabet": 8}, ["people", "20", "16"]),
        (Biographies, {"people": 1}, ["people", "1", "2 or more"]),
        (Recall, {"pairs": 17}, ["pairs", "17", "1..16"]),
        (Recall, {"queries": 5}, ["queries", "5", "1..4"]),
        (Recall, {"pairs": 1, "queries": 1}, ["items", "1024", "256"]),
        (Recall, {"keys": 60}, ["keys", "60", "64"]),
        (Automaton, {"transitions": "parity"}, ["transitions", "parity", "states=2"]),
        (Automaton, {"states": 9}, ["states", "9", "2..8"]),
        (Automaton, {"states": 16, "symbols": 1, "length": 20}, ["states", "16"]),
        (Automaton, {"items": 7000}, ["items", "7000", "1..6560"]),
        (Routing, {"train_fraction": 0.1}, ["train_fraction", "0.1", "32..255"]),
        (Routing, {"rank": 33}, ["rank", "33", "1..32"]),
        (Dyck, {"pairs": 3, "kinds": 1}, ["items", "1024", "5 strings"]),
        (Dyck, {"kinds": 33}, ["kinds", "33", "1..32"]),
        (Dyck, {"pairs": 513}, ["pairs", "513", "512"]),
        (Pcfg, {"length": 4}, ["items", "1024", "up to 8"]),
        (Pcfg, {"branches": 65}, ["branches", "65", "1..64"]),
        (Canaries, {"background": {"name": "facts", "tag": 11}}, ["background", "tag"]),
        (Canaries, {"repeats": [1, 1]}, ["repeats", "twice"]),
        (Injection, {"background": {"name": "facts", "label": "injection"}}, ["background", "label"]),
        (Injection, {"alphabet": 4, "references": 250}, ["references", "266", "256"]),
        (Injection, {"step": -1}, ["step", "-1"]),
        (Subset, {"of": {"name": "pcfg"}}, ["of.name", "pcfg", "facts"]),
    ],
)  # fmt: skip
def test_bad_settings_name_field_value_and_what_is_allowed(cls: type, data: dict, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        parse(cls, data, "test")
    assert all(word in str(error.value) for word in words), str(error.value)
