"""Engines: batches end well or tell why, in this process, in workers that may die, and through schedulers."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_jobs import WORKLOAD, FakeJob, alive, engine_of, read_log, started, until, wait_all

from synthlm.config import InputError
from synthlm.engines import Engine, make_engine, resolve_device, usable_cores
from synthlm.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(params=["inline", "local", "slurm", "ray"])
def engine(request: pytest.FixtureRequest, store: Store) -> Iterator[Engine]:
    engine = engine_of(request.param, store)
    yield engine
    engine.close()


@pytest.fixture(params=["local", "slurm", "ray"])
def pool(request: pytest.FixtureRequest, store: Store) -> Iterator[Engine]:
    engine = engine_of(request.param, store)
    yield engine
    engine.close()


def test_a_batch_is_run_and_its_steps_are_told(engine: Engine, store: Store) -> None:
    steps: list[tuple[int, int, int]] = []
    engine.on_step = lambda *step: steps.append(step)
    jobs = [FakeJob(name="a"), FakeJob(name="b")]
    engine.submit(7, jobs)
    outcome = wait_all(engine, 1)[7]
    assert outcome.error is None
    assert not outcome.died
    assert outcome.seconds >= 0
    assert store.keys() == {job.key for job in jobs}
    assert steps
    assert all(batch == 7 and 1 <= step <= total == 10 for batch, step, total in steps)


def test_an_error_is_told_and_the_engine_goes_on(engine: Engine, store: Store) -> None:
    engine.submit(1, [FakeJob(name="bad", behaviour="raise")])
    outcome = wait_all(engine, 1)[1]
    assert outcome.error == "ArithmeticError: bad does not work"
    assert "behave(job, store)" in outcome.traceback
    assert not outcome.died
    engine.submit(3, [FakeJob(name="exit", behaviour="exit")])
    assert wait_all(engine, 1)[3].error == "SystemExit: 3"
    engine.submit(2, [FakeJob(name="good")])
    assert wait_all(engine, 1)[2].error is None


def test_wait_returns_when_there_is_nothing(engine: Engine) -> None:
    assert engine.wait(0.01) == []


def test_a_job_that_exits_ends_no_worker(store: Store) -> None:
    pool = engine_of("local", store)
    pool.submit(1, [FakeJob(name="exit", behaviour="exit")])
    assert wait_all(pool, 1)[1].error == "SystemExit: 3"
    pool.submit(2, [FakeJob(name="good")])
    wait_all(pool, 1)
    pool.close()
    assert started(store.root, "good") == started(store.root, "exit"), "the same process serves both"


def test_batches_run_side_by_side_in_processes_of_their_own(pool: Engine, store: Store) -> None:
    for number in (1, 2):
        pool.submit(number, [FakeJob(name=str(number), seconds=3.0)])
    with pytest.raises(ValueError, match="busy"):
        pool.submit(3, [FakeJob(name="3")])
    assert all(outcome.error is None for outcome in wait_all(pool, 2).values())
    events = [event for event, _, _ in read_log(store.root)]
    assert events == ["start", "start", "done", "done"]
    pids = {pid for _, _, pid in read_log(store.root)}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_killed_worker_fails_its_batch_and_is_replaced(pool: Engine, store: Store) -> None:
    pool.submit(1, [FakeJob(name="victim", seconds=60.0)])
    pool.submit(2, [FakeJob(name="bystander", seconds=0.5)])
    ended = {outcome.batch: outcome for outcome in pool.wait(0.01)}
    until(lambda: bool(started(store.root, "victim")))
    os.kill(started(store.root, "victim")[0], signal.SIGKILL)
    ended |= wait_all(pool, 2 - len(ended))
    assert ended[1].died
    assert re.search("signal 9|ended without a result|WorkerCrashed", ended[1].error or "")
    assert ended[2].error is None
    pool.submit(3, [FakeJob(name="next")])
    pool.submit(4, [FakeJob(name="after")])
    assert all(outcome.error is None for outcome in wait_all(pool, 2).values())


def test_a_worker_that_cannot_start_says_why(store: Store) -> None:
    from synthlm.engines import Workload

    pool = make_engine("local", store, "cpu", 1, Workload("no_such_module:decode", WORKLOAD.run))
    try:
        pool.submit(1, [FakeJob(name="a")])
        assert "no_such_module" in (wait_all(pool, 1)[1].error or "")
    finally:
        pool.close()


@pytest.mark.parametrize("name", ["local", "slurm", "ray"])
def test_closing_ends_busy_workers_and_leaves_nothing(name: str, store: Store) -> None:
    pool = engine_of(name, store)
    pool.submit(1, [FakeJob(name="long", seconds=60.0)])
    pool.wait(0.01)
    until(lambda: bool(started(store.root, "long")))
    pool.close()
    until(lambda: not alive(started(store.root, "long")[0]))
    assert not list(store.root.glob("batches/*"))


@pytest.mark.parametrize("name", ["slurm", "ray"])
def test_a_store_that_another_machine_does_not_see_is_an_error(name: str, store: Store) -> None:
    pool = engine_of(name, store)
    (store.root / "jobs").rmdir()
    pool.submit(1, [FakeJob(name="a")])
    assert "is not a store" in (wait_all(pool, 1)[1].error or "")
    pool.close()


def test_the_packages_of_engines_are_asked_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, package in (("slurm", "submitit"), ("ray", "ray")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=rf"needs the package {package}.*pip install -e '\.\[{name}\]'"):
            make_engine(name, store, "cpu")


def test_workers_do_not_outlive_a_killed_parent(store: Store) -> None:
    code = """
