"""Resume points: what a run needs to go on to the same numbers, in one file that is there whole or not at all."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

RESUME = "resume.safetensors"


def write(folder: Path, tensors: Mapping[str, Tensor], history: Mapping[str, Any]) -> None:
    """Write a run's resume point; ``history`` is kept as JSON."""
    aside = (folder / RESUME).with_suffix(".writing")
    text = json.dumps(history)
    safetensors.torch.save_file(
        dict(tensors), aside, metadata={"history": text, "sha256": _digest(tensors, text)}
    )
    aside.replace(folder / RESUME)


def _digest(tensors: Mapping[str, Tensor], history: str) -> str:
    """sha256 of a resume point's contents: a flipped bit must not become part of a result."""
    digest = hashlib.sha256(history.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and history of a run's resume point, or None when there is none that is whole."""
    try:
        with safetensors.safe_open(folder / RESUME, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        return None
    text = metadata.get("history", "")
    return (tensors, json.loads(text)) if metadata.get("sha256") == _digest(tensors, text) else None
