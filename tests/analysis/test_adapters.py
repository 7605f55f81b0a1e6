"""Foreign modules as objectives: against the modules themselves, their own losses and torch's derivatives."""

import doctest
import itertools
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from synthlm.analysis import adapters, causal_lm
from synthlm.analysis.adapters import LossObjective, ModuleObjective
from synthlm.analysis.causal_lm import causal_lm_objective, load_causal_lm
from synthlm.analysis.hessian import Hessian
from synthlm.analysis.lanczos import top_eigenpairs
from synthlm.analysis.objective import evaluate_many
from synthlm.config import InputError
from synthlm.tasks import Facts

sys.path.insert(0, str(Path(__file__).parent))
from exact import exact_hessian


@pytest.fixture(autouse=True)
def _seeded(generator: torch.Generator) -> None:
    torch.manual_seed(generator.initial_seed() % 2**31)


class Attention(nn.Module):
    """A little language model in the manner of nanoGPT: tied head, fused attention, (logits, loss) returned."""

    def __init__(self, vocab: int = 11, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(vocab, width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
        x = self.embed(tokens)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(self.norm(x + self.drop(self.proj(z)))), None


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 4))


def test_an_mlp_is_the_function_that_it_is() -> None:
    module, x, y = mlp(), torch.randn(30, 5), torch.randint(0, 4, (30,))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    objective = ModuleObjective(module, [(x[:13], y[:13]), (x[13:], y[13:])])
    groups = {entry.name: entry.group for entry in objective.layout.entries}
    assert groups == {
        "0.weight": "matrix", "2.weight": "matrix", "4.weight": "aux",
        "0.bias": "aux", "2.bias": "aux", "4.bias": "aux",
    }  # fmt: skip
    logits = module(x)
    assert objective.loss(objective.flat[None]).item() == pytest.approx(F.cross_entropy(logits, y).item())
    accuracy = (logits.argmax(-1) == y).float().mean().item()
    assert objective.accuracy(objective.flat[None]).item() == pytest.approx(accuracy)
    other = objective.flat + torch.randn_like(objective.flat)
    losses = evaluate_many(objective.loss, [objective.flat, other])
    twin = mlp()
    twin.load_state_dict(objective.inner.state(other))
    assert losses[1].item() == pytest.approx(F.cross_entropy(twin(x), y).item(), rel=1e-5)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
        assert module.training


def test_slices_of_a_module() -> None:
    module, x, y = mlp(), torch.randn(30, 5), torch.randint(0, 4, (30,))
    y[::7] = -100
    codes = torch.arange(30) % 2
    objective = ModuleObjective(module, [(x, y)], ("even", "odd"), [codes])
    surprise = F.cross_entropy(module(x), y, reduction="none")
    for s in range(2):
        wanted = surprise[(codes == s) & (y != -100)]
        assert objective.counts[s] == len(wanted)
        assert objective.losses(objective.flat[None])[0, s].item() == pytest.approx(wanted.mean().item())
    scored = surprise[y != -100]
    assert objective.loss(objective.flat[None]).item() == pytest.approx(scored.mean().item())
    for _, inputs, labels in objective.inputs(objective.flat[None]):
        assert len(inputs) == len(labels) == len(scored)
        assert torch.equal(labels, codes[y != -100])


@pytest.mark.parametrize("batches", [1, 3])
def test_hessian_products_of_a_module_are_exact(batches: int, generator: torch.Generator) -> None:
    module, x, y = Attention(), torch.randint(0, 11, (9, 5)), torch.randint(0, 11, (9, 5))
    y[:, 0] = -100
    size = 9 // batches
    pairs = [(x[a : a + size], y[a : a + size]) for a in range(0, 9, size)]
    objective = ModuleObjective(module, pairs, dtype=torch.float64)
    exact = exact_hessian(objective, objective.flat)
    v = torch.randn(3, len(objective.flat), generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        Hessian(objective, objective.flat, width=2)(v), v @ exact, rtol=1e-9, atol=1e-10
    )
    gradient = Hessian(objective, objective.flat).gradient()
    double = module.double().eval()
    F.cross_entropy(double(x)[0].flatten(0, 1), y.flatten()).backward()
    named = {name: parameter.grad for name, parameter in double.named_parameters()}
    views = objective.layout.views(gradient[None])
    for name, value in named.items():
        assert value is not None
        torch.testing.assert_close(views[name][0], value, rtol=1e-9, atol=1e-11)


