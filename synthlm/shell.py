"""How commands run jobs and speak to people: displays, failures, one job after those that it needs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from synthlm.driver import Summary
    from synthlm.engines import Engine
    from synthlm.progress import Display
    from synthlm.store import Store


def console() -> "Console":
    """Where tables are printed; 140 columns wide when it is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


@contextmanager
def showing(store: "Store", pool: "Engine") -> "Iterator[Display]":
    """A display that also shows the store's warnings; Ctrl-C ends the workers and says how to go on."""
    from synthlm.progress import make_display

    display = make_display()
    store.warn = display.note
    try:
        yield display
    except KeyboardInterrupt:
        display.note("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    finally:
        pool.close()
        display.close()


def print_failures(summary: "Summary") -> None:
    """Each failed job with the command that repeats it, on stderr."""
    for failure in summary.failures:
        typer.echo(
            f"failed: {failure.label} ({failure.key[:12]}): {failure.error}\n  repeat: {failure.repeat}",
            err=True,
        )


class _Fixed:
    """A study that wants the same few jobs whatever the results."""

    def __init__(self, jobs: list[Any]) -> None:
        self._jobs = jobs

    def jobs(self, results: Any) -> list[Any]:
        return self._jobs

    def describe(self) -> str:
        return ", ".join(job.label for job in self._jobs)

    def tables(self, results: Any) -> dict[str, Any]:
        return {}


def run_one(job: Any, jobs: list[Any], store: "Store", device: str) -> None:
    """Run a job, and first those it needs, in this process."""
    from synthlm import driver
    from synthlm.engines import make_engine

    pool = make_engine("inline", store, device)
    with showing(store, pool) as display:
        summary = driver.run(_Fixed(jobs), store, pool, display, device)
    print_failures(summary)
    if summary.failed or summary.blocked:
        raise typer.Exit(1)
    typer.echo(f"{job.label}{'' if summary.trained else ' (was already done)'}")
    typer.echo(f"key     {job.key}\nfolder  {store.folder(job.key)}")
