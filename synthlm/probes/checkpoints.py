"""Models that no store holds: a Hugging Face folder, or a file of this package's weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from synthlm.analysis.causal_lm import causal_lm_objective, load_causal_lm
from synthlm.analysis.flat_module import FlatModule
from synthlm.analysis.objective import LanguageObjective, Objective, part_of
from synthlm.config import InputError, parse
from synthlm.model import ModelConfig
from synthlm.tasks import IGNORE, Language, Table
from synthlm.tasks.language import PAD
from synthlm.weights import Layout

TOLD = ("heads", "activation")
"""Settings of a model that the shapes of its weights do not tell."""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Files of which a folder with a tokenizer has at least one."""


@dataclass(frozen=True)
class Data:
    """What a model is scored on: a language, or ``tokens [item, time]`` of which every next one is scored.

    ``pad``: a token that is neither scored nor attended to.
    """

    language: Language | None = None
    tokens: Tensor | None = None
    pad: int | None = None

    def sequences(self, items: int | None) -> Tensor:
        """At most so many of the sequences, evenly spaced."""
        assert self.tokens is not None
        count = len(self.tokens) if items is None else min(items, len(self.tokens))
        return self.tokens[torch.arange(count) * len(self.tokens) // count]


class Checkpoint(Protocol):
    """One model: its layout, vocabulary, longest input (None: unknown), weights, and itself as an objective."""

    layout: Layout
    vocab: int
    longest: int | None

    def flat(self) -> Tensor:
        """``[param]``."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text.

        Raises:
            InputError: when the model has no tokenizer.
        """
        ...

    def objective(
        self, data: Data, device: str, table: str, goals_only: bool, items: int | None
    ) -> Objective:
        """Cross entropy on the data; of a language as in ``analysis.objective.language_objective``.

        Raises:
            InputError: when the data do not fit the model.
        """
        ...


class HuggingFace:
    """A folder written by ``save_pretrained``.

    Args:
        aux: patterns of parameters that are no hidden matrices, besides those found.

    Raises:
        InputError: when it cannot be loaded, or transformers is not installed.
    """

    def __init__(self, folder: Path, aux: tuple[str, ...] = ()) -> None:
        self.folder, self.aux = folder, aux
        self.module: nn.Module = load_causal_lm(folder)
        config: Any = self.module.config
        self.vocab, self.longest = config.vocab_size, getattr(config, "max_position_embeddings", None)
        inner = FlatModule(self.module, aux)
        self.layout, self._flat = inner.layout, inner.flat

    def flat(self) -> Tensor:
        return self._flat

    def tokenize(self, text: str) -> list[int]:
        from transformers import AutoTokenizer

        help_ = "give token ids as a .npy [item, time]"
        if not any(
            (self.folder / name).is_file() for name in TOKENIZERS
        ):  # else an empty one would be made up
            raise InputError(f"data: {self.folder} has no tokenizer; {help_}")
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        except Exception as error:  # loaders raise whatever they like
            raise InputError(
                f"data: the tokenizer of {self.folder} cannot be used ({error}); {help_}"
            ) from None

    def objective(
        self, data: Data, device: str, table: str, goals_only: bool, items: int | None
    ) -> Objective:
        module = self.module.to(device)
        if data.language is None:
            return causal_lm_objective(module, data.sequences(items), pad=data.pad, aux=self.aux)
        names = data.language.slices
        chosen, only = part_of(data.language, table, goals_only, items)
        codes = torch.tensor(chosen.slices)
        kept = [i for i, name in enumerate(names) if (codes == i).any() and (only is None or name in only)]
        renumbered = torch.full((len(names) + 1,), -1)
        renumbered[kept] = torch.arange(len(kept))
        codes = renumbered[codes]
        targets = torch.tensor(chosen.targets).masked_fill(codes < 0, IGNORE)
        slices = tuple(names[i] for i in kept)
        return causal_lm_objective(
            module, torch.tensor(chosen.tokens), targets, slices, codes, pad=PAD, aux=self.aux
        )


class WeightsFile:
    """Weights of this package's transformer in a safetensors or PyTorch file.

    Args:
        settings: of the model: what the shapes do not tell (heads and activation).

    Raises:
        InputError: when the file cannot be read or does not fit the model.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        tensors = _read(path)
        data = {**_shape_of(path, tensors), **settings}
        missing = [name for name in TOLD if name not in data]
        if missing:
            given = " ".join(f"--model {name}=..." for name in missing)
            raise InputError(f"model: the file does not tell {' and '.join(missing)}; give {given}")
        self.config = parse(ModelConfig, data, "model")
        self.layout = self.config.layout
        self.vocab = self.config.vocab
        self.longest: int | None = self.config.length
        expected = {entry.name: entry.shape for entry in self.layout.entries}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            wrong = sorted(set(found.items()) ^ set(expected.items()))[0]
            raise InputError(
                f"checkpoint: {path} does not fit the model; first difference at {wrong[0]} {wrong[1]}"
            )
        self._flat = self.layout.join({name: value.float()[None] for name, value in tensors.items()})[0]

    def flat(self) -> Tensor:
        return self._flat

    def tokenize(self, text: str) -> NoReturn:
        raise InputError(
            "data: this model has no tokenizer; name a language, or give a .npy of tokens [item, time]"
        )

    def objective(
        self, data: Data, device: str, table: str, goals_only: bool, items: int | None
    ) -> Objective:
        if data.language is not None:
            names = data.language.slices
            chosen, only = part_of(data.language, table, goals_only, items)
        else:
            chosen, names, only = _as_table(data.sequences(items).numpy(), data.pad), ("all",), None
        for name, needed in (("vocab", int(chosen.tokens.max()) + 1), ("length", chosen.tokens.shape[1])):
            if needed > getattr(self.config, name):
                raise InputError(f"data: needs a model.{name} of {needed}, not {getattr(self.config, name)}")
        return LanguageObjective(self.config, chosen, names, only, device=device)


def load_checkpoint(path: Path, settings: Mapping[str, Any], aux: tuple[str, ...] = ()) -> Checkpoint:
    """The model at a path.

    Raises:
        InputError: when it is neither a Hugging Face folder nor a weights file, or cannot be loaded.
    """
    if path.is_dir():
        if (path / "done.json").is_file():
            raise InputError(
                f"checkpoint: {path} is an entry of a store; give its key, {path.name[:12]}, and --store"
            )
        if settings:
            raise InputError(f"model: the folder {path} tells its model itself; --model is for weights files")
        return HuggingFace(path, aux)
    return WeightsFile(path, settings)


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors by name.

    Raises:
        InputError: when the file is of another kind, cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix not in (".pt", ".pth", ".bin"):
            raise InputError(f"checkpoint: {path} should end in .safetensors, .pt, .pth or .bin")
        held = torch.load(path, map_location="cpu", weights_only=True)  # runs no code of the file
    except InputError:
        raise
    except Exception as error:  # damaged files raise whatever they like
        raise InputError(f"checkpoint: {path} cannot be read ({str(error).splitlines()[0]})") from None
    for name in ("state_dict", "model"):
        if isinstance(held, dict) and isinstance(held.get(name), dict):
            held = held[name]
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise InputError(f"checkpoint: {path} holds no tensors by name")
    return held


def _shape_of(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of a model that its weights tell.

    Raises:
        InputError: when the names are not those of this package's transformer.
    """
    try:
        vocab, width = tensors["embed.W_E"].shape
        found: dict[str, Any] = {
            "vocab": vocab,
            "width": width,
            "mlp": len(tensors["blocks.0.mlp.W_in"]),
            "layers": 1 + max(int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))),
            "tied": "unembed.W_U" not in tensors,
        }
    except (KeyError, ValueError) as error:
        raise InputError(f"checkpoint: {path} holds no transformer of this package (no {error})") from None
    if "pos_embed.W_pos" in tensors:
        found |= {"positions": "learned", "length": len(tensors["pos_embed.W_pos"])}
    else:
        found |= {"positions": "rotary", "length": 2**20}  # rotary positions have no longest input
    if "blocks.0.mlp.W_gate" in tensors:
        found["activation"] = "swiglu"
    return found


def _as_table(tokens: np.ndarray, pad: int | None) -> Table:
    """Sequences ``[item, time]`` as a table that scores every next token but padding."""
    real = np.ones_like(tokens, dtype=bool) if pad is None else tokens != pad
    scored = real[:, :-1] & real[:, 1:]
    kept = scored.any(1)
    if not kept.any():
        raise InputError("data: nothing but padding")
    tokens, scored = tokens[kept], scored[kept]
    return Table(
        tokens=tokens[:, :-1].copy(),
        targets=np.where(scored, tokens[:, 1:], IGNORE),
        slices=np.where(scored, 0, -1),
        weight=np.full(len(tokens), 1 / len(tokens)),
        floor=np.zeros(scored.shape),
        key=np.arange(len(tokens)),
    )