def test_a_tied_head_is_one_aux_parameter_and_dropout_is_off() -> None:
    objective = ModuleObjective(Attention(), [(torch.randint(0, 11, (4, 5)), torch.randint(0, 11, (4, 5)))])
    groups = {entry.name: entry.group for entry in objective.layout.entries}
    assert groups["embed.weight"] == "aux"
    assert "head.weight" not in groups
    assert groups["qkv.weight"] == groups["proj.weight"] == "matrix"
    flat = objective.flat[None]
    assert torch.equal(objective.loss(flat), objective.loss(flat))
    x, y = objective.batches[0]
    module = objective.inner.module
    before = F.cross_entropy(module(x)[0].flatten(0, 1), y.flatten())
    moved = objective.flat.clone()
    moved[objective.layout.slices["embed.weight"]] *= 2
    with torch.no_grad():
        module.embed.weight *= 2
    wanted = F.cross_entropy(module(x)[0].flatten(0, 1), y.flatten())
    assert objective.loss(moved[None]).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert wanted.item() != pytest.approx(before.item(), rel=1e-3)


def check_inputs(
    objective: ModuleObjective, biases: dict[str, torch.Tensor], outputs: dict[str, Any]
) -> None:
    """X W^T + b is what each layer put out."""
    views = objective.layout.views(objective.flat[None])
    names = []
    for name, x, codes in objective.inputs(objective.flat[None]):
        wanted = outputs[name]
        torch.testing.assert_close(x @ views[name][0].T + biases.get(name, 0), wanted, rtol=1e-4, atol=1e-5)
        assert len(codes) == len(x)
        names.append(name)
    assert set(names) == set(outputs)


def test_inputs_are_what_the_matrices_multiply() -> None:
    module = Attention()
    x, y = torch.randint(0, 11, (6, 5)), torch.randint(0, 11, (6, 5))
    y[0, 3:] = -100  # what follows the last scored position is no input
    kept = torch.ones(6, 5, dtype=torch.bool)
    kept[0, 3:] = False
    objective = ModuleObjective(module, [(x, y)])
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda m, a, out, name=name: outputs.update({name: out[kept]}))
        for name, part in (("qkv.weight", module.qkv), ("proj.weight", module.proj))
    ]
    module.eval()(x)
    for hook in hooks:
        hook.remove()
    check_inputs(objective, {"proj.weight": module.proj.bias.detach()}, outputs)


def test_torchs_own_transformer(generator: torch.Generator) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=False)
            self.head = nn.Linear(8, 9)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(self.embed(tokens).transpose(0, 1)).transpose(0, 1))

    module, x = Encoder(), torch.randint(0, 9, (5, 5))
    objective = ModuleObjective(module, [(x, x)])
    flat = objective.flat[None]
    wanted = F.cross_entropy(module.eval()(x).flatten(0, 1), x.flatten()).item()
    assert objective.loss(flat).item() == pytest.approx(wanted, rel=1e-5)
    matrices = {entry.name for entry in objective.layout.only("matrix").entries}
    assert {"layer.self_attn.in_proj_weight", "layer.linear1.weight", "layer.linear2.weight"} <= matrices
    inputs = {name: value for name, value, _ in objective.inputs(flat)}
    # the first layer sees the embeddings, in order of item and time
    torch.testing.assert_close(inputs["layer.self_attn.in_proj_weight"], module.embed(x).flatten(0, 1))
    assert inputs["layer.linear2.weight"].shape == (25, 12)
    double = ModuleObjective(module, [(x, x)], dtype=torch.float64)
    v = torch.randn(1, len(double.flat), generator=generator, dtype=torch.float64)
    h = 1e-7  # small: the slopes of relu jump
    up, down = (Hessian(double, double.flat + s * h * v[0]).gradient() for s in (1, -1))
    torch.testing.assert_close(
        Hessian(double, double.flat)(v)[0], (up - down) / (2 * h), rtol=1e-3, atol=1e-5
    )


