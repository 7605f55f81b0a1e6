"""What a model knows, slice by slice: loss, accuracy, exact match and KL from a base, on the run axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthlm import model as transformer
from synthlm.model import ModelConfig
from synthlm.tasks import IGNORE, Language


@dataclass(frozen=True)
class Probe:
    """The probe items of one language per run, on the device.

    Attributes:
        tokens: int64 [run, item, time].
        scored: int64 [run, position]: index into (item, time) of each scored position.
        target: int64 [run, position].
        item: int64 [run, position]: which item the position belongs to.
        member: float32 [run, position, slice]: 1 where the position is of the slice.
        item_member: float32 [run, item, slice]: 1 where the item's first scored position is of the slice.
        floor: float64 [run, slice]: mean smallest reachable loss, nats per token.
    """

    slices: tuple[str, ...]
    goals: tuple[str, ...]
    tokens: Tensor
    scored: Tensor
    target: Tensor
    item: Tensor
    member: Tensor
    item_member: Tensor
    floor: Tensor

    def __init__(self, languages: Sequence[Language], device: str) -> None:
        tables = [language.probe for language in languages]
        set_ = object.__setattr__
        set_(self, "slices", languages[0].slices)
        set_(self, "goals", tuple(languages[0].goals.get(name, "") for name in languages[0].slices))
        scored = np.stack([np.flatnonzero(table.targets != IGNORE) for table in tables])
        time = tables[0].tokens.shape[1]
        item = scored // time

        def gather(name: str) -> np.ndarray:
            return np.stack([getattr(t, name).reshape(-1)[s] for t, s in zip(tables, scored, strict=True)])

        codes = gather("slices")
        member = codes[..., None] == np.arange(len(self.slices))
        first = np.stack([np.unique(row, return_index=True)[1] for row in item])
        counts = member.sum(1)
        floor = np.einsum("rm,rms->rs", gather("floor"), member) / np.maximum(counts, 1)
        arrays = {
            "tokens": np.stack([table.tokens for table in tables]),
            "scored": scored,
            "target": gather("targets"),
            "item": item,
            "member": member.astype(np.float32),
            "item_member": np.take_along_axis(member, first[..., None], 1).astype(np.float32),
            "floor": floor,
        }
        for name, array in arrays.items():
            set_(self, name, torch.from_numpy(np.ascontiguousarray(array)).to(device))


def log_probabilities(config: ModelConfig, weights: Mapping[str, Tensor], probe: Probe) -> Tensor:
    """``[run, position, vocab]`` natural-log probabilities at the scored positions."""
    x = transformer.hidden(config, weights, probe.tokens).flatten(1, 2)
    picked = torch.take_along_dim(x, probe.scored[..., None], dim=1)
    return transformer.unembed(config, weights, picked).log_softmax(-1)


def evaluate(probe: Probe, log_p: Tensor, base_log_p: Tensor | None = None) -> list[dict[str, list[Any]]]:
    """Columns of results, one row a slice, for each run.

    Args:
        log_p: ``[run, position, vocab]`` from :func:`log_probabilities`.
        base_log_p: the base's, for the forward KL(base || model); its column is None without it.

    Returns:
        For each run a mapping of columns: slice, goal, loss and floor (nats per scored token), accuracy (per scored
        token), exact (share of items with every scored token right), kl (nats per scored token), n (scored tokens).
        Non-finite numbers become None.
    """
    n = probe.member.sum(1).double()

    def mean(value: Tensor) -> Tensor:
        return torch.einsum("rm,rms->rs", value.double(), probe.member.double()) / n

    loss = mean(-log_p.gather(-1, probe.target[..., None]).squeeze(-1))
    wrong = (log_p.argmax(-1) != probe.target).float()
    accuracy = 1 - mean(wrong)
    items = torch.zeros(probe.item_member.shape[:2], device=log_p.device)
    items.scatter_add_(1, probe.item, wrong)
    exact = torch.einsum("ri,ris->rs", (items == 0).double(), probe.item_member.double())
    exact = exact / probe.item_member.sum(1)
    kl = mean((base_log_p.exp() * (base_log_p - log_p)).sum(-1)) if base_log_p is not None else None
    finite = torch.isfinite(loss)
    rows: list[dict[str, list[Any]]] = []
    for r in range(len(loss)):
        keep = [bool(flag) for flag in finite[r]]

        def column(value: Tensor | None, r: int = r, keep: list[bool] = keep) -> list[float | None]:
            if value is None:
                return [None] * len(keep)
            return [
                x if ok and np.isfinite(x) else None for x, ok in zip(value[r].tolist(), keep, strict=True)
            ]

        rows.append(
            {
                "slice": list(probe.slices),
                "goal": list(probe.goals),
                "loss": column(loss),
                "floor": probe.floor[r].tolist(),
                "accuracy": column(accuracy),
                "exact": column(exact),
                "kl": column(kl),
                "n": [int(x) for x in n[r].tolist()],
            }
        )
    return rows
