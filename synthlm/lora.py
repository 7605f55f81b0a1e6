"""Low-rank adaptation as a map on weights: adapters -> weights; the model's code never hears of it.

W = W_base + (alpha / rank) B A, with A (rank, in) Kaiming-uniform and B (out, rank) zero (arXiv 2106.09685).
"""

import fnmatch
import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from synthlm.config import Config, InputError
from synthlm.weights import Entry, Layout


class LoraConfig(Config):
    """``targets`` are shell patterns over the names of hidden matrices; ``alpha / rank`` scales the product."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(ge=1)
    alpha: float = Field(16.0, gt=0)
    targets: tuple[str, ...] = ("*",)

    @property
    def label(self) -> str:
        return f"lora{self.rank}"


def targets(config: LoraConfig, base: Layout) -> list[Entry]:
    """The hidden matrices that get an adapter.

    Raises:
        InputError: when a pattern matches no hidden matrix.
    """
    matrices = base.only("matrix").entries
    for pattern in config.targets:
        if not any(fnmatch.fnmatchcase(entry.name, pattern) for entry in matrices):
            names = ", ".join(entry.name for entry in matrices)
            raise InputError(f"targets: {pattern!r} matches no hidden matrix; there are {names}")
    return [e for e in matrices if any(fnmatch.fnmatchcase(e.name, pattern) for pattern in config.targets)]


def layout(config: LoraConfig, base: Layout) -> Layout:
    """The adapters' own layout: ``NAME.lora_A`` (rank, in) and ``NAME.lora_B`` (out, rank), all matrices."""
    entries = []
    for entry in targets(config, base):
        out, inner = entry.shape
        entries.append(Entry(entry.name + ".lora_A", (config.rank, inner), "matrix"))
        entries.append(Entry(entry.name + ".lora_B", (out, config.rank), "matrix"))
    return Layout(entries)


def init(config: LoraConfig, base: Layout, generator: torch.Generator) -> Tensor:
    """Initial adapters ``[param]`` of one run: A uniform in +-1/sqrt(in) (Kaiming, a = sqrt 5), B zero."""
    adapters = layout(config, base)
    flat = torch.zeros(adapters.size)
    for entry in adapters.entries:
        if entry.name.endswith("lora_A"):
            bound = 1 / math.sqrt(entry.shape[1])
            flat[adapters.slices[entry.name]].uniform_(-bound, bound, generator=generator)
    return flat


def merge(
    config: LoraConfig, base: Mapping[str, Tensor], adapters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights by name ``[run, *shape]`` with every adapter's product added; differentiable in both."""
    merged = dict(base)
    for name in base:
        if name + ".lora_A" in adapters:
            a, b = adapters[name + ".lora_A"], adapters[name + ".lora_B"]
            merged[name] = torch.baddbmm(base[name], b, a, alpha=config.alpha / config.rank)
    return merged