import sys
from fake_jobs import WORKLOAD, FakeJob
from synthlm.engines import make_engine
from synthlm.store import Store
pool = make_engine("local", Store(sys.argv[1]), "cpu", 2, WORKLOAD)
for number in (1, 2):
    pool.submit(number, [FakeJob(name=f"long{number}", seconds=120.0)])
while True:
    pool.wait(1.0)
"""
    parent = subprocess.Popen([sys.executable, "-c", code, str(store.root)])
    until(lambda: bool(started(store.root, "long1") and started(store.root, "long2")))
    workers = [started(store.root, name)[0] for name in ("long1", "long2")]
    assert all(map(alive, workers))
    parent.kill()
    parent.wait()
    until(lambda: not any(map(alive, workers)), 10.0)


def test_workers_use_one_thread(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thread_job.py").write_text(
        "import os, torch\n"
        "def run(jobs, store, device, on_step):\n"
        "    text = f\"{torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']}\"\n"
        "    (store.root / 'threads').write_text(text)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    from synthlm.engines import Workload

    pool = make_engine("local", store, "cpu", 1, Workload(WORKLOAD.decode, "thread_job:run"))
    try:
        pool.submit(1, [FakeJob(name="a")])
        assert wait_all(pool, 1)[1].error is None
    finally:
        pool.close()
    assert (store.root / "threads").read_text() == "1 1"


def test_defaults_and_bad_input(store: Store) -> None:
    assert make_engine("local", store, "cpu").workers == usable_cores()
    assert make_engine("local", store, "cuda").workers == 1
    assert make_engine("inline", store, "cpu").workers == 1
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(InputError, match="did you mean 'local'"):
        make_engine("locl", store, "cpu")
    with pytest.raises(InputError, match="workers: 0"):
        make_engine("local", store, "cpu", 0)
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        resolve_device("cuda:0")
    with pytest.raises(InputError, match="'local' has no settings; slurm and ray have"):
        make_engine("local", store, "cpu", settings={"time": 3})


def test_the_device_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(InputError, match="not available"):
        resolve_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == "cuda"


@pytest.mark.parametrize("there", [False, True])
def test_other_machines_are_not_judged_by_this_one(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    for engine in ("slurm", "ray"):
        assert resolve_device("auto", engine) == resolve_device("cpu", engine) == "cpu"
        assert resolve_device("cuda", engine) == "cuda"
