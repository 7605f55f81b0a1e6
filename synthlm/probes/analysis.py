"""What an analysis is: settings that turn a subject (weights, their languages) into tidy columns."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

from synthlm.config import Config

if TYPE_CHECKING:
    from synthlm.jobs import Probe
    from synthlm.probes.subject import Subject

Columns = dict[str, list[Any]]
"""Column -> values (text, whole numbers, floats, None), all of one length: one row an observation."""


class Analysis(Config, abc.ABC):
    """Settings of an analysis. Its numbers follow from these, the subject and the probe's seed alone."""

    REVISION: ClassVar[int] = 1
    """Raised when the arithmetic of one analysis changes: its old results are then no longer served."""

    name: str

    @abc.abstractmethod
    def run(self, subject: "Subject") -> Columns:
        """Analyse the subject; non-finite numbers are given as None."""

    @abc.abstractmethod
    def cost(self, probe: "Probe") -> float:
        """Floating-point operations, roughly: what the time left is told from."""

    def check(self, probe: "Probe") -> None:
        """Refuse subjects that the analysis cannot take.

        Raises:
            InputError: naming the field, its value and what is allowed.
        """


def column(values: Any) -> list[float | None]:
    """Floats of a tensor or a sequence, non-finite ones as None."""
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    return [value if value == value and abs(value) != float("inf") else None for value in listed]
