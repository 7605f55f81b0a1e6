"""Objectives against the package's evaluation, explicit loops and finite differences."""

import math

import numpy as np
import pytest
import torch

from synthlm import evaluation, model
from synthlm.analysis.objective import LanguageObjective, evaluate_many, language_objective
from synthlm.config import InputError
from synthlm.model import ModelConfig
from synthlm.tasks import IGNORE, Cipher, Exceptions, Facts, Language, Mixture

CONFIG = Mixture(
    parts=(
        Facts(tag=0, alphabet=8, items=20, key_length=2, value_length=2, frequency="zipf", tail=0.4),
        Cipher(tag=1, alphabet=8, length=3, items=30, heldout=9, probe=12),
        Exceptions(
            tag=2, alphabet=8, rule={"name": "cipher", "length": 2, "items": 15, "heldout": 6}, exceptions=5
        ),
    ),
    weights=(1.0, 2.0, 0.5),
)
MODEL = ModelConfig(vocab=24, length=8, width=8, layers=2, heads=2, mlp=12, activation="swiglu")


@pytest.fixture(scope="module")
def language() -> Language:
    return CONFIG.build(3)


def draw(generator: torch.Generator, runs: int, scale: float = 1.0) -> torch.Tensor:
    """Weights around the initialization, far enough apart to answer differently."""
    base = torch.stack([model.init(MODEL, generator) for _ in range(runs)])
    return base + 0.3 * scale * torch.randn(base.shape, generator=generator)


def test_losses_and_accuracies_are_those_of_the_evaluation(
    language: Language, generator: torch.Generator
) -> None:
    flat = draw(generator, 3)
    objective = language_objective(MODEL, language, goals_only=False)
    probe = evaluation.Probe([language] * 3, "cpu")
    log_p = evaluation.log_probabilities(MODEL, MODEL.layout.views(flat), probe)
    rows = evaluation.evaluate(probe, log_p)
    assert objective.slices == language.slices
    torch.testing.assert_close(objective.log_probabilities(flat), log_p, rtol=1e-4, atol=1e-5)
    for r, row in enumerate(rows):
        assert objective.losses(flat)[r].tolist() == pytest.approx(row["loss"], rel=1e-5)
        assert objective.accuracies(flat)[r].tolist() == pytest.approx(row["accuracy"], rel=1e-6)
        n = np.array(row["n"])
        assert objective.counts == tuple(n)
        assert objective.loss(flat)[r].item() == pytest.approx(np.dot(row["loss"], n) / n.sum(), rel=1e-5)
        wanted = np.dot(row["accuracy"], n) / n.sum()
        assert objective.accuracy(flat)[r].item() == pytest.approx(wanted, rel=1e-5)
        assert objective.trials(flat)[r].float().mean().item() == pytest.approx(wanted, rel=1e-5)


def test_goals_only_leaves_out_the_slices_that_count_to_no_goal(
    language: Language, generator: torch.Generator
) -> None:
    flat = draw(generator, 2)
    whole = language_objective(MODEL, language, goals_only=False)
    goals = language_objective(MODEL, language)
    assert 0 < len(goals.slices) < len(whole.slices)
    assert set(goals.slices) == {name for name in language.slices if language.goals[name]}
    index = [whole.slices.index(name) for name in goals.slices]
    torch.testing.assert_close(goals.losses(flat), whole.losses(flat)[:, index], rtol=1e-5, atol=1e-6)
    assert goals.counts == tuple(whole.counts[i] for i in index)


def test_the_training_loss_weighs_items_by_how_often_they_are_seen(
    language: Language, generator: torch.Generator
) -> None:
    flat = draw(generator, 1)
    objective = language_objective(MODEL, language, "train", dtype=torch.float64)
    views = MODEL.layout.views(flat.double())
    table = language.train
    logits = model.forward(MODEL, views, torch.tensor(table.tokens)[None])[0].log_softmax(-1)
    total, mass = 0.0, 0.0
    for item in range(len(table.key)):
        for t in range(language.length):
            if table.targets[item, t] != IGNORE:
                total -= table.weight[item] * logits[item, t, table.targets[item, t]].item()
                mass += table.weight[item]
    assert objective.loss(flat).item() == pytest.approx(total / mass, rel=1e-10)
    assert table.weight.std() > 0


def test_fewer_items_are_spread_over_each_slice(language: Language, generator: torch.Generator) -> None:
    objective = language_objective(MODEL, language, items=4)
    for s in range(len(objective.slices)):
        items = objective.position_item[objective.position_slice == s].unique()
        assert len(items) == 4
    assert torch.isfinite(objective.loss(draw(generator, 1))).all()


def test_float64_is_kept_and_weights_of_either_type_are_taken(
    language: Language, generator: torch.Generator
) -> None:
    flat = draw(generator, 2)
    double = language_objective(MODEL, language, dtype=torch.float64)
    assert double.loss(flat).dtype == torch.float64
    torch.testing.assert_close(double.loss(flat), double.loss(flat.double()), rtol=0, atol=0)
    single = language_objective(MODEL, language).loss(flat)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double.loss(flat), rtol=1e-4, atol=1e-5)


