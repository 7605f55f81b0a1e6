"""The engine of a Slurm cluster: every batch is a Slurm job, submitted through submitit."""

import contextlib
import functools
import io
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from synthlm.config import Config, InputError
from synthlm.engines import Outcome, Workload, default_workers
from synthlm.engines.batch import ONE_THREAD, last_words
from synthlm.engines.remote import RemoteEngine, needed, run_there
from synthlm.store import Store

CPU_BATCHES = 64
"""Batches at once, unless told otherwise."""
GPU_BATCHES = 4
"""The same on GPUs: a GPU takes a wide batch in the time of a narrow one, so cutting batches further wastes it."""

LOOK_SECONDS = 2.0
"""Between two looks at the files of batches."""
ASK_SECONDS = 30.0
"""Longest time between two questions to the scheduler's accounts, one question for all batches."""
LAG_SECONDS = 20.0
"""How long a result may take to be seen here after the scheduler says that its job has ended."""
AGAIN_SECONDS = 60.0
"""Between two tries when a full queue, or a busy scheduler, takes no more."""
CANCEL_SECONDS = 10.0
"""How long processes on this machine may take to end when they are cancelled."""

OURS = ("array", "output", "error", "signal", "requeue", "no_requeue")
"""Flags of sbatch that the engine itself needs."""

Name = Annotated[str, Field(coerce_numbers_to_str=True, min_length=1)]


class SlurmSettings(Config):
    """What is asked of Slurm for every batch; what is left out, the cluster decides.

    ``time``: minutes; ``memory``: GB; ``gpus``: of a node, 1 by default with ``cuda``; ``setup``: shell lines that
    come first; ``sbatch``: any other of its flags. ``cluster = "local"`` runs the same without Slurm, as processes
    on this machine, to try things out.
    """

    cluster: Literal["slurm", "local"] = "slurm"
    partition: Name | None = None
    account: Name | None = None
    qos: Name | None = None
    constraint: Name | None = None
    time: int = Field(60, ge=1)
    memory: float | None = Field(None, gt=0)
    cpus: int = Field(1, ge=1)
    gpus: int | None = Field(None, ge=1)
    setup: tuple[str, ...] = ()
    sbatch: dict[str, str | int | float | Literal[True]] = Field(default_factory=dict)

    @field_validator("sbatch")
    @classmethod
    def _free(cls, flags: dict[str, Any]) -> dict[str, Any]:
        named = {name.lstrip("-").replace("-", "_"): value for name, value in flags.items()}
        taken = sorted(set(named) & set(OURS))
        if taken:
            raise ValueError(f"{', '.join(taken)} is set by the engine itself")
        return named

    def parameters(self, device: str) -> dict[str, Any]:
        """In the names of submitit's Slurm executor."""
        given = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "mem": None if self.memory is None else f"{round(self.memory * 1024)}M",
            "gpus_per_node": None if device == "cpu" else self.gpus or 1,
            "setup": list(self.setup) or None,
        }
        return {
            **{name: value for name, value in given.items() if value is not None},
            "job_name": "synthlm",
            "time": self.time,
            "cpus_per_task": self.cpus,
            # what is preempted ends, and is submitted anew by the driver: sites differ in what they requeue
            "additional_parameters": {"no_requeue": True, **self.sbatch},
        }


@dataclass
class _Open:
    """A batch that was submitted; ``over``: when the scheduler first said that its job has ended."""

    job: Any
    since: float
    over: float | None = None


