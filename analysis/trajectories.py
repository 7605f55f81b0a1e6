"""The spectral edge of saved checkpoints: any folder of safetensors or PyTorch files, of any model.

Files are put in order by the step in their names (``step-500.safetensors``, ``ckpt_0500.pt``,
``checkpoint-500/model.safetensors``). They are read one at a time, so a trajectory costs W updates of memory, or W
sketches.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from synthlm.analysis.edge_statistics import edge_statistics
from synthlm.analysis.spectral_edge import UpdateStream
from synthlm.config import InputError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
NESTED = ("model_state_dict", "state_dict", "model", "module", "params")
"""Where training scripts put the weights inside of what they save."""

WRAPPERS = ("_orig_mod.", "module.")
"""Prefixes that torch.compile and data parallelism put before every name."""


def checkpoint_steps(folder: Path) -> dict[int, Path]:
    """Step -> file, in order of steps: the last number in a file's name, or else in that of the folder it lies in.

    Files without a number (``final.safetensors``, ``optimizer.pt``) are left out.

    Raises:
        InputError: when it is no folder, two files have one step, or fewer than two files have a step.
    """
    if not folder.is_dir():
        raise InputError(f"folder: {folder} is not a folder")
    found: dict[int, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in SUFFIXES or not path.is_file():
            continue
        inside = path.relative_to(folder)
        numbers = re.findall(r"\d+", inside.stem) or re.findall(r"\d+", inside.parent.name)
        if not numbers or re.search(r"optim|sched|rng_state|modes", inside.stem):
            continue
        step = int(numbers[-1])
        if step in found:
            raise InputError(f"folder: {found[step]} and {path} both look like step {step}")
        found[step] = path
    if len(found) < 2:
        raise InputError(
            f"folder: {folder} holds {len(found)} checkpoints with a step in their names ({', '.join(SUFFIXES)}); "
            "a trajectory needs at least two"
        )
    return dict(sorted(found.items()))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Floating-point tensors of a checkpoint by name, each once (tied weights share memory or are equal copies).

    Nothing in the file is executed: PyTorch files are read with ``weights_only``.

    Raises:
        InputError: when it cannot be read or holds no weights.
    """
    try:
        if path.suffix == ".safetensors":
            data: Any = safetensors.torch.load_file(path)
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"checkpoint {path}: cannot be read ({error})") from None
    tensors = _weights_in(data)
    if not tensors:
        raise InputError(f"checkpoint {path}: no weights in it, nor under {', '.join(NESTED)}")
    named: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in tensors.items():
        storage = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if storage in seen and tensor.numel():
            continue
        seen.add(storage)
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        named[name] = tensor.detach()
    return dict(sorted(named.items()))


def _weights_in(data: Any) -> dict[str, Tensor]:
    """The first level, from the outside, that is mostly tensors."""
    if not isinstance(data, Mapping):
        return {}
    tensors = {
        str(name): value
        for name, value in data.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    if tensors and not any(isinstance(data.get(key), Mapping) for key in NESTED):
        return tensors
    for key in NESTED:
        if found := _weights_in(data.get(key)):
            return found
    return tensors


@dataclass(frozen=True)
class Trace:
    """The rows of a trajectory, one parameter set: ``step [record]``, ``rows [record, lag]``, ``parameters``."""

    name: str
    step: np.ndarray
    rows: np.ndarray
    parameters: int

    def statistics(self, lr: float = np.nan) -> dict[str, np.ndarray]:
        """Every statistic of every window, and ``step [window]``, its last step."""
        found = edge_statistics(self.rows, self.parameters, lr)
        return {"step": self.step[self.rows.shape[1] - 2 :], **found}


def trace_folder(
    folder: Path,
    window: int = 10,
    sets: Sequence[str] = ("all", "attention"),
    sketch: int | None = None,
    every: int = 1,
    seed: int = 0,
) -> list[Trace]:
    """Follow the checkpoints of a folder.

    Args:
        window, sets, sketch, seed: see :class:`synthlm.analysis.spectral_edge.UpdateStream`.
        every: take every so many checkpoints.

    Raises:
        InputError: when files cannot be read, differ in names or shapes, or are too few for a window.
    """
    files = dict(list(checkpoint_steps(folder).items())[::every])
    if len(files) < window + 1:
        raise InputError(
            f"window: {window} updates need {window + 1} checkpoints, but {folder} gives {len(files)}"
        )
    return trace(_flats(files), window, sets, sketch, seed)


def _flats(files: Mapping[int, Path]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    first: dict[str, tuple[int, ...]] | None = None
    for step, path in files.items():
        tensors = load_tensors(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        first = shapes if first is None else first
        if shapes != first:
            wrong = sorted(set(shapes.items()) ^ set(first.items()))[0]
            raise InputError(f"checkpoint {path}: differs from the first at {wrong[0]} {wrong[1]}")
        yield step, tensors


def trace(
    weights: Iterator[tuple[int, Mapping[str, Tensor]]],
    window: int = 10,
    sets: Sequence[str] = ("all",),
    sketch: int | None = None,
    seed: int = 0,
) -> list[Trace]:
    """Follow any sequence of (step, weights by name); names and shapes must not change.

    Raises:
        InputError: see :class:`synthlm.analysis.spectral_edge.UpdateStream`.
    """
    stream: UpdateStream | None = None
    steps, rows = [], []
    for step, tensors in weights:
        if stream is None:
            sizes = {name: tensor.numel() for name, tensor in tensors.items()}
            stream = UpdateStream(sizes, 1, window, sets, sketch, seed)
        flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors.values()])[None]
        row = stream.push(flat)
        if row is not None:
            steps.append(step)
            rows.append(row[0].numpy())
    if stream is None or not rows:
        raise InputError("trajectory: it needs at least two sets of weights")
    return [
        Trace(name, np.array(steps), np.stack([row[i] for row in rows]), stream.dimensions[name])
        for i, name in enumerate(stream.sets)
    ]
