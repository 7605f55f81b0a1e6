"""Learning-rate sweeps that widen themselves when their best lies at an edge."""

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

from pydantic import Field, model_validator

from synthlm.config import Config, InputError, parse
from synthlm.optimizers import OptimizerConfig
from synthlm.study import Results

J = TypeVar("J")


class Sweep(Config):
    """Learning rates, evenly spaced in log scale; ``widen`` more at most when the best is at an edge."""

    lowest: float = Field(gt=0)
    highest: float = Field(gt=0)
    count: int = Field(6, ge=1)
    widen: int = Field(3, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> "Sweep":
        if self.count > 1 and self.highest <= self.lowest:
            raise ValueError(f"highest: {self.highest} must be above lowest {self.lowest}")
        return self

    def rate(self, index: int) -> float:
        """The learning rate at a place on the grid, to four digits; places outside 0..count-1 continue it."""
        ratio = (self.highest / self.lowest) ** (1 / (self.count - 1)) if self.count > 1 else 2.0
        return float(f"{self.lowest * ratio**index:.4g}")


class Rule(Config):
    """An optimizer without its learning rate."""

    name: str
    weight_decay: float = Field(0.0, ge=0)
    hyper: dict[str, bool | int | float | str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> "Rule":
        try:
            self.at(1.0)
        except InputError as error:
            raise ValueError(str(error).removeprefix("optimizer: ")) from None
        return self

    def at(self, lr: float) -> OptimizerConfig:
        """The optimizer at a learning rate."""
        return parse(OptimizerConfig, {**self.model_dump(), "lr": lr}, "optimizer")


def search(
    sweep: Sweep,
    at: Callable[[int], list[J]],
    score: Callable[[list[J]], float],
    results: Results,
) -> tuple[list[J], int | None]:
    """Jobs of a sweep that widens itself, and the best place once all are known (None before, or if all failed)."""
    places = {index: at(index) for index in range(sweep.count)}
    for extra in range(sweep.widen + 1):
        if any(results(job) is None for jobs in places.values() for job in jobs):
            break
        scores = {index: score(jobs) for index, jobs in places.items()}
        finite = {index: value for index, value in scores.items() if math.isfinite(value)}
        best = max(finite, key=lambda index: (finite[index], -index)) if finite else None
        at_edge = best is not None and sweep.count > 1 and best in (min(places), max(places))
        if best is None or not at_edge or extra == sweep.widen:
            return in_order(places), best
        new = best - 1 if best == min(places) else best + 1
        places[new] = at(new)
    return in_order(places), None


def in_order(places: dict[int, list[J]]) -> list[J]:
    """Jobs from the lowest place to the highest."""
    return [job for index in sorted(places) for job in places[index]]


def mean(values: Iterable[float]) -> float:
    """The mean of some numbers."""
    listed = list(values)
    return sum(listed) / len(listed)
