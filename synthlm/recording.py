"""The spectral edge recorded while models train: settings, and one recorder for all runs of a batch.

What is written is one row of dot products of updates per recorded step and parameter set (``edge.json`` of the entry in
the store, see :mod:`synthlm.analysis.spectral_edge`), and on request the leading modes at the kept checkpoints.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from synthlm.analysis.spectral_edge import UpdateStream, check_words, effective_dimensions
from synthlm.config import Config, InputError
from synthlm.weights import Layout

EDGE = "edge"
"""Name of the table in the store."""


class EdgeConfig(Config):
    """What is recorded of the trajectory.

    Attributes:
        every: steps from one recorded step to the next; updates are differences over so many steps.
        window: W, updates in the rolling window.
        sets: parameter sets: all, attention, mlp, embedding, layers, or patterns of parameter names.
        modes: leading modes of the first set that are kept at every checkpoint (float32, as large as the weights each).
        sketch: numbers kept of an update per group of parameters, in place of all; None: exact.
    """

    every: int = Field(10, ge=1)
    window: int = Field(10, ge=3)
    sets: tuple[str, ...] = Field(("all", "attention"), min_length=1)
    modes: int = Field(0, ge=0)
    sketch: int | None = Field(None, ge=1)

    @field_validator("sets")
    @classmethod
    def _known(cls, sets: tuple[str, ...]) -> tuple[str, ...]:
        try:
            check_words(sets)
        except InputError as error:
            raise ValueError(str(error).removeprefix("sets: ")) from None
        return sets

    @model_validator(mode="after")
    def _fits(self) -> "EdgeConfig":
        if self.sketch is not None and self.sketch < self.window:
            raise ValueError(f"sketch: {self.sketch} numbers cannot hold a window of {self.window} updates")
        if self.sketch is not None and self.modes:
            raise ValueError(f"modes: {self.modes} modes cannot be had from sketched updates; allowed: 0")
        if self.modes > self.window:
            raise ValueError(f"modes: {self.modes} is more than the window's {self.window}")
        return self

    def check(self, layout: Layout) -> None:
        """Refuse sets that none of the trained parameters belongs to, or too few for the window or the sketch.

        Raises:
            InputError: naming the field, its value and what is allowed.
        """
        sizes = {entry.name: entry.size for entry in layout.entries}
        effective_dimensions(sizes, self.window, self.sets, self.sketch)


class EdgeRecorder:
    """The recorder of a batch of runs. Every number is a run's own; it goes on exactly from its state."""

    def __init__(self, config: EdgeConfig, layout: Layout, runs: int, device: str) -> None:
        self.config, self.layout = config, layout
        sizes = {entry.name: entry.size for entry in layout.entries}
        self.stream = UpdateStream(sizes, runs, config.window, config.sets, config.sketch, device=device)
        names = ("step", "set", "parameters", "lr", *(f"dot_{lag}" for lag in range(config.window + 1)))
        self.columns: list[dict[str, list[Any]]] = [{name: [] for name in names} for _ in range(runs)]

    def due(self, step: int) -> bool:
        return step % self.config.every == 0

    def record(self, step: int, flat: Tensor, rates: Sequence[float], going: Sequence[int]) -> None:
        """Take the weights ``[run, param]`` after ``step`` steps; rows are kept of the runs still ``going``.

        Args:
            rates: learning rate of the hidden matrices in the last step, one a run.
        """
        rows = self.stream.push(flat)
        if rows is None:
            return
        for r in going:
            for index, name in enumerate(self.stream.sets):
                dots = [value if abs(value) < float("inf") else None for value in rows[r, index].tolist()]
                values = [step, name, self.stream.dimensions[name], rates[r], *dots]
                for column, value in zip(self.columns[r].values(), values, strict=True):
                    column.append(value)

    def save_modes(self, path: Path, run: int) -> None:
        """Write a run's leading modes as named tensors ``[mode, *shape]`` and their ``sigma [mode]``, once there are
        any."""
        if not self.config.modes or self.stream.count < self.config.window:
            return
        vectors, sigmas = self.stream.modes(self.stream.sets[0], self.config.modes, run)
        views = self.layout.views(vectors.float().cpu())
        tensors = {name: view.contiguous() for name, view in views.items()}
        safetensors.torch.save_file(tensors | {"sigma": sigmas.cpu().clone()}, path)

    def tensors(self, run: int) -> dict[str, Tensor]:
        """What a resume point holds of a run, besides its columns."""
        return {f"{EDGE}.{name}": value for name, value in self.stream.state(run).items()}

    def restore(
        self, tensors: Sequence[Mapping[str, Tensor]], columns: Sequence[dict[str, list[Any]]]
    ) -> None:
        """Go on from the resume points of all runs."""
        head = f"{EDGE}."
        self.stream.restore(
            [{k.removeprefix(head): v for k, v in each.items() if k.startswith(head)} for each in tensors]
        )
        self.columns = list(columns)


def load_modes(path: Path, layout: Layout) -> tuple[Tensor, Tensor]:
    """Modes that a recorder kept: ``[mode, param]`` unit vectors and their singular values ``[mode]``.

    Raises:
        InputError: when the file cannot be read or is of another model.
    """
    try:
        tensors = safetensors.torch.load_file(path)
        sigma = tensors.pop("sigma")
        return layout.join(tensors), sigma
    except (OSError, safetensors.SafetensorError, KeyError) as error:
        raise InputError(f"modes {path}: cannot be read ({error})") from None


def edge_rows(columns: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """A stored trace by parameter set: ``step [record]``, ``lr [record]``, ``rows [record, lag]``, ``parameters``."""
    out: dict[str, dict[str, Any]] = {}
    names = np.array(columns["set"], dtype=str)
    lags = sum(name.startswith("dot_") for name in columns)
    rows = np.array([columns[f"dot_{lag}"] for lag in range(lags)], dtype=float).T
    for name in dict.fromkeys(names.tolist()):
        here = names == name
        out[name] = {
            "step": np.array(columns["step"])[here],
            "lr": np.array(columns["lr"], dtype=float)[here],
            "rows": rows[here],
            "parameters": int(np.array(columns["parameters"])[here][0]),
        }
    return out
