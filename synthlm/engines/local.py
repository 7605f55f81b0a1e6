"""The engine of one machine: a pool of single-threaded worker processes.

Two one-thread processes do more than one two-thread process on small models, so the CPU default is a worker a
core. A worker that dies takes its batch with it and nothing else; the next batch gets a new one.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

from synthlm.engines import OnStep, Outcome, Workload, ignore_step
from synthlm.engines.batch import ONE_THREAD, last_words
from synthlm.store import Store


class _Worker:
    """A child process and what it is doing."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, env=environment
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        os.set_blocking(self.stdout.fileno(), False)
        self.received = b""
        self.batch: int | None = None
        self.since = 0.0

    def start(self, batch: int, jobs: Sequence[Any]) -> None:
        request = {"batch": batch, "jobs": [job.model_dump_json() for job in jobs]}
        self.batch, self.since = batch, time.monotonic()
        try:
            self.stdin.write(json.dumps(request).encode() + b"\n")
            self.stdin.flush()
        except BrokenPipeError:
            pass  # it died while idle; its closed stdout says so to ``wait``

    def events(self) -> tuple[list[dict[str, Any]], bool]:
        """What has arrived, and whether the process has closed its end."""
        chunk = self.stdout.read()
        self.received += chunk or b""
        *lines, self.received = self.received.split(b"\n")
        return [json.loads(line) for line in lines], chunk == b""

    def obituary(self) -> tuple[str, str]:
        """Why it ended, in one line, and the end of its stderr."""
        code = self.process.wait()
        words = last_words(self.stderr)
        if code == -signal.SIGKILL:
            return "the worker process was killed (signal 9; out of memory, or by hand)", words
        if code < 0:
            return f"the worker process died of signal {-code} ({signal.Signals(-code).name})", words
        last = f": {words.splitlines()[-1]}" if words else ""
        return f"the worker process ended with exit code {code}{last}", words

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class LocalEngine:
    """A pool of up to ``workers`` processes, started as they are needed."""

    def __init__(self, store: Store, device: str, workers: int, workload: Workload) -> None:
        self.workers = workers
        self.on_step: OnStep = ignore_step
        self._command = [
            *(sys.executable, "-m", "synthlm.engines.worker"),
            *("--store", str(store.root), "--device", device),
            *("--decode", workload.decode, "--run", workload.run),
        ]
        self._environment = {**os.environ, **(ONE_THREAD if device == "cpu" else {})}
        self._pool: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def submit(self, batch: int, jobs: Sequence[Any]) -> None:
        idle = next((worker for worker in self._pool if worker.batch is None), None)
        if idle is None:
            if len(self._pool) >= self.workers:
                raise ValueError(f"all {self.workers} workers are busy")
            idle = _Worker(self._command, self._environment)
            self._pool.append(idle)
            self._selector.register(idle.stdout, selectors.EVENT_READ, idle)
        idle.start(batch, jobs)

    def wait(self, timeout: float) -> list[Outcome]:
        ended: list[Outcome] = []
        deadline = time.monotonic() + timeout
        while not ended:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if not self._pool:
                time.sleep(left)
                break
            for ready, _ in self._selector.select(left):
                ended += self._listen(ready.data)
        return ended

    def close(self) -> None:
        while self._pool:
            self._remove(self._pool[0])
        self._selector.close()

    def _listen(self, worker: _Worker) -> list[Outcome]:
        events, closed = worker.events()
        ended = []
        for event in events:
            kind = event.pop("event")
            if kind == "step":
                self.on_step(event["batch"], event["step"], event["total"])
            elif kind == "end":
                worker.batch = None
                ended.append(Outcome(**event))
        if closed:
            if worker.batch is not None:
                error, words = worker.obituary()
                seconds = time.monotonic() - worker.since
                ended.append(Outcome(worker.batch, seconds, error, words, died=True))
            self._remove(worker)
        return ended

    def _remove(self, worker: _Worker) -> None:
        self._pool.remove(worker)
        self._selector.unregister(worker.stdout)
        worker.close()
