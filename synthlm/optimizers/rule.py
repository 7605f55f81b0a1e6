"""What an update rule is."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from synthlm.config import Config

State = dict[str, Tensor]


class Rule(ABC):
    """A pure description of how gradients become update directions; it holds no state of its own.

    The caller applies ``w <- w - lr * (weight_decay * w + direction)``: the learning rate is not part of a
    rule, and decay is decoupled for every rule (for SGD too, where ``torch.optim`` adds decay to the gradient
    instead).

    Every tensor has the run as its first axis and nothing is reduced over it, so a run's numbers do not
    depend on the runs beside it. For the same reason rules keep to operations whose rounding does not depend
    on where an element lies in its tensor: correctly rounded ones, and fused ones with a per-run operand;
    never ``pow``.

    Attributes:
        geometry: name of the geometry (see ``synthlm.geometry``) whose steepest descent the rule is close to.
        matrix_only: whether the rule needs ``[run, stack, out, in]``; else any shape ``[run, ...]`` serves.
        Hyper: its hyper-parameters, without learning rate and decay. Floats may differ among runs.
    """

    name: ClassVar[str]
    geometry: ClassVar[str]
    matrix_only: ClassVar[bool] = False
    Hyper: ClassVar[type[Config]]

    def constants(self, hyper: Config) -> dict[str, Any]:
        """What ``direction`` needs of a run's hyper-parameters, worked out in double precision.

        Floats reach ``direction`` as tensors ``[run, 1, ...]``; other values must be equal among the runs.
        """
        return hyper.model_dump()

    def geometry_of(self, hyper: Config) -> str:
        """The geometry under these hyper-parameters."""
        return self.geometry

    @abstractmethod
    def init(self, x: Tensor) -> State:
        """The state before the first step; every tensor has run as its first axis."""

    @abstractmethod
    def direction(self, grad: Tensor, state: State, constants: dict[str, Any]) -> Tensor:
        """The direction to step against, shaped as ``grad``; updates ``state`` in place.

        Never overwrites ``grad``. The result may be part of the state: read it, do not write to it.
        """


def column(x: Tensor, like: Tensor) -> Tensor:
    """``[run] -> [run, 1, ...]`` in the type and the number of axes of ``like [run, ...]``."""
    return x.to(like).view(-1, *(1,) * (like.dim() - 1))


def per_run(x: Tensor) -> tuple[int, ...]:
    """The shape ``[run, 1, ...]`` of one number a run that broadcasts with ``x``."""
    return (x.shape[0], *(1,) * (x.dim() - 1))
