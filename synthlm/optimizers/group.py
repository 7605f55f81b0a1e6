"""One optimizer for one group of a model's parameters, many runs at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from synthlm.config import Config, InputError, choose, parse
from synthlm.optimizers.adamw import AdamW
from synthlm.optimizers.lion import Lion
from synthlm.optimizers.muon import Muon
from synthlm.optimizers.rule import Rule, State, column
from synthlm.optimizers.sgd import Sgd
from synthlm.optimizers.shampoo import Shampoo
from synthlm.optimizers.signsgd import SignSgd
from synthlm.optimizers.soap import Soap
from synthlm.weights import Block, Group, Layout

RULES: dict[str, Rule] = {
    rule.name: rule for rule in (AdamW(), Sgd(), Muon(), SignSgd(), Lion(), Shampoo(), Soap())
}


# Weights that a CPU moves at once; with gradient, state and a temporary, about 2 MB.
CACHED_NUMBERS = 2**17


class OptimizerConfig(Config):
    """A rule by name, with its settings.

    Attributes:
        name: a key of ``RULES``.
        lr: peak learning rate.
        weight_decay: decoupled, for every rule: ``w <- w - lr * (weight_decay * w + direction)``.
        hyper: the rule's other hyper-parameters; after validation every default is written out.
    """

    name: str
    lr: float = Field(ge=0)
    weight_decay: float = Field(0.0, ge=0)
    hyper: dict[str, bool | int | float | str] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return choose("optimizer", name, list(RULES))
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("hyper", mode="before")
    @classmethod
    def _resolved(cls, hyper: Any, info: ValidationInfo) -> Any:
        if "name" not in info.data or not isinstance(hyper, Mapping):
            return hyper  # the fault lies elsewhere and is reported there
        try:
            return parse(RULES[info.data["name"]].Hyper, hyper, info.data["name"]).model_dump()
        except InputError as error:
            raise ValueError(str(error).replace("\n", "; ")) from None

    @property
    def rule(self) -> Rule:
        return RULES[self.name]

    @cached_property
    def settings(self) -> Config:
        """The hyper-parameters as the rule's own ``Hyper``."""
        return self.rule.Hyper(**self.hyper)

    @property
    def geometry(self) -> str:
        """Name of the geometry of this rule under these settings."""
        return self.rule.geometry_of(self.settings)


@dataclass(frozen=True)
class _Span:
    """A group that an element-wise rule sees as one piece: ``[run, start:stop]``."""

    start: int
    stop: int

    def view(self, flat: Tensor) -> Tensor:
        return flat[:, self.start : self.stop]