def test_any_loss(generator: torch.Generator) -> None:
    module, x = mlp(), torch.randn(20, 5)
    y = torch.randn(20, 4)
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    objective = LossObjective(
        module, batches, lambda model, b: F.mse_loss(model(b[0]), b[1]), sizes=[5, 15], head=False
    )
    assert objective.loss(objective.flat[None]).item() == pytest.approx(F.mse_loss(module(x), y).item())
    assert objective.layout.only("matrix").size == 35 + 42 + 24
    exact = exact_hessian(objective, objective.flat)
    pairs = top_eigenpairs(Hessian(objective, objective.flat), generator, 2)
    torch.testing.assert_close(
        pairs.values.float(), torch.linalg.eigvalsh(exact).flip(0)[:2], rtol=1e-3, atol=1e-4
    )
    assert [len(value) for _, value, _ in objective.inputs(objective.flat[None])] == [20, 20, 20]
    with pytest.raises(InputError, match="use ModuleObjective"):
        objective.accuracy(objective.flat[None])


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=23, n_positions=10, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=23, max_position_embeddings=10, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_a_hugging_face_model_is_scored_on_real_tokens_only(make: Any, side: str) -> None:
    """Padded, each sequence has the loss that it has alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = make()
    lengths = [9, 4, 6, 2] if side != "none" else [9] * 4
    sequences = [torch.randint(1, 23, (n,)) for n in lengths]
    tokens = torch.zeros(4, 9, dtype=torch.int64)
    for row, sequence in zip(tokens, sequences, strict=True):
        if side == "left":
            row[9 - len(sequence) :] = sequence
        else:
            row[: len(sequence)] = sequence
    codes = torch.tensor([0, 1, 0, 1])
    objective = causal_lm_objective(module, tokens, None, ("a", "b"), codes, pad=0, batch=3)
    found = objective.losses(objective.flat[None])[0]
    for s in range(2):
        alone = [
            F.cross_entropy(module(q[None, :-1]).logits[0], q[1:], reduction="none")
            for q, code in zip(sequences, codes, strict=True)
            if code == s
        ]
        assert objective.counts[s] == sum(map(len, alone))
        assert found[s].item() == pytest.approx(torch.cat(alone).mean().item(), rel=1e-4)
    for _, x, labels in objective.inputs(objective.flat[None]):
        assert len(x) == sum(n - 1 for n in lengths)
        assert (labels == 1).sum() == lengths[1] + lengths[3] - 2


def test_a_hugging_face_model_on_a_language_has_its_slices() -> None:
    """Only answers are scored, by slice, as for the package's own models."""
    module = gpt2()
    language = Facts(alphabet=7, items=12, key_length=2, value_length=2, frequency="zipf", tail=0.5).build(1)
    table = language.probe
    tokens, targets, codes = (torch.tensor(a) for a in (table.tokens, table.targets, table.slices))
    objective = causal_lm_objective(module, tokens, targets, language.slices, codes, pad=0, batch=5)
    surprise = F.cross_entropy(module(tokens).logits.flatten(0, 1), targets.flatten(), reduction="none")
    for s in range(len(language.slices)):
        wanted = surprise[codes.flatten() == s]
        assert objective.counts[s] == len(wanted)
        assert objective.losses(objective.flat[None])[0, s].item() == pytest.approx(
            wanted.mean().item(), rel=1e-5
        )


