"""What engines of several machines share: batches go out as JSON; results, and how far each batch is, come back
through the store's folder, which every machine sees under the same path."""

import contextlib
import importlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from synthlm.config import InputError
from synthlm.engines import OnStep, Outcome, Workload, ignore_step
from synthlm.engines.batch import at_most_every, one_thread, run
from synthlm.store import Store

STEP_SECONDS = 2.0
"""Least time between two looks at how far batches are, and between two notes of it: both load a shared folder."""


def run_there(
    batch: int, jobs: Sequence[str], root: str, device: str, workload: Workload, steps: str
) -> Outcome:
    """Run a batch on the machine that was found for it.

    Args:
        jobs: as JSON.
        root: the store's folder.
        steps: the file that tells how far the batch is.
    """
    try:
        store = Store(root, must_exist=True)  # one made here would be seen by nobody
    except InputError as error:
        return Outcome(batch, 0.0, f"on {socket.gethostname()}: {error}")
    told = at_most_every(STEP_SECONDS, lambda batch, step, total: _write(Path(steps), f"{step} {total}"))
    with one_thread(device):
        return run(batch, jobs, store, device, workload, told)


class RemoteEngine:
    """The parts of an ``Engine`` that do not depend on who finds the machine."""

    def __init__(self, store: Store, device: str, workers: int, workload: Workload) -> None:
        self.workers = workers
        self.on_step: OnStep = ignore_step
        self._store, self._device, self._workload = store, device, workload
        self._keys: dict[int, list[str]] = {}
        self._looked = 0.0
        self._keep = False  # a log in the folder is worth reading

    @cached_property
    def _folder(self) -> Path:
        """Where notes and logs of this engine's batches lie; not in ``tmp``, which is swept while they may wait."""
        parent = self._store.root / "batches"
        parent.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent))

    def _out(self, batch: int, jobs: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments of ``run_there`` for a batch."""
        if len(self._keys) >= self.workers:
            raise ValueError(f"all {self.workers} workers are busy")
        self._keys[batch] = [job.key for job in jobs]
        texts = [job.model_dump_json() for job in jobs]
        steps = str(self._steps(batch))
        return batch, texts, str(self._store.root), self._device, self._workload, steps

    def _tell(self, batches: Iterable[int]) -> None:
        """Tell how far batches are, now and then."""
        if time.monotonic() - self._looked < STEP_SECONDS:
            return
        self._looked = time.monotonic()
        for batch in batches:
            self._tell_one(batch)

    def _tell_one(self, batch: int) -> None:
        try:
            step, total = map(int, self._steps(batch).read_text().split())
        except (OSError, ValueError):  # not begun
            return
        self.on_step(batch, step, total)

    def _back(self, outcome: Outcome) -> Outcome:
        """Take a batch off the list.

        Folders are opened to make a network file system look again: without that, what another machine has just
        added may stay unseen for a minute.
        """
        folders = {self._store.folder(key).parent for key in self._keys.pop(outcome.batch)}
        for folder in (self._store.root / "jobs", *folders):
            with contextlib.suppress(OSError):
                os.listdir(folder)
        self._tell_one(outcome.batch)
        self._steps(outcome.batch).unlink(missing_ok=True)
        return outcome

    def _clear(self) -> None:
        """Forget all batches, and remove the folder unless it is to be kept."""
        self._keys.clear()
        if "_folder" in self.__dict__ and not self._keep:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _steps(self, batch: int) -> Path:
        return self._folder / f"{batch}.steps"


def needed(engine: str, package: str) -> Any:
    """Import a package that an engine needs.

    Raises:
        InputError: when it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        message = (
            f"engine: {engine!r} needs the package {package}; in the checkout: pip install -e '.[{engine}]'"
        )
        raise InputError(message) from None


def _write(path: Path, text: str) -> None:
    """Replace a small file whole. Not being able to is no reason to stop a batch."""
    aside = path.with_suffix(".new")
    with contextlib.suppress(OSError):
        aside.write_text(text)
        os.replace(aside, path)
