"""One worker process: batches of jobs in as JSON lines on stdin, events out as JSON lines on stdout.

    in   {"batch": 3, "jobs": ["<job as JSON>", ...]}
    out  {"event": "step", "batch": 3, "step": 10, "total": 100}
         {"event": "end", "batch": 3, "seconds": 1.5, "error": null, "traceback": "", "died": false}

Results go to the store, never through the pipe. The process ends at once when stdin closes, so that workers
do not outlive the process that started them, however it ended.
"""

import argparse
import json
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict
from typing import Any, TextIO

STEP_SECONDS = 0.25
"""Least time between two step events of a batch."""


def main(arguments: list[str] | None = None) -> None:
    """Serve batches until stdin closes."""
    parser = argparse.ArgumentParser(prog="synthlm.engines.worker")
    parser.add_argument("--store", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--decode", required=True)
    parser.add_argument("--run", required=True)
    options = parser.parse_args(arguments)
    # Ctrl-C reaches the whole process group; the parent decides what to do
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events = _private_stdout()
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()

    from synthlm.engines import Workload
    from synthlm.store import Store

    workload = Workload(options.decode, options.run)
    store = Store(options.store)
    while True:
        _serve(requests.get(), workload, store, options.device, events)


def _serve(request: dict[str, Any], workload: Any, store: Any, device: str, events: TextIO) -> None:
    from synthlm.engines.batch import at_most_every, run

    def on_step(batch: int, step: int, total: int) -> None:
        _send(events, event="step", batch=batch, step=step, total=total)

    told = at_most_every(STEP_SECONDS, on_step)
    outcome = run(request["batch"], request["jobs"], store, device, workload, told)
    _send(events, event="end", **asdict(outcome))


def _private_stdout() -> TextIO:
    """The pipe to the parent; whatever else prints to stdout goes to stderr from here on."""
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return pipe


def _read_requests(requests: "queue.Queue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


def _send(events: TextIO, **fields: Any) -> None:
    try:
        events.write(json.dumps(fields) + "\n")
        events.flush()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
