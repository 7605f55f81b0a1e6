"""The spectral edge of training, followed as it runs: dot products of weight updates in a rolling window.

Everything that the edge is made of (spectrum of the Gram matrix of the last W updates, its gaps, how its leading
directions turn) follows from dot products of updates at most W recorded steps apart. So a stream keeps a ring of W
updates and gives one row of W + 1 numbers a recorded step; :mod:`synthlm.analysis.edge_statistics` turns rows into the
rest, and the trajectory itself is never stored. Definitions: arXiv 2603.28964 and the author's code.

Axis names: ``run`` trajectories side by side, ``record`` recorded updates, ``lag`` 0..W, ``set`` parameter sets,
``param``.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from synthlm.config import InputError, near_match
from synthlm.seeds import torch_generator

NAMED_SETS: dict[str, tuple[str, ...]] = {
    "all": ("*",),
    "attention": (
        "attn.*",
        "*.attn.*",
        "*self_attn.*",
        "*cross_attn.*",
        "*encoder_attn.*",
        "*linear_attn.*",
        "*multihead_attn.*",
        "*attention.*",
        "*Attention.*",
        "*Attn.*",
    ),
    "mlp": ("mlp.*", "*.mlp.*", "*feed_forward.*", "*ffn.*", "*DenseReluDense.*"),
    "embedding": ("*embed*", "*wte*", "*wpe*", "*lm_head*"),
}
"""Parameter sets by name: patterns of parameter names, of this package's models and of common others.

Modules are meant, so norms which are named after their neighbour (``post_attention_layernorm``, ``attn_norm``,
``ln_attn``, ``ffn_norm``) belong to neither.
"""

LAYERS = "layers"
"""In place of a set's name: one set for each part of each layer, such as ``blocks.0.attn``."""

ALIGNED = (
    8  # float64 numbers of a 64-byte line: every update begins at one, so that equal updates give equal bits
)


def check_words(wanted: Sequence[str]) -> None:
    """Raise InputError for a word that names no set and is no pattern."""
    allowed = [*NAMED_SETS, LAYERS]
    for word in wanted:
        if word not in allowed and not any(mark in word for mark in "*?["):
            raise InputError(
                f"sets: {word!r} is neither a pattern (with *) nor one of {', '.join(allowed)}"
                f"{near_match(word, allowed)}"
            )


def parameter_sets(names: Sequence[str], wanted: Sequence[str]) -> dict[str, tuple[bool, ...]]:
    """Set -> whether each parameter belongs to it; sets without a parameter are left out.

    Args:
        names: of the parameters.
        wanted: keys of ``NAMED_SETS``, ``layers``, or patterns with ``*`` or ``?`` (then the pattern names the set).

    Raises:
        InputError: for another word, or when no set has a parameter.
    """
    check_words(wanted)
    found: dict[str, tuple[bool, ...]] = {}
    for word in wanted:
        if word == LAYERS:
            parts = [_layer_part(name) for name in names]
            found |= {part: tuple(p == part for p in parts) for part in dict.fromkeys(parts) if part}
            continue
        patterns = NAMED_SETS.get(word, (word,))
        found[word] = tuple(any(fnmatchcase(name, pattern) for pattern in patterns) for name in names)
    found = {word: members for word, members in found.items() if any(members)}
    if not found:
        raise InputError(f"sets: no parameter belongs to {', '.join(wanted)}; there are {', '.join(names)}")
    return found


def _layer_part(name: str) -> str:
    """``model.blocks.0.attn.W_Q`` -> ``model.blocks.0.attn``; nothing for a parameter outside of numbered layers."""
    match = re.match(r"((?:.*?\.)?\d+\.[^.]+)\.", name)
    return match[1] if match else ""


@dataclass(frozen=True)
class _Segment:
    """Neighbouring parameters in the same sets: columns ``start:stop`` of the weights, ``at:to`` of what is held."""

    start: int
    stop: int
    at: int
    to: int
    members: tuple[bool, ...]

    @property
    def sketched(self) -> bool:
        return self.to - self.at < self.stop - self.start


def _segments(
    sizes: Sequence[int], members: Sequence[tuple[bool, ...]], sketch: int | None
) -> list[_Segment]:
    pieces: list[list] = []
    start = 0
    for size, belongs in zip(sizes, members, strict=True):
        if any(belongs):
            if pieces and pieces[-1][1] == start and pieces[-1][2] == belongs:
                pieces[-1][1] = start + size
            else:
                pieces.append([start, start + size, belongs])
        start += size
    out, at = [], 0
    for first, stop, belongs in pieces:
        width = stop - first if sketch is None else min(sketch, stop - first)
        out.append(_Segment(first, stop, at, at + width, belongs))
        at += math.ceil(width / ALIGNED) * ALIGNED
    return out


