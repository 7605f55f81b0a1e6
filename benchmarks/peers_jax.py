"""The same training as a jit-compiled JAX function, for one run or mapped over many."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peers import Problem

from synthlm.jobs import Pretrain
from synthlm.tasks import IGNORE

Weights = dict[str, jax.Array]


def _norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + jnp.finfo(x.dtype).eps) * gain


def _attention(qkv: jax.Array, heads: int) -> jax.Array:
    batch, time, _ = qkv.shape
    q, k, v = jnp.moveaxis(qkv.reshape(batch, time, 3, heads, -1), 2, 0)
    scores = jnp.einsum("bqhe,bkhe->bhqk", q, k) / np.sqrt(q.shape[-1])
    scores = jnp.where(jnp.tril(jnp.ones((time, time), bool)), scores, -jnp.inf)
    return jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(scores), v).reshape(batch, time, -1)


def _loss(weights: Weights, tokens: jax.Array, targets: jax.Array, job: Pretrain, first: int) -> jax.Array:
    config = job.model
    x = weights["embedding"][tokens] + weights["positions"][: tokens.shape[1]]
    for i in range(config.layers):
        block = {
            name: weights[f"blocks.{i}.{name}"] for name in ("norm1", "qkv", "out", "norm2", "up", "down")
        }
        x = x + _attention(_norm(x, block["norm1"]) @ block["qkv"].T, config.heads) @ block["out"].T
        x = x + jax.nn.relu(_norm(x, block["norm2"]) @ block["up"].T) ** 2 @ block["down"].T
    log_p = jax.nn.log_softmax(_norm(x[:, first:], weights["norm"]) @ weights["head"].T)
    scored = targets != IGNORE
    picked = jnp.take_along_axis(log_p, jnp.where(scored, targets, 0)[..., None], -1)[..., 0]
    return -jnp.sum(jnp.where(scored, picked, 0.0)) / jnp.sum(scored)


def _step(carry: Any, given: Any, data: Any, problem: Problem) -> tuple[Any, jax.Array]:
    """One step of AdamW, moved like torch's: decay first, both averages corrected for their start at 0."""
    weights, mean, square, count = carry
    items, rates = given
    tokens, targets = data
    loss, grad = jax.value_and_grad(_loss)(weights, tokens[items], targets[items], problem.job, problem.first)
    count = count + 1
    moved, means, squares = {}, {}, {}
    for name, weight in weights.items():
        matrix = name in problem.matrix
        config = problem.job.optimizer if matrix else problem.job.aux
        rate, hyper = rates[0 if matrix else 1], config.hyper
        means[name] = hyper["beta1"] * mean[name] + (1 - hyper["beta1"]) * grad[name]
        squares[name] = hyper["beta2"] * square[name] + (1 - hyper["beta2"]) * grad[name] ** 2
        m = means[name] / (1 - hyper["beta1"] ** count)
        v = squares[name] / (1 - hyper["beta2"] ** count)
        moved[name] = weight * (1 - rate * config.weight_decay) - rate * m / (jnp.sqrt(v) + hyper["eps"])
    return (moved, means, squares, count), loss


@partial(jax.jit, static_argnames=("static", "mapped"), donate_argnums=0)
def _train(carry: Any, given: Any, data: Any, static: "_Static", mapped: bool) -> tuple[Any, jax.Array]:
    step = partial(_step, problem=static.problem)
    axes: Any = ((0, 0, 0, None), 0, 0)
    return (jax.vmap(step, axes, ((0, 0, 0, None), 0)) if mapped else step)(carry, given, data)


class _Static:
    """What the compiled code depends on besides array shapes; problems that agree in it share the code."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        job = problem.job
        rules = [(config.weight_decay, str(config.hyper)) for config in (job.optimizer, job.aux)]
        self.key = (job.model, problem.first, *rules)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.key == other.key


def train(given: Sequence[Problem], mapped: bool) -> tuple[list[list[float]], float]:
    """Train runs side by side (``mapped``) or one after the other.

    Returns:
        Each run's loss at each step, and the seconds from the end of the first step to that of the last.
    """
    if not mapped:
        trained = [_run([each], mapped) for each in given]
        return [losses[0] for losses, _ in trained], sum(seconds for _, seconds in trained)
    return _run(given, mapped)


def _run(given: Sequence[Problem], mapped: bool) -> tuple[list[list[float]], float]:
    def stack(arrays: Sequence[np.ndarray]) -> jax.Array:
        return jnp.asarray(np.stack(arrays) if mapped else arrays[0])

    weights = {name: stack([each.weights[name] for each in given]) for name in given[0].weights}
    zeros = jax.tree.map(jnp.zeros_like, weights)
    carry = (weights, zeros, jax.tree.map(jnp.zeros_like, weights), jnp.zeros(()))
    data = (stack([each.tokens for each in given]), stack([each.targets for each in given]))
    orders = np.stack([each.order for each in given], 1 if mapped else 0)
    rates = np.stack([each.rates for each in given], 1 if mapped else 0)
    if not mapped:
        orders, rates = orders[0], rates[0]
    static = _Static(given[0])
    losses, start = [], 0.0
    for step, each in enumerate(zip(orders, rates, strict=True)):
        carry, loss = _train(carry, each, data, static, mapped)
        losses.append(loss)
        if step == 0:
            jax.block_until_ready(carry)
            start = time.perf_counter()
    jax.block_until_ready(carry)
    seconds = time.perf_counter() - start
    found = np.stack([np.atleast_1d(np.asarray(loss)) for loss in losses], 1)
    return found.tolist(), seconds
