"""What a running grid shows: a live display on a terminal, an occasional plain line elsewhere."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

PLAIN_SECONDS = 10.0
SHOWN_RUNNING = 8
"""Running batches listed on a terminal."""


@dataclass(frozen=True)
class Running:
    """One batch that is being trained: its first job's label, how many jobs, steps done and in all."""

    label: str
    jobs: int
    step: int
    total: int

    @property
    def share(self) -> float:
        return self.step / self.total if self.total else 0.0


@dataclass(frozen=True)
class Snapshot:
    """Where a grid stands: jobs by state, seconds since it began, work done and known to be left in FLOPs."""

    total: int
    cached: int
    trained: int
    failed: int
    running: tuple[Running, ...]
    seconds: float
    flops_done: float
    flops_left: float

    @property
    def rate(self) -> float:
        """FLOP/s so far, start-up included."""
        return self.flops_done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At this rate, for the jobs known now; None before there is a rate."""
        return self.flops_left / self.rate if self.rate > 0 else None


class Display(Protocol):
    """Something to show progress on."""

    def show(self, snapshot: Snapshot) -> None:
        """Take a new state; called often."""
        ...

    def note(self, text: str) -> None:
        """A line that stays: a failure, a damaged entry."""
        ...

    def close(self) -> None: ...


def duration(seconds: float) -> str:
    """``42 s``, ``7 min 05 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Bytes as ``812 B``, ``3.4 kB``, ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def counts(snapshot: Snapshot) -> str:
    """One line of numbers: done, running, cached, failed, speed, time left."""
    running = sum(batch.jobs for batch in snapshot.running)
    done = snapshot.cached + snapshot.trained
    left = "?" if snapshot.seconds_left is None else duration(snapshot.seconds_left)
    parts = [
        f"{done}/{snapshot.total} jobs done",
        f"{running} running",
        f"{snapshot.cached} cached",
        f"{snapshot.failed} failed",
        f"{snapshot.rate / 1e9:.1f} GFLOP/s",
        f"{duration(snapshot.seconds)} gone",
        f"about {left} left for the jobs known so far" if snapshot.flops_left > 0 else "",
    ]
    return ", ".join(part for part in parts if part)


class PlainDisplay:
    """Lines of text, one every ten seconds: for logs and pipes."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._shown: float | None = None
        self._last: Snapshot | None = None

    def show(self, snapshot: Snapshot) -> None:
        self._last = snapshot
        if snapshot.total and (self._shown is None or self._clock() - self._shown >= PLAIN_SECONDS):
            self._print(counts(snapshot))
            self._shown = self._clock()

    def note(self, text: str) -> None:
        self._print(text)

    def close(self) -> None:
        if self._last is not None:
            self._print(counts(self._last))
        self._last = None

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class LiveDisplay:
    """A display that redraws itself on a terminal; notes scroll by above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream)
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._live.start()

    def show(self, snapshot: Snapshot) -> None:
        self._live.update(_drawing(snapshot))

    def note(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text))

    def close(self) -> None:
        self._live.stop()


def make_display(stream: TextIO | None = None) -> LiveDisplay | PlainDisplay:
    """A live display when the stream (stderr by default) is a terminal, else plain lines."""
    stream = stream or sys.stderr
    return LiveDisplay(stream) if stream.isatty() else PlainDisplay(stream)


def _drawing(snapshot: Snapshot) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    work = snapshot.flops_done + snapshot.flops_left
    done = snapshot.cached + snapshot.trained
    share = snapshot.flops_done / work if work else done / max(snapshot.total, 1)
    table = Table.grid(padding=(0, 1))
    table.add_row(ProgressBar(total=1.0, completed=share, width=30), Text(f"{share:4.0%} of the known work"))
    for batch in snapshot.running[:SHOWN_RUNNING]:
        others = f" and {batch.jobs - 1} more" if batch.jobs > 1 else ""
        bar = ProgressBar(total=1.0, completed=batch.share, width=30)
        table.add_row(bar, Text(f"{batch.label}{others}  {batch.step}/{batch.total}"))
    hidden = len(snapshot.running) - SHOWN_RUNNING
    if hidden > 0:
        table.add_row("", Text(f"and {hidden} more batches"))
    return Group(Text(counts(snapshot)), table)
