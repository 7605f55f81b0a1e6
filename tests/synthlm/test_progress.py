"""What a running grid shows."""

import io

import pytest

from synthlm.progress import (
    LiveDisplay,
    PlainDisplay,
    Running,
    Snapshot,
    counts,
    duration,
    make_display,
    size,
)

SNAPSHOT = Snapshot(
    total=20,
    cached=5,
    trained=3,
    failed=1,
    running=(Running("finetune a", 4, 30, 120), Running("pretrain b", 1, 0, 0)),
    seconds=10.0,
    flops_done=4e10,
    flops_left=1.2e11,
)


def test_counts_speed_and_time_left() -> None:
    line = counts(SNAPSHOT)
    for part in ("8/20 jobs done", "5 running", "5 cached", "1 failed", "4.0 GFLOP/s", "about 30 s left"):
        assert part in line


def test_no_rate_no_guess() -> None:
    start = Snapshot(2, 0, 0, 0, (), 0.0, 0.0, 1e9)
    assert start.seconds_left is None
    assert "about ? left" in counts(start)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e12, "2.5 TB")]
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


def test_plain_lines_come_now_and_then() -> None:
    stream, now = io.StringIO(), [0.0]
    display = PlainDisplay(stream, clock=lambda: now[0])
    for tenth in range(250):
        now[0] = tenth / 10
        display.show(SNAPSHOT)
    assert len(stream.getvalue().splitlines()) == 3
    display.note("a warning")
    display.close()
    lines = stream.getvalue().splitlines()
    assert lines[3:] == ["a warning", counts(SNAPSHOT)]


def test_nothing_is_printed_before_there_is_a_plan() -> None:
    stream = io.StringIO()
    PlainDisplay(stream).show(Snapshot(0, 0, 0, 0, (), 0.1, 0.0, 0.0))
    assert stream.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_the_live_display() -> None:
    stream = Terminal()
    display = make_display(stream)
    assert isinstance(display, LiveDisplay)
    display.show(SNAPSHOT)
    display.note("failed: [a] label with brackets")
    display.close()
    text = stream.getvalue()
    assert "8/20 jobs done" in text
    assert "finetune a and 3 more" in text
    assert "failed: [a] label with brackets" in text
    assert isinstance(make_display(io.StringIO()), PlainDisplay)
