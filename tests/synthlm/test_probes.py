"""Analyses of stored models as jobs: their keys, their runs, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from synthlm import model as transformer
from synthlm.config import InputError, parse
from synthlm.jobs import Finetune, Pretrain, Probe, job_from_json
from synthlm.probes import ANALYSES
from synthlm.running import run_batch
from synthlm.seeds import torch_generator
from synthlm.store import Store
from synthlm.trained import final_weights, weights_at

FACTS = {"name": "facts", "alphabet": 8, "items": 16, "key_length": 2, "value_length": 1}
BASE = {
    "seed": 3,
    "model": {"vocab": 24, "length": 8, "width": 16, "layers": 1, "heads": 2, "mlp": 16},
    "language": FACTS,
    "optimizer": {"name": "adamw", "lr": 0.01},
    "aux": {"name": "adamw", "lr": 0.01},
    "training": {"steps": 20, "batch": 8, "evaluations": 3, "checkpoints": 2},
}


def base(**changes: Any) -> Pretrain:
    return parse(Pretrain, BASE | changes, "job")


def finetuned(method: dict[str, Any]) -> Finetune:
    data = {
        "base": base(),
        "language": FACTS | {"tag": 1, "label": "new"},
        "method": method,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "training": {"steps": 8, "batch": 8, "checkpoints": 2},
    }
    return parse(Finetune, data, "job")


def probe(*subjects: Any, **fields: Any) -> Probe:
    return parse(Probe, {"subjects": subjects, "analysis": {"name": "slices"}} | fields, "probe")


def test_the_key_follows_subjects_step_seed_and_settings() -> None:
    jobs = [
        probe(base()), probe(base(), step=1), probe(base(), seed=1), probe(base(), base(seed=4)),
        probe(base(seed=4)), probe(base(), step=0), probe(finetuned({"kind": "full"})),
    ]  # fmt: skip
    assert len({job.key for job in jobs}) == len(jobs)
    assert probe(base()).key == jobs[0].key
    assert probe(base()).parents == (base().key,)
    assert probe(base(), base(), base(seed=4)).parents == (base().key, base(seed=4).key)
    for job in jobs:
        assert job_from_json(job.model_dump_json()).key == job.key
        assert job.cost > 0


def test_a_step_that_was_not_kept_is_refused() -> None:
    with pytest.raises(InputError, match=r"step: 7 was not kept; allowed: 0, 1, 20"):
        probe(base(), step=7)
    with pytest.raises(InputError, match=r"step: 0 was not kept; allowed: 1, 8"):
        probe(finetuned({"kind": "full"}), step=0)
    with pytest.raises(InputError, match=r"analysis.name: 'slice'.*slices"):
        probe(base(), analysis={"name": "slice"})


def test_scores_of_a_probe_are_those_of_training(tmp_path: Path) -> None:
    store = Store(tmp_path)
    base_job, tuned = base(), finetuned({"kind": "lora", "rank": 2})
    run_batch([base_job], store)
    run_batch([tuned], store)
    jobs = [probe(base_job), probe(base_job, step=0), probe(tuned)]
    seen: list[tuple[int, int]] = []
    run_batch(jobs, store, "cpu", lambda step, total: seen.append((step, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for job, source, step in ((jobs[0], base_job, 20), (jobs[1], base_job, 0), (jobs[2], tuned, 8)):
        record, trained = store.load(job.key), store.load(source.key).metrics
        assert record.manifest["status"] == "done"
        found = dict(
            zip(zip(record.metrics["role"], record.metrics["slice"], strict=True), record.metrics["loss"],
                strict=True)
        )  # fmt: skip
        expected = {
            (role, name): loss
            for at, role, name, loss in zip(
                trained["step"], trained["role"], trained["slice"], trained["loss"], strict=True
            )
            if at == step
        }
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", [{"kind": "full"}, {"kind": "lora", "rank": 2}])
def test_weights_at_a_checkpoint(tmp_path: Path, method: dict[str, Any]) -> None:
    store = Store(tmp_path)
    tuned = finetuned(method)
    for job in (tuned.base, tuned):
        run_batch([job], store)
    start, first, last = (
        final_weights(tuned.base, store),
        weights_at(tuned, store, 1),
        final_weights(tuned, store),
    )
    layout = tuned.model.layout
    assert torch.equal(weights_at(tuned, store, 8), last)
    assert torch.equal(first[layout.matrix_size :], start[layout.matrix_size :])
    assert 0 < (first - start).norm() < (last - start).norm()
    initial = transformer.init(tuned.model, torch_generator(3, "init"))
    assert torch.equal(weights_at(tuned.base, store, 0), initial)


def test_a_damaged_subject_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_batch([base()], store)
    (store.folder(base().key) / "final.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=base().key[:12]):
        run_batch([probe(base())], store)


def test_further_tables_of_an_entry_are_verified(tmp_path: Path) -> None:
    store = Store(tmp_path, warn=lambda text: None)
    job = base()
    run_batch([job], store)
    assert store.table(job.key, "edge") is None
    path = store.folder(job.key) / "metrics.json"
    assert store.table(job.key, "metrics") == json.loads(path.read_text())
    path.write_text("{}")
    with pytest.raises(InputError):
        store.table(job.key, "metrics")


@pytest.mark.parametrize("name", list(ANALYSES))
def test_every_analysis_has_defaults_and_a_cost(name: str) -> None:
    analysis = ANALYSES[name]()
    assert analysis.name == name
    assert (ANALYSES[name].__doc__ or "").strip()
