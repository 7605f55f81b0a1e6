"""The structure of a finetuning update, and what it does to the model it was added to.

An update is ``tuned - base``, flat ``[run, param]`` like the weights. What is told per hidden matrix comes as
``[run, matrix]`` in the order of ``layout.only("matrix").entries``; see ``synthlm.geometry`` for norms and sizes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from synthlm.analysis.objective import Objective
from synthlm.analysis.structure import STRUCTURE, structure
from synthlm.geometry import GEOMETRIES
from synthlm.weights import Layout

RELATIVE = tuple(f"relative/{name}" for name in GEOMETRIES)
REACH = tuple(f"reach/{name}" for name in GEOMETRIES)
MOVED = tuple(f"moved/{name}" for name in GEOMETRIES)
DRIFT = ("drift/inputs", "drift/outputs")

PER_MATRIX = (*STRUCTURE, *RELATIVE, *REACH, *MOVED, *DRIFT)
"""Names of everything that is told per hidden matrix."""


def matrix_names(layout: Layout) -> list[str]:
    """Names of the hidden matrices, in the order of the ``matrix`` axis."""
    return [entry.name for entry in layout.only("matrix").entries]


def update_structure(update: Tensor, weights: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Structure of updates ``[run, param]`` to ``weights [1 or run, param]`` -> name -> ``[run, matrix]``, float64.

    The names of ``analysis.structure`` and, for each geometry, ``relative/GEOMETRY``: the update's norm over the
    weight's.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in (*STRUCTURE, *RELATIVE)}
    for block in layout.blocks():
        changed = structure(block.view(update))
        whole = block.view(weights).double()
        for name in STRUCTURE:
            parts[name].append(changed[name])
        for name, geometry in GEOMETRIES.items():
            parts[f"relative/{name}"].append(changed[f"norm/{name}"] / geometry.norm(whole))
    return {name: torch.cat(values, dim=1) for name, values in parts.items()}


@dataclass(frozen=True)
class Reference:
    """A base's inputs and outputs on fixed data, which its finetuned models are compared with.

    Attributes:
        flat: weights ``[param]`` of the base.
        inputs: matrix -> X ``[token, in]``, float64. outputs: matrix -> X W^T ``[token, out]``.
        sizes: geometry -> activation size of each matrix's inputs ``[matrix]``.
        output_sizes: geometry -> output size of each matrix's outputs ``[matrix]``.
    """

    objective: Objective
    flat: Tensor
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    sizes: Mapping[str, Tensor]
    output_sizes: Mapping[str, Tensor]


def reference(objective: Objective, flat: Tensor) -> Reference:
    """What :func:`effects` needs to know of a base, worked out once. ``flat``: its weights ``[param]``."""
    inputs = _inputs(objective, flat)
    views = objective.layout.views(flat[None].double())
    outputs = {name: x @ views[name][0].mT for name, x in inputs.items()}
    return Reference(
        objective, flat, inputs, outputs,
        {name: torch.stack([g.activation_size(x) for x in inputs.values()]) for name, g in GEOMETRIES.items()},
        {name: torch.stack([g.output_size(y) for y in outputs.values()]) for name, g in GEOMETRIES.items()},
    )  # fmt: skip


def _inputs(objective: Objective, flat: Tensor) -> dict[str, Tensor]:
    """Matrix -> inputs ``[token, in]`` in float64; matrices that share their inputs share one tensor."""
    cast: dict[int, tuple[Tensor, Tensor]] = {}  # keeps what was cast alive, so that addresses stay apart
    out = {}
    for name, x, index in objective.inputs(flat[None]):
        if x.data_ptr() not in cast:
            cast[x.data_ptr()] = (x, x[index >= 0].double())
        out[name] = cast[x.data_ptr()][1]
    return {name: out[name] for name in matrix_names(objective.layout)}


def effects(base: Reference, tuned: Tensor) -> dict[str, Tensor]:
    """What the update to ``tuned [param]`` does to each matrix on the base's data: name -> ``[matrix]``, float64.

    With D the update of a matrix W, X its inputs in the base and X' those in the tuned model:

    - ``reach/GEOMETRY``: ``norm(D) * activation_size(X) / output_size(X W^T)``: the update's size in that norm,
      paired with the activations, relative to the outputs; it bounds ``moved``.
    - ``moved/GEOMETRY``: ``output_size(X D^T) / output_size(X W^T)``: how far the outputs move by this matrix'
      update.
    - ``drift/inputs``: ``frob(X' - X) / frob(X)``; ``drift/outputs``: ``frob(X' W'^T - X W^T) / frob(X W^T)``: how
      far inputs and outputs move by all updates together.

    Zero over zero, as of a layer without input, is NaN. Definitions: our reconstruction of "the structure of the
    update" and "activation drift" (arXiv 2605.06654, whose body was not available).
    """
    layout = base.objective.layout
    views = layout.views((tuned.double() - base.flat.double())[None])
    changed = _inputs(base.objective, tuned)
    whole = layout.views(tuned[None].double())
    found: dict[str, list[Tensor]] = {name: [] for name in (*REACH, *MOVED, *DRIFT)}
    for i, (name, x) in enumerate(base.inputs.items()):
        d, y = views[name][0], base.outputs[name]
        moved = x @ d.mT
        for key, geometry in GEOMETRIES.items():
            size = base.output_sizes[key][i]
            found[f"reach/{key}"].append(geometry.norm(d) * base.sizes[key][i] / size)
            found[f"moved/{key}"].append(geometry.output_size(moved) / size)
        found["drift/inputs"].append((changed[name] - x).norm() / x.norm())
        found["drift/outputs"].append((changed[name] @ whole[name][0].mT - y).norm() / y.norm())
    return {name: torch.stack(values) for name, values in found.items()}


def overlap(update: Tensor, directions: Tensor) -> Tensor:
    """Share of each update's squared length that lies in the span of orthonormal ``directions [k, param]``.

    ``[run, param] -> [run]``, between 0 and 1; by chance k / param. NaN for an update of zero.

    Raises:
        ValueError: when the directions are not orthonormal (to 1e-3).
    """
    directions = directions.double()
    gram = directions @ directions.mT
    if (gram - torch.eye(len(directions), dtype=gram.dtype, device=gram.device)).abs().max() > 1e-3:
        raise ValueError("directions: not orthonormal")
    update = update.double()
    return (update @ directions.mT).square().sum(-1) / update.square().sum(-1)


@torch.no_grad()
def forward_kl(objective: Objective, base: Tensor, tuned: Tensor) -> Tensor:
    """Forward KL(base || tuned) of ``tuned [run, param]`` from ``base [param]`` -> ``[run]`` nats per scored
    position."""
    reference_log_p = objective.log_probabilities(base[None]).double()
    log_p = objective.log_probabilities(tuned).double()
    return (reference_log_p.exp() * (reference_log_p - log_p)).sum(-1).mean(-1)


def second_order(
    gradient: Tensor, product: Callable[[Tensor], Tensor], update: Tensor
) -> tuple[Tensor, Tensor]:
    """First- and second-order parts of the loss change that updates ``[run, param]`` cause -> two ``[run]``, nats.

    Args:
        gradient: ``[param]`` of the loss at the base.
        product: directions ``[run, param]`` -> Hessian of that loss at the base times each, ``[run, param]``.

    Returns:
        ``g . d`` and ``d^T H d / 2``; their sum is the second-order estimate.
    """
    first = update.double() @ gradient.double()
    return first, (update * product(update)).double().sum(-1) / 2
