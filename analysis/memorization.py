"""Is an item memorized? Recall, extraction, counterfactual scores and exposure, as functions over arrays.

Axis names: ``item`` sequences, ``time`` tokens, ``model`` members of an ensemble. Leading axes (runs, steps) are kept.
Everything here is numpy and knows nothing of how models are trained.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

Predict = Callable[[Integers], Floats]
"""Token ids ``[item, time]`` -> log-probabilities (or logits) ``[item, vocab]`` of the token that follows."""


def recall(right: ArrayLike, scored: ArrayLike) -> Floats:
    """Share of scored tokens that are right: ``right [..., item, time]``, ``scored [item, time]`` -> ``[...]``.

    NaN when nothing is scored.
    """
    mask = np.asarray(scored, dtype=bool)
    hits = (np.asarray(right, dtype=bool) & mask).sum((-2, -1))
    total = mask.sum()
    return hits / total if total else np.full(hits.shape, np.nan)


def exact_match(right: ArrayLike, scored: ArrayLike) -> Bools:
    """``[..., item]``: is every scored token of the item right? (arguments as in :func:`recall`)"""
    return (np.asarray(right, dtype=bool) | ~np.asarray(scored, dtype=bool)).all(-1)


def greedy(predict: Predict, prefix: Integers, count: int) -> Integers:
    """The ``count`` most likely tokens after each prefix, one after the other: ``[item, k]`` -> ``[item, count]``.

    Equal scores: the smallest token id.
    """
    tokens = np.asarray(prefix, dtype=np.int64)
    for _ in range(count):
        tokens = np.hstack([tokens, predict(tokens).argmax(-1)[:, None]])
    return tokens[:, prefix.shape[1] :]


def extracted(predict: Predict, items: Integers, k: int) -> Bools:
    """``[item]``: does the greedy continuation of the first ``k`` tokens equal the rest of the item ``[item, time]``?

    Source: discoverable extraction, arXiv 2202.07646.

    Raises:
        ValueError: unless 1 <= k < time.
    """
    if not 1 <= k < items.shape[1]:
        raise ValueError(
            f"k: {k} must be between 1 and {items.shape[1] - 1}, the length of the items less one"
        )
    return (greedy(predict, items[:, :k], items.shape[1] - k) == items[:, k:]).all(-1)


def discoverable(log_p: ArrayLike, n: int, p: float) -> Bools:
    """Would ``n`` samples contain the item with probability ``p`` or more: 1 - (1 - p_z)**n >= p.

    Args:
        log_p: natural log of p_z, the probability of the whole continuation given its prefix, any shape.

    Source: (n, p)-discoverable extraction, arXiv 2410.19482. Computed as n log(1 - p_z) <= log(1 - p), so that tiny
    p_z and large n keep their digits.

    Raises:
        ValueError: unless n >= 1 and 0 < p < 1.
    """
    _check_probability(p)
    if n < 1:
        raise ValueError(f"n: {n} must be at least 1")
    return n * _log_miss(log_p) <= math.log1p(-p)


def queries(log_p: ArrayLike, p: float) -> Floats:
    """The smallest number of samples that contain the item with probability ``p``; infinite where p_z is 0.

    The inverse of :func:`discoverable`, for ``log_p`` of any shape (arXiv 2410.19482).

    Raises:
        ValueError: unless 0 < p < 1.
    """
    _check_probability(p)
    with np.errstate(divide="ignore"):
        exact = math.log1p(-p) / _log_miss(log_p)
    return np.maximum(1.0, np.ceil(exact))


def _check_probability(p: float) -> None:
    if not 0 < p < 1:
        raise ValueError(f"p: {p} must lie between 0 and 1")


def _log_miss(log_p: ArrayLike) -> Floats:
    """log(1 - p_z), the log-probability that one sample is not the item."""
    z = np.asarray(log_p, dtype=np.float64)
    if (z > 1e-6).any():
        raise ValueError(f"log_p: {z.max()} is above 0, so it is no log-probability")
    with np.errstate(divide="ignore"):
        return np.log1p(-np.exp(np.minimum(z, 0.0)))


@dataclass(frozen=True)
class Counterfactual:
    """Per item ``[item]``: how much training on it helps with it.

    score: mean outcome of models trained with the item minus without. error: standard error of the score. with_item,
    without_item: the two means. n_with, n_without: models behind each. NaN where a side has no model (score), or
    fewer than two (error).
    """

    score: Floats
    error: Floats
    with_item: Floats
    without_item: Floats
    n_with: Integers
    n_without: Integers


def counterfactual(member: ArrayLike, outcome: ArrayLike) -> Counterfactual:
    """Counterfactual memorization of each item from an ensemble trained on random subsets.

    Args:
        member: bool ``[model, item]``, was the item among the model's training items.
        outcome: ``[model, item]``, the model's correctness (0/1 or a share) or any other score on the item.

    score(x) = mean outcome with x - mean outcome without x; error = sqrt(s_in**2 / n_in + s_out**2 / n_out), s**2 the
    unbiased variances. Source: arXiv 2008.03703 (its memorization estimate), arXiv 2112.12938 (its name).

    Raises:
        ValueError: when the two are not matrices of one shape.
    """
    inside = np.asarray(member, dtype=bool)
    values = np.asarray(outcome, dtype=np.float64)
    if inside.ndim != 2 or inside.shape != values.shape:
        raise ValueError(f"member {inside.shape} and outcome {values.shape} must both be [model, item]")
    n_in, mean_in, variance_in = _moments(values, inside)
    n_out, mean_out, variance_out = _moments(values, ~inside)
    return Counterfactual(
        score=mean_in - mean_out,
        error=np.sqrt(variance_in + variance_out),
        with_item=mean_in,
        without_item=mean_out,
        n_with=n_in,
        n_without=n_out,
    )


def _moments(values: Floats, chosen: Bools) -> tuple[Integers, Floats, Floats]:
    """Count, mean and squared standard error of the mean over the chosen models, each ``[item]``."""
    count = chosen.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(chosen, values, 0.0).sum(0) / count
        squares = np.where(chosen, values - mean, 0.0) ** 2
        error = np.where(count > 1, squares.sum(0) / (count - 1) / count, np.nan)
    return count, mean, error


def exposure(canary: ArrayLike, references: ArrayLike) -> Floats:
    """Bits by which training lifted each canary: log2 |R| - log2 rank, ``[..., canary]``.

    Args:
        canary: losses ``[..., canary]`` of the trained canaries (whole-sequence nats).
        references: losses ``[..., reference]`` of sequences of the same distribution that no model was trained on.

    R is the references and the canary itself, so the largest exposure is log2(references + 1) and the smallest 0; an
    untrained canary has about log2(e) = 1.44 on average. The rank counts from 1 (smallest loss); equal losses share the
    mean of their ranks, so a model that tells nothing apart gives about one bit, not the largest or the smallest.
    Source: arXiv 1802.08232; the rule for ties is ours.

    Raises:
        ValueError: without references.
    """
    losses = np.asarray(canary, dtype=np.float64)[..., :, None]
    others = np.asarray(references, dtype=np.float64)[..., None, :]
    size = others.shape[-1] + 1
    if size < 2:
        raise ValueError("references: exposure needs at least one reference")
    rank = 1 + (others < losses).sum(-1) + 0.5 * (others == losses).sum(-1)
    known = np.isfinite(losses[..., 0]) & np.isfinite(others).all(-1)
    return np.where(known, math.log2(size) - np.log2(rank), np.nan)