def test_the_loss_has_second_derivatives(language: Language, generator: torch.Generator) -> None:
    objective = language_objective(MODEL, language, items=3, dtype=torch.float64)
    flat = draw(generator, 1).double()
    direction = torch.randn(flat.shape, generator=generator).double()

    def slope(t: float) -> float:
        x = (flat + t * direction).requires_grad_()
        (gradient,) = torch.autograd.grad(objective.loss(x).sum(), x)
        return (gradient * direction).sum().item()

    x = flat.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective.loss(x).sum(), x, create_graph=True)
    (product,) = torch.autograd.grad((gradient * direction).sum(), x)
    wanted = (slope(1e-5) - slope(-1e-5)) / 2e-5
    assert (product * direction).sum().item() == pytest.approx(wanted, rel=1e-3)  # of a difference
    assert abs(wanted) > 1e-3


def test_inputs_are_what_the_matrices_multiply(language: Language, generator: torch.Generator) -> None:
    """Moving a matrix by D moves its output by X D^T: checked on the activation that it feeds."""
    flat = draw(generator, 1).double()
    objective = language_objective(MODEL, language, goals_only=False, dtype=torch.float64)
    feeds = {
        "attn.W_Q": "attn.hook_q", "attn.W_K": "attn.hook_k", "attn.W_V": "attn.hook_v",
        "attn.W_O": "hook_attn_out", "mlp.W_in": "mlp.hook_pre_linear", "mlp.W_gate": "mlp.hook_pre",
        "mlp.W_out": "hook_mlp_out",
    }  # fmt: skip
    tokens = torch.tensor(language.probe.tokens)[None]
    outputs: dict[str, torch.Tensor] = {}

    def tap(name: str, value: torch.Tensor) -> torch.Tensor:
        outputs[name] = value[0].flatten(2)
        return value

    views = MODEL.layout.views(flat)
    model.forward(MODEL, views, tokens, tap, attention="math")
    rows = []  # in order of item and time: up to the item's last scored position
    for item in range(len(language.probe.key)):
        last = np.flatnonzero(language.probe.scored[item])[-1]
        rows += [(item, t, language.probe.item_slice[item]) for t in range(last + 1)]
    item, time, code = (torch.tensor(column) for column in zip(*rows, strict=True))
    names = []
    for name, x, codes in objective.inputs(flat):
        _, layer, leaf = name.split(".", 2)
        wanted = outputs[f"blocks.{layer}.{feeds[leaf]}"][item, time]
        torch.testing.assert_close(x @ views[name][0].T, wanted)
        assert torch.equal(codes, code)
        names.append(name)
    assert names == [entry.name for entry in MODEL.layout.only("matrix").entries]


def test_padding_is_no_input_and_is_never_scored(generator: torch.Generator) -> None:
    short = Cipher(alphabet=8, tag=0, length=2, items=9, heldout=3)
    long = Cipher(alphabet=8, tag=1, length=3, items=9, heldout=3, label="long")
    language = Mixture(parts=(short, long), weights=(1.0, 1.0)).build(5)
    assert (language.probe.tokens == 0).any()
    objective = language_objective(MODEL, language, goals_only=False)
    items = objective.tokens
    lengths = [1 + np.flatnonzero(row)[-1] for row in language.probe.scored]
    flat = draw(generator, 1)
    _, x, _ = next(iter(objective.inputs(flat)))
    assert len(x) == sum(lengths) < items.numel()
    assert (objective.target >= 16).all()


def test_evaluate_many_does_not_depend_on_the_width(language: Language, generator: torch.Generator) -> None:
    objective = language_objective(MODEL, language)
    flats = draw(generator, 7)
    wanted = torch.cat([objective.losses(row[None]) for row in flats])
    for width in (1, 3, 7, 20):
        torch.testing.assert_close(evaluate_many(objective.losses, flats, width), wanted)
    torch.testing.assert_close(evaluate_many(objective.losses, (row for row in flats), 2), wanted)
    assert evaluate_many(objective.trials, flats, 4).dtype == torch.bool
    with pytest.raises(ValueError, match="no weight vectors"):
        evaluate_many(objective.loss, [])


def test_bad_input_is_named(language: Language, generator: torch.Generator) -> None:
    name = language.slices[0]
    with pytest.raises(InputError, match=f"slices: '{name}x'.*did you mean '{name}'"):
        LanguageObjective(MODEL, language.probe, language.slices, (name + "x",))
    with pytest.raises(InputError, match="table: 'prob'"):
        language_objective(MODEL, language, "prob")
    with pytest.raises(ValueError, match="one run"):
        next(iter(language_objective(MODEL, language).inputs(draw(generator, 2))))
    assert math.isfinite(language_objective(MODEL, language).loss(draw(generator, 1)).item())
