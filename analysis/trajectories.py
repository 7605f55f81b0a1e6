"""The spectral edge of saved checkpoints: any folder of safetensors or PyTorch files, of any model.

Files are put in order by the step in their names (``step-500.safetensors``, ``ckpt_0500.pt``,
``checkpoint-500/model-00001-of-00002.safetensors``). They are read one at a time, so a trajectory costs W updates of
memory, or W sketches.
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

WRAPPERS = re.compile(r"^(?:(?:_orig_mod|module)\.)+")
"""Prefixes that torch.compile and data parallelism put before every name."""

_SHARD = re.compile(r"(.*?)[-_.]?(\d+)-of-(\d+)")
"""The stem of one of several files that hold one model: its name, its place from 1, how many there are."""

WORDS = ("step", "iter", "checkpoint", "epoch")
"""What a number in a name counts, by the word before it; where there are several, the first of these is the step."""

_COUNTED = re.compile(
    r"(?<![a-z])(?:global[-_ ]?)?(?:(?P<step>steps?)|(?P<iter>iter(?:ation)?s?)|(?P<checkpoint>checkpoints?|ckpts?)"
    r"|(?P<epoch>epochs?))[-_=. ]*(?P<number>\d+(?:\.\d+)?)(?P<unit>[km](?![a-z0-9]))?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_UNITS = {"": 1, "k": 1000, "m": 1_000_000}

_COUNT = re.compile(r"global|steps?|iters?|iterations?|checkpoints?|ckpts?|epochs?")
_STATE = re.compile(
    r"training args|(?:trainer|random) states?|(?:lr )?sched(?:uler)?s?|(?:grad )?scaler|rng|modes"
    r"|(?:.* )?optim(?:izer)?s? states?|optim(?:izer)?s?|(?:sched(?:uler)?|rng|scaler) states?"
)
"""What is left of the names of files without weights once numbers and the words that count are taken away."""


def checkpoint_steps(folder: Path) -> dict[int, tuple[Path, ...]]:
    """Step -> the file of a checkpoint, or the shards that hold it together; in order of steps.

    The number after a word that counts (step, iteration, checkpoint, epoch and their short forms; ``10k`` is 10000) is
    the step: in the file's name, else in that of the nearest folder. Only where no name has such a word, it is the one
    whole number that varies between paths that are otherwise alike. Checkpoints without a step (``final.safetensors``)
    and the states of optimizers, schedulers, generators and trainers are left out.

    Raises:
        InputError: when it is no folder; two checkpoints have one step; two numbers of a name may be its step; some
            names count epochs and others do not; a shard is missing; or fewer than two checkpoints have a step.
    """
    if not folder.is_dir():
        raise InputError(f"folder: {folder} is not a folder")
    files = _checkpoints(folder)
    counted = {path: found for path in files if (found := _counted(path))}
    epochs = [path for path, (word, _) in counted.items() if word == "epoch"]
    others = [path for path, (word, _) in counted.items() if word != "epoch"]
    if epochs and others:
        raise InputError(
            f"folder: {epochs[0]} counts epochs and {others[0]} does not; allowed: names that count one thing"
        )
    steps = {path: step for path, (_, step) in counted.items()} if counted else _varying(list(files))
    named: dict[int, Path] = {}
    for path, step in steps.items():
        if step in named:
            raise InputError(f"folder: {named[step]} and {path} both look like step {step}")
        named[step] = path
    if len(named) < 2:
        raise InputError(
            f"folder: {folder} holds {len(named)} checkpoints with a step in their names ({', '.join(SUFFIXES)}); "
            "a trajectory needs at least two"
        )
    return {step: files[named[step]] for step in sorted(named)}


def _checkpoints(folder: Path) -> dict[Path, tuple[Path, ...]]:
    """Path inside of the folder, without a shard's place -> the checkpoint's files."""
    found: dict[Path, tuple[Path, ...]] = {}
    shards: dict[tuple[Path, int], dict[int, Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in SUFFIXES or not path.is_file():
            continue
        inside = path.relative_to(folder)
        words = re.findall("[a-z]+", _COUNTED.sub(" ", inside.stem).lower())
        if _STATE.fullmatch(" ".join(word for word in words if not _COUNT.fullmatch(word))):
            continue
        if shard := _SHARD.fullmatch(inside.stem):
            name = inside.with_name((shard[1] or "shards") + path.suffix)
            shards.setdefault((name, int(shard[3])), {})[int(shard[2])] = path
        else:
            found[inside] = (path,)
    for (name, count), parts in shards.items():
        missing = sorted(set(range(1, count + 1)) - set(parts))
        if missing:
            raise InputError(f"folder: {folder / name} in {count} shards: shard {missing[0]} is missing")
        if name in found:
            raise InputError(f"folder: {found[name][0]} and {parts[1]} are two versions of one checkpoint")
        found[name] = tuple(parts[i] for i in sorted(parts))
    return found


def _counted(path: Path) -> tuple[str, int] | None:
    """The word and the number that follows it, in the name of a file or else of the nearest folder with any."""
    for name in (path.stem, *(parent.name for parent in path.parents)):
        numbers: dict[str, list[int]] = {}
        for match in _COUNTED.finditer(name):
            value = float(match["number"]) * _UNITS[(match["unit"] or "").lower()]
            if value == int(value) and (match["unit"] or "." not in match["number"]):
                word = next(word for word in WORDS if match[word])
                numbers.setdefault(word, []).append(int(value))
        for word in WORDS:
            if len(set(numbers.get(word, []))) > 1:
                first, second, *_ = dict.fromkeys(numbers[word])
                raise InputError(
                    f"folder: the step of {path} may be {first} or {second}; allowed: one {word}"
                )
            if word in numbers:
                return word, numbers[word][0]
    return None


def _varying(paths: Sequence[Path]) -> dict[Path, int]:
    """Path -> the one whole number that varies between paths which differ in numbers alone."""
    alike: dict[str, list[Path]] = {}
    for path in paths:
        alike.setdefault(_NUMBER.sub("#", path.with_suffix("").as_posix()), []).append(path)
    steps: dict[Path, int] = {}
    for group in alike.values():
        columns = dict.fromkeys(
            zip(*(_NUMBER.findall(path.with_suffix("").as_posix()) for path in group), strict=True)
        )
        candidates = dict.fromkeys(
            tuple(map(int, column))
            for column in columns
            if not any("." in number for number in column) and len(set(map(int, column))) > 1
        )
        if len(candidates) > 1:
            first, second = (column[-1] for column in list(candidates)[:2])
            raise InputError(
                f"folder: the step of {group[-1]} may be {first} or {second}, as both vary from name to name; allowed: "
                f"one number that varies, or the word step before it (step{second})"
            )
        for column in candidates:
            steps |= dict(zip(group, column, strict=True))
    return steps


def load_tensors(*paths: Path) -> dict[str, Tensor]:
    """Floating-point tensors of a checkpoint by name, from one file or from all of its shards.

    Tensors that share memory (tied weights of a PyTorch file) come once, under the first of their names. Equal copies
    of one tensor cannot be told from two tensors: each comes under its name, and counts in every sum over parameters.
    Nothing in a file is executed: PyTorch files are read with ``weights_only``.

    Raises:
        InputError: when a file cannot be read, it holds no weights or more than one model's, or two shards hold one
            name.
    """
    named: dict[str, Tensor] = {}
    for path in paths:
        tensors = _weights_in(_read(path), path)
        if not tensors:
            raise InputError(f"checkpoint {path}: no weights in it, nor under {', '.join(NESTED)}")
        seen: set[tuple[Any, ...]] = set()
        for full, tensor in tensors.items():
            memory = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.numel())
            if memory in seen and tensor.numel():
                continue
            seen.add(memory)
            name = WRAPPERS.sub("", full)
            if name in named:
                raise InputError(f"checkpoint {path}: {name} is there twice")
            named[name] = tensor.detach()
    return dict(sorted(named.items()))


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        text = str(error)
        if held := re.search(r"GLOBAL (\S+)", text):
            why = f"it holds {held[1]}, and pickled objects are not run; allowed: tensors by name (a state_dict)"
        elif isinstance(error, OSError):
            why = error.strerror or type(error).__name__
        else:  # the library's own words run over many lines and advise to run what is in the file
            why = f"damaged, or no {'safetensors' if path.suffix == '.safetensors' else 'PyTorch'} file"
        raise InputError(f"checkpoint {path}: cannot be read: {why}") from None


def _weights_in(data: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name of the one mapping that holds weights: under a usual name, else wherever it lies.

    Tensors without axes (a loss, a count) do not make weights by themselves, nor does an optimizer's state.
    """
    if not isinstance(data, Mapping) or "param_groups" in data:
        return {}
    for key in NESTED:
        if found := _weights_in(data.get(key), path):
            return found
    tensors = {
        str(name): value
        for name, value in data.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    places = [repr(name) for name, value in tensors.items() if value.ndim][:1]
    inside = {
        str(name): _weights_in(value, path) for name, value in data.items() if isinstance(value, Mapping)
    }
    inside = {name: found for name, found in inside.items() if found and not name.endswith("_extra_state")}
    if inside and len(inside) + len(places) > 1:
        both = [*places, *map(repr, inside)][:2]
        raise InputError(
            f"checkpoint {path}: weights may be {both[0]} or what is under {both[1]}; allowed: the weights alone, or "
            f"under one of {', '.join(NESTED)}"
        )
    if inside:
        return next(iter(inside.values()))
    return tensors if places else {}


@dataclass(frozen=True)
class Trace:
    """The rows of a trajectory, one parameter set: ``step [record]``, ``rows [record, lag]``, number of ``parameters``.

    ``dimension``: number of parameters, or of sketched ones their effective dimension, which statistics and nulls take.
    """

    name: str
    step: np.ndarray
    rows: np.ndarray
    parameters: int
    dimension: float

    def statistics(self, lr: float = np.nan) -> dict[str, np.ndarray]:
        """Every statistic of every window, and ``step [window]``, its last step."""
        found = edge_statistics(self.rows, self.dimension, lr)
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


def _flats(files: Mapping[int, Sequence[Path]]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    first: dict[str, tuple[int, ...]] | None = None
    for step, paths in files.items():
        tensors = load_tensors(*paths)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        first = shapes if first is None else first
        if shapes != first:
            wrong = sorted(set(shapes.items()) ^ set(first.items()))[0]
            raise InputError(f"checkpoint {paths[0]}: differs from the first at {wrong[0]} {wrong[1]}")
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
        Trace(
            name,
            np.array(steps),
            np.stack([row[i] for row in rows]),
            stream.dimensions[name],
            stream.effective[name],
        )
        for i, name in enumerate(stream.sets)
    ]
