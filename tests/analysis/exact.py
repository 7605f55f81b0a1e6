"""A tiny model and its exact Hessian, for the tests of everything that only multiplies by it."""

import torch

from synthlm import model
from synthlm.analysis.objective import LanguageObjective, Objective, language_objective
from synthlm.model import ModelConfig
from synthlm.tasks import Cipher, Facts, Mixture

LANGUAGE = Mixture(
    parts=(
        Facts(tag=0, alphabet=4, items=8, key_length=2, value_length=1),
        Cipher(tag=1, alphabet=4, length=2, items=8, heldout=4),
    ),
    weights=(1.0, 1.0),
)
MODEL = ModelConfig(vocab=20, length=6, width=4, layers=1, heads=2, mlp=6, activation="gelu", tied=True)


def tiny(generator: torch.Generator) -> tuple[LanguageObjective, torch.Tensor]:
    """An objective in float64 and weights ``[param]`` where every matrix matters."""
    objective = language_objective(MODEL, LANGUAGE.build(2), dtype=torch.float64)
    flat = model.init(MODEL, generator).double()
    return objective, flat + 0.2 * torch.randn(flat.shape, generator=generator).double()


def exact_hessian(objective: Objective, flat: torch.Tensor) -> torch.Tensor:
    """``[param, param]`` by torch's own second derivatives."""
    return torch.autograd.functional.hessian(lambda x: objective.loss(x[None])[0], flat)


class Quadratic:
    """``1/2 x . A x + b . x + c`` as an objective, with one matrix and aux parameters behind it."""

    slices = ("all",)
    counts = (1,)

    def __init__(self, a: torch.Tensor, b: torch.Tensor, matrix_size: int, c: float = 0.0) -> None:
        from synthlm.weights import Entry, Layout

        self.a, self.b, self.c = a, b, c
        entries = [Entry("matrix", (1, matrix_size), "matrix")]
        if len(b) > matrix_size:
            entries.append(Entry("rest", (len(b) - matrix_size,), "aux"))
        self.layout = Layout(entries)

    def loss(self, flat: torch.Tensor) -> torch.Tensor:
        return torch.einsum("rp,pq,rq->r", flat, self.a, flat) / 2 + flat @ self.b + self.c

    def losses(self, flat: torch.Tensor) -> torch.Tensor:
        return self.loss(flat)[:, None]