def effective_dimensions(
    sizes: Mapping[str, int], window: int = 10, sets: Sequence[str] = ("all",), sketch: int | None = None
) -> dict[str, float]:
    """Set -> the effective dimension of its updates as a stream holds them; without a sketch its number of parameters.

    The dot product of two independent updates has a variance of |x|^2 |y|^2 / dimension. Where every parameter moves
    alike, a group of n of the P parameters adds (n/P)^2 / n to 1 / dimension, and where it is sketched to m < n numbers
    (n/P)^2 (1/n + (1 - 1/n) / m): two parameters that share a bucket, one pair in m, meet as one. This is what nulls
    need; ours, tested by simulation.

    Args:
        sizes, window, sets, sketch: see :class:`UpdateStream`.

    Raises:
        InputError: see :class:`UpdateStream`.
    """
    found = parameter_sets(list(sizes), sets)
    return _dimensions(tuple(found), _grouped(sizes, found, sketch), window, sketch)


def _grouped(
    sizes: Mapping[str, int], found: Mapping[str, tuple[bool, ...]], sketch: int | None
) -> list[_Segment]:
    return _segments(list(sizes.values()), list(zip(*found.values(), strict=True)), sketch)


def _dimensions(
    sets: Sequence[str], segments: Sequence[_Segment], window: int, sketch: int | None
) -> dict[str, float]:
    if window < 3:
        raise InputError(f"window: {window} is too small; at least 3 updates have a second gap")
    if sketch is not None and sketch < window:
        raise InputError(f"sketch: {sketch} numbers cannot hold a window of {window} updates")
    out: dict[str, float] = {}
    for i, name in enumerate(sets):
        here = [s for s in segments if s.members[i]]
        total = sum(s.stop - s.start for s in here)
        if total < window:
            raise InputError(
                f"window: {window} updates need as many parameters, but the set {name!r} has {total}; "
                "allowed: a smaller window (3 at least), or sets with more parameters"
            )
        sketched = [(s.stop - s.start, s.to - s.at) for s in here if s.sketched]
        out[name] = total / (1 + sum(n * (n - 1) / held for n, held in sketched) / total)
        if out[name] < window:
            raise InputError(
                f"sketch: {sketch} numbers a group of parameters leave {out[name]:.1f} dimensions to the set "
                f"{name!r}, fewer than the window's {window} updates; allowed: a larger sketch"
            )
    return out


