"""Shampoo (Gupta, Koren & Singer, arXiv:1802.09568)."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from synthlm.config import Config
from synthlm.optimizers.matrices import inverse_fourth_root
from synthlm.optimizers.rule import Rule, State


class Shampoo(Rule):
    """``(L + eps I)^(-1/4) G (R + eps I)^(-1/4)``, with ``L <- beta L + G G^T`` and ``R <- beta R + G^T G``.

    Hyper-parameters:
        beta: 1 sums all gradients as in the paper; 0 keeps the last alone, and the direction is then ``U
        V^T``.
        every: steps between two computations of the roots.
    """

    name = "shampoo"
    geometry = "spectral"
    matrix_only = True

    class Hyper(Config):
        beta: float = Field(1.0, ge=0, le=1)
        eps: float = Field(1e-6, gt=0)
        every: int = Field(1, ge=1)

    def init(self, x: Tensor) -> State:
        run, stack, rows, columns = x.shape
        left, right = (run, stack, rows, rows), (run, stack, columns, columns)
        return {
            "left": x.new_zeros(left),
            "right": x.new_zeros(right),
            "left_root": x.new_zeros(left),
            "right_root": x.new_zeros(right),
            "step": torch.zeros(run, dtype=torch.int64, device=x.device),
        }

    def direction(self, grad: Tensor, state: State, constants: dict[str, Any]) -> Tensor:
        state["left"].mul_(constants["beta"]).add_(grad @ grad.mT)
        state["right"].mul_(constants["beta"]).add_(grad.mT @ grad)
        due = (state["step"] % constants["every"] == 0)[:, None, None, None]
        if due.any():
            for side in ("left", "right"):
                root = inverse_fourth_root(state[side], constants["eps"])
                state[f"{side}_root"].copy_(torch.where(due, root, state[f"{side}_root"]))
        state["step"] += 1
        return state["left_root"] @ grad @ state["right_root"]
