"""The Slurm engine against commands that stand in for Slurm's own: what it submits, and how it reads how jobs end."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import fake_slurm
import pytest
from fake_jobs import WORKLOAD, FakeJob, alive, started, until, wait_all

from synthlm.config import InputError
from synthlm.engines import Engine, make_engine, slurm
from synthlm.store import Store

Make = Callable[..., Engine]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stand-in for Slurm."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    fake_slurm.install(folder)
    monkeypatch.setattr(fake_slurm, "ROOT", folder)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
    for name, seconds in (("LOOK", 0.05), ("ASK", 0.2), ("LAG", 0.3), ("AGAIN", 0.1)):
        monkeypatch.setattr(slurm, f"{name}_SECONDS", seconds)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def engine(store: Store, workers: int | None = None, device: str = "cpu", **settings: object) -> Engine:
    return make_engine("slurm", store, device, workers, WORKLOAD, settings)


def test_batches_are_one_array_and_settings_reach_sbatch(cluster: Path, store: Store) -> None:
    pool = engine(
        store, partition="short", time=30, memory=1.5, account=12, setup=["export SEEN=1"],
        sbatch={"exclude": "node7", "exclusive": True, "gpus-per-node": "a100:1"},
    )  # fmt: skip
    assert pool.workers == 64
    for number in range(3):
        pool.submit(number, [FakeJob(name=str(number))])
    assert {batch: outcome.error for batch, outcome in wait_all(pool, 3).items()} == dict.fromkeys(range(3))
    assert len(store.keys()) == 3
    (script,) = cluster.glob("*.sh")
    lines = set(script.read_text().splitlines())
    asked = {
        "array=0-2%3", "partition=short", "time=30", "mem=1536M", "account=12", "cpus-per-task=1",
        "job-name=synthlm", "no-requeue", "exclude=node7", "exclusive", "gpus-per-node=a100:1",
    }  # fmt: skip
    assert {f"#SBATCH --{flag}" for flag in asked} <= lines
    assert "export SEEN=1" in lines
    pool.close()
    assert not list(store.root.glob("batches/*"))


def test_a_gpu_is_asked_for_on_cuda(cluster: Path, store: Store) -> None:
    assert engine(store, device="cuda").workers == 4
    assert slurm.SlurmSettings().parameters("cuda")["gpus_per_node"] == 1
    assert slurm.SlurmSettings(gpus=2).parameters("cuda")["gpus_per_node"] == 2
    assert "gpus_per_node" not in slurm.SlurmSettings().parameters("cpu")
    with pytest.raises(InputError, match="add --device cuda"):
        engine(store, gpus=1)


def test_without_slurm_there_is_a_way_to_try(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"no Slurm on this machine.*--engine-set cluster=local"):
        engine(store)
    engine(store, cluster="local").close()


@pytest.mark.parametrize("state", ["TIMEOUT", "OUT_OF_MEMORY", "PREEMPTED", "NODE_FAIL", "CANCELLED by 0"])
def test_what_the_scheduler_ends_has_died(cluster: Path, store: Store, state: str) -> None:
    pool = engine(store)
    pool.submit(1, [FakeJob(name="victim", seconds=60.0)])
    assert pool.wait(0.01) == []
    until(lambda: bool(started(store.root, "victim")))
    (log,) = store.root.glob("batches/*/*_log.err")
    with log.open("a") as stream:
        stream.write("slurmstepd: error: the last word\n")
    (name,) = [path.stem for path in cluster.glob("*.pid")]
    fake_slurm.end(name, state)
    outcome = wait_all(pool, 1)[1]
    assert outcome.died
    assert outcome.error == f"Slurm job {name} ended without a result ({state})"
    assert "the last word" in outcome.traceback
    pool.close()
    assert str(log) in outcome.traceback
    assert log.exists(), "the log of what died stays"


def test_closing_cancels(cluster: Path, store: Store) -> None:
    pool = engine(store)
    for number in (1, 2):
        pool.submit(number, [FakeJob(name=str(number), seconds=60.0)])
    pool.wait(0.01)
    until(lambda: bool(started(store.root, "1") and started(store.root, "2")))
    pool.close()
    assert [path.read_text() for path in cluster.glob("*.state")] == ["CANCELLED by 0"] * 2
    until(lambda: not any(alive(started(store.root, name)[0]) for name in ("1", "2")))


def test_what_slurm_refuses_is_bad_input_unless_others_are_under_way(cluster: Path, store: Store) -> None:
    pool = engine(store, partition="closed")
    pool.submit(1, [FakeJob(name="a")])
    with pytest.raises(
        InputError, match=re.escape("engine: Slurm refuses the batches: sbatch: error: invalid")
    ):
        pool.wait(0.01)
    pool.close()

    pool = engine(store)
    pool.submit(1, [FakeJob(name="long", seconds=600.0)])
    pool.wait(0.01)
    refused = cluster / "sbatch"
    refused.rename(cluster / "aside")
    refused.write_text("#!/bin/sh\necho queue full >&2; exit 1\n")
    refused.chmod(0o755)
    pool.submit(2, [FakeJob(name="late")])
    assert pool.wait(0.2) == []
    (cluster / "aside").rename(refused)
    assert wait_all(pool, 1)[2].error is None
    pool.close()
