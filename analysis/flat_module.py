"""A PyTorch module as a function of one flat tensor.

``torch.func.functional_call`` runs the module at any weights; the module itself is copied and never changed. Tied
parameters are one parameter. Groups: weights of hidden ``Linear`` and ``Conv1D`` layers are matrices, (out, in) in
whatever order the module has them; embeddings, the head, gains and biases are ``aux``.
"""

import copy
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from synthlm.config import InputError
from synthlm.weights import Entry, Layout

Model = Callable[..., Any]
"""The module at some weights, called as the module itself is."""


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by elementary operations: fused kernels have no second derivatives, and hide layers from hooks."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class FlatModule:
    """A module as a function of one flat tensor.

    Args:
        aux: shell patterns over parameter names that are no hidden matrices, besides those found: embeddings, the last
            ``Linear`` (the head) and layers tied to an embedding.
        head: whether the last ``Linear`` is a head.

    Attributes:
        layout: of the flat tensor.
        flat: ``[param]`` the module's own weights.

    Raises:
        InputError: when a pattern matches no parameter, or the module has no parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        aux: Sequence[str] = (),
        head: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.module = copy.deepcopy(module).to(dtype).eval().requires_grad_(False)
        self.dtype = dtype
        self._hosts, self._turned = _hidden(self.module, head)
        parameters = dict(self.module.named_parameters())
        if not parameters:
            raise InputError("module: it has no parameters")
        for pattern in aux:
            matches = fnmatch.filter(parameters, pattern)
            if not matches:
                raise InputError(f"aux: {pattern!r} matches no parameter; there are {', '.join(parameters)}")
            for name in matches:
                self._hosts.pop(name, None)
        self.layout = Layout(
            Entry(
                name,
                tuple(p.mT.shape if name in self._turned else p.shape),
                "matrix" if name in self._hosts else "aux",
            )
            for name, p in parameters.items()
        )
        self.flat = self.layout.join({name: self._turn(name, p)[None] for name, p in parameters.items()})[0]

    def _turn(self, name: str, value: Tensor) -> Tensor:
        return value.mT if name in self._turned else value

    def state(self, row: Tensor) -> dict[str, Tensor]:
        """``[param]`` -> parameters by name, in the module's own shapes (for ``load_state_dict(strict=False)``)."""
        views = self.layout.views(row.to(self.dtype)[None])
        return {name: self._turn(name, view[0]) for name, view in views.items()}

    def at(self, row: Tensor) -> Model:
        """The module at weights ``[param]``; differentiable in them."""
        state = self.state(row)
        return lambda *args, **kwargs: torch.func.functional_call(self.module, state, args, kwargs)

    def _watch(self, seen: dict[str, Tensor]) -> list[Any]:
        """Hooks that put each hidden matrix's last input into ``seen``; remove them after use."""

        def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
            def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                x = args[0] if args else next(iter(kwargs.values()))
                time_first = isinstance(module, nn.MultiheadAttention) and not module.batch_first
                seen[name] = (x.transpose(0, 1) if time_first and x.ndim == 3 else x).detach()

            return keep

        return [
            host.register_forward_pre_hook(hook(name), with_kwargs=True) for name, host in self._hosts.items()
        ]

    def inputs(self, flat: Tensor, run: Callable[[Model], Any]) -> Iterator[tuple[str, Tensor]]:
        """Each hidden matrix's name and its input ``[..., in]`` while ``run`` calls the module at ``flat [1, param]``.

        Matrices whose module is not called are left out.

        Raises:
            ValueError: when there is more than one run.
        """
        if len(flat) != 1:
            raise ValueError(f"inputs are of one run, not of {len(flat)}")
        seen: dict[str, Tensor] = {}
        hooks = self._watch(seen)
        try:
            run(self.at(flat[0]))
        finally:
            for hook in hooks:
                hook.remove()
        matrices = [entry.name for entry in self.layout.entries if entry.group == "matrix"]
        yield from ((name, seen[name]) for name in matrices if name in seen)


def _hidden(module: nn.Module, head: bool) -> tuple[dict[str, nn.Module], set[str]]:
    """Parameter name -> module, of hidden matrices; and the names that are stored (in, out)."""
    embedded = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    hosts: dict[str, nn.Module] = {}
    turned: set[str] = set()
    linear: list[nn.Module] = []
    for part in module.modules():
        if isinstance(part, nn.Linear) or _is_conv1d(part):
            linear.append(part)
            weight: Any = part.weight
            if id(weight) in names and id(weight) not in embedded:
                hosts[names[id(weight)]] = part
                if _is_conv1d(part):
                    turned.add(names[id(weight)])
        elif isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
            hosts[names[id(part.in_proj_weight)]] = part  # query, key and value in one matrix
    told: Any = getattr(module, "get_output_embeddings", lambda: None)  # of transformers
    last = told() or (linear[-1] if linear else None)
    if head and last is not None:
        hosts.pop(names.get(id(last.weight), ""), None)
    return hosts, turned


def _is_conv1d(part: nn.Module) -> bool:
    """Whether it is a transformers ``Conv1D``: a linear layer that stores its weight (in, out)."""
    return type(part).__name__ == "Conv1D" and type(part).__module__.startswith("transformers.")
