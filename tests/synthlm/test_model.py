"""The model against a plain one without a run axis; causality, taps, derivatives, runs that do not touch."""

import itertools
import math
import secrets

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from synthlm import model
from synthlm.model import ModelConfig

CASES = list(itertools.product(("gelu", "relu2", "swiglu"), ("learned", "rotary"), (False, True)))
IDS = ["-".join((a, p, "tied" if t else "untied")) for a, p, t in CASES]
ALL = pytest.mark.parametrize(("activation", "positions", "tied"), CASES, ids=IDS)


def make(activation: str, positions: str, tied: bool, layers: int = 2, **changes) -> ModelConfig:
    settings = {"vocab": 13, "length": 7, "width": 12, "heads": 3, "mlp": 20} | changes
    return ModelConfig(activation=activation, positions=positions, tied=tied, layers=layers, **settings)


@pytest.fixture
def generator() -> torch.Generator:
    seed = secrets.randbits(48)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def draw(config: ModelConfig, generator: torch.Generator, runs: int = 1, dtype=torch.float64) -> Tensor:
    """Weights [run, param] whose gains are not 1, so that a forgotten gain is seen."""
    noise = 0.2 * torch.randn(runs, config.layout.size, generator=generator)
    return (torch.stack([model.init(config, generator) for _ in range(runs)]) + noise).to(dtype)


