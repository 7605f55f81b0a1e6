"""Every language against plain-loop references that share no code with the generators."""

import dataclasses
import io
import json
import math
import subprocess
import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from synthlm.config import InputError, parse
from synthlm.tasks import (
    IGNORE,
    LANGUAGES,
    Cipher,
    Copy,
    Exceptions,
    Facts,
    Language,
    Mixture,
    Modular,
    Reverse,
    Sort,
    Table,
    build,
    describe,
    render,
)

SEEDS = st.integers(0, 2**40)
SMALL = {
    "facts": Facts(items=30, alphabet=8),
    "zipf": Facts(items=40, alphabet=8, frequency="zipf", tail=0.3, tag=1, label="zipf"),
    "cipher": Cipher(items=40, heldout=11, alphabet=7, length=3, tag=2),
    "modular": Modular(modulus=7, alphabet=9, train_fraction=0.6, operation="ax+by+c", tag=3),
    "reverse": Reverse(items=20, heldout=5, alphabet=6, length=3, tag=4),
    "sort": Sort(items=20, heldout=5, alphabet=6, length=4, tag=5, order="random"),
    "copy": Copy(items=20, heldout=5, alphabet=6, length=2, tag=6),
    "exceptions": Exceptions(
        rule={"name": "cipher", "items": 40, "heldout": 9, "length": 2}, exceptions=12, alphabet=11, tag=7
    ),
}
SMALL["mixture"] = Mixture(parts=tuple(SMALL.values()), weights=tuple(range(1, 9)))


