"""Which jobs share a run axis, and in which order batches start."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

CUDA_WIDTH = 64
"""Runs side by side on a GPU."""

CPU_WIDTHS = ((16, 8), (32, 4), (64, 2))
"""(largest model width, runs side by side) on one core. Small matrices waste the time between kernels; wider
models fill the core alone, and a wide axis would only leave its cache."""


TAIL = 4
"""Batches per worker from which on an uneven share no longer matters."""


class Shaped(Protocol):
    """What the planner asks of a job."""

    @property
    def key(self) -> str: ...
    @property
    def parents(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> str: ...
    @property
    def cost(self) -> float: ...


J = TypeVar("J", bound=Shaped)


def width(job: Shaped, device: str) -> int:
    """How many jobs of this shape run best side by side on one worker of ``device`` ("cpu" or "cuda")."""
    hint = getattr(job, "width_hint", None)
    if device == "cuda":
        return CUDA_WIDTH
    if hint is not None:
        return max(1, int(hint))
    model_width = getattr(getattr(job, "model", None), "width", math.inf)
    return next((runs for limit, runs in CPU_WIDTHS if model_width <= limit), 1)


def urgency(jobs: Iterable[Shaped]) -> dict[str, float]:
    """Key -> FLOPs of the job and of the costliest chain of the given jobs that waits for it."""
    given = {job.key: job for job in jobs}
    children: dict[str, list[str]] = {}
    for job in given.values():
        for parent in job.parents:
            if parent in given:
                children.setdefault(parent, []).append(job.key)
    found: dict[str, float] = {}
    for start in given:
        stack = [start]
        while stack:
            key = stack[-1]
            waiting = [child for child in children.get(key, ()) if child not in found]
            if waiting:
                stack += waiting
                continue
            stack.pop()
            below = max((found[child] for child in children.get(key, ())), default=0.0)
            found[key] = given[key].cost + below
    return found


def most_urgent_first(jobs: Sequence[J], chain: Mapping[str, float]) -> list[J]:
    """Jobs with the longest chain behind them first; the given order decides between equals."""
    return sorted(jobs, key=lambda job: -chain[job.key])


def batches(jobs: Sequence[J], width: Callable[[J], int], workers: int = 1) -> list[tuple[J, ...]]:
    """Group jobs of one shape into run-axis batches.

    Batches of a shape are even in size (9 jobs at width 8 become 5 and 4) and stand in the order of their
    first jobs. When there are few, the costliest are cut in two until every worker has equally many, so that
    none idles at the end while another works through a wide batch.

    Args:
        jobs: in the order wanted.
        width: most jobs of this one's shape side by side.
        workers: how many batches can run at once.
    """
    groups: dict[str, list[tuple[int, J]]] = {}
    for place, job in enumerate(jobs):
        groups.setdefault(job.shape, []).append((place, job))
    made: list[list[tuple[int, J]]] = []
    for group in groups.values():
        made += _even(group, math.ceil(len(group) / width(group[0][1])))
    few = TAIL * workers
    while len(made) < few and len(made) % workers and any(len(batch) > 1 for batch in made):
        costliest = max((b for b in made if len(b) > 1), key=lambda b: sum(job.cost for _, job in b))
        made.remove(costliest)
        made += _even(costliest, 2)
    return [tuple(job for _, job in batch) for batch in sorted(made, key=lambda batch: batch[0][0])]


def _even(items: list[tuple[int, J]], count: int) -> list[list[tuple[int, J]]]:
    """Cut into ``count`` consecutive pieces whose sizes differ by at most one."""
    edges = [round(i * len(items) / count) for i in range(count + 1)]
    return [items[a:b] for a, b in pairwise(edges)]
