"""The map of rote and rule: its cells, searches and table, with training replaced by a formula."""

import math

import numpy as np
import pytest

from synthlm.config import InputError, parse
from synthlm.experiments.rote_rule import (
    FASTER,
    MapSettings,
    RoteAndRule,
    RoteRuleMap,
    rate_score,
    train_shares,
)
from synthlm.jobs import Pretrain
from synthlm.store import Record
from synthlm.tasks import Exceptions, Facts, Mixture, build

FACTS = {"name": "facts", "items": 20, "alphabet": 8, "key_length": 2, "value_length": 1}
CIPHER = {"name": "cipher", "tag": 1, "alphabet": 8, "length": 2, "items": 10, "heldout": 10}
INNER = {name: value for name, value in CIPHER.items() if name not in ("tag", "alphabet")}
SETTINGS = {
    "model": {"width": 8, "layers": 1, "heads": 1, "mlp": 8},
    "training": {"steps": 30, "batch": 8, "evaluations": 4},
    "aux": {"name": "adamw", "lr": 0.003},
    "optimizers": {
        "adamw": {"optimizer": {"name": "adamw"}, "sweep": {"lowest": 0.001, "highest": 0.1, "count": 3, "widen": 2}},
        "sgd": {"optimizer": {"name": "sgd"}, "sweep": {"lowest": 0.1, "highest": 1.0, "count": 2, "widen": 0}},
    },
    "languages": {
        "cipher": {"rule": CIPHER, "rote": FACTS, "items": [8, 16], "shares": [0.25, 0.5]},
        "odd": {
            "rule": {"name": "exceptions", "alphabet": 8, "rule": INNER, "exceptions": 1},
            "items": [20],
            "shares": [0.2],
        },
        "alone": {"rote": FACTS | {"frequency": "zipf"}, "items": [12]},
    },
}  # fmt: skip


def settings() -> MapSettings:
    return parse(MapSettings, SETTINGS, "test")


def record_of(job: Pretrain, best: float) -> Record:
    """A record whose final accuracies fall with the distance of the learning rate from ``best``."""
    good = math.exp(-abs(math.log(job.optimizer.lr / best)))
    goals = build(job.language, 0).goals
    names = list(goals)
    rows = [(step, name) for step in (0, 5, 30) for name in names]
    accuracy = [good * step / 30 for step, _ in rows]
    metrics = {
        "step": [step for step, _ in rows], "role": ["old"] * len(rows), "slice": [name for _, name in rows],
        "goal": [goals[name] for _, name in rows], "loss": [1 - a for a in accuracy], "floor": [0.0] * len(rows),
        "accuracy": accuracy, "exact": accuracy, "kl": [None] * len(rows), "n": [10] * len(rows),
    }  # fmt: skip
    return Record(job.model_dump(mode="json"), {"status": "done"}, metrics)


def finished(study: RoteRuleMap, best: float) -> dict[str, Record]:
    """Run the study to its end; at most so often as searches may widen."""
    done: dict[str, Record] = {}

    def results(job: Pretrain) -> Record | None:
        return done.get(job.key)

    for _ in range(6):
        new = [job for job in study.jobs(results) if job.key not in done]
        if not new:
            return done
        done |= {job.key: record_of(job, best) for job in new}
    raise AssertionError("the study does not end")


def test_cells_hold_the_languages_they_name() -> None:
    spec = settings().languages
    assert spec["cipher"].cells() == [(8, 0.25), (8, 0.5), (16, 0.25), (16, 0.5)]
    mixed = spec["cipher"].at(16, 0.25)
    assert isinstance(mixed, Mixture)
    assert (mixed.parts[1].items, mixed.shares) == (16, (0.25, 0.75))
    odd = spec["odd"].at(20, 0.2)
    assert isinstance(odd, Exceptions)
    assert (odd.rule.items, odd.exceptions) == (20, 4)
    assert spec["alone"].cells() == [(12, 1.0)]
    assert isinstance(spec["alone"].at(12, 1.0), Facts)
    for name, field in (("modular", {"modulus": 7}), ("routing", {"sources": 4, "keys": 6, "rank": 3})):
        sized = parse(
            RoteAndRule,
            {"rule": {"name": name, "tag": 1, "alphabet": 8, **field}, "rote": FACTS, "items": [13, 20]},
            "test",
        )
        for items in (13, 20):
            language = build(sized.at(items, 0.5), 0)
            assert (language.train.tokens[:, 0] == 5).sum() == items


