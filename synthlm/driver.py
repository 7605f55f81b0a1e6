"""The loop that fills a store: ask the study what it wants, run what is missing, ask again.

A study may want more once it knows more (a learning-rate search that widens, finetuning from the chosen
base), so the plan is asked for anew whenever a batch has ended, in a thread, while the workers go on with
what is known.
"""

import shlex
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synthlm import planner
from synthlm.engines import Engine, Outcome
from synthlm.progress import Display, Running, Snapshot
from synthlm.store import Record, Store
from synthlm.study import Study

if TYPE_CHECKING:
    import pandas as pd

TICK = 0.25
"""Seconds between two looks at the engine, and between two states shown."""

PLAN_SHARE = 4.0
"""While workers are busy, the time between two plans is at least this many times what a plan takes."""

REPEATS = 2
"""How often a job whose worker died, or whose parent was found damaged, is tried again."""

TABLES = 3
"""How often tables are read again after entries were found damaged while reading them."""


@dataclass(frozen=True)
class FailedJob:
    """A job that raised, and the command that repeats it alone."""

    key: str
    label: str
    error: str
    repeat: str


@dataclass(frozen=True)
class Summary:
    """How a grid ended. ``blocked`` jobs were not run because one that they need failed."""

    cached: int
    trained: int
    blocked: int
    seconds: float
    failures: tuple[FailedJob, ...]

    @property
    def done(self) -> int:
        return self.cached + self.trained

    @property
    def failed(self) -> int:
        return len(self.failures)


@dataclass(frozen=True)
class Item:
    """A job with what the planner asks of it, worked out once."""

    job: Any
    key: str
    parents: tuple[str, ...]
    shape: str
    cost: float
    width: int

    @classmethod
    def of(cls, job: Any, device: str) -> "Item":
        return cls(job, job.key, tuple(job.parents), job.shape, job.cost, planner.width(job, device))


def repeat_command(job: Any, store: Store) -> str:
    """The command that runs a failed job alone, from the record of its failure."""
    verb = {"pretrain": "train", "probe": "analyze"}.get(job.kind, job.kind)
    path = store.root / "failed" / f"{job.key}.json"
    return f"synthlm {verb} --job {shlex.quote(str(path))} --store {shlex.quote(str(store.root))}"


def run(study: Study, store: Store, engine: Engine, display: Display, device: str = "cpu") -> Summary:
    """Run everything the study wants and the store lacks; jobs that failed before are tried again.

    A failing batch is cut in two until the job at fault is alone, so that a failure takes no other job with
    it.
    """
    return _Loop(study, store, engine, display, device).run()


def run_to_tables(
    study: Study, store: Store, engine: Engine, display: Display, device: str = "cpu"
) -> tuple[Summary, "dict[str, pd.DataFrame]"]:
    """As ``run``, then read the results; entries found damaged while reading are done again."""
    loop = _Loop(study, store, engine, display, device)
    for attempt in range(1, TABLES + 1):
        summary = loop.run()
        tables = study.tables(lambda job: store.get(job.key))
        if attempt == TABLES or not loop.lost():
            break
    return summary, tables


