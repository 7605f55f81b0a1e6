"""The run axis: runs are independent bit for bit, states can be cut and stacked, bad input is refused."""

import secrets

import pytest
import torch

from synthlm.config import InputError, canonical_json, parse
from synthlm.geometry import GEOMETRIES
from synthlm.optimizers import RULES, GroupOptimizer, OptimizerConfig, clip_, cut, stack
from synthlm.optimizers.matrices import eigh, inverse_fourth_root, newton_schulz
from synthlm.weights import Entry, Layout

# Odd sizes, so that runs begin at every position of a vector register.
LAYOUT = Layout(
    [
        Entry("embed", (9, 7), "aux"),
        *(Entry(f"square{i}", (7, 7), "matrix") for i in range(3)),
        *(Entry(f"tall{i}", (13, 5), "matrix") for i in range(2)),
        Entry("wide", (3, 11), "matrix"),
        Entry("gain", (5,), "aux"),
    ]
)
RUNS = 5
LR = torch.tensor([0.01, 0.03, 0.1, 0.02, 0.005])
VARIED = {
    "adamw": [
        {"beta1": b, "beta2": 0.95, "eps": 10.0**-k} for k, b in enumerate((0.5, 0.9, 0.8, 0.0, 0.99), 5)
    ],
    "sgd": [{"momentum": m, "nesterov": True} for m in (0.0, 0.5, 0.9, 0.99, 0.3)],
    "muon": [{"momentum": m} for m in (0.95, 0.5, 0.0, 0.9, 0.8)],
    "muon-svd": [{"momentum": m, "orthogonalization": "svd"} for m in (0.95, 0.5, 0.0, 0.9, 0.8)],
    "muon-none": [{"momentum": m, "orthogonalization": "none"} for m in (0.95, 0.5, 0.0, 0.9, 0.8)],
    "signsgd": [{"momentum": m} for m in (0.0, 0.5, 0.9, 0.99, 0.3)],
    "lion": [{"beta1": b} for b in (0.9, 0.5, 0.8, 0.99, 0.0)],
    "shampoo": [{"beta": b, "every": 2} for b in (1.0, 0.9, 0.5, 0.99, 1.0)],
    "soap": [{"beta1": b, "every": 3} for b in (0.95, 0.9, 0.5, 0.8, 0.0)],
}


@pytest.fixture
def generator():
    seed = secrets.randbits(48)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def settings(case):
    decays = (0.0, 0.1, 0.01, 0.5, 0.0)
    name = case.split("-")[0]
    pairs = zip(decays, VARIED[case], strict=True)
    return [OptimizerConfig(name=name, lr=0.1, weight_decay=decay, hyper=hyper) for decay, hyper in pairs]


def groups(case):
    return ["matrix"] if RULES[case.split("-")[0]].matrix_only else ["matrix", "aux"]


def start(generator):
    flat = torch.randn(RUNS, LAYOUT.size, generator=generator)
    target = torch.randn(RUNS, LAYOUT.size, generator=generator)
    return flat, target


def train(optimizer, flat, target, state, lr, steps):
    for _ in range(steps):
        grad = (flat - target) * (1 + target * target)
        kept = grad.clone()
        optimizer.step(flat, grad, state, lr)
        assert torch.equal(grad.nan_to_num(7.0), kept.nan_to_num(7.0)), "the gradient was overwritten"


@pytest.mark.parametrize("case", VARIED)
def test_each_run_is_what_it_is_alone(case, generator):
    for group in groups(case):
        flat, target = start(generator)
        alone = flat.clone()
        together = GroupOptimizer(LAYOUT, group, settings(case))
        state = together.init(flat)
        train(together, flat, target, state, LR, 13)
        for run, config in enumerate(settings(case)):
            weights = alone[run : run + 1].clone()
            single = GroupOptimizer(LAYOUT, group, [config])
            own = single.init(weights)
            train(single, weights, target[run : run + 1], own, LR[run : run + 1], 13)
            assert torch.equal(weights[0], flat[run])
            assert all(torch.equal(own[key][0], state[key][run]) for key in own)
            assert not torch.equal(weights, alone[run : run + 1])


