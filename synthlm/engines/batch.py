"""A batch where it runs: read from JSON, run, its end told as an outcome. The same code serves every engine."""

import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from synthlm.engines import OnStep, Outcome, Workload
from synthlm.store import Store

# torch reads these when it is imported
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
LAST_WORDS = 2000
"""Characters of a dead process's stderr that are told."""


def run(
    batch: int, jobs: Sequence[str], store: Store, device: str, workload: Workload, on_step: OnStep
) -> Outcome:
    """Run jobs given as JSON. Whatever they raise is the outcome's error; only Ctrl-C passes."""
    start = time.monotonic()
    try:
        decode, runner = workload.decoder(), workload.runner()
        runner(
            [decode(text) for text in jobs], store, device, lambda step, total: on_step(batch, step, total)
        )
    except (Exception, SystemExit) as error:  # a job that calls sys.exit must not end a worker
        text = "".join(traceback.format_exception(error))
        return Outcome(batch, time.monotonic() - start, f"{type(error).__name__}: {error}", text)
    return Outcome(batch, time.monotonic() - start)


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """One thread on the CPU, as in a worker process, so that all engines give the same bits."""
    import torch

    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def at_most_every(seconds: float, on_step: OnStep) -> OnStep:
    """``on_step``, called for the first step and then only when so many seconds have gone by."""
    last: float | None = None

    def told(batch: int, step: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if last is None or now - last >= seconds:
            last = now
            on_step(batch, step, total)

    return told


def last_words(stderr: IO[bytes]) -> str:
    """The end of what a process wrote."""
    stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, stderr.tell() - LAST_WORDS))
    return stderr.read().decode(errors="replace").strip()
