"""Training at perturbed weights: where a step's gradient is taken. It is always applied to the weights themselves.

Only what is trained is perturbed: all weights in pretraining; hidden matrices or adapters in finetuning with a frozen
rest.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from synthlm.config import Config

ASAM_ETA = 0.01
"""Added to |w| in ASAM, so that weights near zero are perturbed too (the value of its authors' code)."""


class GaussianNoise(Config):
    """The GO optimizer: the gradient at w + N(0, sigma^2 I), fresh noise each step.

    Source: arXiv 2505.17646 and its code. A step costs as much as a plain one.
    """

    kind: Literal["noise"] = "noise"
    sigma: float = Field(gt=0)

    @property
    def passes(self) -> int:
        """Gradients taken in a step."""
        return 1

    @property
    def label(self) -> str:
        return f"noise {self.sigma:g}"

    def offset(
        self, flat: Tensor, gradient: Callable[[Tensor], Tensor], noise: Callable[[], Tensor]
    ) -> Tensor:
        """How far from ``flat [run, param]`` the gradient is taken; see :func:`point`."""
        return self.sigma * noise()


class Sam(Config):
    """Sharpness-aware minimization: the gradient at the worst point of a small ball, to first order, on the same batch.

    Plain: w + rho g / |g| (arXiv 2010.01412). Adaptive: w + rho T^2 g / |T g| with T = |w| + eta elementwise (ASAM,
    arXiv 2102.11600), which does not see the scale of the weights; here T covers every parameter that is trained.
    Norms are l2 over all of a run's trained parameters. A step takes two gradients.
    """

    kind: Literal["sam"] = "sam"
    rho: float = Field(gt=0)
    adaptive: bool = False

    @property
    def passes(self) -> int:
        """Gradients taken in a step."""
        return 2

    @property
    def label(self) -> str:
        return f"{'asam' if self.adaptive else 'sam'} {self.rho:g}"

    def offset(
        self, flat: Tensor, gradient: Callable[[Tensor], Tensor], noise: Callable[[], Tensor]
    ) -> Tensor:
        """How far from ``flat [run, param]`` the gradient is taken; see :func:`point`."""
        scale = flat.abs() + ASAM_ETA if self.adaptive else torch.ones_like(flat)
        scaled = gradient(flat) * scale
        size = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
        return self.rho * scale * scaled / size.masked_fill(size == 0, 1)


Perturbation = Annotated[GaussianNoise | Sam, Field(discriminator="kind")]


def point(
    setting: GaussianNoise | Sam | None,
    flat: Tensor,
    gradient: Callable[[Tensor], Tensor],
    noise: Callable[[], Tensor],
) -> Tensor:
    """The weights ``[run, param]`` at which the gradient of a step from ``flat [run, param]`` is taken.

    Args:
        gradient: weights ``[run, param]`` -> gradient ``[run, param]`` on the step's batch.
        noise: a fresh draw ``[run, param]`` of N(0, I), each run's from its own generator.
    """
    return flat if setting is None else flat + setting.offset(flat, gradient, noise)
