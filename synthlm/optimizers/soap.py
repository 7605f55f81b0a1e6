"""SOAP (Vyas et al., arXiv:2409.11321)."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from synthlm.config import Config
from synthlm.optimizers.matrices import eigh
from synthlm.optimizers.rule import Rule, State, per_run


class Soap(Rule):
    """Adam in the eigenbases of Shampoo's statistics, refreshed by one power iteration and a QR.

    The first step takes its bases from the first gradient and moves the weights; published implementations
    spend the first gradient on the bases and do not move.

    Hyper-parameters:
        beta1, beta2, eps: Adam's.
        shampoo_beta: decay of the averages of ``G G^T`` and ``G^T G``.
        every: steps between two refreshes of the bases.
    """

    name = "soap"
    geometry = "spectral"
    matrix_only = True

    class Hyper(Config):
        beta1: float = Field(0.95, ge=0, lt=1)
        beta2: float = Field(0.95, ge=0, lt=1)
        shampoo_beta: float = Field(0.95, ge=0, lt=1)
        eps: float = Field(1e-8, gt=0)
        every: int = Field(10, ge=1)

    def constants(self, hyper: Config) -> dict[str, Any]:
        values = hyper.model_dump()
        rates = {
            "rate1": 1 - values["beta1"],
            "rate2": 1 - values["beta2"],
            "rate": 1 - values["shampoo_beta"],
        }
        return values | rates

    def init(self, x: Tensor) -> State:
        run, stack, rows, columns = x.shape
        left, right = (run, stack, rows, rows), (run, stack, columns, columns)
        return {
            "mean": x.new_zeros(x.shape),
            "square": x.new_zeros(x.shape),
            "mass1": x.new_zeros(per_run(x)),
            "mass2": x.new_zeros(per_run(x)),
            "left": x.new_zeros(left),
            "right": x.new_zeros(right),
            "left_basis": x.new_zeros(left),
            "right_basis": x.new_zeros(right),
            "step": torch.zeros(run, dtype=torch.int64, device=x.device),
        }

    def direction(self, grad: Tensor, state: State, constants: dict[str, Any]) -> Tensor:
        grams = {"left": grad @ grad.mT, "right": grad.mT @ grad}
        first = (state["step"] == 0)[:, None, None, None]
        if first.any():
            for side, gram in grams.items():
                basis = eigh(gram)[1].flip(-1).to(grad.dtype)
                state[f"{side}_basis"].copy_(torch.where(first, basis, state[f"{side}_basis"]))

        left, right = state["left_basis"], state["right_basis"]
        turned = left.mT @ grad @ right
        mean = state["mean"].lerp_(grad, constants["rate1"])
        square = state["square"].lerp_(turned * turned, constants["rate2"])
        mass1 = state["mass1"].mul_(constants["beta1"]).add_(constants["rate1"])
        root = state["mass2"].mul_(constants["beta2"]).add_(constants["rate2"]).sqrt()
        adam = (left.mT @ mean @ right) / square.sqrt().add_(constants["eps"])
        direction = (left @ adam @ right.mT).mul_(root / mass1)

        for side, gram in grams.items():
            state[side].lerp_(gram, constants["rate"])
        state["step"] += 1
        due = (state["step"] % constants["every"] == 0)[:, None, None, None]
        if due.any():
            _refresh(state, due)
        return direction


def _refresh(state: State, due: Tensor) -> None:
    """Turn the bases toward the statistics' eigenvectors, largest first, where ``due [run, 1, 1, 1]``."""
    for side, axis in (("left", -2), ("right", -1)):
        basis = state[f"{side}_basis"]
        product = state[side] @ basis
        order = (basis * product).sum(-2, keepdim=True).argsort(dim=-1, descending=True, stable=True)
        refreshed = torch.linalg.qr(product.gather(-1, order.expand_as(product)))[0]
        state[f"{side}_basis"].copy_(torch.where(due, refreshed, basis))
        # The second moments live in the bases, so their rows (or columns) move with the basis vectors.
        square = state["square"]
        index = (order.mT if axis == -2 else order).expand_as(square)
        square.copy_(torch.where(due, square.gather(axis, index), square))
