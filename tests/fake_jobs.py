"""Jobs that train nothing, for the tests of store, planner, engines and driver; workers import them too. And what
those tests need to watch them.

What a run does is written to ``STORE/log.txt``, a line ``EVENT NAME PID`` each.
"""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from synthlm.config import Config, canonical_json
from synthlm.engines import Engine, Outcome, Workload, make_engine
from synthlm.store import Store

WORKLOAD = Workload("fake_jobs:decode", "fake_jobs:run_batch")
TRIAL = {"slurm": {"cluster": "local"}}
"""Settings with which an engine of several machines runs on this one alone."""


class FakeJob(Config):
    """``behaviour``: what running it does; "raise-flag" and "kill-flag" only while ``STORE/flag`` exists."""

    kind: Literal["fake"] = "fake"
    name: str
    parent: "FakeJob | None" = None
    seconds: float = 0.0
    behaviour: Literal["ok", "raise", "raise-flag", "exit", "kill", "kill-once", "no-commit"] = "ok"
    group: str = "a"
    width_hint: int = 1
    work: float = 1e6

    @property
    def key(self) -> str:
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()

    @property
    def parents(self) -> tuple[str, ...]:
        return (self.parent.key,) if self.parent else ()

    @property
    def shape(self) -> str:
        return self.group

    @property
    def cost(self) -> float:
        return self.work

    @property
    def disk(self) -> int:
        return 1000

    @property
    def label(self) -> str:
        return f"fake {self.name}"


def decode(text: str) -> FakeJob:
    return FakeJob.model_validate_json(text)


def log(store: Store, event: str, name: str) -> None:
    with (store.root / "log.txt").open("a") as file:
        file.write(f"{event} {name} {os.getpid()}\n")


def read_log(root: Path) -> list[tuple[str, str, int]]:
    path = root / "log.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(event, name, int(pid)) for event, name, pid in (line.split() for line in lines)]


def write_entry(store: Store, job: FakeJob, weights: bytes = b"w" * 100) -> Path:
    """The folder of a finished job, not yet committed."""
    folder = store.create(job.key)
    (folder / "config.json").write_text(job.model_dump_json())
    manifest = {"status": "done", "seconds": 0.5, "device": "cpu"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    metrics = {
        "step": [0, 1],
        "role": ["old"] * 2,
        "slice": ["s"] * 2,
        "loss": [2.0, 1.0],
        "accuracy": [0, 1],
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "final.safetensors").write_bytes(weights)
    return folder


def run_batch(
    jobs: Sequence[FakeJob], store: Store, device: str, on_step: Callable[[int, int], None]
) -> None:
    print("a stray print that must not reach the pipe")
    for job in jobs:
        log(store, "start", job.name)
        if job.parent is not None:
            store.load(job.parent.key)
            store.weights(job.parent.key)
        behave(job, store)
    for step in range(10):
        time.sleep(max(job.seconds for job in jobs) / 10)
        on_step(step + 1, 10)
    for job in jobs:
        if job.behaviour != "no-commit":
            store.partial(job.key)
            store.commit(job.key, write_entry(store, job))
            log(store, "done", job.name)


def behave(job: FakeJob, store: Store) -> None:
    if job.behaviour == "raise" or (job.behaviour == "raise-flag" and (store.root / "flag").exists()):
        raise ArithmeticError(f"{job.name} does not work")
    if job.behaviour == "exit":
        sys.exit(3)
    once = store.root / f"{job.name}.killed"
    if job.behaviour == "kill" or (job.behaviour == "kill-once" and not once.exists()):
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class FakeStudy:
    """Wants fixed jobs first, and ``later(results)`` once all of these are done."""

    def __init__(self, jobs: Sequence[FakeJob], later: Callable[[Any], list[FakeJob]] | None = None) -> None:
        self.first, self.later = list(jobs), later

    def jobs(self, results: Callable[[FakeJob], Any]) -> list[FakeJob]:
        known = all(results(job) is not None for job in self.first)
        return [*self.first, *(self.later(results) if self.later and known else [])]

    def describe(self) -> str:
        return "fake jobs"

    def tables(self, results: Callable[[FakeJob], Any]) -> dict[str, Any]:
        import pandas as pd

        rows = [(job.name, results(job).metrics["loss"][-1]) for job in self.jobs(results) if results(job)]
        return {"fake": pd.DataFrame(rows, columns=["name", "loss"])}


def engine_of(name: str, store: Store, workers: int = 2) -> Engine:
    """An engine for fake jobs on this machine; the test is skipped where its package is missing."""
    if name == "ray":
        import pytest

        pytest.importorskip("ray")
    return make_engine(name, store, "cpu", workers, WORKLOAD, TRIAL.get(name))


def wait_all(engine: Engine, count: int, seconds: float = 120.0) -> dict[int, Outcome]:
    ended: dict[int, Outcome] = {}
    deadline = time.monotonic() + seconds
    while len(ended) < count:
        assert time.monotonic() < deadline, f"only {ended}"
        ended |= {outcome.batch: outcome for outcome in engine.wait(1.0)}
    return ended


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def started(root: Path, name: str) -> list[int]:
    return [pid for event, found, pid in read_log(root) if event == "start" and found == name]