class GroupOptimizer:
    """Steps one group of the flat weights ``[run, param]``, with one setting a run.

    Args:
        layout: of the whole flat tensor.
        group: ``matrix`` or ``aux``; the rest of the flat tensor is not touched.
        configs: one a run. Learning rates are given at each step, so ``lr`` is not read here.

    Raises:
        InputError: when the runs differ in the rule or in a setting that is not a float, or when a rule for
            matrices meets the aux group.
    """

    def __init__(self, layout: Layout, group: Group, configs: Sequence[OptimizerConfig]) -> None:
        names = sorted({config.name for config in configs})
        if len(names) != 1:
            raise InputError(
                f"optimizer: runs trained together need one rule, not {', '.join(names) or 'none'}"
            )
        self.rule = RULES[names[0]]
        if self.rule.matrix_only and group != "matrix":
            allowed = ", ".join(name for name, rule in RULES.items() if not rule.matrix_only)
            raise InputError(
                f"optimizer: {names[0]!r} acts on matrices only; the aux group needs one of {allowed}"
            )
        self.runs = len(configs)
        self.parts: list[Block | _Span] = [*layout.blocks()]
        if not self.rule.matrix_only:
            matrices, end = layout.matrix_size, layout.size
            span = _Span(0, matrices) if group == "matrix" else _Span(matrices, end)
            self.parts = [span] if span.stop > span.start else []
        self._decay = torch.tensor([config.weight_decay for config in configs], dtype=torch.float64)
        self._decays = any(config.weight_decay for config in configs)
        self._numbers, self._fixed = _merge(
            [self.rule.constants(config.settings) for config in configs], names[0]
        )
        self._cache: dict[tuple[torch.dtype, torch.device], dict[str, Any]] = {}

    def init(self, flat: Tensor) -> State:
        """The state before the first step, every tensor with run as its first axis; keys are ``part.name``.

        Raises:
            ValueError: when ``flat`` has another number of runs than there are settings.
        """
        if flat.shape[0] != self.runs:
            raise ValueError(f"{flat.shape[0]} runs of weights, but settings for {self.runs}")
        return {
            f"{i}.{name}": tensor
            for i, part in enumerate(self.parts)
            for name, tensor in self.rule.init(part.view(flat.detach())).items()
        }

    @torch.no_grad()
    def step(self, flat: Tensor, grad: Tensor, state: State, lr: Tensor) -> None:
        """``w <- w - lr * (weight_decay * w + direction)``, in place on ``flat`` and ``state``.

        Args:
            flat, grad: ``[run, param]``; the gradient is only read.
            lr: ``[run]``.
        """
        for i, part in enumerate(self.parts):
            weights = part.view(flat)
            head = f"{i}."
            local = {key.removeprefix(head): tensor for key, tensor in state.items() if key.startswith(head)}
            keep = column(1 - lr.double() * self._decay.to(lr.device), weights)
            pieces = (weights, part.view(grad), local, self._constants(weights), column(lr, weights), keep)
            width = self._width(weights)
            for first in range(0, self.runs, width):
                rows = slice(first, first + width)
                self._move(*(pieces if width >= self.runs else (_rows(piece, rows) for piece in pieces)))

    def _move(
        self, weights: Tensor, grad: Tensor, state: State, constants: dict[str, Any], lr: Tensor, keep: Tensor
    ) -> None:
        direction = self.rule.direction(grad, state, constants)
        if self._decays:
            weights.mul_(keep)
        weights.addcmul_(direction, lr, value=-1)

    def _width(self, weights: Tensor) -> int:
        """How many runs to move at once: on a CPU, for element-wise rules, as many as the cache holds."""
        if self.rule.matrix_only or weights.device.type != "cpu":
            return self.runs
        return max(1, CACHED_NUMBERS // weights.shape[1])

    def _constants(self, like: Tensor) -> dict[str, Any]:
        """The rule's constants, floats as ``[run, 1, ...]`` beside ``like``."""
        key = (like.dtype, like.device)
        if key not in self._cache:
            numbers = {
                name: column(torch.tensor(v, dtype=torch.float64), like) for name, v in self._numbers.items()
            }
            self._cache[key] = self._fixed | numbers
        return self._cache[key]


def _rows(piece: Any, rows: slice) -> Any:
    """The given runs of a tensor or of a dictionary's tensors; anything else as it is."""
    if isinstance(piece, dict):
        return {name: _rows(value, rows) for name, value in piece.items()}
    return piece[rows] if isinstance(piece, Tensor) else piece


def _merge(constants: list[dict[str, Any]], rule: str) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Split one dictionary a run into floats (a list over runs) and what must be equal among the runs."""
    numbers: dict[str, list[float]] = {}
    fixed: dict[str, Any] = {}
    for name, value in constants[0].items():
        values = [each[name] for each in constants]
        if isinstance(value, float):
            numbers[name] = values
        elif any(other != value for other in values):
            shown = ", ".join(sorted({repr(v) for v in values}))
            raise InputError(f"{rule}.{name}: runs trained together need one value, not {shown}")
        else:
            fixed[name] = value
    return numbers, fixed


def cut(state: State, run: int) -> State:
    """One run's state, copied, with a run axis of length 1."""
    return {name: tensor[run : run + 1].clone() for name, tensor in state.items()}


def stack(states: Sequence[State]) -> State:
    """Put states side by side on the run axis: the inverse of ``cut``."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


@torch.no_grad()
def clip_(grad: Tensor, limit: Tensor) -> Tensor:
    """Scale each run's gradient ``[run, param]``, in place, to an l2 norm of at most ``limit`` ``[run]``.

    An infinite limit never clips. Returns the norms ``[run]`` from before.
    """
    norm = torch.linalg.vector_norm(grad, dim=1)
    grad.mul_(column((limit / (norm + 1e-6)).clamp(max=1), grad))
    return norm