class UpdateStream:
    """Takes weights ``[run, param]`` one recorded step after the other and gives dot products of their differences.

    Differences and products are in float64; every product is computed once, from the two updates themselves, so nothing
    drifts however long the stream. A run's numbers do not depend on the runs beside it.

    Args:
        sizes: parameter name -> number of values, in the order of the flat weights.
        runs: trajectories side by side.
        window: W, updates in a window.
        sets: see :func:`parameter_sets`.
        sketch: keep a count sketch of so many numbers of each group of neighbouring parameters in place of the updates
            (Charikar et al. 2002): a random sparse sign projection, unbiased for dot products, with a standard error of
            at most ``sqrt(2 / sketch) * |x| * |y|`` (Johnson-Lindenstrauss; tested). For models whose W updates do not
            fit. Its noise makes independent updates meet as in fewer dimensions: nulls take ``effective`` for P.
        seed: of the sketch.

    Attributes:
        dimensions: set -> number of parameters.
        effective: set -> effective dimension of what is held, for statistics and nulls (:func:`effective_dimensions`).

    Raises:
        InputError: see :func:`parameter_sets`; or a window of fewer than 3 updates, or of more updates than a set has
            parameters, or a sketch that is too small for the window.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        runs: int = 1,
        window: int = 10,
        sets: Sequence[str] = ("all",),
        sketch: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        found = parameter_sets(list(sizes), sets)
        self.sets, self.window, self.runs = tuple(found), window, runs
        self.size = sum(sizes.values())
        self.segments = _grouped(sizes, found, sketch)
        self.effective = _dimensions(self.sets, self.segments, window, sketch)
        self.dimensions = {
            name: sum(size for size, member in zip(sizes.values(), members, strict=True) if member)
            for name, members in found.items()
        }
        self.sketch, self.device = sketch, device
        self._membership = torch.tensor([s.members for s in self.segments], dtype=torch.float64).T.to(device)
        self._hashes = [self._hash(i, seed) if s.sketched else None for i, s in enumerate(self.segments)]
        width = max(s.at + math.ceil((s.to - s.at) / ALIGNED) * ALIGNED for s in self.segments)
        self.ring = torch.zeros(runs, window, width, dtype=torch.float64, device=device)
        self.previous: Tensor | None = None
        self.count = 0
        """Updates seen."""

    def _hash(self, index: int, seed: int) -> tuple[Tensor, Tensor]:
        segment = self.segments[index]
        size, buckets = segment.stop - segment.start, segment.to - segment.at
        generator = torch_generator(seed, "sketch", index)
        bucket = torch.randint(buckets, (size,), generator=generator).to(self.device)
        sign = torch.randint(2, (size,), generator=generator).to(self.device, torch.float64) * 2 - 1
        return bucket, sign

    def _held(self, difference: Tensor) -> Tensor:
        """``[run, param]`` -> ``[run, held]``: the parameters that are in some set, sketched where wanted."""
        held = self.ring.new_zeros(self.runs, self.ring.shape[2])
        for segment, hashed in zip(self.segments, self._hashes, strict=True):
            piece = difference[:, segment.start : segment.stop]
            if hashed is None:
                held[:, segment.at : segment.to] = piece
            else:
                held[:, segment.at : segment.to].index_add_(1, hashed[0], piece * hashed[1])
        return held

    @torch.no_grad()
    def push(self, flat: Tensor) -> Tensor | None:
        """Take the next weights ``[run, param]``.

        Returns:
            ``[run, set, lag]`` float64 on the CPU: the new update's dot products with itself (lag 0) and with the
            updates 1..W records before it, NaN where there is none yet. None for the first weights.

        Raises:
            ValueError: on another shape.
        """
        if flat.shape != (self.runs, self.size):
            raise ValueError(f"weights of shape {tuple(flat.shape)}, not {(self.runs, self.size)}")
        before, self.previous = self.previous, flat.detach().clone()
        if before is None:
            return None
        new = self._held(flat.double() - before.double())
        parts = new.new_empty(self.runs, len(self.segments), self.window + 1)
        for r in range(self.runs):  # one product a run: its rounding must not depend on the other runs
            for s, segment in enumerate(self.segments):
                piece = new[r, segment.at : segment.to]
                parts[r, s, 0] = torch.dot(piece, piece)
                parts[r, s, 1:] = torch.mv(self.ring[r, :, segment.at : segment.to], piece)
        place = [(self.count - lag) % self.window for lag in range(1, self.window + 1)]
        parts = parts[:, :, [0, *(1 + p for p in place)]]
        rows = torch.stack([self._membership @ part for part in parts])
        rows[:, :, self.count + 1 :] = math.nan
        self.ring[:, self.count % self.window] = new
        self.count += 1
        return rows.cpu()

    @torch.no_grad()
    def modes(self, name: str, count: int, run: int = 0) -> tuple[Tensor, Tensor]:
        """The leading right singular vectors of a run's current window in parameter space.

        Returns:
            ``[mode, param]`` unit vectors, zero outside of the set, and their singular values ``[mode]``. A mode whose
            singular value is zero is a zero vector; updates that are not finite give NaN.

        Raises:
            ValueError: with a sketch, for an unknown set, or before the window is full.
        """
        if self.sketch is not None or name not in self.sets or self.count < self.window:
            raise ValueError(f"no modes of {name!r}: sketched, an unknown set, or a window that is not full")
        chosen = [s for s in self.segments if s.members[self.sets.index(name)]]
        updates = torch.cat([self.ring[run, :, s.at : s.to] for s in chosen], dim=1)
        gram = updates @ updates.T
        if not bool(torch.isfinite(gram).all()):
            return gram.new_full((count, self.size), math.nan), gram.new_full((count,), math.nan)
        leading = torch.linalg.eigh(gram)[1].flip(1)[:, :count].T @ updates  # [mode, held]: sigma_j v_j
        sigma = torch.linalg.vector_norm(leading, dim=1)
        leading = leading / torch.where(sigma > 0, sigma, torch.inf)[:, None]
        out = gram.new_zeros(count, self.size)
        at = 0
        for s in chosen:
            out[:, s.start : s.stop] = leading[:, at : at + s.stop - s.start]
            at += s.stop - s.start
        return out, sigma

    def state(self, run: int) -> dict[str, Tensor]:
        """What one run's stream needs to go on: copies on the CPU; empty before the first weights."""
        if self.previous is None:
            return {}
        return {
            "previous": self.previous[run].cpu().clone(),
            "ring": self.ring[run].cpu().clone(),
            "count": torch.tensor([self.count]),
        }

    def restore(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on from the states of all runs, which must be equally far."""
        if not any(states):
            return
        self.previous = torch.stack([state["previous"] for state in states]).to(self.device)
        self.ring = torch.stack([state["ring"] for state in states]).to(self.device)
        self.count = int(states[0]["count"])
