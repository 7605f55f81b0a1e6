"""AdamW (Loshchilov & Hutter, arXiv:1711.05101)."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from synthlm.config import Config
from synthlm.optimizers.rule import Rule, State, per_run


class AdamW(Rule):
    """``direction = m_hat / (sqrt(v_hat) + eps)``, averages of g and g^2 corrected for starting at 0.

    The correction ``1 - beta^t`` is the same average taken of ones (``mass``), so it needs no step count.
    """

    name = "adamw"
    geometry = "max"

    class Hyper(Config):
        beta1: float = Field(0.9, ge=0, lt=1)
        beta2: float = Field(0.999, ge=0, lt=1)
        eps: float = Field(1e-8, gt=0)

    def constants(self, hyper: Config) -> dict[str, Any]:
        values = hyper.model_dump()
        return values | {"rate1": 1 - values["beta1"], "rate2": 1 - values["beta2"]}

    def init(self, x: Tensor) -> State:
        return {
            "mean": x.new_zeros(x.shape),
            "square": x.new_zeros(x.shape),
            "mass1": x.new_zeros(per_run(x)),
            "mass2": x.new_zeros(per_run(x)),
        }

    def direction(self, grad: Tensor, state: State, constants: dict[str, Any]) -> Tensor:
        mean = state["mean"].lerp_(grad, constants["rate1"])
        work = grad * grad  # one temporary for the whole step: at this size a step is as fast as its memory
        square = state["square"].lerp_(work, constants["rate2"])
        mass1 = state["mass1"].mul_(constants["beta1"]).add_(constants["rate1"])
        root = state["mass2"].mul_(constants["beta2"]).add_(constants["rate2"]).sqrt()
        # (mean / mass1) / (sqrt(square) / root + eps), with the two per-run factors drawn together.
        torch.sqrt(square, out=work).add_(constants["eps"] * root)
        return torch.div(mean, work, out=work).mul_(root / mass1)