class _Loop:
    def __init__(self, study: Study, store: Store, engine: Engine, display: Display, device: str) -> None:
        self.study, self.store, self.engine, self.display, self.device = study, store, engine, display, device
        self.begun = time.monotonic()
        self.wanted: dict[str, Any] = {}
        self.items: dict[str, Item] = {}
        self.cached: set[str] = set()
        self.trained: set[str] = set()
        self.failures: dict[str, FailedJob] = {}
        self.repeats: dict[str, int] = {}
        self.queue: deque[tuple[Item, ...]] = deque()
        self.retries: deque[tuple[Item, ...]] = deque()
        self.running: dict[int, tuple[Item, ...]] = {}
        self.steps: dict[int, tuple[int, int]] = {}
        self.batches = 0
        self.flops_done = 0.0
        self.shown = 0.0
        self.plan: Future[list[Any]] | None = None
        self.plan_asked, self.plan_seconds, self.plan_ended = 0.0, 0.0, 0.0
        self.stale = True  # results have come in since the plan was asked for
        self.unqueued = False  # and since the queue was made
        engine.on_step = self.on_step

    def run(self) -> Summary:
        """Until nothing is left that can be run."""
        self.store.keys()
        self.stale = True
        thread = ThreadPoolExecutor(1, thread_name_prefix="plan")
        try:
            while True:
                self._ask(thread)
                self._adopt()
                self._dispatch()
                self._show(now=True)
                if self.running:
                    for outcome in self.engine.wait(TICK):
                        self._ended(outcome)
                elif self.plan is None and not self.stale:
                    break
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
        blocked = len(self.wanted) - sum(self.store.has(key) or key in self.failures for key in self.wanted)
        failures = tuple(failure for key, failure in self.failures.items() if key in self.wanted)
        return Summary(len(self.cached), len(self.trained), blocked, time.monotonic() - self.begun, failures)

    def lost(self) -> bool:
        """Whether a job that was done is no longer there."""
        return any(not self.store.has(key) for key in self.cached | self.trained)

    def on_step(self, batch: int, step: int, total: int) -> None:
        self.steps[batch] = (step, total)
        self._show()

    def _results(self, job: Any) -> Record | None:
        return self.store.get(job.key)

    def _ask(self, thread: ThreadPoolExecutor) -> None:
        """Ask for a new plan when results have come in, but not all the time while workers are busy."""
        idle = not self.queue and not self.retries and len(self.running) < self.engine.workers
        rested = time.monotonic() - self.plan_ended >= PLAN_SHARE * self.plan_seconds
        if self.plan is None and self.stale and (idle or rested):
            self.stale = False
            self.plan_asked = time.monotonic()
            self.plan = thread.submit(lambda: list(self.study.jobs(self._results)))

    def _adopt(self) -> None:
        """Take over a plan that is ready; wait for it when there is nothing else to do."""
        if self.plan is None or not (self.plan.done() or not (self.running or self.queue or self.retries)):
            return
        self.wanted = {job.key: job for job in self.plan.result()}
        self.plan = None
        self.plan_ended = time.monotonic()
        self.plan_seconds = self.plan_ended - self.plan_asked
        self.trained = {key for key in self.trained if self.store.has(key)}
        self.cached = {key for key in self.wanted if self.store.has(key)} - self.trained
        self._requeue()

    def _requeue(self) -> None:
        """Batches of all jobs that can start now."""
        self.unqueued = False
        taken = {item.key for batch in (*self.running.values(), *self.retries) for item in batch}
        pending = [
            self._item(job)
            for key, job in self.wanted.items()
            if not self.store.has(key) and key not in self.failures and key not in taken
        ]
        ready = [item for item in pending if all(map(self.store.has, item.parents))]
        ready = planner.most_urgent_first(ready, planner.urgency(pending))
        self.queue = deque(planner.batches(ready, lambda item: item.width, self.engine.workers))

    def _item(self, job: Any) -> Item:
        if job.key not in self.items:
            self.items[job.key] = Item.of(job, self.device)
        return self.items[job.key]

    def _dispatch(self) -> None:
        while len(self.running) < self.engine.workers:
            if not self.retries and not self.queue and self.unqueued:
                self._requeue()
            source = self.retries or self.queue
            if not source:
                return
            batch = source.popleft()
            self.batches += 1
            self.running[self.batches] = batch
            self.engine.submit(self.batches, [item.job for item in batch])

    def _ended(self, outcome: Outcome) -> None:
        batch = self.running.pop(outcome.batch)
        self.steps.pop(outcome.batch, None)
        self.stale = self.unqueued = True
        missing = [item for item in batch if not self.store.has(item.key)]
        for item in batch:
            if item not in missing:
                self.trained.add(item.key)
                self.flops_done += item.cost
        if not missing:
            return
        if len(batch) > 1:
            middle = (len(missing) + 1) // 2
            self.retries += [tuple(half) for half in (missing[:middle], missing[middle:]) if half]
            return
        item = missing[0]
        orphaned = not all(self.store.has(parent, afresh=True) for parent in item.parents)
        self.repeats[item.key] = self.repeats.get(item.key, 0) + 1
        if (orphaned or outcome.died) and self.repeats[item.key] < REPEATS:
            if not orphaned:
                self.display.note(f"{item.job.label}: {outcome.error}; trying once more")
                self.retries.append((item,))
            return
        self._fail(item.job, outcome.error or "the job ended without a result", outcome.traceback)

    def _fail(self, job: Any, error: str, traceback: str) -> None:
        self.store.fail(job.key, job.model_dump_json(), error, traceback)
        self.failures[job.key] = FailedJob(job.key, job.label, error, repeat_command(job, self.store))
        self.display.note(f"failed: {job.label}: {error}")

    def _show(self, now: bool = False) -> None:
        if now or time.monotonic() - self.shown >= TICK:
            self.shown = time.monotonic()
            self.display.show(self._snapshot())

    def _snapshot(self) -> Snapshot:
        running = []
        flops_running = 0.0
        for number, batch in self.running.items():
            step, total = self.steps.get(number, (0, 0))
            running.append(Running(batch[0].job.label, len(batch), step, total))
            flops_running += sum(item.cost for item in batch) * (step / total if total else 0.0)
        ended = self.trained | self.cached | self.failures.keys()
        left = sum(item.cost for key, item in self.items.items() if key in self.wanted and key not in ended)
        return Snapshot(
            total=len(self.wanted),
            cached=len(self.cached),
            trained=len(self.trained),
            failed=len(self.failures),
            running=tuple(running),
            seconds=time.monotonic() - self.begun,
            flops_done=self.flops_done + flops_running,
            flops_left=left - flops_running,
        )
