"""How many bits a model has stored, and how many it can store.

The languages know how many bits their answers hold, so bits are counted, not estimated, and only the capacity (a
plateau over data sizes) is fitted.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

PLATEAU_SHARE = 0.9
"""A plateau counts as seen when the largest data set is stored to less than this share."""


def memorized_bits(model: ArrayLike, reference: ArrayLike, clip: bool = True) -> Floats:
    """Bits stored: sum over items of max(0, log2 p_model(x) / p_reference(x)), ``[...]``.

    Args:
        model, reference: nats ``[..., item]`` that each spends on the item's answer (-ln p). The reference knows the
            distribution and the rule but no item: n_tokens * ln(values) for a uniform answer.
        clip: count an item that the model finds less likely than the reference does as 0. Without it (the net sum) an
            untrained model has at most 0 bits, while clipped noise adds up to a little above 0.

    Source: arXiv 2505.24832 (unintended memorization, with the exact code length of uniform data as reference).
    """
    gain = np.asarray(reference, dtype=np.float64) - np.asarray(model, dtype=np.float64)
    return (np.maximum(gain, 0.0) if clip else gain).sum(-1) / math.log(2)


@dataclass(frozen=True)
class Plateau:
    """A capacity fitted over data sizes.

    capacity: bits at the plateau of min(exact, capacity). most: the largest number of bits stored at any size.
    error: root mean square of ln(stored / fitted). seen: whether the largest set was stored to less than
    ``PLATEAU_SHARE``, without which ``capacity`` is only a lower bound.
    """

    capacity: float
    most: float
    error: float
    seen: bool

    def per_parameter(self, parameters: int) -> float:
        """Bits per parameter at the plateau."""
        return self.capacity / parameters


def plateau(exact: ArrayLike, stored: ArrayLike) -> Plateau:
    """Fit ``stored ~ min(exact, capacity)`` by least squares of the logarithms.

    Args:
        exact: bits each data set holds ``[size]``, in any order, repeats allowed (seeds).
        stored: bits a model stored of it ``[size]``.

    A model keeps all of a small set and a fixed amount of a large one (arXiv 2505.24832, figure of bits against data
    size; the fit is ours). For a given set of sizes above the plateau the best capacity is the geometric mean of their
    stored bits, so the optimum is found by trying every set.

    Raises:
        ValueError: when lengths differ, or nothing is stored anywhere (a logarithm needs positive bits).
    """
    x = np.asarray(exact, dtype=np.float64)
    y = np.asarray(stored, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"exact {x.shape} and stored {y.shape} must be two equally long lists")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all() and (y > 0).all()):
        raise ValueError("exact and stored must be finite and above 0")
    order = np.argsort(x, kind="stable")
    x, y = np.log(x[order]), np.log(y[order])

    def misfit(level: float) -> float:
        return float(((y - np.minimum(x, level)) ** 2).mean())

    candidates = [float(x[-1])]
    for first in range(len(x)):
        low = x[first - 1] if first else -np.inf
        candidates.append(float(np.clip(y[first:].mean(), low, x[first])))
    best = min(candidates, key=misfit)
    largest = x == x[-1]
    return Plateau(
        capacity=math.exp(best),
        most=float(np.exp(y.max())),
        error=math.sqrt(misfit(best)),
        seen=bool(np.exp(y[largest] - x[-1]).mean() < PLATEAU_SHARE),
    )
