"""Causal language models of Hugging Face as objectives: loaded from a folder, scored on given tokens."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synthlm.analysis.adapters import ModuleObjective
from synthlm.analysis.flat_module import Model
from synthlm.config import InputError
from synthlm.tasks import IGNORE

HELD = 2**26
"""Numbers that one batch's forward pass may hold, roughly."""


def load_causal_lm(folder: Path | str) -> nn.Module:
    """The model that ``save_pretrained`` wrote; nothing is downloaded, no code of the folder is run.

    Raises:
        InputError: when transformers is not installed, or the folder holds no such model.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"checkpoint: {folder} has no config.json; save_pretrained writes one")
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise InputError(
            "checkpoint: a Hugging Face folder needs the package transformers (pip install transformers)"
        ) from None
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, attn_implementation="eager", dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"checkpoint: {folder} cannot be loaded as a causal language model ({error})"
        ) from None
    finally:
        if shown:
            logging.enable_progress_bar()


def causal_lm_objective(
    module: nn.Module,
    tokens: Tensor,
    targets: Tensor | None = None,
    slices: tuple[str, ...] = ("all",),
    codes: Tensor | None = None,
    pad: int | None = None,
    batch: int | None = None,
    aux: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> ModuleObjective:
    """Next-token prediction by a model whose outputs have ``logits``.

    Args:
        tokens: int64 ``[item, time]``.
        targets: int64 ``[item, time]`` what should follow each token, ``IGNORE`` where unscored; None: the next token.
        codes: int64 ``[item]``, or as the targets: index into ``slices``; None: all the first.
        pad: the padding token, neither scored nor attended to; None: that of the model's config, if it has one.
        batch: items at a time: memory grows with it; None: as many as hold some 2^26 activations and logits.
        aux: patterns of further parameters that are no hidden matrices.

    Raises:
        InputError: when the tokens do not fit the model's vocabulary or length, or nothing is left to score.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8))
        >>> objective = causal_lm_objective(model, torch.randint(0, 20, (4, 6)))
        >>> objective.losses(objective.flat[None]).shape
        torch.Size([1, 1])
    """
    config: Any = module.config
    pad = getattr(config, "pad_token_id", None) if pad is None else pad
    if tokens.ndim != 2 or (targets is None and tokens.shape[1] < 2):
        raise InputError(f"tokens: shape {tuple(tokens.shape)}, but [item, time >= 2] is needed")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= config.vocab_size:
        raise InputError(f"tokens: {low}..{high} do not fit the model's vocabulary of {config.vocab_size}")
    real = torch.ones_like(tokens, dtype=torch.bool) if pad is None else tokens != pad
    if targets is None:
        targets = tokens[:, 1:].masked_fill(~real[:, 1:], IGNORE)
        tokens, real = tokens[:, :-1], real[:, :-1]
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and tokens.shape[1] > longest:
        raise InputError(f"tokens: {tokens.shape[1]} inputs a sequence, but the model's length is {longest}")
    targets = targets.masked_fill(~real, IGNORE)
    codes = torch.zeros(len(tokens), dtype=torch.int64) if codes is None else codes
    labels = codes[:, None].expand_as(targets) if codes.ndim == 1 else codes
    kept = (targets != IGNORE).any(1)  # an item of padding alone would be attended nowhere
    tokens, real, targets, labels = (array[kept] for array in (tokens, real, targets, labels))
    # padding on the left shifts no position, where the model can be told so
    placed = "position_ids" in inspect.signature(module.forward).parameters

    def predict(model: Model, given: tuple[Tensor, Tensor]) -> Tensor:
        ids, mask = given
        extra = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)} if placed else {}
        return model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits

    if batch is None:
        widths = getattr(config, "hidden_size", 0) * getattr(config, "num_hidden_layers", 0)
        batch = max(1, HELD // (tokens.shape[1] * (config.vocab_size + 16 * widths)))
    parts = [slice(a, a + batch) for a in range(0, max(1, len(tokens)), batch)]
    return ModuleObjective(
        module,
        [((tokens[part], real[part].long()), targets[part]) for part in parts],
        slices,
        [labels[part] for part in parts],
        [real[part] for part in parts],
        predict,
        aux,
        dtype=dtype,
    )
