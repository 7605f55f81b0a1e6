"""Derived generators: the same draw for the same purpose, whatever else was drawn; other purposes, other draws."""

import hashlib
import itertools
import os
import subprocess
import sys

import numpy as np
import torch

from synthlm.seeds import derive, numpy_generator, torch_generator

SEED = int.from_bytes(os.urandom(5), "big")


def test_a_seed_is_the_head_of_a_sha256() -> None:
    digest = hashlib.sha256(b"7\x1forder\x1fpretrain\x1f3").hexdigest()
    assert derive(7, "order", "pretrain", 3) == int(digest[:16], 16) // 2


def test_seeds_and_purposes_give_different_numbers() -> None:
    purposes = [("init",), ("order",), ("order", 0), ("order", 1), ("order", "pretrain", 0), ("order", 10)]
    found = {derive(seed, *purpose) for seed, purpose in itertools.product(range(50), purposes)}
    assert len(found) == 50 * len(purposes)
    assert derive(1, "23") != derive(12, "3")
    assert derive(1, "a", "b") != derive(1, "ab")
    assert all(0 <= number < 2**63 for number in found)


def test_draws_do_not_depend_on_other_draws() -> None:
    first = numpy_generator(SEED, "a").random(5), torch.rand(5, generator=torch_generator(SEED, "a"))
    np.random.default_rng(0).random(100)
    torch.manual_seed(3)
    numpy_generator(SEED, "b").random(100)
    again = numpy_generator(SEED, "a").random(5), torch.rand(5, generator=torch_generator(SEED, "a"))
    assert np.array_equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not np.array_equal(first[0], numpy_generator(SEED, "b").random(5))
    assert not torch.equal(first[1], torch.rand(5, generator=torch_generator(SEED + 1, "a")))


def test_no_global_generator_is_moved() -> None:
    state = torch.get_rng_state()
    torch.rand(3, generator=torch_generator(SEED, "x"))
    assert torch.equal(state, torch.get_rng_state())


def test_another_process_draws_the_same() -> None:
    code = f"from synthlm.seeds import derive; print(derive({SEED}, 'order', 'finetune', 4))"
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert int(done.stdout) == derive(SEED, "order", "finetune", 4)


def test_neighbouring_seeds_are_uncorrelated() -> None:
    draws = np.stack([numpy_generator(SEED + i, "order").standard_normal(2000) for i in range(8)])
    correlation = np.corrcoef(draws) - np.eye(8)
    assert np.abs(correlation).max() < 0.15  # 6.7 standard errors