def test_every_cell_has_its_own_search_and_then_all_seeds() -> None:
    study = RoteRuleMap(settings(), seeds=3)
    first = study.jobs(lambda job: None)
    cells = list(study.cells())
    assert len(cells) == 6 * 2
    assert len(first) == 6 * (3 + 2)
    assert {job.seed for job in first} == {0}
    done = finished(study, best=0.5)
    table = study.table(lambda job: done.get(job.key))
    for cell in cells:
        rows = table[
            (table["language"] == cell.language)
            & (table["items"] == cell.items)
            & (table["rote_share"] == cell.rote_share)
            & (table["optimizer"] == cell.optimizer)
        ]
        chosen = rows[rows["chosen"]]
        assert set(chosen["seed"]) == {0, 1, 2}
        # the best rate lay above AdamW's sweep, which went on by its own ratio of 10 and then stopped
        rates = {"adamw": ({0.001, 0.01, 0.1, 1.0, 10.0}, 1.0), "sgd": ({0.1, 1.0}, 1.0)}[cell.optimizer]
        assert set(rows["lr"]) <= rates[0]
        assert set(chosen["lr"]) == {rates[1]}
        assert set(rows[~rows["chosen"]]["seed"]) == {0}
        assert len(chosen) == 3 * 3 * chosen["slice"].nunique()


def test_shares_of_training_tokens() -> None:
    spec = settings().languages
    # facts have one scored token a sequence, the cipher two
    shares = train_shares(spec["cipher"].at(8, 0.25))
    assert shares["facts/rote"] == pytest.approx(0.25 / (0.25 + 0.75 * 2))
    assert shares["cipher/rule/train"] == pytest.approx(1 - shares["facts/rote"])
    assert shares["cipher/rule/heldout"] == 0
    odd = train_shares(spec["odd"].at(20, 0.2))
    assert odd["exceptions/exception"] == pytest.approx(0.2)


def test_rates_are_judged_by_final_accuracy_and_speed_decides_between_equals() -> None:
    def record(curve: list[float], status: str = "done") -> Record:
        steps = [0, 9, 99]
        metrics = {
            "step": [*steps, *steps], "goal": ["rule"] * 3 + [""] * 3,
            "accuracy": [*curve, 0.3, 0.3, 0.3], "loss": [1.0] * 6,
        }  # fmt: skip
        return Record({}, {"status": status}, metrics)

    expected = 0.8 + FASTER * np.trapezoid([0, 0.4, 0.8], np.log1p([0, 9, 99])) / np.log(100)
    assert rate_score(record([0.0, 0.4, 0.8])) == pytest.approx(expected)
    assert rate_score(record([0, 0.7, 0.8])) > rate_score(record([0, 0.4, 0.8]))
    assert rate_score(record([0, 0.0, 0.82])) > rate_score(record([0, 0.8, 0.8]))
    assert rate_score(record([0, 1, 1], "diverged")) == rate_score(None) == -math.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"languages": {"a": {"items": [3]}}}, ["languages.a", "give a rule, rote or both"]),
        ({"languages": {"a": {"rule": CIPHER, "items": [3]}}}, ["languages.a", "rote"]),
        ({"languages": {"a": {"rule": CIPHER, "rote": FACTS, "items": [60]}}}, ["items", "60"]),
        ({"languages": {"a": {"rule": CIPHER, "rote": FACTS | {"tag": 1}, "items": [8]}}}, ["tag"]),
        ({"languages": {"a": {"rule": CIPHER, "rote": FACTS, "items": [8], "shares": [1.0]}}}, ["shares", "1.0"]),
        ({"aux": {"name": "muon", "lr": 0.1}}, ["aux", "muon"]),
    ],
)  # fmt: skip
def test_bad_settings_are_named(change: dict, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        parse(MapSettings, SETTINGS | change, "test")
    assert all(word in str(error.value) for word in words), str(error.value)