def rows(table: Table, tag: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, answer) of each item as symbols from 0, read off tokens and targets by hand."""
    result = []
    for tokens, targets in zip(table.tokens.tolist(), table.targets.tolist(), strict=True):
        assert tokens[0] == 4 + tag
        separator = tokens.index(1)
        assert all(target == IGNORE for target in targets[:separator])
        answer = [target for target in targets if target != IGNORE]
        assert targets[separator : separator + len(answer)] == answer
        assert tokens[separator + 1 : separator + len(answer)] == answer[:-1]
        assert not any(tokens[separator + len(answer) :]), "only padding may follow"
        result.append((tuple(t - 16 for t in tokens[1:separator]), tuple(t - 16 for t in answer)))
    return result


def of_slice(language: Language, name: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    index = language.slices.index(name)
    table = language.probe
    chosen = np.flatnonzero((table.slices == index).any(axis=1))
    tag = int(table.tokens[chosen[0], 0]) - 4
    return rows(table.take(chosen), tag)


@pytest.mark.parametrize("name", SMALL)
def test_shapes_depend_on_settings_only_and_every_table_is_sound(name: str) -> None:
    first, second = build(SMALL[name], 1), build(SMALL[name], 2)
    assert first.sha256 == build(SMALL[name], 1).sha256 != second.sha256
    assert (first.slices, first.vocab, first.bits) == (second.slices, second.vocab, second.bits)
    for role in ("train", "probe"):
        one, two = getattr(first, role), getattr(second, role)
        for field in dataclasses.fields(Table):
            a, b = getattr(one, field.name), getattr(two, field.name)
            assert a.shape == b.shape
            assert a.dtype == b.dtype == (np.float64 if field.name in ("weight", "floor") else np.int64)
            with pytest.raises(ValueError, match="read-only"):
                a[...] = 0
        assert one.weight.sum() == pytest.approx(1, abs=1e-12)
        assert Counter(one.item_slice.tolist()) == Counter(two.item_slice.tolist())
        assert one.tokens.shape[1] == first.length
        assert one.tokens.max() < first.vocab
        assert (one.targets[one.slices >= 0] >= 16).all(), "padding, separators and tags are never scored"
        assert (one.targets[one.slices < 0] == IGNORE).all()
        assert not one.floor.any(), "answers are functions of prompts"


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_no_prompt_is_both_trained_and_held_out(name: str, seed: int) -> None:
    language = build(SMALL[name], seed)
    prompts = {}
    for table in (language.train, language.probe):
        for tokens, key in zip(table.tokens.tolist(), table.key.tolist(), strict=True):
            prompt = tuple(tokens[: tokens.index(1)])
            assert prompts.setdefault(prompt, key) == key
    assert len(set(prompts.values())) == len(prompts), "different prompts have different keys"
    train = {tuple(tokens[: tokens.index(1)]) for tokens in language.train.tokens.tolist()}
    assert len(train) == len(language.train.key)
    for index, slice_name in enumerate(language.slices):
        chosen = (language.probe.slices == index).any(axis=1)
        held = {tuple(tokens[: tokens.index(1)]) for tokens in language.probe.tokens[chosen].tolist()}
        assert len(held) == chosen.sum() > 0
        assert held.isdisjoint(train) if slice_name.endswith("/heldout") else held <= train


@settings(max_examples=25, deadline=None)
@given(
    seed=SEEDS,
    alphabet=st.integers(2, 20),
    length=st.integers(1, 4),
    shift=st.sampled_from(["random", "position", "none"]),
)
def test_cipher_is_one_permutation_and_one_shift_a_position(
    seed: int, alphabet: int, length: int, shift: str
) -> None:
    space = alphabet**length
    items = max(1, min(60, space // 2))
    config = Cipher(
        alphabet=alphabet, length=length, items=items, heldout=min(20, space - items), shift=shift
    )
    language = build(config, seed)
    pairs = of_slice(language, "cipher/rule/train") + of_slice(language, "cipher/rule/heldout")
    # For a shift s and a permutation f: answer - s = f(symbol). Each position's map is one-to-one, and
    # any two positions differ by a constant.
    maps: list[dict[int, int]] = [{} for _ in range(length)]
    for key, answer in pairs:
        for position in range(length):
            assert maps[position].setdefault(key[position], answer[position]) == answer[position]
    for position, table in enumerate(maps):
        assert len(set(table.values())) == len(table)
        gaps = {(table[s] - maps[0][s]) % alphabet for s in table.keys() & maps[0].keys()}
        assert len(gaps) <= 1
        if gaps and shift != "random":
            assert gaps == {position % alphabet if shift == "position" else 0}


def test_cipher_bits_count_the_distinct_rules() -> None:
    for alphabet, length in ((3, 2), (4, 1), (3, 3)):
        rules = set()
        for f in _permutations(alphabet):
            for shift in product(range(alphabet), repeat=length):
                rules.add(tuple((f[s] + shift[i]) % alphabet for i in range(length) for s in range(alphabet)))
        config = Cipher(alphabet=alphabet, length=length, items=1, heldout=1)
        assert build(config, 0).rule_bits == pytest.approx(math.log2(len(rules)))
    fixed = Cipher(alphabet=4, length=2, items=1, heldout=1, shift="position")
    assert build(fixed, 0).rule_bits == pytest.approx(math.log2(24))


def _permutations(n: int) -> list[tuple[int, ...]]:
    return [f for f in product(range(n), repeat=n) if len(set(f)) == n]


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, alphabet=st.integers(3, 30), length=st.integers(2, 5))
def test_covering_keys_show_every_symbol_in_training(seed: int, alphabet: int, length: int) -> None:
    space = alphabet**length
    items = -(-alphabet // length)
    config = Cipher(
        alphabet=alphabet, length=length, items=items, heldout=min(7, space - items), keys="covering"
    )
    language = build(config, seed)
    trained = of_slice(language, "cipher/rule/train")
    assert {symbol for key, _ in trained for symbol in key} == set(range(alphabet))
    keys = [key for key, _ in trained + of_slice(language, "cipher/rule/heldout")]
    assert len(set(keys)) == len(keys) == items + config.heldout


REFERENCE = {
    "x+y": lambda x, y: x + y,
    "x-y": lambda x, y: x - y,
    "x*y": lambda x, y: x * y,
    "2x+3y": lambda x, y: 2 * x + 3 * y,
    "x^2+y^2": lambda x, y: x**2 + y**2,
    "x^2+xy+y^2": lambda x, y: x**2 + x * y + y**2,
}


@pytest.mark.parametrize("operation", REFERENCE)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, modulus=st.integers(3, 13), fraction=st.floats(0.15, 0.85))
def test_modular_tables_are_complete_and_right(
    operation: str, seed: int, modulus: int, fraction: float
) -> None:
    config = Modular(operation=operation, modulus=modulus, alphabet=16, train_fraction=fraction, probe=None)
    language = build(config, seed)
    trained, held = (of_slice(language, f"modular/rule/{part}") for part in ("train", "heldout"))
    assert len(trained) == round(fraction * modulus**2) == len(language.train.key)
    assert sorted(key for key, _ in trained + held) == list(product(range(modulus), repeat=2))
    for (x, y), answer in trained + held:
        assert answer == (REFERENCE[operation](x, y) % modulus,)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_random_coefficients_are_read_off_three_cells(seed: int) -> None:
    language = build(Modular(operation="ax+by+c", modulus=11, alphabet=11), seed)
    table = dict(of_slice(language, "modular/rule/train") + of_slice(language, "modular/rule/heldout"))
    c = table[0, 0][0]
    a, b = (table[1, 0][0] - c) % 11, (table[0, 1][0] - c) % 11
    assert a != 0 != b
    assert all(z == ((a * x + b * y + c) % 11,) for (x, y), z in table.items())
    assert language.rule_bits == pytest.approx(math.log2(10 * 10 * 11))


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, length=st.integers(2, 6))
def test_reverse_sort_and_copy(seed: int, length: int) -> None:
    sizes = {"items": 30, "heldout": 6, "alphabet": 9, "length": length}
    for config, apply in (
        (Reverse(**sizes), lambda key: key[::-1]),
        (Copy(**sizes), lambda key: key),
        (Sort(**sizes), lambda key: tuple(sorted(key))),
    ):
        language = build(config, seed)
        pairs = of_slice(language, f"{config.name}/rule/train") + of_slice(
            language, f"{config.name}/rule/heldout"
        )
        assert len(pairs) == 36
        assert all(answer == apply(key) for key, answer in pairs)
        assert language.rule_bits == language.bits == 0


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_random_order_is_one_order_and_answers_are_reorderings(seed: int) -> None:
    config = Sort(items=200, heldout=50, alphabet=6, length=4, order="random")
    language = build(config, seed)
    before = set()
    for key, answer in of_slice(language, "sort/rule/train") + of_slice(language, "sort/rule/heldout"):
        assert Counter(key) == Counter(answer)
        before |= {(a, b) for i, a in enumerate(answer) for b in answer[i:] if a != b}
    assert not {(b, a) for a, b in before} & before
    assert len(before) == 15, "with this many strings every pair is seen"
    assert language.rule_bits == pytest.approx(math.log2(720))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, inner=st.sampled_from(["cipher", "modular"]), count=st.integers(1, 30))
def test_exceptions_break_the_rule_and_nothing_else_does(seed: int, inner: str, count: int) -> None:
    small = {"items": 60, "heldout": 20, "length": 2} if inner == "cipher" else {"modulus": 9}
    config = Exceptions(rule={"name": inner, **small}, exceptions=count, alphabet=9)
    language = build(config, seed)
    train, held, odd = (
        of_slice(language, f"exceptions/{part}") for part in ("rule/train", "rule/heldout", "exception")
    )
    trained = 60 if inner == "cipher" else 40
    assert (len(train), len(odd)) == (trained - count, count)
    if inner == "modular":
        assert all(answer == ((x + y) % 9,) for (x, y), answer in train + held)
        assert all(answer != ((x + y) % 9,) for (x, y), answer in odd)
        others = 9 - 1
    else:
        rule: list[dict[int, int]] = [{}, {}]
        for key, answer in train + held:
            for i in range(2):
                assert rule[i].setdefault(key[i], answer[i]) == answer[i]
        gap = next((rule[1][s] - rule[0][s]) % 9 for s in rule[0].keys() & rule[1].keys())
        for key, answer in odd:
            first = rule[0].get(key[0], (rule[1].get(key[0], 99) - gap) % 9)
            second = rule[1].get(key[1], (rule[0].get(key[1], 99) + gap) % 9)
            assert answer != (first, second)
        others = 9**2 - 1
    assert language.bits == pytest.approx(math.log2(math.comb(trained, count)) + count * math.log2(others))
    assert language.goals == {
        "exceptions/rule/train": "",
        "exceptions/rule/heldout": "rule",
        "exceptions/exception": "rote",
    }


def test_exceptions_are_uniform_among_the_other_answers() -> None:
    rule = {"name": "cipher", "shift": "none", "length": 2, "items": 12, "heldout": 4}
    config = Exceptions(rule=rule, alphabet=4, exceptions=6)
    gaps: Counter[tuple[int, ...]] = Counter()
    for seed in range(400):
        language = build(config, seed)
        regular = of_slice(language, "exceptions/rule/train") + of_slice(language, "exceptions/rule/heldout")
        f = {symbol: image for key, answer in regular for symbol, image in zip(key, answer, strict=True)}
        for key, answer in of_slice(language, "exceptions/exception"):
            gaps[tuple((a - f[symbol]) % 4 for symbol, a in zip(key, answer, strict=True))] += 1
    assert len(gaps) == 15
    assert (0, 0) not in gaps
    assert sum((count - 160) ** 2 / 160 for count in gaps.values()) < 45, gaps  # 14 dof: p < 5e-5


def test_random_shifts_are_uniform() -> None:
    shifts: Counter[int] = Counter()
    for seed in range(400):
        pairs = of_slice(build(Cipher(alphabet=4, length=2, items=15, heldout=1), seed), "cipher/rule/train")
        first, second = ({key[i]: answer[i] for key, answer in pairs} for i in range(2))
        shifts[(second[0] - first[0]) % 4] += 1
    assert sum((shifts[shift] - 100) ** 2 / 100 for shift in range(4)) < 25, shifts


@settings(max_examples=20, deadline=None)
@given(items=st.integers(2, 300), exponent=st.floats(0, 3), tail=st.floats(0, 0.95))
def test_zipf_weights_and_tail(items: int, exponent: float, tail: float) -> None:
    config = Facts(items=items, frequency="zipf", exponent=exponent, tail=tail, probe=None)
    language = build(config, 5)
    total = math.fsum((r + 1) ** -exponent for r in range(items))
    expected = [(r + 1) ** -exponent / total for r in range(items)]
    np.testing.assert_allclose(language.train.weight, expected, rtol=1e-12)
    rare = int(tail * items)
    in_tail = language.train.slices.max(axis=1) == 1
    assert in_tail.tolist() == [False] * (items - rare) + [True] * rare
    assert language.slices == (("facts/rote", "facts/rote/tail") if rare else ("facts/rote",))


def test_facts_are_uniform_and_their_bits_exact() -> None:
    config = Facts(items=16, key_length=2, value_length=3, alphabet=4)
    language = build(config, 0)
    assert language.bits == 16 * 3 * 2
    assert language.goals == {"facts/rote": "rote"}
    assert sorted(key for key, _ in of_slice(language, "facts/rote")) == list(product(range(4), repeat=2))
    values = Counter(
        v for seed in range(200) for _, value in of_slice(build(config, seed), "facts/rote") for v in value
    )
    assert sum((count - 2400) ** 2 / 2400 for count in values.values()) < 25


def test_long_keys_of_a_large_alphabet_are_distinct() -> None:
    language = build(Facts(items=500, key_length=40, alphabet=1000), 3)
    pairs = of_slice(language, "facts/rote")
    assert len({key for key, _ in pairs}) == 500
    assert {len(key) for key, _ in pairs} == {40}


def test_mixture_joins_its_parts_unchanged() -> None:
    mixture = SMALL["mixture"]
    joined = build(mixture, 9)
    assert joined.vocab == 16 + 11
    offset = 0
    for part, weight in zip(mixture.parts, range(1, 9), strict=True):
        alone = build(part, 9)
        here = joined.train.tokens[:, 0] == 4 + part.tag
        assert joined.train.weight[here].sum() == pytest.approx(weight / 36)
        np.testing.assert_allclose(joined.train.weight[here], alone.train.weight * weight / 36)
        for role in ("train", "probe"):
            table = getattr(joined, role)
            chosen = np.flatnonzero(table.tokens[:, 0] == 4 + part.tag)
            assert rows(table.take(chosen), part.tag) == rows(getattr(alone, role), part.tag)
            names = [joined.slices[i] for i in table.item_slice[chosen]]
            assert names == [alone.slices[i] for i in getattr(alone, role).item_slice]
        offset += len(alone.slices)
        assert all(joined.goals[name] == goal for name, goal in alone.goals.items())
    assert offset == len(joined.slices)
    assert joined.bits == pytest.approx(sum(build(part, 9).bits for part in mixture.parts))
    assert joined.rule_bits == pytest.approx(sum(build(part, 9).rule_bits for part in mixture.parts))


def test_probe_keeps_at_most_so_many_of_each_slice_and_spans_frequencies() -> None:
    language = build(Facts(items=100, frequency="zipf", tail=0.5, probe=10), 1)
    assert Counter(language.probe.item_slice.tolist()) == {0: 10, 1: 10}
    rank = {key: r for r, key in enumerate(language.train.key.tolist())}
    assert [rank[key] for key in language.probe.key.tolist()] == list(range(0, 100, 5))
    assert len(build(Facts(items=100, probe=None), 1).probe.key) == 100


@pytest.mark.parametrize("name", ["facts", "cipher", "modular", "sort", "exceptions"])
def test_a_fresh_tag_or_label_is_a_new_draw(name: str) -> None:
    config = SMALL[name]
    draws = [config, config.fresh(tag=11, label=config.label), config.fresh(tag=config.tag, label="new")]
    answers = []
    for each in draws:
        table = build(each, 4).train
        answers.append(dict(rows(table, each.tag)))
    shared = [a.keys() & b.keys() for a, b in ((answers[0], answers[1]), (answers[0], answers[2]))]
    for other, common in zip(answers[1:], shared, strict=True):
        assert answers[0] != other
        if name in ("cipher", "modular", "exceptions"):
            assert common
            assert any(answers[0][key] != other[key] for key in common), "the rule itself is another"


def test_the_rule_does_not_depend_on_how_much_data_there_is() -> None:
    few, many = (build(Cipher(items=n, heldout=50, alphabet=9, length=3), 3) for n in (100, 400))
    a, b = (dict(of_slice(language, "cipher/rule/train")) for language in (few, many))
    assert a.keys() & b.keys()
    assert all(a[key] == b[key] for key in a.keys() & b.keys())


def test_sha256_is_the_same_in_another_process_and_covers_the_arrays() -> None:
    code = (
        "import sys, json; from synthlm.tasks import LANGUAGES, build\n"
        "print(json.dumps({n: build(c(), 3).sha256 for n, c in LANGUAGES.items()}))"
    )
    environment = {"PYTHONHASHSEED": "77", "PATH": "/usr/bin:/bin"}
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    here = {name: build(cls(), 3).sha256 for name, cls in LANGUAGES.items()}
    assert json.loads(other.stdout) == here
    assert len(set(here.values())) == len(here)
    language = build(Facts(), 3)
    weight = language.train.weight.copy()
    weight[:2] += (1e-9, -1e-9)
    nudged = dataclasses.replace(language, train=dataclasses.replace(language.train, weight=weight))
    assert nudged.sha256 != language.sha256


def test_unsound_languages_are_refused() -> None:
    language = build(SMALL["cipher"], 0)
    leak = np.concatenate([language.train.key[:1], language.train.key[1:-1], language.probe.key[-1:]])
    targets = language.train.targets.copy()
    targets[:, -1] = IGNORE
    pad = language.train.tokens.copy()
    pad[:, -1] = 0
    for change, message in (
        ({"key": leak}, "also a training prompt"),
        ({"key": np.zeros_like(leak)}, "share a prompt"),
        ({"targets": targets}, "disagree"),
        ({"tokens": pad}, "padding"),
        ({"weight": language.train.weight * 2}, "sum to 1"),
        ({"slices": np.where(language.train.slices >= 0, 1, -1)}, "held-out item is among"),
        ({"targets": np.where(language.train.targets >= 0, 17, IGNORE)}, "not the token that follows"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(language, train=dataclasses.replace(language.train, **change))


@pytest.mark.parametrize(
    ("cls", "data", "words"),
    [
        (Modular, {"modulus": 97}, ["modulus", "97", "2..64"]),
        (Modular, {"modulus": 2, "train_fraction": 0.01}, ["train_fraction", "0.01", "1..3"]),
        (Modular, {"operation": "x+z"}, ["operation", "x+z", "x+y"]),
        (Facts, {"items": 300, "key_length": 2, "alphabet": 16}, ["items", "300", "1..256"]),
        (Facts, {"tag": 12}, ["tag", "12", "less than 12"]),
        (Facts, {"label": "a/b"}, ["label", "a/b"]),
        (Cipher, {"items": 10, "heldout": 7, "alphabet": 4, "length": 2}, ["heldout", "7", "1..6"]),
        (Cipher, {"items": 16, "alphabet": 4, "length": 2}, ["items", "16", "1..15"]),
        (Cipher, {"items": 15, "keys": "covering"}, ["items", "15", "at least 16"]),
        (Exceptions, {"exceptions": 512}, ["exceptions", "512", "1..511"]),
        (Exceptions, {"rule": {"name": "modular", "modulus": 80}}, ["modulus", "80", "2..64"]),
        (Mixture, {"parts": [{"name": "facts"}, {"name": "modular"}]}, ["parts", "tag 0", "twice"]),
        (Mixture, {"weights": [1, 2, 3]}, ["weights", "3", "2 parts"]),
        (
            Mixture,
            {"parts": [{"name": "copy"}, {"name": "copy", "tag": 1}]},
            ["parts", "label 'copy'", "twice"],
        ),
    ],
)
def test_bad_settings_name_field_value_and_what_is_allowed(cls: type, data: dict, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        parse(cls, data, "test")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_registry_defaults_and_description() -> None:
    for name, cls in LANGUAGES.items():
        language = build(cls(), 0)
        assert cls().name == name
        assert getattr(cls(), "label", name) == ("facts" if name == "subset" else name)
        description = describe(language, samples=2)
        assert [row.name for row in description.slices] == list(language.slices)
        assert {sample.slice for sample in description.samples} <= set(language.slices)
        assert max(row.train_items for row in description.slices) <= len(language.train.key)
        assert sum(row.share for row in description.slices) == pytest.approx(1)
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(render(description))
        text = console.export_text()
        assert all(slice_name in text for slice_name in language.slices)
        assert language.sha256 in text
    (sample,) = describe(build(Facts(items=1, alphabet=2, key_length=1, value_length=1), 0), 1).samples
    words, scored = zip(*sample.words, strict=True)
    assert words[0] == "<facts>"
    assert words[2] == "="
    assert {words[1], words[3]} <= {"s0", "s1"}
    assert scored == (False, False, False, True)
    assert sample.text == " ".join(words)


def test_scored_tokens_are_marked_without_a_terminal() -> None:
    description = describe(build(Facts(items=1, alphabet=2, key_length=1, value_length=1), 0), 1)
    (sample,) = description.samples
    console = Console(width=120, file=io.StringIO())
    console.print(render(description))
    a, b = sample.words[1][0], sample.words[3][0]
    assert f" <facts> {a} = [{b}] " in console.file.getvalue()
    console = Console(width=120, file=io.StringIO())
    console.print(render(dataclasses.replace(description, samples=())))
    assert "sequence" not in console.file.getvalue()