class SlurmEngine(RemoteEngine):
    """Up to ``workers`` batches in the queue or running.

    Args:
        workers: 64 by default, and 4 on GPUs.

    Raises:
        InputError: when submitit is not installed, there is no Slurm here, or GPUs are asked for without ``cuda``.
    """

    def __init__(
        self, store: Store, device: str, workers: int | None, workload: Workload, settings: SlurmSettings
    ) -> None:
        self._submitit = needed("slurm", "submitit")
        self._settings = settings
        self._local = settings.cluster == "local"
        if not self._local and self._submitit.SlurmExecutor.affinity() < 0:
            raise InputError(
                "engine: there is no Slurm on this machine (no command srun); start on a login node, "
                "or try it out with --engine-set cluster=local"
            )
        if settings.gpus and device == "cpu":
            raise InputError(
                f"engine-set.gpus: {settings.gpus}, but the device is the CPU; add --device cuda"
            )
        default = default_workers(device) if self._local else CPU_BATCHES if device == "cpu" else GPU_BATCHES
        super().__init__(store, device, workers or default, workload)
        self._waiting: dict[int, tuple[Any, ...]] = {}
        self._open: dict[int, _Open] = {}
        self._next_look = self._next_question = self._next_try = 0.0

    def submit(self, batch: int, jobs: Sequence[Any]) -> None:
        """Batches are handed in together, at the next ``wait``.

        Raises:
            ValueError: when all workers are busy.
        """
        self._waiting[batch] = self._out(batch, jobs)

    def wait(self, timeout: float) -> list[Outcome]:
        """As every engine's.

        Raises:
            InputError: when Slurm refuses a batch while none is open: then it will refuse any.
        """
        deadline = time.monotonic() + timeout
        self._hand_in()
        while True:
            self._tell(self._open)
            ended = self._look()
            left = deadline - time.monotonic()
            if ended or left <= 0:
                return ended
            time.sleep(min(left, 0.05))

    def close(self) -> None:
        """Cancel what is open."""
        jobs = [batch.job for batch in self._open.values()]
        for job in jobs:
            with contextlib.suppress(OSError):
                if self._local:
                    # submitit would send SIGINT, which processes started in the background ignore
                    os.kill(int(job.job_id), signal.SIGTERM)
                else:
                    job.cancel(check=False)
        deadline = time.monotonic() + CANCEL_SECONDS
        while self._local and not all(job.done() for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._waiting.clear()
        self._open.clear()
        self._clear()

    @functools.cached_property
    def _executor(self) -> Any:
        parameters = self._settings.parameters(self._device)
        if self._local:
            executor = self._submitit.LocalExecutor(self._folder)
            gpus = parameters.get("gpus_per_node", 0)
            executor.update_parameters(timeout_min=self._settings.time, gpus_per_node=gpus)
        else:
            executor = self._submitit.SlurmExecutor(self._folder)
            executor.update_parameters(**parameters)
        return executor

    def _hand_in(self) -> None:
        """All waiting batches as one array, so that the scheduler is asked once."""
        if not self._waiting or time.monotonic() < self._next_try:
            return
        from submitit.core.utils import FailedJobError, FailedSubmissionError, environment_variables

        calls = [functools.partial(_in_job, *arguments) for arguments in self._waiting.values()]
        inherited = ONE_THREAD if self._device == "cpu" else {}
        try:
            # submitit also prints what sbatch says
            with contextlib.redirect_stderr(io.StringIO()), environment_variables(**inherited):
                jobs = self._executor.submit_array(calls)
        except (FailedJobError, FailedSubmissionError) as error:
            if not self._open:
                raise InputError(f"engine: Slurm refuses the batches: {error}") from None
            self._next_try = time.monotonic() + AGAIN_SECONDS
            return
        now = time.monotonic()
        self._open |= {batch: _Open(job, now) for batch, job in zip(self._waiting, jobs, strict=True)}
        self._waiting.clear()

    def _look(self) -> list[Outcome]:
        now = time.monotonic()
        if now < self._next_look or not self._open:
            return []
        if not self._local:
            self._next_look = now + LOOK_SECONDS
            if now >= self._next_question:  # submitit itself asks ever more rarely
                self._next_question = now + ASK_SECONDS
                next(iter(self._open.values())).job.get_info(mode="force")
        ended = []
        for batch, opened in list(self._open.items()):
            outcome = self._outcome(batch, opened)
            if outcome is not None:
                del self._open[batch]
                ended.append(self._back(outcome))
        return ended

    def _outcome(self, batch: int, opened: _Open) -> Outcome | None:
        """How a batch ended; None while it has not, or while its result may be on the way."""
        job, paths, now = opened.job, opened.job.paths, time.monotonic()
        if not (job.done() or job.state == "PREEMPTED"):
            return None
        if paths.result_pickle.exists():
            try:
                outcome = job.result()
            except Exception as error:  # it did not get as far as the batch
                text = f"the batch could not be started in Slurm job {job.job_id}"
                outcome = Outcome(batch, now - opened.since, text, str(error))
            for path in (paths.submitted_pickle, paths.result_pickle, paths.stdout, paths.stderr):
                path.unlink(missing_ok=True)
            return outcome
        opened.over = opened.over or now
        if not self._local and now - opened.over < LAG_SECONDS:
            return None
        self._keep = True
        words = _stderr(paths.stderr)
        ending = f"Slurm job {job.job_id} ended without a result ({job.state})"
        return Outcome(batch, now - opened.since, ending, f"{words}\n(in {paths.stderr})".lstrip(), died=True)


def _in_job(*arguments: Any) -> Outcome:
    """Run a batch with the usual meaning of signals: submitit's own would raise inside the batch, or put the job back
    in the queue, while here the driver decides what is tried again."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"), signal.SIG_IGN)
    return run_there(*arguments)


def _stderr(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return last_words(stream)
    except OSError:
        return ""
