"""Training steps of the package, timed from outside: evaluations, reading of jobs and commits are not counted.

With ``evaluations = 2`` a job is evaluated before its first step, after it and after its last. The time between the
calls of ``on_step`` after the first step and after the last but one is therefore that of training steps alone.
"""

import json
import os
import time
from collections.abc import Callable, Sequence

from synthlm.jobs import Job
from synthlm.store import Store
from synthlm.training import run_batch


def counted(steps: int) -> int:
    """How many of a job's steps are timed."""
    return steps - 2


def seconds(jobs: Sequence[Job], store: Store, on_step: Callable[[int, int], None] | None = None) -> float:
    """Train a batch; the seconds of its counted steps."""
    marks = {}

    def mark(step: int, total: int) -> None:
        if step in (1, total - 1):
            marks[step] = time.perf_counter()
        if on_step is not None:
            on_step(step, total)

    run_batch(jobs, store, "cpu", mark)
    return marks[jobs[0].training.steps - 1] - marks[1]


def run(jobs: Sequence[Job], store: Store, device: str, on_step: Callable[[int, int], None]) -> None:
    """The runner for the workers of an engine: adds a line to a file of this process in the store's folder."""
    taken = seconds(jobs, store, on_step)
    with (store.root / f"seconds-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps({"seconds": taken, "jobs": [job.key for job in jobs]}) + "\n")
