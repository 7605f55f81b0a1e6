"""A decoder-only transformer as a pure function of its weights, with a leading run axis on every tensor.

Axis names: ``run`` independent models, ``batch`` sequences, ``time`` tokens, ``d`` model width, ``head``, ``vocab``.
Matrices are stored (out, in). Taps see activations under TransformerLens names (``blocks.0.hook_resid_post``,
``blocks.0.attn.hook_pattern``, ``blocks.0.mlp.hook_post``, ...).
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor

from synthlm.config import Config
from synthlm.weights import Entry, Layout

Tap = Callable[[str, Tensor], Tensor]
Attention = Literal["fused", "math"]


class ModelConfig(Config):
    """The architecture. ``mlp`` is the hidden width of the MLP; ``length`` the longest input in tokens."""

    vocab: int = Field(ge=2)
    length: int = Field(ge=1)
    width: int = Field(64, ge=2)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    mlp: int = Field(256, ge=1)
    activation: Literal["gelu", "relu2", "swiglu"] = "relu2"
    positions: Literal["learned", "rotary"] = "learned"
    tied: bool = False

    @model_validator(mode="after")
    def _divisible(self) -> "ModelConfig":
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} must divide width {self.width}")
        if self.positions == "rotary" and (self.width // self.heads) % 2:
            raise ValueError(
                f"heads: rotary positions need an even head width, not {self.width // self.heads}"
            )
        return self

    @property
    def layout(self) -> Layout:
        """Every parameter by name; hidden matrices are the ``matrix`` group, all else ``aux``."""
        d, m = self.width, self.mlp
        entries = [Entry("embed.W_E", (self.vocab, d), "aux")]
        if self.positions == "learned":
            entries.append(Entry("pos_embed.W_pos", (self.length, d), "aux"))
        for i in range(self.layers):
            block = f"blocks.{i}."
            entries += [Entry(f"{block}attn.W_{name}", (d, d), "matrix") for name in "QKVO"]
            entries.append(Entry(block + "mlp.W_in", (m, d), "matrix"))
            if self.activation == "swiglu":
                entries.append(Entry(block + "mlp.W_gate", (m, d), "matrix"))
            entries.append(Entry(block + "mlp.W_out", (d, m), "matrix"))
            entries += [Entry(block + "ln1.w", (d,), "aux"), Entry(block + "ln2.w", (d,), "aux")]
        entries.append(Entry("ln_final.w", (d,), "aux"))
        if not self.tied:
            entries.append(Entry("unembed.W_U", (self.vocab, d), "aux"))
        return Layout(entries)

    @property
    def flops_per_token(self) -> float:
        """Multiply-adds x 2 of one forward pass per token, attention scores included."""
        attention = 4 * self.layers * self.length * self.width
        return 2.0 * (self.layout.matrix_size + self.vocab * self.width) + attention


def init(config: ModelConfig, generator: torch.Generator) -> Tensor:
    """Initial weights ``[param]`` of one run.

    Matrices are N(0, 1/in); those that write to the residual stream are smaller by sqrt(2 layers) (GPT-2); embeddings
    are N(0, 1), or N(0, 1/d) when the head is tied to them; positions N(0, 1/d); gains 1. Our choice.
    """
    layout = config.layout
    flat = torch.empty(layout.size)
    for entry in layout.entries:
        leaf = entry.name.rsplit(".", 1)[1]
        target = flat[layout.slices[entry.name]]
        if leaf == "w":
            target.fill_(1.0)
            continue
        std = 1 / math.sqrt(entry.shape[1])
        if leaf in ("W_O", "W_out"):
            std /= math.sqrt(2 * config.layers)
        if leaf == "W_E" and not config.tied:
            std = 1.0
        target.normal_(0, std, generator=generator)
    return flat


def _untapped(name: str, value: Tensor) -> Tensor:
    return value


def hidden(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    tokens: Tensor,
    tap: Tap = _untapped,
    attention: Attention = "fused",
) -> Tensor:
    """``tokens [run, batch, time] -> [run, batch, time, d]``: the normalized residual stream before the head.

    Args:
        weights: name -> ``[run, *shape]``.
        tap: called with each activation's name and value; what it returns is used in its place.
        attention: ``fused`` in training; ``math`` where second derivatives are taken (the fused kernel has none)
            or where the pattern is tapped.

    Raises:
        ValueError: when the sequence is longer than ``config.length``.
    """
    runs, _, time = tokens.shape
    if time > config.length:
        raise ValueError(f"sequences of {time} tokens, but the model's length is {config.length}")
    run_index = torch.arange(runs, device=tokens.device)[:, None, None]
    x = tap("hook_embed", weights["embed.W_E"][run_index, tokens])
    rotation = None
    if config.positions == "learned":
        x = x + tap("hook_pos_embed", weights["pos_embed.W_pos"][:, None, :time])
    else:
        rotation = _rotation(time, config.width // config.heads, x)
    for i in range(config.layers):
        x = _block(config, weights, f"blocks.{i}.", x, rotation, tap, attention)
    return tap("ln_final.hook_normalized", _rms_norm(x, weights["ln_final.w"]))


def unembed(config: ModelConfig, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """``[run, ..., d] -> [run, ..., vocab]`` logits."""
    return _linear(x, weights["embed.W_E" if config.tied else "unembed.W_U"])


def forward(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    tokens: Tensor,
    tap: Tap = _untapped,
    attention: Attention = "fused",
) -> Tensor:
    """``tokens [run, batch, time] -> logits [run, batch, time, vocab]``; arguments as in :func:`hidden`."""
    return unembed(config, weights, hidden(config, weights, tokens, tap, attention))


def _block(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    name: str,
    x: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
    tap: Tap,
    attention: Attention,
) -> Tensor:
    x = tap(name + "hook_resid_pre", x)
    normed = tap(name + "ln1.hook_normalized", _rms_norm(x, weights[name + "ln1.w"]))
    q, k, v = (
        rearrange(
            _linear(normed, weights[f"{name}attn.W_{which}"]), "r b t (h e) -> (r b) h t e", h=config.heads
        )
        for which in "QKV"
    )
    runs = x.shape[0]
    q, k, v = (
        _tap_heads(tap, f"{name}attn.hook_{which}", value, runs)
        for which, value in zip("qkv", (q, k, v), strict=True)
    )
    if rotation is not None:
        q, k = (
            _tap_heads(tap, f"{name}attn.hook_rot_{which}", _rotate(value, *rotation), runs)
            for which, value in zip("qk", (q, k), strict=True)
        )
    if attention == "fused":
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        z = _tap_pattern(tap, f"{name}attn.hook_pattern", _pattern(q, k), runs) @ v
    z = rearrange(_tap_heads(tap, name + "attn.hook_z", z, runs), "(r b) h t e -> r b t (h e)", r=runs)
    x = x + tap(name + "hook_attn_out", _linear(z, weights[name + "attn.W_O"]))
    x = tap(name + "hook_resid_mid", x)
    normed = tap(name + "ln2.hook_normalized", _rms_norm(x, weights[name + "ln2.w"]))
    post = tap(name + "mlp.hook_post", _mlp(config, weights, name, normed, tap))
    x = x + tap(name + "hook_mlp_out", _linear(post, weights[name + "mlp.W_out"]))
    return tap(name + "hook_resid_post", x)


def _mlp(config: ModelConfig, weights: Mapping[str, Tensor], name: str, x: Tensor, tap: Tap) -> Tensor:
    linear = _linear(x, weights[name + "mlp.W_in"])
    if config.activation == "swiglu":  # hook_pre is what the activation function sees: the gate
        gate = tap(name + "mlp.hook_pre", _linear(x, weights[name + "mlp.W_gate"]))
        return _silu(gate) * tap(name + "mlp.hook_pre_linear", linear)
    pre = tap(name + "mlp.hook_pre", linear)
    if config.activation == "gelu":
        return F.gelu(pre)
    positive = F.relu(pre)
    return positive * positive


def _silu(x: Tensor) -> Tensor:
    """``F.silu``, whose kernel rounds the last numbers of a tensor (its length modulo 32) otherwise than the rest.

    Padded, no run has numbers there, alone or beside others.
    """
    spare = -x.shape[-1] % 32
    return F.silu(F.pad(x, (0, spare)))[..., :-spare] if spare else F.silu(x)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x [run, ..., in]`` times ``weight [run, out, in]`` -> ``[run, ..., out]``, one product a run."""
    flat = torch.bmm(x.flatten(1, -2), weight.mT)
    return flat.view(*x.shape[:-1], weight.shape[1])


def _rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],)) * gain[:, None, None, :]


def _pattern(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)


def _tap_heads(tap: Tap, name: str, value: Tensor, runs: int) -> Tensor:
    """Taps see queries, keys, values and z as ``[run, batch, time, head, d_head]``."""
    if tap is _untapped:
        return value
    seen = tap(name, rearrange(value, "(r b) h t e -> r b t h e", r=runs))
    return rearrange(seen, "r b t h e -> (r b) h t e")


def _tap_pattern(tap: Tap, name: str, value: Tensor, runs: int) -> Tensor:
    """Taps see the pattern as ``[run, batch, head, query, key]``."""
    return tap(name, rearrange(value, "(r b) h q k -> r b h q k", r=runs)).flatten(0, 1)


def _rotation(time: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine ``[time, d_head / 2]`` of rotary positions (arXiv 2104.09864, base 10000)."""
    frequency = 10000.0 ** (-torch.arange(0, size, 2, device=like.device, dtype=like.dtype) / size)
    angle = torch.arange(time, device=like.device, dtype=like.dtype)[:, None] * frequency
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
