"""Planning and resuming a grid of 100,000 finished jobs: seconds and peak memory of the driver, nothing left to train.

The store holds the laptop grid's jobs over as many seeds as it takes; metrics have their real length, weights are a
few bytes. Entries are written without ``fsync`` by a writer whose files are compared with those of ``Store.commit``.
Timed in a new process, after the imports: opening the store and ``driver.run``, for

- ``list``: a study that builds and names the jobs and asks for no result;
- ``study``: the learning-forgetting study, which reads every record to judge its learning rates.

The store's files are in the page cache. Peak memory is that of the whole process, imports included.

    python benchmarks/planning.py [--jobs 100000] [--rounds 3] [--profile]
"""

import argparse
import cProfile
import hashlib
import io
import json
import math
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import measure
import pandas as pd

from synthlm import driver
from synthlm.engines import OnStep, Outcome, ignore_step
from synthlm.experiments import load_grid
from synthlm.experiments.consistency import ConsistencyStudy
from synthlm.jobs import Job, Pretrain, Training
from synthlm.progress import PlainDisplay
from synthlm.schedules import log_spaced
from synthlm.store import Store
from synthlm.study import Results

TARGET_SECONDS, TARGET_BYTES = 10.0, 1e9
WAYS = ("list", "study")
BEST = 1
"""Place of the best learning rate in every sweep: inside it, so that none widens."""


def laptop(seeds: int) -> ConsistencyStudy:
    """The learning-forgetting study of the laptop grid."""
    return ConsistencyStudy(measure.given(load_grid("laptop", seeds=seeds).consistency))


def placed(plan: ConsistencyStudy) -> Iterator[tuple[Job, int]]:
    """Every job that the study wants when all sweeps have their best at ``BEST``, and its place in its sweep."""
    grid = plan.settings
    for name, base in grid.pretraining.bases.items():
        for index in range(base.sweep.count):
            if index != BEST:
                yield plan.pretrain(name, 0, index), index
        for seed in range(grid.seeds):
            chosen = plan.pretrain(name, seed, BEST)
            yield chosen, BEST
            for language in grid.finetuning.languages:
                for arm, spec in grid.finetuning.arms.items():
                    for index in range(spec.sweep.count):
                        yield plan.finetune(chosen, language, arm, index), index


class Listed:
    """A study that knows its jobs without any result."""

    def __init__(self, plan: ConsistencyStudy) -> None:
        self.plan = plan

    def jobs(self, results: Results) -> Sequence[Job]:
        return [job for job, _ in placed(self.plan)]

    def describe(self) -> str:
        return "jobs known without results"

    def tables(self, results: Results) -> dict[str, pd.DataFrame]:
        return {}


class Idle:
    """An engine that must not be asked to train."""

    workers = 2
    on_step: OnStep = staticmethod(ignore_step)

    def submit(self, batch: int, jobs: Sequence[Any]) -> None:
        raise AssertionError("a finished job was started again")

    def wait(self, timeout: float) -> list[Outcome]:
        return []

    def close(self) -> None:
        pass


@lru_cache
def metrics(training: Training, pretrained: bool, index: int) -> str:
    """Metrics of real length as JSON; the learning rate at ``BEST`` is the best."""
    steps = [0, *log_spaced(training.evaluations, training.steps)]
    old = (("facts/rote", "rote"), ("cipher/rule/train", ""), ("cipher/rule/heldout", "rule"))
    new = () if pretrained else (("new/rule/train", ""), ("new/rule/heldout", "rule"))
    rows = [("old", *each) for each in old] + [("new", *each) for each in new]
    columns: dict[str, list] = {}
    for step in steps:
        share = math.log1p(step) / math.log1p(steps[-1])
        for role, name, goal in rows:
            peak = 0.97 - 0.01 * abs(index - BEST)
            accuracy = peak * share if role == "new" or pretrained else peak
            loss = math.e * (1 - accuracy)
            values = (step, role, name, goal, loss, math.pi / 1e3, accuracy, accuracy**2, None, 512)
            names = ("step", "role", "slice", "goal", "loss", "floor", "accuracy", "exact", "kl", "n")
            for column, value in zip(names, values, strict=True):
                columns.setdefault(column, []).append(value)
    return json.dumps(columns) + "\n"


