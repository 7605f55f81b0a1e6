"""Muon (Jordan, https://kellerjordan.github.io/posts/muon) and its controls."""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from synthlm.config import Config
from synthlm.geometry import FrobeniusGeometry, polar
from synthlm.optimizers.matrices import newton_schulz
from synthlm.optimizers.rule import Rule, State


class Muon(Rule):
    """Orthogonalized momentum, times a factor that depends on the matrix's shape.

    Hyper-parameters:
        orthogonalization: ``newton-schulz``; ``svd``, the exact ``U V^T``; or ``none``, a control that keeps
            the momentum's singular values and only scales it to the Frobenius norm that ``U V^T`` has at full
            rank, ``sqrt(min(out, in))``: it differs from Muon in the spectrum alone, not in the size of its
            steps.
        scaling: ``jordan``: ``sqrt(max(1, out / in))``; ``moonlight``: ``0.2 * sqrt(max(out, in))``
            (arXiv:2502.16982), which gives entries of the root mean square that AdamW's have.
        ns_steps: Newton-Schulz iterations; the other two do not use it.
    """

    name = "muon"
    geometry = "spectral"
    matrix_only = True

    class Hyper(Config):
        momentum: float = Field(0.95, ge=0, lt=1)
        nesterov: bool = True
        orthogonalization: Literal["newton-schulz", "svd", "none"] = "newton-schulz"
        scaling: Literal["jordan", "moonlight"] = "jordan"
        ns_steps: int = Field(5, ge=1, le=50)

    def constants(self, hyper: Config) -> dict[str, Any]:
        values = hyper.model_dump()
        return values | {"rate": 1 - values["momentum"]}

    def geometry_of(self, hyper: Config) -> str:
        return "frobenius" if hyper.model_dump()["orthogonalization"] == "none" else self.geometry

    def init(self, x: Tensor) -> State:
        return {"momentum": x.new_zeros(x.shape)}

    def direction(self, grad: Tensor, state: State, constants: dict[str, Any]) -> Tensor:
        momentum = state["momentum"].lerp_(grad, constants["rate"])
        update = torch.lerp(grad, momentum, constants["momentum"]) if constants["nesterov"] else momentum
        rows, columns = grad.shape[-2:]
        if constants["orthogonalization"] == "newton-schulz":
            update = newton_schulz(update, constants["ns_steps"])
        elif constants["orthogonalization"] == "svd":
            update = polar(update)
        else:
            update = FrobeniusGeometry().step(update) * -math.sqrt(min(rows, columns))
        scale = max(1, rows / columns) ** 0.5
        if constants["scaling"] == "moonlight":
            scale = 0.2 * max(rows, columns) ** 0.5
        return update * scale
