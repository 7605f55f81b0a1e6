"""The engine that runs batches in this process, one after the other: for debugging, and for single jobs."""

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from synthlm.engines import OnStep, Outcome, Workload, ignore_step
from synthlm.store import Store


class InlineEngine:
    """Runs a submitted batch inside ``wait``."""

    workers = 1

    def __init__(self, store: Store, device: str, workload: Workload) -> None:
        self.on_step: OnStep = ignore_step
        self._store, self._device, self._workload = store, device, workload
        self._open: list[tuple[int, list[Any]]] = []

    def submit(self, batch: int, jobs: Sequence[Any]) -> None:
        self._open.append((batch, list(jobs)))

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._open:
            time.sleep(timeout)
            return []
        batch, jobs = self._open.pop(0)
        start = time.monotonic()
        try:
            with one_thread(self._device):
                run = self._workload.runner()
                run(jobs, self._store, self._device, lambda step, total: self.on_step(batch, step, total))
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            return [Outcome(batch, time.monotonic() - start, f"{type(error).__name__}: {error}", text)]
        return [Outcome(batch, time.monotonic() - start)]

    def close(self) -> None:
        self._open.clear()


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """One thread on the CPU, as in a worker process, so that both engines give the same bits."""
    import torch

    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