def test_gpt2_matrices_lie_out_in_and_the_head_is_tied() -> None:
    module = gpt2()
    tokens = torch.randint(1, 23, (5, 8))
    objective = causal_lm_objective(module, tokens)
    entries = {entry.name: entry for entry in objective.layout.entries}
    assert entries["transformer.h.0.attn.c_attn.weight"].shape == (24, 8)
    assert entries["transformer.h.1.mlp.c_fc.weight"].shape == (32, 8)
    matrices = {name for name, entry in entries.items() if entry.group == "matrix"}
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert matrices == {f"transformer.h.{i}.{n}.weight" for i, n in itertools.product(range(2), layers)}
    assert "lm_head.weight" not in entries
    assert objective.layout.size == sum(p.numel() for p in module.parameters())
    outputs: dict[str, Any] = {}
    biases = {}
    for name in matrices:
        part = module.get_submodule(name.removesuffix(".weight"))
        biases[name] = part.bias.detach()
        part.register_forward_hook(lambda m, a, out, name=name: outputs.update({name: out.flatten(0, 1)}))
    module(tokens[:, :-1])
    check_inputs(objective, biases, outputs)


def test_a_llama_keeps_its_head_apart(generator: torch.Generator) -> None:
    module = llama()
    tokens = torch.randint(1, 23, (5, 8))
    objective = causal_lm_objective(module, tokens)
    groups = {entry.name: entry.group for entry in objective.layout.entries}
    assert groups["lm_head.weight"] == groups["model.embed_tokens.weight"] == "aux"
    assert groups["model.layers.0.self_attn.k_proj.weight"] == "matrix"
    v = torch.randn(1, len(objective.flat), generator=generator)
    h = 2e-3  # its norms and softmax are in float32 whatever the weights' type
    up, down = (Hessian(objective, objective.flat + s * h * v[0]).gradient() for s in (1, -1))
    found = Hessian(objective, objective.flat)(v)[0]
    assert ((up - down) / (2 * h) - found).norm() < 0.1 * found.norm()


def test_a_model_saved_to_disk(tmp_path: Path) -> None:
    module = gpt2()
    module.save_pretrained(tmp_path / "tiny")
    tokens = torch.randint(1, 23, (3, 8))
    loaded = load_causal_lm(tmp_path / "tiny")
    there, here = causal_lm_objective(loaded, tokens), causal_lm_objective(module, tokens)
    assert there.layout == here.layout
    torch.testing.assert_close(there.flat, here.flat, rtol=0, atol=0)
    torch.testing.assert_close(there.loss(there.flat[None]), here.loss(here.flat[None]))


def test_bad_input_is_named(tmp_path: Path) -> None:
    module = gpt2()
    with pytest.raises(InputError, match=r"0\.\.23 do not fit the model's vocabulary of 23"):
        causal_lm_objective(module, torch.tensor([[0, 23, 5]]))
    with pytest.raises(InputError, match="11 inputs a sequence, but the model's length is 10"):
        causal_lm_objective(module, torch.ones(2, 12, dtype=torch.int64))
    with pytest.raises(InputError, match="no position is scored"):
        causal_lm_objective(module, torch.zeros(2, 5, dtype=torch.int64), pad=0)
    with pytest.raises(InputError, match=r"aux: '\*nothing' matches no parameter"):
        ModuleObjective(mlp(), [(torch.randn(2, 5), torch.zeros(2).long())], aux=("*nothing",))
    wrong = ModuleObjective(mlp(), [(torch.randn(2, 5), torch.zeros(3).long())])
    with pytest.raises(ValueError, match="do not fit targets"):
        wrong.loss(wrong.flat[None])
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_causal_lm(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(InputError, match="cannot be loaded"):
        load_causal_lm(tmp_path)


@pytest.mark.parametrize("module", [adapters, causal_lm])
def test_docstring_examples_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 4
    assert result.failed == 0
