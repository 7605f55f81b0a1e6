"""Weights with names over one flat tensor ``[run, param]``: the core type of the package.

A layout orders a model's parameters: matrices first, those of equal shape side by side, then the rest
(``aux``: embeddings, head, gains). So a group is one slice, equal matrices are one stack without a copy, and norms,
dot products, directions and checkpoints are plain linear algebra on the flat tensor.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from synthlm.config import InputError

Group = Literal["matrix", "aux"]


@dataclass(frozen=True)
class Entry:
    """One named parameter. ``group`` is ``matrix`` for hidden weight matrices (out, in), else ``aux``."""

    name: str
    shape: tuple[int, ...]
    group: Group

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Block:
    """``count`` matrices of one shape that lie side by side: ``flat[:, start:stop]`` views as [run, count, out, in]."""

    start: int
    count: int
    shape: tuple[int, int]

    @property
    def stop(self) -> int:
        return self.start + self.count * math.prod(self.shape)

    def view(self, flat: Tensor) -> Tensor:
        """``[run, param] -> [run, stack, out, in]`` without a copy."""
        return flat[:, self.start : self.stop].view(flat.shape[0], self.count, *self.shape)


class Layout:
    """Where each named parameter lies in the flat tensor.

    Args:
        entries: in any order; the layout sorts them (matrices by shape, then aux; stable otherwise).

    Raises:
        ValueError: on a repeated name, or a matrix entry that is not two-dimensional.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        given = list(entries)
        names = [entry.name for entry in given]
        if len(set(names)) < len(names):
            raise ValueError(f"repeated parameter names in {names}")
        for entry in given:
            if entry.group == "matrix" and len(entry.shape) != 2:
                raise ValueError(f"{entry.name}: a matrix needs two axes, not shape {entry.shape}")
        matrices = sorted((e for e in given if e.group == "matrix"), key=lambda e: e.shape)
        self.entries: tuple[Entry, ...] = (*matrices, *(e for e in given if e.group == "aux"))
        self.size = sum(entry.size for entry in self.entries)
        self.matrix_size = sum(entry.size for entry in matrices)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Name -> the slice of the flat parameter axis."""
        out, start = {}, 0
        for entry in self.entries:
            out[entry.name] = slice(start, start + entry.size)
            start += entry.size
        return out

    def blocks(self) -> list[Block]:
        """The stacks of equal-shape matrices, in order; together they cover ``[:, :matrix_size]``."""
        blocks: list[Block] = []
        start = 0
        for entry in self.entries:
            if entry.group != "matrix":
                break
            shape = (entry.shape[0], entry.shape[1])
            if blocks and blocks[-1].shape == shape:
                blocks[-1] = Block(blocks[-1].start, blocks[-1].count + 1, shape)
            else:
                blocks.append(Block(start, 1, shape))
            start += entry.size
        return blocks

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """``[run, param]`` -> name -> ``[run, *shape]``; differentiable, no copy.

        One split has one backward node, so the gradient comes back as one flat tensor.
        """
        pieces = flat.split([entry.size for entry in self.entries], dim=1)
        return {e.name: piece.unflatten(1, e.shape) for e, piece in zip(self.entries, pieces, strict=True)}

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Name -> ``[run, *shape]`` back to one flat ``[run, param]``."""
        return torch.cat([tensors[entry.name].flatten(1) for entry in self.entries], dim=1)

    def only(self, group: Group) -> "Layout":
        """The layout of one group alone."""
        return Layout(entry for entry in self.entries if entry.group == group)


def save(path: Path, flat: Tensor, layout: Layout, metadata: Mapping[str, str] | None = None) -> None:
    """Write one run's weights ``[param]`` as named tensors in safetensors."""
    views = layout.views(flat.detach().cpu()[None])
    tensors = {name: view[0].contiguous() for name, view in views.items()}
    safetensors.torch.save_file(tensors, path, metadata=dict(metadata or {}))


def load(path: Path, layout: Layout) -> Tensor:
    """Read one run's weights as a flat ``[param]`` tensor.

    Raises:
        InputError: when the file is missing or damaged, holds other names or shapes than the layout, or is no float32.
    """
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"checkpoint {path}: cannot be read ({error})") from None
    wrong_type = next((name for name, tensor in tensors.items() if tensor.dtype != torch.float32), None)
    if wrong_type is not None:
        raise InputError(
            f"checkpoint {path}: {wrong_type} is {tensors[wrong_type].dtype}; allowed: torch.float32"
        )
    expected = {entry.name: entry.shape for entry in layout.entries}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))[0]
        raise InputError(
            f"checkpoint {path}: does not fit the model; first difference at {wrong[0]} {wrong[1]}"
        )
    return layout.join({name: tensor[None] for name, tensor in tensors.items()})[0]