def contents(job: Job, index: int) -> dict[str, bytes]:
    """The files of a finished job, without done.json."""
    manifest = {
        "key": job.key,
        "kind": job.kind,
        "status": "done",
        "diverged_at": None,
        "stopped": False,
        "steps": job.training.steps,
        "runs_side_by_side": 1,
        "device": "cpu",
        "files": ["final.safetensors"],
    }
    return {
        "config.json": (job.model_dump_json(indent=1) + "\n").encode(),
        "final.safetensors": b"\0" * 64,
        "manifest.json": (json.dumps(manifest, indent=1) + "\n").encode(),
        "metrics.json": metrics(job.training, isinstance(job, Pretrain), index).encode(),
    }


def add(root: Path, key: str, files: dict[str, bytes]) -> None:
    """Write an entry as ``Store.commit`` would, but for the syncing."""
    folder = root / "jobs" / key[:2] / key
    folder.mkdir(parents=True)
    sums = {n: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for n, data in files.items()}
    for name, data in {**files, "done.json": json.dumps({"files": sums}, sort_keys=True).encode()}.items():
        (folder / name).write_bytes(data)


def check_writer(job: Job, index: int) -> None:
    """Assert that ``add`` and the store's own commit leave the same files, and that the store serves them."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        files = contents(job, index)
        committed, added = Store(first), Store(second)
        folder = committed.create(job.key)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        committed.commit(job.key, folder)
        add(added.root, job.key, files)
        found = [
            {path.name: path.read_bytes() for path in store.folder(job.key).iterdir()}
            for store in (committed, added)
        ]
        assert found[0] == found[1], "the writer's entry is not the store's"
        added.verify(job.key)
        assert added.load(job.key).config == job.model_dump(mode="json")


def seeds_for(jobs: int) -> int:
    """As many seeds of the laptop grid as give that many jobs."""
    one, two = (sum(1 for _ in placed(laptop(n))) for n in (1, 2))
    return max(1, math.ceil((jobs - one) / (two - one)) + 1)


def fill(root: Path, seeds: int) -> int:
    """Write the whole grid's entries; their number."""
    store, count = Store(root), 0
    for job, index in placed(laptop(seeds)):
        if count == 0:
            check_writer(job, index)
        add(store.root, job.key, contents(job, index))
        count += 1
    return count


def resume(root: Path, seeds: int, way: str, profiled: bool) -> dict[str, float]:
    """Plan and resume in this process; seconds, peak bytes and jobs."""
    plan = laptop(seeds)
    chosen: ConsistencyStudy | Listed = plan if way == "study" else Listed(plan)
    if profiled:
        # the driver asks the study for its jobs in a thread of its own, which a profiler does not see
        store, profiler = Store(root), cProfile.Profile()
        profiler.runcall(lambda: {job.key: job for job in chosen.jobs(lambda job: store.get(job.key))})
        pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
    begun = time.perf_counter()
    summary = driver.run(chosen, Store(root), Idle(), PlainDisplay(io.StringIO()))
    seconds = time.perf_counter() - begun
    assert summary.trained == summary.blocked == summary.failed == 0
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"seconds": seconds, "bytes": peak, "jobs": summary.cached}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--profile", action="store_true", help="print where the time of planning goes; writes no results"
    )
    parser.add_argument("--resume", nargs=3, metavar=("STORE", "SEEDS", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resume:
        root, seeds, way = options.resume
        print(json.dumps(resume(Path(root), int(seeds), way, options.profile)))
        return
    description = measure.machine()
    seeds = seeds_for(options.jobs)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        count = fill(Path(folder), seeds)
        print(f"{count} entries written in {time.monotonic() - begun:.0f} s")
        for _ in range(options.rounds):
            for way in WAYS:
                command = [sys.executable, __file__, "--resume", folder, str(seeds), way]
                command += ["--profile"] * options.profile
                *shown, last = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True
                ).stdout.splitlines()
                print("\n".join(shown), end="")
                found[way].append(json.loads(last))
                assert found[way][-1]["jobs"] == count, "the study wants other jobs than were written"
    rows = [
        {
            "way": way,
            "jobs": count,
            "seconds": measure.spread([run["seconds"] for run in runs], 1),
            "peak_memory_mb": measure.spread([run["bytes"] / 1e6 for run in runs], 0),
            "within_target": all(
                run["seconds"] < TARGET_SECONDS and run["bytes"] < TARGET_BYTES for run in runs
            ),
            "rounds": options.rounds,
        }
        for way, runs in found.items()
    ]
    measure.show(rows)
    if not options.profile:
        print(measure.write("planning", rows, description))


if __name__ == "__main__":
    main()
