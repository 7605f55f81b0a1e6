"""What a study is: jobs as a function of finished results, and tidy tables of them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from synthlm.store import Record

if TYPE_CHECKING:
    import pandas as pd

Results = Callable[[Any], Record | None]
"""Job -> its record, None when it is not done."""


class Study(Protocol):
    """Everything is a function of finished results, so that a killed study just goes on."""

    def describe(self) -> str:
        """What is run, in one paragraph, for the report."""
        ...

    def jobs(self, results: Results) -> Sequence[Any]:
        """Every job wanted, given what is known; more are wanted once more is known."""
        ...

    def tables(self, results: Results) -> "dict[str, pd.DataFrame]":
        """Tidy tables by name, of the jobs that are done."""
        ...
