"""Sign descent, with momentum also known as Signum (Bernstein et al., arXiv:1802.04434)."""

from typing import Any

from pydantic import Field
from torch import Tensor

from synthlm.config import Config
from synthlm.geometry import sign
from synthlm.optimizers.rule import Rule, State


class SignSgd(Rule):
    """The sign of the gradient's running average; with momentum 0, of the gradient itself."""

    name = "signsgd"
    geometry = "max"

    class Hyper(Config):
        momentum: float = Field(0.0, ge=0, lt=1)

    def constants(self, hyper: Config) -> dict[str, Any]:
        return {"rate": 1 - hyper.model_dump()["momentum"]}

    def init(self, x: Tensor) -> State:
        return {"mean": x.new_zeros(x.shape)}

    def direction(self, grad: Tensor, state: State, constants: dict[str, Any]) -> Tensor:
        return sign(state["mean"].lerp_(grad, constants["rate"]))
