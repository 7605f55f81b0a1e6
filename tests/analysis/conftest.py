"""Fresh random inputs for every test; the seed is printed when a test fails. Makes ``quadratics`` importable."""

import secrets
import sys
from pathlib import Path

import pytest
import torch

TESTS = str(Path(__file__).parents[1])

if TESTS not in sys.path:
    sys.path.insert(0, TESTS)


@pytest.fixture
def generator() -> torch.Generator:
    seed = secrets.randbits(48)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)
