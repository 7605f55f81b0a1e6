"""Low-rank adaptation against peft on a small module, and what it promises at step 0."""

import secrets
import warnings

import pytest
import torch

from synthlm import lora, model
from synthlm.config import InputError
from synthlm.lora import LoraConfig
from synthlm.model import ModelConfig
from synthlm.weights import Entry, Layout

BASE = Layout(
    [
        Entry("first.weight", (6, 5), "matrix"),
        Entry("second.weight", (4, 6), "matrix"),
        Entry("gain", (5,), "aux"),
    ]
)
MODEL = ModelConfig(vocab=11, length=5, width=8, layers=2, heads=2, mlp=12)


@pytest.fixture
def generator() -> torch.Generator:
    seed = secrets.randbits(48)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def test_effective_weights_and_gradients_are_those_of_peft(generator: torch.Generator) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        config = LoraConfig(rank=3, alpha=5.0)
        reference = torch.nn.Sequential()
        reference.add_module("first", torch.nn.Linear(5, 6, bias=False))
        reference.add_module("middle", torch.nn.Tanh())
        reference.add_module("second", torch.nn.Linear(6, 4, bias=False))
        settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["first", "second"], lora_dropout=0.0)
        reference = peft.get_peft_model(reference, settings).double()
    adapters = lora.layout(config, BASE)
    base = torch.randn(1, BASE.size, generator=generator, dtype=torch.float64)
    flat = torch.randn(1, adapters.size, generator=generator, dtype=torch.float64)
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    target = torch.randn(7, 4, generator=generator, dtype=torch.float64)

    flat.requires_grad_()
    pieces = adapters.views(flat)
    merged = lora.merge(config, BASE.views(base), pieces)
    out = torch.tanh(x @ merged["first.weight"][0].T) @ merged["second.weight"][0].T
    (grad,) = torch.autograd.grad((out - target).square().sum(), flat)
    grads = adapters.views(grad)

    inside = reference.base_model.model
    for name in ("first", "second"):
        layer = getattr(inside, name)
        with torch.no_grad():
            layer.base_layer.weight.copy_(BASE.views(base)[f"{name}.weight"][0])
            layer.lora_A["default"].weight.copy_(pieces[f"{name}.weight.lora_A"][0])
            layer.lora_B["default"].weight.copy_(pieces[f"{name}.weight.lora_B"][0])
    theirs = reference(x)
    torch.testing.assert_close(out, theirs, rtol=1e-10, atol=1e-10)
    (theirs - target).square().sum().backward()
    for name in ("first", "second"):
        layer = getattr(inside, name)
        effective = layer.base_layer.weight + layer.get_delta_weight("default")
        torch.testing.assert_close(merged[f"{name}.weight"][0], effective, rtol=1e-10, atol=1e-10)
        for which in "AB":
            expected = getattr(layer, f"lora_{which}")["default"].weight.grad
            torch.testing.assert_close(
                grads[f"{name}.weight.lora_{which}"][0], expected, rtol=1e-9, atol=1e-9
            )


def test_each_run_gets_its_own_product_and_nothing_else_moves(generator: torch.Generator) -> None:
    config = LoraConfig(rank=2, alpha=3.0, targets=("first*",))
    base = torch.randn(3, BASE.size, generator=generator, dtype=torch.float64)
    adapters = lora.layout(config, BASE)
    flat = torch.randn(3, adapters.size, generator=generator, dtype=torch.float64)
    merged = lora.merge(config, BASE.views(base), adapters.views(flat))
    for r in range(3):
        a = adapters.views(flat)["first.weight.lora_A"][r]
        b = adapters.views(flat)["first.weight.lora_B"][r]
        product = sum(torch.outer(b[:, k], a[k]) for k in range(2))
        torch.testing.assert_close(
            merged["first.weight"][r], BASE.views(base)["first.weight"][r] + 1.5 * product
        )
    for name in ("second.weight", "gain"):
        assert torch.equal(merged[name], BASE.views(base)[name])


def test_gradient_reaches_the_base_too(generator: torch.Generator) -> None:
    config = LoraConfig(rank=2)
    base = torch.randn(2, BASE.size, generator=generator).requires_grad_()
    adapters = lora.layout(config, BASE)
    flat = torch.randn(2, adapters.size, generator=generator)
    merged = lora.merge(config, BASE.views(base), adapters.views(flat))
    factor = torch.randn(2, 6, 5, generator=generator)
    (grad,) = torch.autograd.grad((merged["first.weight"] * factor).sum(), base)
    assert torch.equal(BASE.views(grad)["first.weight"], factor)


def test_step_0_is_the_base_bit_for_bit(generator: torch.Generator) -> None:
    layout = MODEL.layout
    base = model.init(MODEL, generator)[None]
    config = LoraConfig(rank=4)
    flat = lora.init(config, layout, generator)[None]
    merged = lora.merge(config, layout.views(base), lora.layout(config, layout).views(flat))
    assert torch.equal(layout.join(merged), base)


def test_initial_adapters(generator: torch.Generator) -> None:
    layout = Layout([Entry("w", (300, 400), "matrix")])
    config = LoraConfig(rank=50)
    adapters = lora.layout(config, layout)
    views = adapters.views(lora.init(config, layout, generator)[None])
    a, b = views["w.lora_A"][0], views["w.lora_B"][0]
    assert a.shape == (50, 400)
    assert b.shape == (300, 50)
    assert not b.any()
    bound = 400**-0.5  # torch.nn.Linear's own: Kaiming uniform with a = sqrt 5
    assert a.abs().max() <= bound
    assert a.abs().max() > 0.99 * bound
    assert abs(a.std().item() * 3**0.5 / bound - 1) < 0.02
    assert abs(a.mean().item()) < 0.05 * bound
    again = lora.init(config, layout, torch.Generator().manual_seed(1))
    assert torch.equal(again, lora.init(config, layout, torch.Generator().manual_seed(1)))
    assert not torch.equal(again, lora.init(config, layout, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize(
    ("patterns", "leaves"),
    [
        (("*",), ["W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"]),
        (("*.attn.W_[QV]",), ["W_Q", "W_V"]),
        (("*.W_in", "*.W_out"), ["W_in", "W_out"]),
        (("*.W_in", "*.mlp.*"), ["W_in", "W_out"]),
    ],
)
def test_targets_are_patterns_over_hidden_matrices(patterns: tuple[str, ...], leaves: list[str]) -> None:
    config = LoraConfig(rank=2, targets=patterns)
    found = {entry.name for entry in lora.targets(config, MODEL.layout)}
    place = {leaf: "attn" if len(leaf) == 3 else "mlp" for leaf in leaves}
    wanted = {f"blocks.{i}.{place[leaf]}.{leaf}" for i in range(2) for leaf in leaves}
    assert found == wanted
    adapters = lora.layout(config, MODEL.layout)
    assert {entry.name for entry in adapters.entries} == {f"{n}.lora_{x}" for n in wanted for x in "AB"}
    assert (
        adapters.matrix_size
        == adapters.size
        == sum(2 * sum(e.shape) for e in lora.targets(config, MODEL.layout))
    )


@pytest.mark.parametrize("pattern", ["*.W_Z", "embed.*", "ln_final.w", "blocks.2.*", ""])
def test_a_pattern_without_a_match_is_refused(pattern: str) -> None:
    with pytest.raises(InputError) as raised:
        lora.targets(LoraConfig(rank=2, targets=("*.W_Q", pattern)), MODEL.layout)
    text = str(raised.value)
    assert text.startswith("targets: ")
    assert repr(pattern) in text
    assert "blocks.1.mlp.W_out" in text
