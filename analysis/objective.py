"""A loss as a function of weights: what every analysis of a model is written over.

An objective holds a model's form and fixed data; it maps weights ``[run, param]`` to the losses and scores of each run.
Every run sees the same data, so many perturbed copies of one model are evaluated side by side (:func:`evaluate_many`).

Axis names: ``run`` weight vectors, ``param``, ``position`` scored tokens, ``slice``, ``token`` inputs of a matrix.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from synthlm import model as transformer
from synthlm.config import choose
from synthlm.model import ModelConfig
from synthlm.tasks import Language, Table
from synthlm.tasks.language import PAD
from synthlm.weights import Layout

WIDTH = 8
"""Weight vectors evaluated side by side unless told otherwise."""

INPUT_OF = {
    "attn.W_Q": "ln1.hook_normalized",
    "attn.W_K": "ln1.hook_normalized",
    "attn.W_V": "ln1.hook_normalized",
    "attn.W_O": "attn.hook_z",
    "mlp.W_in": "ln2.hook_normalized",
    "mlp.W_gate": "ln2.hook_normalized",
    "mlp.W_out": "mlp.hook_post",
}
"""Hidden matrix -> the activation that it multiplies, both within a block."""


class Objective(Protocol):
    """What an analysis asks of a model and its data.

    Attributes:
        layout: names, shapes and groups of the flat tensor.
        slices: names of the parts of the data, at least one.
        counts: scored positions in each slice, in the order of ``slices``.
        position_slice: int64 [position] index into ``slices``.
        position_item: int64 [position] the item (sequence, example) that a position belongs to.
    """

    @property
    def layout(self) -> Layout: ...
    @property
    def slices(self) -> tuple[str, ...]: ...
    @property
    def counts(self) -> tuple[int, ...]: ...
    @property
    def position_slice(self) -> Tensor: ...
    @property
    def position_item(self) -> Tensor: ...

    def losses(self, flat: Tensor) -> Tensor:
        """``[run, param] -> [run, slice]`` mean nats per scored position; twice differentiable."""
        ...

    def loss(self, flat: Tensor) -> Tensor:
        """``[run, param] -> [run]`` mean nats over all scored positions; twice differentiable."""
        ...

    def accuracies(self, flat: Tensor) -> Tensor:
        """``[run, param] -> [run, slice]`` share of scored positions that are right."""
        ...

    def accuracy(self, flat: Tensor) -> Tensor:
        """``[run, param] -> [run]`` share of all scored positions that are right."""
        ...

    def scores(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """``losses`` and ``accuracies``, each ``[run, slice]``, from one pass through the model."""
        ...

    def log_probabilities(self, flat: Tensor) -> Tensor:
        """``[run, param] -> [run, position, vocab]`` natural-log probabilities."""
        ...

    def trials(self, flat: Tensor) -> Tensor:
        """``[run, param] -> [run, position]`` bool: whether the likeliest answer is the right one."""
        ...

    def inputs(self, flat: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Of one run (``[1, param]``): each matrix's name, its inputs ``[token, in]`` and each token's slice index.

        Padding, and what follows an item's last scored position, is left out. The slice of a token that is not scored
        itself is that of the next one that is.
        """
        ...


