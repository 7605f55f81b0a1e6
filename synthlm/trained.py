"""What training leaves behind: languages drawn again, weights read back."""

from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from synthlm import lora, weights
from synthlm import model as transformer
from synthlm.jobs import Pretrain, Trained
from synthlm.lora import LoraConfig
from synthlm.seeds import torch_generator
from synthlm.tasks import Language, LanguageConfig, build

FINAL = "final.safetensors"


class JobStore(Protocol):
    """What a worker asks of a store."""

    def partial(self, key: str) -> Path: ...
    def create(self, key: str) -> Path: ...
    def commit(self, key: str, folder: Path) -> None: ...
    def weights(self, key: str, name: str = FINAL) -> Path: ...
    def table(self, key: str, name: str) -> dict[str, list[Any]] | None: ...


@lru_cache(maxsize=64)
def language_of(config: LanguageConfig, seed: int) -> Language:
    """The language drawn from these settings and this seed; the last few are kept."""
    return build(config, seed)


def final_weights(job: Trained, store: JobStore) -> Tensor:
    """A finished job's weights as one flat ``[param]`` tensor in the model's layout, adapters merged.

    Raises:
        InputError: when a file is missing or damaged.
    """
    return weights_at(job, store, None)


def weights_at(job: Trained, store: JobStore, step: int | None) -> Tensor:
    """As :func:`final_weights`, after ``step`` steps: a kept checkpoint, or 0 for the initial weights of a pretraining.

    Raises:
        InputError: when a file is missing or damaged.
    """
    layout = job.model.layout
    if isinstance(job, Pretrain) and step == 0:
        return transformer.init(job.model, torch_generator(job.seed, "init"))
    path = store.weights(job.key, FINAL if step is None else checkpoint_name(step))
    if isinstance(job, Pretrain):
        return weights.load(path, layout)
    base = final_weights(job.base, store)[None]
    if isinstance(job.method, LoraConfig):
        adapters = lora.layout(job.method, layout)
        flat = weights.load(path, adapters)[None]
        return layout.join(lora.merge(job.method, layout.views(base), adapters.views(flat)))[0]
    if job.aux is not None:
        return weights.load(path, layout)
    return torch.cat([weights.load(path, layout.only("matrix")), base[0, layout.matrix_size :]])


def checkpoint_name(step: int) -> str:
    """File of the weights that were kept after a step."""
    return f"step-{step:07d}.safetensors"


def modes_name(step: int) -> str:
    """File of the leading modes that were kept with the checkpoint of a step."""
    return f"modes-{step:07d}.safetensors"