@pytest.mark.parametrize("case", VARIED)
def test_how_many_runs_move_at_once_changes_nothing(case, generator, monkeypatch):
    flat, target = start(generator)
    results = []
    for numbers in (1, 2 * LAYOUT.matrix_size, 10**9):
        monkeypatch.setattr("synthlm.optimizers.group.CACHED_NUMBERS", numbers)
        weights = flat.clone()
        optimizer = GroupOptimizer(LAYOUT, "matrix", settings(case))
        train(optimizer, weights, target, optimizer.init(weights), LR, 5)
        results.append(weights)
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[2])


@pytest.mark.parametrize("case", VARIED)
def test_only_the_group_moves(case, generator):
    for group in groups(case):
        flat, target = start(generator)
        before = flat.clone()
        optimizer = GroupOptimizer(LAYOUT, group, settings(case))
        train(optimizer, flat, target, optimizer.init(flat), LR, 2)
        moved = (flat != before).any(0)
        inside = torch.zeros(LAYOUT.size, dtype=torch.bool)
        inside[: LAYOUT.matrix_size] = True
        inside = inside if group == "matrix" else ~inside
        assert moved[inside].all()
        assert not moved[~inside].any()


@pytest.mark.parametrize("case", VARIED)
def test_training_goes_on_from_cut_and_stacked_states(case, generator):
    flat, target = start(generator)
    configs = settings(case)
    optimizer = GroupOptimizer(LAYOUT, "matrix", configs)
    state = optimizer.init(flat)
    train(optimizer, flat, target, state, LR, 7)

    order = [3, 0, 4]
    chosen, aims, lr = flat[order].clone(), target[order], LR[order]
    again = stack([cut(state, run) for run in order])
    resumed = GroupOptimizer(LAYOUT, "matrix", [configs[run] for run in order])
    train(resumed, chosen, aims, again, lr, 8)
    train(optimizer, flat, target, state, LR, 8)
    assert torch.equal(chosen, flat[order])
    assert all(torch.equal(again[key], state[key][order]) for key in state)


