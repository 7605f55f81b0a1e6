"""The engine that runs batches in this process, one after the other: for debugging, and for single jobs."""

import time
from collections.abc import Sequence
from typing import Any

from synthlm.engines import OnStep, Outcome, Workload, ignore_step
from synthlm.engines.batch import one_thread, run
from synthlm.store import Store


class InlineEngine:
    """Runs a submitted batch inside ``wait``."""

    workers = 1

    def __init__(self, store: Store, device: str, workload: Workload) -> None:
        self.on_step: OnStep = ignore_step
        self._store, self._device, self._workload = store, device, workload
        self._open: list[tuple[int, list[str]]] = []

    def submit(self, batch: int, jobs: Sequence[Any]) -> None:
        self._open.append((batch, [job.model_dump_json() for job in jobs]))

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._open:
            time.sleep(timeout)
            return []
        batch, jobs = self._open.pop(0)
        with one_thread(self._device):
            return [run(batch, jobs, self._store, self._device, self._workload, self.on_step)]

    def close(self) -> None:
        self._open.clear()
