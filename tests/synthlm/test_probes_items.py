"""Single items: their sums are what evaluation says of slices, and who was trained on what."""

import math
from pathlib import Path

import numpy as np
import pytest

from synthlm.config import InputError, parse
from synthlm.jobs import Pretrain, Probe
from synthlm.running import run_batch
from synthlm.store import Store
from synthlm.tasks import build

EXCEPTIONS = {
    "name": "exceptions",
    "alphabet": 8,
    "rule": {"name": "cipher", "length": 2, "items": 30, "heldout": 10},
    "exceptions": 6,
}


def job(language: dict, seed: int = 0) -> Pretrain:
    data = {
        "seed": seed,
        "model": {"vocab": 24, "length": 8, "width": 16, "layers": 1, "heads": 2, "mlp": 16},
        "language": language,
        "optimizer": {"name": "adamw", "lr": 0.02},
        "aux": {"name": "adamw", "lr": 0.02},
        "training": {"steps": 40, "batch": 16, "evaluations": 2},
    }
    return parse(Pretrain, data, "job")


def rows_of(store: Store, *subjects: Pretrain, **analysis: str) -> dict:
    probe = parse(Probe, {"subjects": subjects, "analysis": {"name": "items", **analysis}}, "probe")
    run_batch([probe], store)
    return {name: np.array(values) for name, values in store.load(probe.key).metrics.items()}


def test_sums_over_items_are_the_scores_of_slices(tmp_path: Path) -> None:
    store, trained = Store(tmp_path), job(EXCEPTIONS)
    run_batch([trained], store)
    rows = rows_of(store, trained)
    metrics = store.load(trained.key).metrics
    last = max(metrics["step"])
    for i, name in enumerate(metrics["slice"]):
        if metrics["step"][i] == last:
            mine = rows["slice"] == name
            assert rows["tokens"][mine].sum() == metrics["n"][i]
            assert rows["loss"][mine].sum() / metrics["n"][i] == pytest.approx(metrics["loss"][i], abs=1e-4)
            assert rows["right"][mine].mean() == pytest.approx(metrics["accuracy"][i])
            assert rows["exact"][mine].mean() == pytest.approx(metrics["exact"][i])
    assert (rows["trained"] == ~np.char.endswith(rows["slice"].astype(str), "heldout")).all()


def test_each_subject_was_trained_on_its_own_subset(tmp_path: Path) -> None:
    store = Store(tmp_path)
    members = [job({"name": "subset", "of": EXCEPTIONS, "share": 0.5, "draw": draw}) for draw in range(3)]
    assert len({member.shape for member in members}) == 1  # side by side on the run axis
    run_batch(members, store)
    rows = rows_of(store, *members)
    for index, member in enumerate(members):
        language = build(member.language, 0)
        trained = rows["trained"][rows["subject"] == index]
        assert trained.sum() == len(language.train.key) == 15
        prompts = {tuple(row) for row in language.train.tokens}
        assert [tuple(row) in prompts for row in language.probe.tokens] == trained.astype(bool).tolist()
    assert math.isfinite(rows["loss"].sum())


def test_a_pretrained_model_has_no_new_items() -> None:
    with pytest.raises(InputError, match="role: 'new' needs models that were finetuned"):
        parse(Probe, {"subjects": [job(EXCEPTIONS)], "analysis": {"name": "items", "role": "new"}}, "probe")
