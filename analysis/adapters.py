"""Any PyTorch model as an objective: a plain ``nn.Module``, or a causal language model of Hugging Face.

Runs are evaluated one after the other (an arbitrary module has no run axis). Attention takes its math path, which has
second derivatives. How parameters are laid out and grouped: :mod:`synthlm.analysis.flat_module`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthlm.analysis.flat_module import FlatModule, Model, plain_attention
from synthlm.analysis.objective import PositionObjective, next_scored
from synthlm.config import InputError
from synthlm.tasks import IGNORE

Predict = Callable[[Model, Any], Tensor]


def _call(model: Model, inputs: Any) -> Tensor:
    """The logits, or the first of several outputs."""
    output = model(inputs)
    return output[0] if isinstance(output, tuple) else output


class LossObjective:
    """A module under any loss: enough for curvature, sharpness and landscapes of the loss.

    Args:
        batches: what ``loss`` takes, one by one.
        loss: ``(model, batch) -> scalar``, a mean over the batch; twice differentiable where curvature is asked for.
        sizes: weight of each batch in the mean; None: equal.
        aux, head, dtype: as for :class:`FlatModule`.

    Raises:
        InputError: when there is no batch; also when accuracies or log-probabilities are asked for.
    """

    slices = ("all",)
    run_axis = False

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[Any],
        loss: Callable[[Model, Any], Tensor],
        sizes: Sequence[float] | None = None,
        aux: Sequence[str] = (),
        head: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not batches:
            raise InputError("batches: there is none")
        self.inner, self.batches, self._loss = FlatModule(module, aux, head, dtype), list(batches), loss
        self.layout, self.flat = self.inner.layout, self.inner.flat
        given = [1.0] * len(batches) if sizes is None else list(sizes)
        self._shares = [size / sum(given) for size in given]
        self.counts = (len(batches),)
        self.position_slice = torch.zeros(len(batches), dtype=torch.int64)
        self.position_item = torch.arange(len(batches))
        self.loss_parts = tuple(self._part(b) for b in range(len(batches)))

    def _on(self, batch: Any, model: Model) -> Tensor:
        return self._loss(model, batch)

    def _part(self, b: int) -> Callable[[Tensor], Tensor]:
        def value(flat: Tensor) -> Tensor:
            with plain_attention():
                each = [self._loss(self.inner.at(row), self.batches[b]) for row in flat]
            return torch.stack(each) * self._shares[b]

        return value

    def loss(self, flat: Tensor) -> Tensor:
        return torch.stack([part(flat) for part in self.loss_parts]).sum(0)

    def losses(self, flat: Tensor) -> Tensor:
        return self.loss(flat)[:, None]

    def log_probabilities(self, flat: Tensor) -> Tensor:
        raise InputError("objective: a bare loss has no log-probabilities or accuracies; use ModuleObjective")

    trials = accuracies = accuracy = log_probabilities

    def inputs(self, flat: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        seen: dict[str, list[Tensor]] = {}
        for batch in self.batches:
            with torch.no_grad(), plain_attention():
                for name, x in self.inner.inputs(flat, partial(self._on, batch)):
                    seen.setdefault(name, []).append(x.flatten(0, -2))
        for name, parts in seen.items():
            x = torch.cat(parts)
            yield name, x, torch.zeros(len(x), dtype=torch.int64, device=x.device)


class ModuleObjective(PositionObjective):
    """A module that predicts classes or tokens, under cross entropy.

    Args:
        batches: pairs (inputs, targets); ``targets`` is int64 of any shape, ``IGNORE`` (-100) where nothing is scored.
        slices: names; ``codes``: for each batch an int64 tensor like its targets that indexes them (None: 0).
        seen: for each batch a bool tensor like its targets: which tokens :meth:`inputs` may give (padding left out).
        predict: ``(model, inputs) -> logits [*targets, class]``; by default ``model(inputs)``, or the first output.
        aux, head, dtype: as for :class:`FlatModule`.

    Attributes:
        flat: ``[param]`` the module's own weights.

    Raises:
        InputError: when nothing is scored.
        ValueError: when a slice has no scored position, or logits do not fit the targets.

    Example:
        >>> import torch
        >>> from synthlm.analysis.hessian import Hessian
        >>> module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> objective = ModuleObjective(module, [(torch.randn(8, 3), torch.randint(0, 2, (8,)))])
        >>> Hessian(objective, objective.flat, "matrix")(torch.randn(5, 12)).shape
        torch.Size([5, 12])
    """

    run_axis = False

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[tuple[Any, Tensor]],
        slices: tuple[str, ...] = ("all",),
        codes: Sequence[Tensor] | None = None,
        seen: Sequence[Tensor] | None = None,
        predict: Predict = _call,
        aux: Sequence[str] = (),
        head: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.inner, self._predict = FlatModule(module, aux, head, dtype), predict
        device = self.inner.flat.device
        self.flat = self.inner.flat
        self.batches = [(_to(inputs, device, dtype), targets.to(device)) for inputs, targets in batches]
        scored = [targets != IGNORE for _, targets in self.batches]
        if not any(bool(mask.any()) for mask in scored):
            raise InputError("targets: no position is scored")
        labels = (
            [torch.zeros_like(t) for _, t in self.batches] if codes is None else [c.to(device) for c in codes]
        )
        items, first = [], 0
        for mask in scored:
            items.append(first + mask.nonzero()[:, 0])
            first += len(mask)
        super().__init__(
            self.inner.layout,
            slices,
            torch.cat([targets[mask] for (_, targets), mask in zip(self.batches, scored, strict=True)]),
            torch.cat([label[mask] for label, mask in zip(labels, scored, strict=True)]),
            torch.cat(items),
            dtype=dtype,
        )
        labels = [label.masked_fill(~mask, -1) for label, mask in zip(labels, scored, strict=True)]
        self._token_slices = [
            next_scored(label, mask) if label.ndim == 2 else label
            for label, mask in zip(labels, scored, strict=True)
        ]
        for b, mask in enumerate(seen or ()):
            self._token_slices[b] = self._token_slices[b].masked_fill(~mask.to(device), -1)
        positions = [int(mask.sum()) for mask in scored]
        self.loss_parts = tuple(
            self._part(b, slice(sum(positions[:b]), sum(positions[: b + 1]))) for b in range(len(positions))
        )

    def _on(self, inputs: Any, model: Model) -> Tensor:
        return self._predict(model, inputs)

    def _log_p(self, row: Tensor, b: int) -> Tensor:
        """``[position, class]`` of one batch."""
        inputs, targets = self.batches[b]
        with plain_attention():
            logits = self._predict(self.inner.at(row), inputs)
        if logits.shape[:-1] != targets.shape:
            raise ValueError(f"logits {tuple(logits.shape)} do not fit targets {tuple(targets.shape)}")
        return F.log_softmax(logits[targets != IGNORE], dim=-1)

    def log_probabilities(self, flat: Tensor) -> Tensor:
        return torch.stack(
            [torch.cat([self._log_p(row, b) for b in range(len(self.batches))]) for row in flat]
        )

    def _surprise(self, row: Tensor, b: int) -> Tensor:
        """``[position]`` nats of one batch."""
        targets = self.batches[b][1]
        return F.nll_loss(self._log_p(row, b), targets[targets != IGNORE], reduction="none")

    def losses(self, flat: Tensor) -> Tensor:
        """As for every objective; one batch's predictions are held at a time."""
        each = [torch.cat([self._surprise(row, b) for b in range(len(self.batches))]) for row in flat]
        return torch.stack(each) @ self._by_slice

    def _part(self, b: int, span: slice) -> Callable[[Tensor], Tensor]:
        weight = (self._by_slice @ self._share)[span]
        return lambda flat: torch.stack([self._surprise(row, b) @ weight for row in flat])

    def trials(self, flat: Tensor) -> Tensor:
        each = [torch.cat([self._log_p(row, b).argmax(-1) for b in range(len(self.batches))]) for row in flat]
        return torch.stack(each) == self.target

    def inputs(self, flat: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """As for every objective; matrices whose module is never called are left out.

        Where a layer sees more axes than the targets have (a labelled sequence), each token has the label's slice.
        """
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for b, (inputs, _) in enumerate(self.batches):
            codes = self._token_slices[b]
            with torch.no_grad(), plain_attention():
                for name, x in self.inner.inputs(flat, partial(self._on, inputs)):
                    if x.shape[: codes.ndim] != codes.shape:
                        raise ValueError(
                            f"{name}: inputs {tuple(x.shape)} do not fit targets {tuple(codes.shape)}"
                        )
                    spread = codes.reshape(*codes.shape, *[1] * (x.ndim - 1 - codes.ndim)).expand(
                        x.shape[:-1]
                    )
                    parts.setdefault(name, []).append((x[spread >= 0], spread[spread >= 0]))
        for name, pieces in parts.items():
            yield name, torch.cat([x for x, _ in pieces]), torch.cat([code for _, code in pieces])


def _to(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if isinstance(value, dict):
        return {name: _to(part, device, dtype) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_to(part, device, dtype) for part in value)
    return value
