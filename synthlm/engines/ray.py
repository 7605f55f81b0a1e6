"""The engine of a Ray cluster: every batch is a Ray task on one core or one GPU."""

import os
import time
from collections.abc import Sequence
from typing import Any

from synthlm.config import Config, InputError
from synthlm.engines import Outcome, Workload, default_workers
from synthlm.engines.remote import RemoteEngine, needed, run_there
from synthlm.store import Store


class RaySettings(Config):
    """``address``: of a running cluster, ``auto`` or HOST:PORT; without, ``$RAY_ADDRESS``, or else a cluster of this
    machine alone, which ends with the command."""

    address: str | None = None


class RayEngine(RemoteEngine):
    """Up to ``workers`` tasks at once.

    Args:
        workers: the cluster's cores by default, or its GPUs.

    Raises:
        InputError: when Ray is not installed, the cluster cannot be reached, or has no such device.
    """

    def __init__(
        self, store: Store, device: str, workers: int | None, workload: Workload, settings: RaySettings
    ) -> None:
        self._ray = needed("ray", "ray")
        self._started = not self._ray.is_initialized()
        if self._started:
            self._start(settings.address or os.environ.get("RAY_ADDRESS"), device, workers)
        there = int(self._ray.cluster_resources().get("CPU" if device == "cpu" else "GPU", 0))
        if not there:
            self._stop()
            raise InputError(f"device: {device!r} is not available in this Ray cluster")
        super().__init__(store, device, workers or there, workload)
        resources = {"num_cpus": 1, "num_gpus": 0 if device == "cpu" else 1}
        self._run = self._ray.remote(max_retries=0, **resources)(run_there)
        self._open: dict[Any, tuple[int, float]] = {}

    def submit(self, batch: int, jobs: Sequence[Any]) -> None:
        """As every engine's.

        Raises:
            ValueError: when all workers are busy.
        """
        self._open[self._run.remote(*self._out(batch, jobs))] = (batch, time.monotonic())

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._open:
            time.sleep(timeout)
            return []
        ready, _ = self._ray.wait(list(self._open), num_returns=1, timeout=timeout)
        self._tell(batch for batch, _ in self._open.values())
        return [self._back(self._outcome(task, *self._open.pop(task))) for task in ready]

    def close(self) -> None:
        """Cancel what is open; a cluster that was started here ends."""
        for task in self._open:
            self._ray.cancel(task, force=True)
        self._open.clear()
        self._stop()
        self._clear()

    def _outcome(self, task: Any, batch: int, since: float) -> Outcome:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            text = str(error).strip()
            # a task's own error comes back in the outcome; this one did not get as far as the batch
            died = not isinstance(error, self._ray.exceptions.RayTaskError)
            first = text.splitlines()[0 if died else -1] if text else ""
            return Outcome(batch, time.monotonic() - since, f"{type(error).__name__}: {first}", text, died)

    def _start(self, address: str | None, device: str, workers: int | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {}
        if address in (None, "local"):
            cores = workers if workers and device == "cpu" else default_workers("cpu")
            options = {"num_cpus": cores, "include_dashboard": False}
        try:
            self._ray.init(address or "local", log_to_driver=False, logging_level="warning", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"engine: no Ray cluster at {address or 'local'!r}: {error}") from None

    def _stop(self) -> None:
        if self._started:
            self._ray.shutdown()