@pytest.mark.parametrize("case", VARIED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_run_takes_no_other_with_it(case, bad, generator):
    flat, target = start(generator)
    healthy, healthy_target = flat.clone(), target.clone()
    optimizer = GroupOptimizer(LAYOUT, "matrix", settings(case))
    state, healthy_state = optimizer.init(flat), optimizer.init(flat)
    train(optimizer, flat, target, state, LR, 3)
    train(optimizer, healthy, healthy_target, healthy_state, LR, 3)
    target[1, ::3] = bad
    train(optimizer, flat, target, state, LR, 5)
    train(optimizer, healthy, healthy_target, healthy_state, LR, 5)
    others = [0, 2, 3, 4]
    assert torch.equal(flat[others], healthy[others])
    assert not flat[1, : LAYOUT.matrix_size].isfinite().all()


@pytest.mark.parametrize("case", VARIED)
def test_every_matrix_of_a_stack_is_on_its_own(case, generator):
    """Stacked matrices and the same matrices as stacks of one: nothing is flattened or mixed."""
    flat, target = start(generator)
    optimizer = GroupOptimizer(LAYOUT, "matrix", settings(case))
    before = flat.clone()
    train(optimizer, flat, target, optimizer.init(flat), LR, 4)
    for entry in LAYOUT.entries:
        if entry.group == "matrix":
            where = LAYOUT.slices[entry.name]
            own = before[:, where].clone()
            single = GroupOptimizer(Layout([entry]), "matrix", settings(case))
            train(single, own, target[:, where], single.init(own), LR, 4)
            torch.testing.assert_close(own, flat[:, where], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", VARIED)
def test_every_rule_descends(case, generator):
    for group in groups(case):
        flat, target = start(generator)
        configs = [config.model_copy(update={"weight_decay": 0.0}) for config in settings(case)]
        optimizer = GroupOptimizer(LAYOUT, group, configs)
        part = slice(0, LAYOUT.matrix_size) if group == "matrix" else slice(LAYOUT.matrix_size, None)
        before = (flat - target)[:, part].norm(dim=1)
        train(optimizer, flat, target, optimizer.init(flat), torch.full((RUNS,), 0.01), 30)
        assert ((flat - target)[:, part].norm(dim=1) < before).all()


@pytest.mark.parametrize("case", ["signsgd", "sgd", "muon-svd", "muon-none", "shampoo"])
def test_without_averaging_a_rule_steps_along_its_geometry(case, generator):
    plain = {"shampoo": {"beta": 0.0, "eps": 1e-30}}.get(case, {"momentum": 0.0})
    if "-" in case:
        plain["orthogonalization"] = case.split("-")[1]
    config = OptimizerConfig(name=case.split("-")[0], lr=1.0, hyper=plain)
    layout = Layout([Entry(f"m{i}", (8, 8), "matrix") for i in range(3)])
    flat = torch.randn(1, layout.size, generator=generator, dtype=torch.float64)
    grad = torch.randn(flat.shape, generator=generator, dtype=torch.float64)
    moved = flat.clone()
    optimizer = GroupOptimizer(layout, "matrix", [config])
    optimizer.step(moved, grad, optimizer.init(flat), torch.ones(1, dtype=torch.float64))
    (block,) = layout.blocks()
    step = GEOMETRIES[config.geometry].step(block.view(grad))
    taken = block.view(moved - flat)
    size = (taken * step).sum((-2, -1), keepdim=True) / (step * step).sum((-2, -1), keepdim=True)
    torch.testing.assert_close(taken, size * step, rtol=1e-7, atol=1e-9)
    assert (size > 0).all()


def test_decay_is_decoupled_for_every_rule(generator):
    """A zero gradient leaves exactly the decay, w (1 - lr * decay)^steps, and nothing in the momentum."""
    for name in RULES:
        flat, _ = start(generator)
        before = flat.clone()
        configs = [OptimizerConfig(name=name, lr=1.0, weight_decay=0.3)] * RUNS
        optimizer = GroupOptimizer(LAYOUT, "matrix", configs)
        state = optimizer.init(flat)
        for _ in range(5):
            optimizer.step(flat, torch.zeros_like(flat), state, LR)
        factor = torch.ones(RUNS, LAYOUT.size)
        factor[:, : LAYOUT.matrix_size] = (1 - 0.3 * LR.double()[:, None]) ** 5
        torch.testing.assert_close(flat, before * factor, rtol=2e-6, atol=0)


@pytest.mark.parametrize("shape", [(32, 32), (8, 48), (48, 8), (64, 33), (1, 9)])
def test_newton_schulz_against_exact_svd(shape, generator):
    """Singular vectors are kept; singular values land in Jordan's band, when none is tiny at the start."""
    x = torch.randn(2, 6, *shape, generator=generator, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    x = (u * (0.2 + s / s.max())[..., None, :]) @ vt
    core = u.mT @ newton_schulz(x) @ vt.mT
    values = core.diagonal(dim1=-2, dim2=-1)
    assert 0.65 < values.min() <= values.max() < 1.2
    assert (core - torch.diag_embed(values)).abs().max() < 1e-10
    single = newton_schulz(x.float())
    torch.testing.assert_close(single.double(), newton_schulz(x), rtol=0, atol=1e-4)
    assert torch.equal(newton_schulz(torch.zeros(1, 2, *shape)), torch.zeros(1, 2, *shape))


def test_matrix_functions_leave_healthy_matrices_alone(generator):
    half = torch.randn(3, 2, 6, 6, generator=generator, dtype=torch.float64)
    x = half @ half.mT
    root = inverse_fourth_root(x, torch.full((3, 1, 1, 1), 1e-9, dtype=torch.float64))
    identity = torch.eye(6, dtype=torch.float64).expand_as(x)
    torch.testing.assert_close(root @ root @ root @ root @ (x + 1e-9 * identity), identity, rtol=0, atol=1e-6)
    broken = x.clone()
    broken[1, 0, 2, 2] = float("nan")
    values, vectors = eigh(broken)
    assert values[1, 0].isnan().all()
    assert vectors[1, 0].isnan().all()
    healthy = [0, 2]
    assert torch.equal(values[healthy], eigh(x)[0][healthy])
    assert torch.equal(values[1, 1], eigh(x)[0][1, 1])


def test_clipping_is_per_run(generator):
    grad = torch.randn(4, 1001, generator=generator, dtype=torch.float64)
    grad[3] = float("nan")
    before = grad.clone()
    limit = torch.tensor([1.0, 1e9, float("inf"), 1.0], dtype=torch.float64)
    norms = clip_(grad, limit)
    torch.testing.assert_close(norms[:3], (before[:3] ** 2).sum(1).sqrt(), rtol=1e-12, atol=0)
    assert grad[0].norm().item() == pytest.approx(1, rel=1e-6)
    assert torch.equal(grad[1:3], before[1:3])
    parameter = torch.nn.Parameter(before[0].clone())
    parameter.grad = before[0].clone()
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    torch.testing.assert_close(grad[0], parameter.grad, rtol=1e-12, atol=0)


def test_defaults_are_part_of_the_record():
    short = OptimizerConfig(name="muon", lr=0.1, hyper={"momentum": 0})
    full = OptimizerConfig(name="muon", lr=0.1, hyper={**short.hyper})
    assert canonical_json(short) == canonical_json(full)
    assert short.hyper["ns_steps"] == 5
    assert isinstance(short.hyper["momentum"], float)
    assert parse(OptimizerConfig, short.model_dump(mode="json"), "again") == short
    assert {name: OptimizerConfig(name=name, lr=1.0).geometry for name in RULES} == {
        "adamw": "max",
        "sgd": "frobenius",
        "muon": "spectral",
        "signsgd": "max",
        "lion": "max",
        "shampoo": "spectral",
        "soap": "spectral",
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "muoon", "lr": 0.1}, r"'muoon' is not one of adamw, .*did you mean 'muon'"),
        ({"name": "sgd", "lr": 0.1, "hyper": {"momentom": 0.5}}, r"momentom: unknown field .*'momentum'"),
        ({"name": "sgd", "lr": 0.1, "hyper": {"momentum": 1.5}}, r"momentum: 1.5 should be less than 1"),
        ({"name": "muon", "lr": 0.1, "hyper": {"scaling": "moonlite"}}, r"scaling.*did you mean 'moonlight'"),
        ({"name": "adamw", "lr": -1}, r"lr: -1 should be greater than or equal to 0"),
    ],
)
def test_bad_settings_are_named(data, message):
    with pytest.raises(InputError, match=message):
        parse(OptimizerConfig, data, "job")


@pytest.mark.parametrize("name", ["muon", "shampoo", "soap"])
def test_matrix_rules_refuse_the_aux_group(name):
    with pytest.raises(InputError, match=f"'{name}' acts on matrices only.*adamw"):
        GroupOptimizer(LAYOUT, "aux", [OptimizerConfig(name=name, lr=0.1)])


def test_runs_that_cannot_share_a_batch_are_refused():
    sgd, lion = OptimizerConfig(name="sgd", lr=0.1), OptimizerConfig(name="lion", lr=0.1)
    nesterov = OptimizerConfig(name="sgd", lr=0.1, hyper={"nesterov": True})
    with pytest.raises(InputError, match="need one rule, not lion, sgd"):
        GroupOptimizer(LAYOUT, "aux", [sgd, lion])
    with pytest.raises(InputError, match=r"sgd.nesterov: .* not False, True"):
        GroupOptimizer(LAYOUT, "aux", [sgd, nesterov])
    with pytest.raises(ValueError, match="2 runs of weights, but settings for 1"):
        GroupOptimizer(LAYOUT, "aux", [sgd]).init(torch.zeros(2, LAYOUT.size))
