"""The driver: everything that can be done is done, once; failures and deaths cost nothing but themselves."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_jobs import WORKLOAD, FakeJob, FakeStudy, engine_of, read_log, write_entry

from synthlm import driver
from synthlm.engines import Outcome, ignore_step, make_engine
from synthlm.estimate import estimate
from synthlm.progress import Snapshot
from synthlm.store import Store


class Notes:
    """A display that keeps what it was told."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.snapshots: list[Snapshot] = []

    def show(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    def note(self, text: str) -> None:
        self.texts.append(text)

    def close(self) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", warn=lambda text: None)


def run(study: FakeStudy, store: Store, engine: str = "inline", workers: int = 2) -> driver.Summary:
    pool = engine_of(engine, store, workers)
    try:
        return driver.run(study, store, pool, Notes())
    finally:
        pool.close()


def names(root: Path, event: str) -> list[str]:
    return [name for found, name, _ in read_log(root) if found == event]


def test_stages_follow_results_and_a_second_call_trains_nothing(store: Store) -> None:
    parents = [FakeJob(name=f"p{i}") for i in range(3)]
    study = FakeStudy(parents, lambda results: [FakeJob(name=f"c{p.name}", parent=p) for p in parents])
    summary = run(study, store)
    assert (summary.trained, summary.cached, summary.failed, summary.blocked) == (6, 0, 0, 0)
    assert sorted(names(store.root, "done")) == ["cp0", "cp1", "cp2", "p0", "p1", "p2"]
    again = run(study, Store(store.root))
    assert (again.trained, again.cached, again.done) == (0, 6, 6)
    assert len(names(store.root, "start")) == 6


def test_children_wait_for_parents_and_long_chains_go_first(store: Store) -> None:
    root = FakeJob(name="root")
    middle = FakeJob(name="middle", parent=root)
    end = FakeJob(name="end", parent=middle)
    lone = FakeJob(name="lone")
    run(FakeStudy([end, lone, middle, root]), store)
    order = names(store.root, "start")
    assert [name for name in order if name != "lone"] == ["root", "middle", "end"]
    assert order[0] == "root"


def test_jobs_of_one_shape_share_a_batch(store: Store) -> None:
    jobs = [FakeJob(name=str(i), group="ab"[i % 2], width_hint=4) for i in range(8)]
    run(FakeStudy(jobs), store)
    events = [(event, name) for event, name, _ in read_log(store.root)]
    assert [event for event, _ in events] == (["start"] * 4 + ["done"] * 4) * 2


def test_a_failure_takes_no_other_job_with_it(store: Store) -> None:
    jobs = [
        FakeJob(name=str(i), width_hint=8, behaviour="raise-flag" if i in (2, 5) else "ok") for i in range(8)
    ]
    child = FakeJob(name="child", parent=jobs[2])
    study = FakeStudy([*jobs, child])
    (store.root / "flag").touch()
    summary = run(study, store)
    assert (summary.trained, summary.failed, summary.blocked) == (6, 2, 1)
    assert {failure.label for failure in summary.failures} == {"fake 2", "fake 5"}
    for failure in summary.failures:
        assert "does not work" in failure.error
        words = shlex.split(failure.repeat)
        assert words[:3] == ["synthlm", "fake", "--job"]
        assert Path(words[3]).is_file()
        assert not store.has(failure.key)
    assert [failure.key for failure in store.failures()] == sorted(f.key for f in summary.failures)
    assert len(names(store.root, "done")) == 6, "no job is done twice"

    still = run(study, store)
    assert (still.trained, still.cached, still.failed) == (0, 6, 2)
    (store.root / "flag").unlink()
    repaired = run(study, store)
    assert (repaired.trained, repaired.cached, repaired.failed, repaired.blocked) == (3, 6, 0, 0)
    assert store.failures() == []


def test_a_job_that_ends_without_a_result_has_failed(store: Store) -> None:
    summary = run(FakeStudy([FakeJob(name="x", behaviour="no-commit")]), store)
    assert summary.failures[0].error == "the job ended without a result"


@pytest.mark.parametrize("engine", ["local", "slurm", "ray"])
def test_deaths_of_workers_are_survived(store: Store, engine: str) -> None:
    jobs = [FakeJob(name=str(i), width_hint=4) for i in range(4)]
    once = FakeJob(name="once", behaviour="kill-once")
    always = FakeJob(name="always", behaviour="kill", width_hint=4)
    summary = run(FakeStudy([*jobs, always, once]), store, engine)
    assert summary.trained == 5
    assert [failure.label for failure in summary.failures] == ["fake always"]
    assert re.search("signal 9|ended without a result|WorkerCrashed", summary.failures[0].error)


def test_a_parent_found_damaged_is_done_again(store: Store) -> None:
    parent = FakeJob(name="parent")
    run(FakeStudy([parent]), store)
    (store.folder(parent.key) / "final.safetensors").write_bytes(b"x" * 100)
    study = FakeStudy([parent, FakeJob(name="child", parent=parent)])
    summary = run(study, Store(store.root, warn=lambda text: None), "local")
    assert (summary.failed, summary.done) == (0, 2)
    assert names(store.root, "done") == ["parent", "parent", "child"]


def test_entries_found_damaged_by_the_table_are_done_again(store: Store) -> None:
    class Blind(FakeStudy):
        """Looks at results only when it makes its table."""

        def jobs(self, results: object) -> list[FakeJob]:
            return self.first

    study = Blind([FakeJob(name=str(i)) for i in range(3)])
    run(study, store)
    (store.folder(study.first[1].key) / "metrics.json").write_text("{}")
    fresh = Store(store.root, warn=lambda text: None)
    summary, tables = driver.run_to_tables(
        study, fresh, make_engine("inline", fresh, "cpu", 1, WORKLOAD), Notes()
    )
    assert (summary.done, summary.trained) == (3, 1)
    assert list(tables["fake"]["name"]) == ["0", "1", "2"]


def test_progress_adds_up(store: Store) -> None:
    done = FakeJob(name="done")
    store.commit(done.key, write_entry(store, done))
    jobs = [done, *(FakeJob(name=str(i), work=1e6 * (i + 1)) for i in range(3))]
    notes = Notes()
    driver.run(FakeStudy(jobs), store, make_engine("inline", store, "cpu", 1, WORKLOAD), notes)
    assert all(s.flops_done + s.flops_left == pytest.approx(6e6) for s in notes.snapshots if s.total)
    assert notes.snapshots[-1].trained == 3
    assert notes.snapshots[-1].cached == 1
    assert notes.snapshots[-1].flops_left == 0
    assert notes.snapshots[0].running[0].label == "fake 2", "the costliest goes first"


def test_workers_are_fed_while_a_slow_plan_is_made(store: Store) -> None:
    enough = threading.Event()

    class Immediate:
        """Commits every batch at once; sets ``enough`` after six."""

        workers = 1
        on_step = staticmethod(ignore_step)

        def __init__(self) -> None:
            self.open: list[int] = []
            self.count = 0

        def submit(self, batch: int, jobs: Sequence[FakeJob]) -> None:
            self.open.append(batch)
            for job in jobs:
                store.commit(job.key, write_entry(store, job))
            self.count += 1
            if self.count == 6:
                enough.set()

        def wait(self, timeout: float) -> list[Outcome]:
            return [Outcome(self.open.pop(), 0.0)]

        def close(self) -> None:
            pass

    class Slow(FakeStudy):
        asked = 0

        def jobs(self, results: object) -> list[FakeJob]:
            self.asked += 1
            if self.asked == 2:
                assert enough.wait(20.0), "no batch started during the plan"
            return self.first

    summary = driver.run(Slow([FakeJob(name=str(i)) for i in range(8)]), store, Immediate(), Notes())
    assert summary.trained == 8


def test_an_error_in_the_plan_comes_out(store: Store) -> None:
    class Broken(FakeStudy):
        def jobs(self, results: object) -> list[FakeJob]:
            raise RuntimeError("no plan")

    with pytest.raises(RuntimeError, match="no plan"):
        run(Broken([]), store)


GRID = """
import sys
from fake_jobs import WORKLOAD, FakeJob, FakeStudy
from synthlm import driver
from synthlm.engines import make_engine
from synthlm.progress import PlainDisplay
from synthlm.store import Store
parents = [FakeJob(name=f"p{i}", seconds=0.2) for i in range(4)]
study = FakeStudy(parents, lambda r: [FakeJob(name=f"c{p.name}{i}", parent=p, seconds=0.2)
                                      for p in parents for i in range(3)])
store = Store(sys.argv[1])
pool = make_engine("local", store, "cpu", 2, WORKLOAD)
summary = driver.run(study, store, pool, PlainDisplay(sys.stderr))
pool.close()
print(summary.done, summary.cached, summary.trained, summary.failed)
"""


def grid(root: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", GRID, str(root)], stdout=subprocess.PIPE, text=True)


def test_a_killed_grid_goes_on_where_it_was(tmp_path: Path) -> None:
    root = tmp_path / "store"
    first = grid(root)
    deadline = time.monotonic() + 60
    while len(names(root, "done")) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    second = grid(root)
    out, _ = second.communicate(timeout=60)
    done, cached, trained, failed = map(int, out.split())
    assert (done, failed) == (16, 0)
    assert cached >= 6
    assert trained == 16 - cached
    finished = names(root, "done")
    assert len(set(finished)) == 16
    assert Store(root).failures() == []
    for key in Store(root).keys():  # noqa: SIM118 (a method of the store)
        Store(root).verify(key)


def test_two_grids_on_one_store_agree(tmp_path: Path) -> None:
    root = tmp_path / "store"
    both = [grid(root), grid(root)]
    for process in both:
        out, _ = process.communicate(timeout=60)
        assert out.split()[0] == "16"
        assert out.split()[3] == "0"
    assert len(Store(root).keys()) == 16
    assert list((root / "tmp").iterdir()) == []
    assert list((root / "damaged").iterdir()) == []


def test_ctrl_c_ends_the_workers(tmp_path: Path) -> None:
    root = tmp_path / "store"
    process = subprocess.Popen(
        [sys.executable, "-c", GRID, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # whoever runs the tests in the background may have them ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not names(root, "start"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode != 0
    count = len(names(root, "start"))
    time.sleep(1.0)
    assert len(names(root, "start")) == count


def test_the_estimate_counts_and_uses_recorded_rates(store: Store) -> None:
    parents = [FakeJob(name=str(i), work=1e6) for i in range(4)]
    for job in parents[:3]:
        store.commit(job.key, write_entry(store, job))
    before = store.keys()
    found = estimate(FakeStudy(parents), store, "cpu", 2)
    assert found.kinds == {"fake": (3, 1)}
    assert found.recorded
    assert found.rate == pytest.approx(3e6 / 1.5)  # three jobs of 0.5 s each
    assert found.seconds == pytest.approx(0.5 / 2)
    assert found.disk == 1000
    assert "later stages depend on their results" in found.text()
    assert store.keys() == before


def test_the_estimate_measures_where_nothing_is_recorded(store: Store) -> None:
    found = estimate(FakeStudy([FakeJob(name="x", work=1e9)]), store, "cpu", 1)
    assert not found.recorded
    assert 1e8 < found.rate < 1e13
    assert found.seconds == pytest.approx(1e9 / found.rate)


def test_the_estimate_does_not_guess_at_a_gpu_elsewhere(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = estimate(FakeStudy([FakeJob(name="x")]), store, "cuda", 4)
    assert found.seconds is None
    assert "time   not known" in found.text()
