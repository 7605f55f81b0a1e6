"""Where jobs run. An engine takes batches of jobs and tells how each ended; results go through the store.

A :class:`Workload` names the code that reads and runs jobs by import path, so that a worker process, which
gets only JSON, imports the same.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from synthlm.config import InputError, choose
from synthlm.store import Store

ENGINES = ("local", "inline")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Workload:
    """Import paths ``module:function`` of the reader and the runner of jobs.

    ``decode(text) -> job``; ``run(jobs, store, device, on_step)`` runs a batch and commits every job.
    """

    decode: str = "synthlm.jobs:job_from_json"
    run: str = "synthlm.running:run_batch"

    def decoder(self) -> Callable[[str], Any]:
        return _imported(self.decode)

    def runner(self) -> Callable[..., None]:
        return _imported(self.run)


@dataclass(frozen=True)
class Outcome:
    """How a batch ended. ``error`` is None if all went well; ``died``: its process was killed or crashed."""

    batch: int
    seconds: float
    error: str | None = None
    traceback: str = field(default="", repr=False)
    died: bool = False


OnStep = Callable[[int, int, int], None]
"""Called with (batch, steps done, steps in all)."""


def ignore_step(batch: int, step: int, total: int) -> None:
    """An ``OnStep`` for those who do not want to know."""


class Engine(Protocol):
    """Runs batches of jobs, several at once or one after the other."""

    on_step: OnStep

    @property
    def workers(self) -> int:
        """How many batches run at once."""
        ...

    def submit(self, batch: int, jobs: Sequence[Any]) -> None:
        """Start a batch under a number of the caller's choice; at most ``workers`` may be open."""
        ...

    def wait(self, timeout: float) -> list[Outcome]:
        """Batches that ended, waiting up to ``timeout`` seconds for the first."""
        ...

    def close(self) -> None:
        """Stop everything at once."""
        ...


def resolve_device(device: str) -> str:
    """``auto``, ``cpu`` or ``cuda`` -> the device there is.

    Raises:
        InputError: for another name, or ``cuda`` where there is none.
    """
    choose("device", device, list(DEVICES))
    if device == "cpu":
        return device
    import torch  # slow to import, and not needed on the CPU

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise InputError("device: 'cuda' is not available here; allowed: auto, cpu")
    return "cpu"


def usable_cores() -> int:
    """CPU cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_engine(
    name: str, store: Store, device: str, workers: int | None = None, workload: Workload | None = None
) -> Engine:
    """The engine of that name. ``workers`` defaults to the usable cores on the CPU and to 1 on a GPU.

    Raises:
        InputError: for an unknown name or fewer than one worker.
    """
    choose("engine", name, list(ENGINES))
    if workers is not None and workers < 1:
        raise InputError(f"workers: {workers} should be at least 1")
    workload = workload or Workload()
    if name == "inline":
        from synthlm.engines.inline import InlineEngine

        return InlineEngine(store, device, workload)
    from synthlm.engines.local import LocalEngine

    default = usable_cores() if device == "cpu" else 1
    return LocalEngine(store, device, workers or default, workload)


def _imported(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)
