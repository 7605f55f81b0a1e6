"""Lion (Chen et al., arXiv:2302.06675)."""

from typing import Any

from pydantic import Field
from torch import Tensor

from synthlm.config import Config
from synthlm.geometry import sign
from synthlm.optimizers.rule import Rule, State


class Lion(Rule):
    """The sign of an average (``beta1``) of momentum and gradient; the momentum averages slower
    (``beta2``)."""

    name = "lion"
    geometry = "max"

    class Hyper(Config):
        beta1: float = Field(0.9, ge=0, lt=1)
        beta2: float = Field(0.99, ge=0, lt=1)

    def constants(self, hyper: Config) -> dict[str, Any]:
        values = hyper.model_dump()
        return {"rate1": 1 - values["beta1"], "rate2": 1 - values["beta2"]}

    def init(self, x: Tensor) -> State:
        return {"mean": x.new_zeros(x.shape)}

    def direction(self, grad: Tensor, state: State, constants: dict[str, Any]) -> Tensor:
        direction = sign(state["mean"].lerp(grad, constants["rate1"]))
        state["mean"].lerp_(grad, constants["rate2"])
        return direction