def draw_tokens(config: ModelConfig, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(config.vocab, shape, generator=generator)


class ReferenceAttention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rotary, self.heads = config.positions == "rotary", config.heads
        for name in "QKVO":
            setattr(self, f"W_{name}", nn.Linear(config.width, config.width, bias=False))

    def rotated(self, x: Tensor) -> Tensor:
        """x [time, d_head]: dimension k and k + half turn together as one complex number."""
        half = x.shape[1] // 2
        turned = torch.complex(x[:, :half], x[:, half:]).clone()
        for t, k in itertools.product(range(len(x)), range(half)):
            turned[t, k] *= complex(math.cos(t / 10000 ** (k / half)), math.sin(t / 10000 ** (k / half)))
        return torch.cat([turned.real, turned.imag], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [time, d]: one sequence, one head after another, one query after another."""
        outputs = []
        for q, k, v in zip(
            *(w(x).chunk(self.heads, dim=1) for w in (self.W_Q, self.W_K, self.W_V)), strict=True
        ):
            if self.rotary:
                q, k = self.rotated(q), self.rotated(k)
            rows = []
            for t in range(len(x)):
                weight = torch.softmax(k[: t + 1] @ q[t] / math.sqrt(q.shape[1]), dim=0)
                rows.append(weight @ v[: t + 1])
            outputs.append(torch.stack(rows))
        return self.W_O(torch.cat(outputs, dim=1))


class ReferenceBlock(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.ln1, self.ln2 = nn.RMSNorm(config.width), nn.RMSNorm(config.width)
        self.attn = ReferenceAttention(config)
        self.W_in = nn.Linear(config.width, config.mlp, bias=False)
        self.W_gate = nn.Linear(config.width, config.mlp, bias=False)
        self.W_out = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        y = self.ln2(x)
        pre = self.W_in(y)
        if self.activation == "gelu":
            post = pre * 0.5 * (1 + torch.erf(pre / math.sqrt(2)))
        elif self.activation == "relu2":
            post = torch.where(pre > 0, pre**2, 0)
        else:
            gate = self.W_gate(y)
            post = gate * torch.sigmoid(gate) * pre
        return x + self.W_out(post)


class Reference(nn.Module):
    def __init__(self, config: ModelConfig, named: dict[str, Tensor]) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Embedding(config.length, config.width)
        self.blocks = nn.ModuleList(ReferenceBlock(config) for _ in range(config.layers))
        self.ln_final = nn.RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        self.double()
        if config.tied:
            self.head.weight = self.embed.weight
        if config.positions == "rotary":
            nn.init.zeros_(self.positions.weight)
        used = 0
        with torch.no_grad():
            for name, value in named.items():
                self.get_parameter(self.rename(name)).copy_(value)
                used += 1
        assert used == len(named)

    @staticmethod
    def rename(name: str) -> str:
        whole = {
            "embed.W_E": "embed.weight",
            "pos_embed.W_pos": "positions.weight",
            "unembed.W_U": "head.weight",
        }
        if name in whole:
            return whole[name]
        return name.replace("mlp.", "").removesuffix(".w") + ".weight"

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [batch, time]"""
        outputs = []
        for sequence in tokens:
            x = self.embed(sequence) + self.positions(torch.arange(len(sequence)))
            for block in self.blocks:
                x = block(x)
            outputs.append(self.head(self.ln_final(x)))
        return torch.stack(outputs)


@ALL
@pytest.mark.parametrize("layers", [1, 3])
def test_logits_and_gradients_are_those_of_a_plain_model(
    generator: torch.Generator, activation: str, positions: str, tied: bool, layers: int
) -> None:
    config = make(activation, positions, tied, layers)
    flat = draw(config, generator, runs=2).requires_grad_()
    tokens = draw_tokens(config, generator, 2, 3, 6)
    targets = draw_tokens(config, generator, 2, 3, 6)
    views = config.layout.views(flat)
    logits = model.forward(config, views, tokens)
    assert logits.shape == (2, 3, 6, config.vocab)
    loss = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="sum")
    grads = config.layout.views(torch.autograd.grad(loss, flat)[0])
    for r in range(2):
        reference = Reference(config, {name: view[r] for name, view in views.items()})
        expected = reference(tokens[r])
        torch.testing.assert_close(logits[r], expected, rtol=1e-9, atol=1e-9)
        F.cross_entropy(expected.flatten(0, 1), targets[r].flatten(), reduction="sum").backward()
        for name, grad in grads.items():
            wanted = reference.get_parameter(Reference.rename(name)).grad
            torch.testing.assert_close(grad[r], wanted, rtol=1e-8, atol=1e-9, msg=name)


@ALL
def test_fused_and_math_attention_agree(
    generator: torch.Generator, activation: str, positions: str, tied: bool
) -> None:
    config = make(activation, positions, tied)
    views = config.layout.views(draw(config, generator, runs=2))
    tokens = draw_tokens(config, generator, 2, 4, 7)
    fused = model.forward(config, views, tokens, attention="fused")
    torch.testing.assert_close(
        model.forward(config, views, tokens, attention="math"), fused, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("attention", ["fused", "math"])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_future_changes_nothing_before(
    generator: torch.Generator, positions: str, attention: str
) -> None:
    config = make("gelu", positions, False)
    views = config.layout.views(draw(config, generator))
    tokens = draw_tokens(config, generator, 1, 3, 7)
    logits = model.forward(config, views, tokens, attention=attention)
    for t in range(1, 7):
        other = tokens.clone()
        other[:, :, t] = (other[:, :, t] + 1) % config.vocab
        changed = model.forward(config, views, other, attention=attention)
        assert torch.equal(changed[:, :, :t], logits[:, :, :t])
        assert not torch.isclose(changed[:, :, t:], logits[:, :, t:]).all(-1).any()
        cut = model.forward(config, views, tokens[:, :, :t], attention=attention)
        torch.testing.assert_close(cut, logits[:, :, :t])


def test_every_position_sees_where_it_is(generator: torch.Generator) -> None:
    """With the same token everywhere, only positions can tell places apart (rotary alone: none can)."""
    learned, rotary = make("gelu", "learned", False), make("gelu", "rotary", False)
    tokens = torch.full((1, 1, 5), 3)
    logits = model.forward(learned, learned.layout.views(draw(learned, generator)), tokens)
    assert not torch.isclose(logits[0, 0, 1:], logits[0, 0, :-1]).all(-1).any()
    weights = rotary.layout.views(draw(rotary, generator))
    logits = model.forward(rotary, weights, tokens)
    torch.testing.assert_close(logits[0, 0], logits[0, 0, :1].expand(5, -1))
    order = model.forward(rotary, weights, torch.tensor([[[1, 2, 3], [2, 1, 3]]]))
    assert not torch.isclose(order[0, 0, 2], order[0, 1, 2]).all()


@ALL
@pytest.mark.parametrize("attention", ["fused", "math"])
@pytest.mark.parametrize("mlp", [32, 37])
def test_a_run_among_others_is_the_run_alone_bit_for_bit(
    generator: torch.Generator, activation: str, positions: str, tied: bool, attention: str, mlp: int
) -> None:
    """An odd hidden width puts a run's last numbers into the scalar tail of an elementwise kernel when alone."""
    config = make(activation, positions, tied, width=20, heads=2, mlp=mlp, vocab=29)
    flat = draw(config, generator, runs=4, dtype=torch.float32)
    flat[3, ::7] = torch.nan  # a broken run beside them
    tokens = draw_tokens(config, generator, 4, 5, 6)
    targets = draw_tokens(config, generator, 4, 5, 6)

    def run(rows: list[int]) -> tuple[Tensor, Tensor]:
        leaf = flat[rows].clone().requires_grad_()
        logits = model.forward(config, config.layout.views(leaf), tokens[rows], attention=attention)
        loss = F.cross_entropy(logits.flatten(0, 2), targets[rows].flatten(), reduction="sum")
        return logits.detach(), torch.autograd.grad(loss, leaf)[0]

    together, grads = run([0, 1, 2, 3])
    pair, pair_grads = run([2, 0])
    for r in range(3):
        alone, grad = run([r])
        assert alone.isfinite().all()
        assert torch.equal(together[r], alone[0])
        assert torch.equal(grads[r], grad[0])
        if r != 1:
            assert torch.equal(pair[[2, 0].index(r)], alone[0])
            assert torch.equal(pair_grads[[2, 0].index(r)], grad[0])


def expected_taps(config: ModelConfig, runs: int, batch: int, time: int, pattern: bool) -> dict[str, tuple]:
    d, m, h = config.width, config.mlp, config.heads
    stream, heads = (runs, batch, time, d), (runs, batch, time, h, d // h)
    taps = {"hook_embed": stream}
    if config.positions == "learned":
        taps["hook_pos_embed"] = (runs, 1, time, d)
    for i in range(config.layers):
        block = {
            "hook_resid_pre": stream,
            "ln1.hook_normalized": stream,
            "attn.hook_q": heads,
            "attn.hook_k": heads,
            "attn.hook_v": heads,
        }
        if config.positions == "rotary":
            block |= {"attn.hook_rot_q": heads, "attn.hook_rot_k": heads}
        if pattern:
            block["attn.hook_pattern"] = (runs, batch, h, time, time)
        block |= {
            "attn.hook_z": heads,
            "hook_attn_out": stream,
            "hook_resid_mid": stream,
            "ln2.hook_normalized": stream,
            "mlp.hook_pre": (runs, batch, time, m),
        }
        if config.activation == "swiglu":
            block["mlp.hook_pre_linear"] = (runs, batch, time, m)
        block |= {"mlp.hook_post": (runs, batch, time, m), "hook_mlp_out": stream, "hook_resid_post": stream}
        taps |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return taps | {"ln_final.hook_normalized": stream}


@pytest.mark.parametrize("attention", ["fused", "math"])
@ALL
def test_taps_have_the_names_and_shapes_of_transformerlens(
    generator: torch.Generator, activation: str, positions: str, tied: bool, attention: str
) -> None:
    config = make(activation, positions, tied)
    views = config.layout.views(draw(config, generator, runs=2))
    tokens = draw_tokens(config, generator, 2, 3, 5)
    seen: dict[str, tuple] = {}

    def tap(name: str, value: Tensor) -> Tensor:
        assert name not in seen
        seen[name] = tuple(value.shape)
        return value

    tapped = model.forward(config, views, tokens, tap, attention)
    assert torch.equal(tapped, model.forward(config, views, tokens, attention=attention))
    assert seen == expected_taps(config, 2, 3, 5, attention == "math")


def record(config: ModelConfig, views: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}

    def tap(name: str, value: Tensor) -> Tensor:
        seen[name] = value.clone()
        return value

    return model.forward(config, views, tokens, tap, "math"), seen


@ALL
def test_tapped_values_are_consistent(
    generator: torch.Generator, activation: str, positions: str, tied: bool
) -> None:
    config = make(activation, positions, tied)
    views = config.layout.views(draw(config, generator))
    _, seen = record(config, views, draw_tokens(config, generator, 1, 3, 6))
    start = seen["hook_embed"] + (seen["hook_pos_embed"] if positions == "learned" else 0)
    torch.testing.assert_close(seen["blocks.0.hook_resid_pre"], start)
    for i in range(2):
        at = {name.removeprefix(f"blocks.{i}."): value for name, value in seen.items()}
        assert torch.equal(at["hook_resid_mid"], at["hook_resid_pre"] + at["hook_attn_out"])
        assert torch.equal(at["hook_resid_post"], at["hook_resid_mid"] + at["hook_mlp_out"])
        pattern = at["attn.hook_pattern"]
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
        assert not pattern.triu(1).any()
        z = torch.einsum("rbhqk,rbkhe->rbqhe", pattern, at["attn.hook_v"])
        torch.testing.assert_close(at["attn.hook_z"].reshape(z.shape), z)
        out = torch.einsum("rbqhe,rdhe->rbqd", z, views[f"blocks.{i}.attn.W_O"].unflatten(2, z.shape[3:]))
        torch.testing.assert_close(at["hook_attn_out"], out)
        if activation == "swiglu":  # TransformerLens: the gate is what the activation function sees
            gate = torch.einsum("rmd,rbtd->rbtm", views[f"blocks.{i}.mlp.W_gate"], at["ln2.hook_normalized"])
            torch.testing.assert_close(at["mlp.hook_pre"], gate)
    assert torch.equal(seen["blocks.1.hook_resid_pre"], seen["blocks.0.hook_resid_post"])


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("activation", ["relu2", "swiglu"])
def test_what_a_tap_returns_is_used(generator: torch.Generator, activation: str, positions: str) -> None:
    config = make(activation, positions, False)
    views = config.layout.views(draw(config, generator))
    # all tokens of a sequence differ: between equal ones it does not matter where attention goes
    tokens = torch.rand((1, 3, config.vocab), generator=generator).argsort(-1)[..., :6]
    clean, seen = record(config, views, tokens)
    for chosen, value in seen.items():
        noise = torch.rand(value.shape, generator=generator, dtype=value.dtype) + 0.5

        def tap(name: str, found: Tensor, chosen: str = chosen, noise: Tensor = noise) -> Tensor:
            return found + noise if name == chosen else found

        for attention in ("fused", "math") if "pattern" not in chosen else ("math",):
            changed = model.forward(config, views, tokens, tap, attention)
            same = torch.isclose(changed, clean).all(-1)
            if chosen.endswith(("_q", "_k")):
                assert same[:, :, 0].all(), chosen  # the first token has itself alone to look at
                same = same[:, :, 1:]
            assert not same.any(), chosen


@pytest.mark.parametrize(
    "place", ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid", "ln_final.hook_normalized"]
)
def test_patching_the_whole_stream_carries_one_prompt_over_to_another(
    generator: torch.Generator, place: str
) -> None:
    config = make("gelu", "learned", False)
    views = config.layout.views(draw(config, generator))
    clean, corrupt = draw_tokens(config, generator, 2, 1, 4, 6)
    wanted, seen = record(config, views, clean)
    patched = model.forward(
        config, views, corrupt, lambda name, x: seen[name] if name == place else x, "math"
    )
    assert torch.equal(patched, wanted)
    last = seen[place].clone()

    def patch_last(name: str, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, :-1], last[:, :, -1:]], dim=2) if name == place else x

    unpatched = model.forward(config, views, corrupt, attention="math")
    partly = model.forward(config, views, corrupt, patch_last, "math")
    assert torch.equal(partly[:, :, :-1], unpatched[:, :, :-1])
    assert not torch.isclose(partly[:, :, -1], unpatched[:, :, -1]).all()


@ALL
def test_second_derivatives_on_the_math_path(
    generator: torch.Generator, activation: str, positions: str, tied: bool
) -> None:
    config = make(activation, positions, tied)
    flat = draw(config, generator, runs=2)
    tokens = draw_tokens(config, generator, 2, 3, 6)
    targets = draw_tokens(config, generator, 2, 3, 6).flatten()
    direction = torch.randn(flat.shape, generator=generator, dtype=flat.dtype)
    direction /= direction.norm()

    def gradient(at: Tensor, create_graph: bool = False) -> Tensor:
        logits = model.forward(config, config.layout.views(at), tokens, attention="math")
        loss = F.cross_entropy(logits.flatten(0, 2), targets)
        return torch.autograd.grad(loss, at, create_graph=create_graph)[0]

    leaf = flat.clone().requires_grad_()
    product = torch.autograd.grad((gradient(leaf, create_graph=True) * direction).sum(), leaf)[0]
    step = 1e-6
    ahead, behind = ((flat + s * step * direction).requires_grad_() for s in (1, -1))
    difference = (gradient(ahead) - gradient(behind)) / (2 * step)
    scale = product.norm()
    assert scale > 1e-3
    assert (product - difference).norm() < 1e-5 * scale


@ALL
def test_initial_weights(generator: torch.Generator, activation: str, positions: str, tied: bool) -> None:
    config = make(activation, positions, tied, layers=3, width=120, mlp=200, vocab=100, length=60)
    seed = generator.initial_seed()
    flat = model.init(config, torch.Generator().manual_seed(seed))
    assert torch.equal(flat, model.init(config, torch.Generator().manual_seed(seed)))
    assert not torch.equal(flat, model.init(config, torch.Generator().manual_seed(seed + 1)))
    stds = {"W_in": 120, "W_gate": 120, "W_Q": 120, "W_K": 120, "W_V": 120, "W_U": 120, "W_pos": 120}
    stds = {name: inner**-0.5 for name, inner in stds.items()}
    stds |= {"W_O": (120 * 6) ** -0.5, "W_out": (200 * 6) ** -0.5, "W_E": 120**-0.5 if tied else 1.0}
    for name, value in config.layout.views(flat[None]).items():
        leaf = name.split(".")[-1]
        if leaf == "w":
            assert (value == 1).all()
            continue
        count = value.numel()
        assert abs(value.std().item() / stds[leaf] - 1) < 5 / math.sqrt(2 * count), name
        assert abs(value.mean().item()) < 5 * stds[leaf] / math.sqrt(count), name


@ALL
def test_flops_are_those_that_torch_counts(activation: str, positions: str, tied: bool) -> None:
    config = make(activation, positions, tied)
    views = config.layout.views(torch.randn(2, config.layout.size))
    with FlopCounterMode(display=False) as counter:
        model.forward(config, views, torch.zeros((2, 3, config.length), dtype=torch.int64), attention="math")
    tokens = 2 * 3 * config.length
    assert config.flops_per_token == counter.get_total_flops() / tokens


def test_a_sequence_longer_than_the_model_is_refused() -> None:
    config = make("gelu", "rotary", False)
    views = config.layout.views(torch.zeros(1, config.layout.size))
    with pytest.raises(ValueError, match=r"8 tokens.*length is 7"):
        model.forward(config, views, torch.zeros((1, 1, 8), dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 5}, "heads: 5 must divide width 12"),
        ({"heads": 4, "positions": "rotary"}, "even head width, not 3"),
        ({"activation": "relu"}, "gelu"),
        ({"vocab": 1}, "greater than or equal to 2"),
        ({"depth": 3}, "depth"),
    ],
)
def test_settings_that_make_no_model_are_refused(changes: dict, words: str) -> None:
    settings = {"vocab": 13, "length": 7, "width": 12, "heads": 3, "mlp": 20} | changes
    with pytest.raises(ValidationError, match=words):
        ModelConfig(**settings)
