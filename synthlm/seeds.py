"""Random generators derived from a seed and a purpose, so that no draw depends on what was drawn elsewhere."""

import hashlib

import numpy as np
import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from ``seed`` and a purpose, such as ``("order", 3)``; different purposes are independent."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """The numpy generator (PCG64) of one purpose."""
    return np.random.Generator(np.random.PCG64(derive(seed, *purpose)))


def torch_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """The torch generator (on the CPU) of one purpose."""
    return torch.Generator().manual_seed(derive(seed, *purpose))
