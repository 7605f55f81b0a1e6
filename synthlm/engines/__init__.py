"""Where jobs run. An engine takes batches of jobs and tells how each ended; results go through the store.

A :class:`Workload` names the code that reads and runs jobs by import path, so that a worker process, here or on
another machine, which gets only JSON, imports the same.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from synthlm.config import InputError, choose, parse
from synthlm.store import Store

ENGINES = ("local", "inline", "slurm", "ray")
REMOTE = ("slurm", "ray")
"""Engines of more than one machine; they have settings."""
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


def resolve_device(device: str, engine: str = "local") -> str:
    """``auto``, ``cpu`` or ``cuda`` -> the device there is.

    What this machine has says nothing about others: for an engine of several machines ``auto`` is the CPU, and
    ``cuda`` is taken at its word.

    Raises:
        InputError: for another name, or ``cuda`` where there is none.
    """
    choose("device", device, list(DEVICES))
    if device == "cpu" or engine in REMOTE:
        return "cuda" if device == "cuda" else "cpu"
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
    name: str,
    store: Store,
    device: str,
    workers: int | None = None,
    workload: Workload | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Engine:
    """The engine of that name.

    Args:
        workers: batches at once; by default the usable cores on the CPU and 1 on a GPU. On several machines, see
            the engines' settings.
        settings: of an engine of several machines, ``SlurmSettings`` or ``RaySettings``.

    Raises:
        InputError: for an unknown name, fewer than one worker, wrong settings, or an engine whose package is not
            installed or whose cluster cannot be reached.
    """
    choose("engine", name, list(ENGINES))
    if workers is not None and workers < 1:
        raise InputError(f"workers: {workers} should be at least 1")
    workload = workload or Workload()
    given = settings or {}
    if name == "slurm":
        from synthlm.engines.slurm import SlurmEngine, SlurmSettings

        return SlurmEngine(store, device, workers, workload, parse(SlurmSettings, given, "engine-set"))
    if name == "ray":
        from synthlm.engines.ray import RayEngine, RaySettings

        return RayEngine(store, device, workers, workload, parse(RaySettings, given, "engine-set"))
    if given:
        raise InputError(f"engine-set: engine {name!r} has no settings; {' and '.join(REMOTE)} have")
    if name == "inline":
        from synthlm.engines.inline import InlineEngine

        return InlineEngine(store, device, workload)
    from synthlm.engines.local import LocalEngine

    return LocalEngine(store, device, workers or default_workers(device), workload)


def default_workers(device: str) -> int:
    """Batches at once on one machine: one a core, one on a GPU."""
    return usable_cores() if device == "cpu" else 1


def _imported(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)