class PositionObjective(ABC):
    """What follows from log-probabilities at scored positions; implements most of :class:`Objective`.

    Args:
        target: int64 [position] the right answer of each position.
        position_slice: int64 [position] index into ``slices``.
        position_item: int64 [position].
        weight: [position] relative weight in every mean; None: equal.

    Raises:
        ValueError: when a slice has no scored position.
    """

    def __init__(
        self,
        layout: Layout,
        slices: tuple[str, ...],
        target: Tensor,
        position_slice: Tensor,
        position_item: Tensor,
        weight: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.layout, self.slices, self.dtype = layout, slices, dtype
        self.target, self.position_slice, self.position_item = target, position_slice, position_item
        counts = torch.bincount(position_slice, minlength=len(slices)).tolist()
        if not slices or min(counts) == 0:
            raise ValueError(f"scored positions by slice: {dict(zip(slices, counts, strict=True))}")
        self.counts = tuple(counts)
        mass = (
            torch.ones(len(target), dtype=dtype, device=target.device) if weight is None else weight.to(dtype)
        )
        member = torch.nn.functional.one_hot(position_slice, len(slices)).to(dtype) * mass[:, None]
        self._by_slice = member / member.sum(0)
        """[position, slice] columns sum to 1."""
        self._share = member.sum(0) / member.sum()
        """[slice] share of each slice in the mean over all positions."""

    @abstractmethod
    def log_probabilities(self, flat: Tensor) -> Tensor: ...

    def losses(self, flat: Tensor) -> Tensor:
        return self._losses(self.log_probabilities(flat))

    def _losses(self, log_p: Tensor) -> Tensor:
        index = self.target.expand(len(log_p), -1)[..., None]
        return -log_p.gather(-1, index).squeeze(-1) @ self._by_slice

    def scores(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        log_p = self.log_probabilities(flat)
        right = log_p.argmax(-1) == self.target
        return self._losses(log_p), right.to(self.dtype) @ self._by_slice

    def loss(self, flat: Tensor) -> Tensor:
        return self.losses(flat) @ self._share

    def trials(self, flat: Tensor) -> Tensor:
        return self.log_probabilities(flat).argmax(-1) == self.target

    def accuracies(self, flat: Tensor) -> Tensor:
        return self.trials(flat).to(self.dtype) @ self._by_slice

    def accuracy(self, flat: Tensor) -> Tensor:
        return self.accuracies(flat) @ self._share


class LanguageObjective(PositionObjective):
    """A transformer of this package on one table of a language; attention takes its math path throughout.

    Args:
        table: items; its ``weight`` weighs them in every mean (equal in probe tables).
        names: the table's slice names.
        only: slices that are scored; None: all that have a scored position.
        dtype: of the arithmetic and of what is returned; weights are converted.

    Raises:
        InputError: when ``only`` names an unknown slice.
        ValueError: when a slice of ``only`` has no scored position.
    """

    def __init__(
        self,
        config: ModelConfig,
        table: Table,
        names: tuple[str, ...],
        only: tuple[str, ...] | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        for name in only or ():
            choose("slices", name, list(names))
        present = np.unique(table.slices[table.scored])
        kept = [i for i, name in enumerate(names) if (i in present if only is None else name in only)]
        renumbered = np.full(len(names) + 1, -1)
        renumbered[kept] = np.arange(len(kept))  # the spare last place keeps -1 at -1
        codes = renumbered[table.slices]
        items = np.flatnonzero((codes >= 0).any(1))
        length = 1 + int(np.flatnonzero((codes >= 0).any(0))[-1]) if len(items) else 1
        codes, tokens = codes[items, :length], table.tokens[items, :length]
        item, time = np.nonzero(codes >= 0)

        def held(array: np.ndarray) -> Tensor:
            return torch.tensor(array, device=device)

        super().__init__(
            config.layout,
            tuple(names[i] for i in kept),
            held(table.targets[items, :length][item, time]),
            held(codes[item, time]),
            held(item),
            held(table.weight[items][item]),
            dtype,
        )
        self.config = config
        self.tokens = held(tokens)
        """int64 [item, time]"""
        self._scored = held(item * length + time)
        token_slice = next_scored(held(codes), held(table.scored[items, :length]))
        self._seen = (token_slice >= 0) & (self.tokens != PAD)
        self._token_slice = token_slice[self._seen]

    def log_probabilities(self, flat: Tensor) -> Tensor:
        views = self.layout.views(flat.to(self.dtype))
        tokens = self.tokens.expand(len(flat), -1, -1)
        x = transformer.hidden(self.config, views, tokens, attention="math").flatten(1, 2)
        return transformer.unembed(self.config, views, x[:, self._scored]).log_softmax(-1)

    def inputs(self, flat: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        if len(flat) != 1:
            raise ValueError(f"inputs are of one run, not of {len(flat)}")
        names = [entry.name for entry in self.layout.only("matrix").entries]
        place = {
            name: "blocks.{1}.".format(*name.split(".")) + INPUT_OF[name.split(".", 2)[2]] for name in names
        }
        wanted, seen = set(place.values()), {}

        def tap(name: str, value: Tensor) -> Tensor:
            if name in wanted:
                seen[name] = value[0].flatten(2)[self._seen]  # heads side by side, as W_O sees them
            return value

        with torch.no_grad():
            views = self.layout.views(flat.to(self.dtype))
            transformer.hidden(self.config, views, self.tokens[None], tap, attention="math")
        for name in names:
            yield name, seen[place[name]], self._token_slice


def next_scored(codes: Tensor, scored: Tensor) -> Tensor:
    """``[..., time]`` the code of the first scored position at or after each; -1 where there is none."""
    out = torch.full_like(codes, -1)
    following = out[..., 0]
    for t in range(codes.shape[-1] - 1, -1, -1):
        following = torch.where(scored[..., t], codes[..., t], following)
        out[..., t] = following
    return out


def language_objective(
    config: ModelConfig,
    language: Language,
    table: Literal["probe", "train"] = "probe",
    goals_only: bool = True,
    items: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> LanguageObjective:
    """The objective of a model on a language.

    Args:
        table: ``probe`` (what evaluation uses, items weighted equally) or ``train`` (weighted by sampling probability).
        goals_only: of the probe, leave out slices that count to no goal. Training tables are used whole.
        items: most items of each slice, evenly spaced; None: all.

    Raises:
        InputError: on another table.
    """
    chosen, only = part_of(language, table, goals_only, items)
    return LanguageObjective(config, chosen, language.slices, only, dtype, device)


def part_of(
    language: Language, table: str = "probe", goals_only: bool = True, items: int | None = None
) -> tuple[Table, tuple[str, ...] | None]:
    """The items that an objective is made of, and the slices that it scores (None: all); see ``language_objective``.

    Raises:
        InputError: on another table.
    """
    choose("table", table, ["probe", "train"])
    chosen = language.probe if table == "probe" else language.train
    goals = tuple(name for name in language.slices if language.goals[name])
    if items is not None:
        chosen = _thinned(chosen, items)
    return chosen, goals if goals_only and table == "probe" else None


def _thinned(table: Table, most: int) -> Table:
    kept = []
    for code in np.unique(table.item_slice):
        of_slice = np.flatnonzero(table.item_slice == code)
        count = min(most, len(of_slice))
        kept.append(of_slice[np.arange(count) * len(of_slice) // count])
    index = np.sort(np.concatenate(kept))
    weight = table.weight[index] / table.weight[index].sum()
    taken = table.take(index)
    return Table(taken.tokens, taken.targets, taken.slices, weight, taken.floor, taken.key)


@torch.no_grad()
def evaluate_many(
    function: Callable[[Tensor], Tensor], flats: Tensor | Iterable[Tensor], width: int = WIDTH
) -> Tensor:
    """Apply ``function`` (``[run, param] -> [run, ...]``) to many weight vectors, ``width`` side by side.

    Args:
        flats: ``[many, param]``, or weight vectors ``[param]`` one by one (made when needed: nothing else is held).

    Returns:
        ``[many, ...]``.

    Raises:
        ValueError: when there is no weight vector.
    """
    rows = iter(flats)
    out = []
    while chunk := list(islice(rows, width)):
        out.append(function(torch.stack(chunk)))
    if not out:
        raise ValueError("no weight vectors to evaluate")
    return torch.cat(out)
