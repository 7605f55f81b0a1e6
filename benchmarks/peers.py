"""The same training by other means: what every peer is given, and a plain PyTorch loop.

A peer gets a job's initial weights, tokens, data order and learning rates as arrays, so that its losses can be compared
step by step. Queries, keys and values are one product here, and the head is computed where tokens are scored only: each
peer has the advantages that it can have.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthlm import model as transformer
from synthlm import schedules
from synthlm.jobs import Pretrain
from synthlm.model import ModelConfig
from synthlm.seeds import torch_generator
from synthlm.tasks import IGNORE, Language, LanguageConfig, build
from synthlm.training import Order


@dataclass(frozen=True)
class Problem:
    """One job as arrays.

    weights: name -> array, ``qkv`` and all else as in :func:`rename`. matrix: names that the job's optimizer moves;
    ``aux`` moves the others. tokens: [item, time]. targets: [item, scored time], for positions from ``first`` on.
    order: [step, batch] items. rates: [step, 2] learning rates of the matrices and of the rest. flops: of one step,
    matrix products only, causal attention counted as half.
    """

    job: Pretrain
    weights: dict[str, np.ndarray]
    matrix: frozenset[str]
    first: int
    tokens: np.ndarray
    targets: np.ndarray
    order: np.ndarray
    rates: np.ndarray
    flops: float


@lru_cache(maxsize=256)
def _language(config: LanguageConfig, seed: int) -> Language:
    return build(config, seed)


def problem(job: Pretrain) -> Problem:
    """What a peer needs to do the job."""
    config, training = job.model, job.training
    language = _language(job.language, job.seed)
    table = language.train
    scored = np.flatnonzero((table.targets != IGNORE).any(0))
    first, length = int(scored[0]), int(scored[-1]) + 1
    draw = Order([language], [job.seed], "pretrain", training.batch)
    factors = [schedules.factor(step, training.steps, training.schedule) for step in range(training.steps)]
    weights = rename(config, initial(job))
    pairs = length * (length + 1) // 2
    flops = 2 * config.layout.matrix_size * length + 4 * config.layers * config.width * pairs
    flops += 2 * config.vocab * config.width * (length - first)
    return Problem(
        job=job,
        weights={name: value.numpy().copy() for name, value in weights.items()},
        matrix=frozenset(name for name in weights if name.rpartition(".")[2] in ("qkv", "out", "up", "down")),
        first=first,
        tokens=table.tokens[:, :length].copy(),
        targets=table.targets[:, first:length].copy(),
        order=np.stack([draw(step)[0] for step in range(training.steps)]),
        rates=np.outer(factors, [job.optimizer.lr, job.aux.lr]).astype(np.float32),
        flops=3.0 * training.batch * flops,
    )


def initial(job: Pretrain) -> Tensor:
    """The flat weights ``[param]`` that the job starts from."""
    return transformer.init(job.model, torch_generator(job.seed, "init"))


def rename(config: ModelConfig, flat: Tensor) -> dict[str, Tensor]:
    """Flat weights ``[param]`` -> the peers' names."""
    views = {name: view[0] for name, view in config.layout.views(flat[None]).items()}
    renamed = {
        "embedding": views["embed.W_E"],
        "positions": views["pos_embed.W_pos"],
        "norm": views["ln_final.w"],
        "head": views["unembed.W_U"],
    }
    for i in range(config.layers):
        old = f"blocks.{i}."
        renamed |= {
            f"blocks.{i}.norm1": views[old + "ln1.w"],
            f"blocks.{i}.qkv": torch.cat([views[f"{old}attn.W_{which}"] for which in "QKV"]),
            f"blocks.{i}.out": views[old + "attn.W_O"],
            f"blocks.{i}.norm2": views[old + "ln2.w"],
            f"blocks.{i}.up": views[old + "mlp.W_in"],
            f"blocks.{i}.down": views[old + "mlp.W_out"],
        }
    return renamed


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(F.relu(self.up(self.norm2(x))).square())


class Transformer(nn.Module):
    """The laptop grid's architecture, as one would write it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Parameter(torch.empty(config.length, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp) for _ in range(config.layers)
        )
        self.norm = nn.RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab, bias=False)

    def forward(self, tokens: Tensor, first: int) -> Tensor:
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, first:]))

    def loss(self, tokens: Tensor, targets: Tensor, first: int) -> Tensor:
        """Mean nats per scored token."""
        return F.cross_entropy(self(tokens, first).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)

    def named(self) -> dict[str, nn.Parameter]:
        """Parameters under the names of :func:`rename`."""
        return {name.removesuffix(".weight"): value for name, value in self.named_parameters()}

    @torch.no_grad()
    def fill(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights given under the names of :func:`rename`."""
        for name, parameter in self.named().items():
            parameter.copy_(weights[name])


def train(given: Problem) -> tuple[list[float], float]:
    """Train one run: its loss at each step, and the seconds from the end of the first step to that of the last."""
    job = given.job
    model = Transformer(job.model)
    model.fill({name: torch.from_numpy(value) for name, value in given.weights.items()})
    groups = []
    for config, wanted in ((job.optimizer, True), (job.aux, False)):
        moved = [value for name, value in model.named().items() if (name in given.matrix) == wanted]
        betas = (config.hyper["beta1"], config.hyper["beta2"])
        groups.append(
            {"params": moved, "weight_decay": config.weight_decay, "betas": betas, "eps": config.hyper["eps"]}
        )
    optimizer = torch.optim.AdamW(groups, fused=True)  # the fastest of torch's three on a CPU
    tokens, targets = torch.from_numpy(given.tokens), torch.from_numpy(given.targets)
    order = torch.from_numpy(given.order)
    rates = given.rates.tolist()
    losses, start = [], 0.0
    for step, items in enumerate(order):
        for group, rate in zip(optimizer.param_groups, rates[step], strict=True):
            group["lr"] = rate
        loss = model.loss(tokens[items], targets[items], given.first)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if step == 0:
            start = time.perf_counter()
    seconds = time.perf_counter() - start
    return torch.stack(losses).tolist(), seconds
