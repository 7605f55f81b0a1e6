r"""Products, eigenvalues and traces against curvlinops, where that is installed.

It is no part of the test extra: it depends on torchvision, whose wheel on PyPI does not import beside a CPU build of
torch and takes transformers down with it. curvlinops itself does without:

    pip install --no-deps -c constraints.txt curvlinops-for-pytorch backpack-for-pytorch einconv linear_operator \
        opt_einsum unfoldNd
"""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from synthlm.analysis.adapters import ModuleObjective
from synthlm.analysis.curvature import trace
from synthlm.analysis.hessian import Hessian
from synthlm.analysis.lanczos import top_eigenpairs

sys.path.insert(0, str(Path(__file__).parent))
from exact import tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    curvlinops = pytest.importorskip("curvlinops", reason="see this file's first lines")


class Scored(nn.Module):
    """The tiny language model as a module whose one parameter is the flat tensor."""

    def __init__(self, objective: object, flat: torch.Tensor) -> None:
        super().__init__()
        self.objective, self.flat = objective, nn.Parameter(flat.clone())

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return self.objective.log_probabilities(self.flat[None])[0][positions]


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[Hessian, object]:
    objective, flat = tiny(generator)
    module = Scored(objective, flat)
    data = [(torch.arange(len(objective.target)), objective.target)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = curvlinops.HessianLinearOperator(module, nn.CrossEntropyLoss(), [module.flat], data)
    return Hessian(objective, flat), operator


def test_products(pair: tuple[Hessian, object], generator: torch.Generator) -> None:
    hessian, operator = pair
    v = torch.randn(4, hessian.size, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(hessian(v), (operator @ v.T).T, rtol=1e-9, atol=1e-11)


def test_eigenvalues_and_trace(pair: tuple[Hessian, object], generator: torch.Generator) -> None:
    hessian, operator = pair
    dense = operator @ torch.eye(hessian.size, dtype=torch.float64)
    wanted = torch.linalg.eigvalsh(dense).flip(0)[:4]
    found = top_eigenpairs(hessian, generator, 4, tolerance=1e-9).values
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-8)
    estimate = trace(hessian, generator, 300)
    assert abs(estimate.mean - dense.trace().item()) < 5 * estimate.error


def test_products_of_a_module_over_several_batches(generator: torch.Generator) -> None:
    module = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 4)).double()
    data = [
        (torch.randn(n, 5, generator=generator).double(), torch.randint(0, 4, (n,), generator=generator))
        for n in (3, 8)
    ]
    objective = ModuleObjective(module, data, dtype=torch.float64)
    named = dict(module.named_parameters())
    parameters = [named[entry.name] for entry in objective.layout.entries]
    operator = curvlinops.HessianLinearOperator(module, nn.CrossEntropyLoss(), parameters, data)
    v = torch.randn(3, objective.layout.size, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        Hessian(objective, objective.flat)(v), (operator @ v.T).T, rtol=1e-9, atol=1e-11
    )
