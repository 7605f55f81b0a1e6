"""Gradient descent with heavy-ball or Nesterov momentum."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from synthlm.config import Config
from synthlm.optimizers.rule import Rule, State


class Sgd(Rule):
    """``b <- momentum * b + g``; the direction is b, or ``g + momentum * b`` with Nesterov. No dampening.

    As ``torch.optim.SGD``, except that decay is decoupled and so never enters the momentum.
    """

    name = "sgd"
    geometry = "frobenius"

    class Hyper(Config):
        momentum: float = Field(0.9, ge=0, lt=1)
        nesterov: bool = False

    def init(self, x: Tensor) -> State:
        return {"momentum": x.new_zeros(x.shape)}

    def direction(self, grad: Tensor, state: State, constants: dict[str, Any]) -> Tensor:
        momentum = state["momentum"].mul_(constants["momentum"]).add_(grad)
        return torch.addcmul(grad, momentum, constants["momentum"]) if constants["nesterov"] else momentum
