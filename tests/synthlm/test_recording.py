"""The edge's trace recorded in training: the trajectory's own dot products, alone, in a batch and resumed."""

import itertools
import json
import secrets
from pathlib import Path

import numpy as np
import pytest
import torch

from synthlm import weights
from synthlm.analysis.edge_statistics import edge_statistics
from synthlm.analysis.spectral_edge import UpdateStream, parameter_sets
from synthlm.config import InputError
from synthlm.jobs import Finetune, Full, Pretrain, Training, job_from_json
from synthlm.lora import LoraConfig
from synthlm.model import ModelConfig
from synthlm.optimizers import OptimizerConfig
from synthlm.recording import EdgeConfig, edge_rows, load_modes
from synthlm.store import Store
from synthlm.tasks import Facts, Modular
from synthlm.trained import modes_name, weights_at
from synthlm.training import run_batch

SEED = secrets.randbits(30)
MODEL = ModelConfig(vocab=24, length=4, width=16, layers=1, heads=2, mlp=32)
LANGUAGE = Modular(alphabet=8, modulus=7)
AUX = OptimizerConfig(name="adamw", lr=0.01)
EDGE = EdgeConfig(every=2, window=4, sets=("all", "attention", "layers"), modes=2)


def pretrain(name: str = "adamw", lr: float = 0.01, edge: EdgeConfig | None = EDGE, **changes) -> Pretrain:
    settings = {"steps": 24, "batch": 8, "evaluations": 3, "checkpoints": 6, "edge": edge} | changes
    return Pretrain(
        seed=SEED,
        model=MODEL,
        language=LANGUAGE,
        optimizer=OptimizerConfig(name=name, lr=lr),
        aux=AUX,
        training=Training(**settings),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    print(f"seed {SEED}")
    return Store(tmp_path / "store")


def test_the_trace_is_that_of_the_weights(store: Store) -> None:
    """Every step kept as a checkpoint; their differences' dot products, one by one, are the trace."""
    job = pretrain(edge=EdgeConfig(every=1, window=4, sets=("all", "attention")), steps=9, checkpoints=200)
    run_batch([job], store)
    flats = [weights_at(job, store, step).double() for step in range(10)]
    found = edge_rows(store.table(job.key, "edge"))
    names = [entry.name for entry in MODEL.layout.entries]
    sizes = [entry.size for entry in MODEL.layout.entries]
    assert set(found) == {"all", "attention"}
    for name, trace in found.items():
        member = torch.tensor(parameter_sets(names, (name,))[name]).repeat_interleave(torch.tensor(sizes))
        updates = [(after - before)[member] for before, after in itertools.pairwise(flats)]
        assert trace["parameters"] == int(member.sum())
        assert trace["step"].tolist() == list(range(1, 10))
        assert (trace["lr"] == np.float32(0.01)).all()
        for t in range(9):
            for lag in range(5):
                if lag > t:
                    assert np.isnan(trace["rows"][t, lag])
                else:
                    expected = float(updates[t] @ updates[t - lag])
                    assert trace["rows"][t, lag] == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_training_is_not_changed_by_being_recorded(store: Store) -> None:
    with_edge, without = pretrain(), pretrain(edge=None)
    run_batch([with_edge], store)
    run_batch([without], store)
    assert with_edge.key != without.key
    assert torch.equal(weights_at(with_edge, store, None), weights_at(without, store, None))
    assert store.load(with_edge.key).metrics == store.load(without.key).metrics
    assert store.table(without.key, "edge") is None


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_alone_together_and_resumed_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    jobs = [pretrain(name, lr) for lr in (0.02, 1e36, 0.01)]
    together, alone, broken = (Store(tmp_path / place) for place in ("together", "alone", "broken"))
    run_batch(jobs, together)

    def stop(done: int, total: int) -> None:
        if done == 13:  # between two recorded steps, with the ring full
            raise Interrupted

    with pytest.raises(Interrupted):
        run_batch(jobs, broken, on_step=stop, save_seconds=0.0)
    run_batch(jobs, broken)
    for job in jobs:
        run_batch([job], alone)
        files = [
            {path.name: path.read_bytes() for path in store.folder(job.key).iterdir()}
            for store in (together, alone, broken)
        ]
        for skipped in ("manifest.json", "done.json"):
            for each in files:
                del each[skipped]
        assert files[0] == files[1] == files[2]
        assert "edge.json" in files[0]
        json.loads(files[0]["edge.json"], parse_constant=lambda word: pytest.fail(word))
    assert together.load(jobs[1].key).manifest["status"] == "diverged"
    ended = together.load(jobs[1].key).manifest["diverged_at"]
    for job, last in ((jobs[0], 24), (jobs[1], ended)):
        steps = together.table(job.key, "edge")["step"]
        assert sorted(set(steps)) == list(range(2, last + 1, 2))


def test_modes_are_kept_with_the_checkpoints(store: Store) -> None:
    job = pretrain()
    run_batch([job], store)
    flats = {}
    seen = UpdateStream({"w": MODEL.layout.size}, window=4)
    kept = [path.name for path in sorted(store.folder(job.key).glob("modes-*"))]
    steps = [step for step in job.training.checkpoint_steps if step >= 8]
    assert kept == [modes_name(step) for step in steps]
    every = pretrain(edge=None, checkpoints=400)  # the same weights, at every step
    run_batch([every], store)
    for step in range(0, 25, 2):
        flats[step] = weights_at(every, store, step)
        seen.push(flats[step][None])
        if step in steps:
            expected, sigma = seen.modes("all", 2)
            found, values = load_modes(store.weights(job.key, modes_name(step)), MODEL.layout)
            torch.testing.assert_close(values, sigma)
            cosines = (found.double() * expected).sum(1).abs()
            torch.testing.assert_close(cosines, torch.ones(2).double(), rtol=0, atol=1e-5)


def test_a_learning_rate_schedule_is_recorded(store: Store) -> None:
    job = pretrain(schedule={"shape": "linear", "final": 0.5})
    run_batch([job], store)
    lr = edge_rows(store.table(job.key, "edge"))["all"]["lr"]
    np.testing.assert_allclose(lr, 0.01 * np.linspace(1, 0.5, 24)[1::2], rtol=1e-6)


@pytest.mark.parametrize("method", [Full(), LoraConfig(rank=2, targets=("*.attn.*",))])
def test_finetuning_records_what_moves(store: Store, method: Full | LoraConfig) -> None:
    base = pretrain(edge=None)
    run_batch([base], store)
    language = Facts(label="new", tag=2, alphabet=8, items=16, key_length=2, value_length=1)
    edge = EdgeConfig(every=1, window=3, sets=("all", "attention", "mlp"))
    job = Finetune(
        seed=SEED, base=base, language=language, method=method, optimizer=OptimizerConfig(name="adamw", lr=0.01),
        training=Training(steps=8, batch=8, edge=edge),
    )  # fmt: skip
    run_batch([job], store)
    found = edge_rows(store.table(job.key, "edge"))
    lora = isinstance(method, LoraConfig)
    assert set(found) == {"all", "attention"} | (set() if lora else {"mlp"})
    assert found["all"]["parameters"] == job.trained.size
    statistics = edge_statistics(found["all"]["rows"], job.trained.size, found["all"]["lr"])
    assert (statistics["k_ratio"] >= 1).all()


def test_settings_that_cannot_be_recorded_are_refused() -> None:
    for settings, message in (
        ({"sets": ["atention"]}, "did you mean 'attention'"),
        ({"window": 2}, "window"),
        ({"sketch": 4}, "sketch: 4"),
        ({"sketch": 64, "modes": 1}, "modes: 1"),
        ({"modes": 11}, "modes: 11"),
    ):
        job = json.loads(pretrain().model_dump_json())
        job["training"]["edge"] = settings
        with pytest.raises(InputError, match=message):
            job_from_json(json.dumps(job))
    job = json.loads(pretrain().model_dump_json())
    job["training"]["edge"] = {"every": 1, "sets": ["*.lora_A"]}
    with pytest.raises(InputError, match=r"training\.edge\.sets: no parameter"):
        job_from_json(json.dumps(job))


def test_damaged_modes_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_modes(tmp_path / "none", MODEL.layout)
    weights.save(tmp_path / "weights", torch.zeros(MODEL.layout.size), MODEL.layout)
    with pytest.raises(InputError, match="sigma"):
        load_modes(tmp_path / "weights", MODEL.layout)
