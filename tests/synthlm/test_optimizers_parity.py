"""Whole trajectories against independent implementations: torch.optim and pytorch_optimizer.

All in float64 unless said otherwise, so that tolerances measure the rule and not rounding. Each problem is
closed: either side steps from its own weights, so one wrong step shows in all that follow.
"""

import secrets

import pytest
import pytorch_optimizer
import torch

from synthlm.optimizers import GroupOptimizer, OptimizerConfig
from synthlm.weights import Entry, Layout

STEPS = 25
SHAPES = [(6, 6), (6, 6), (6, 6), (12, 5), (5, 12), (5, 12), (4, 16)]
LAYOUT = Layout(Entry(f"m{i}", shape, "matrix") for i, shape in enumerate(SHAPES))


class Problem:
    """Fresh random losses: half squares of ``A W B - C``, half logistic losses of ``W x``."""

    def __init__(self, dtype=torch.float64):
        seed = secrets.randbits(48)
        print(f"seed {seed}")
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.parts, self.start = [], []
        for entry in LAYOUT.entries:
            out, width = entry.shape
            self.start.append(normal(out, width))
            labels = torch.randint(out, (20,), generator=generator)
            self.parts.append(
                (normal(out, out), normal(width, width), normal(out, width), normal(20, width), labels)
            )

    def loss(self, weights):
        total = 0.0
        for i, (w, (a, b, c, x, labels)) in enumerate(zip(weights, self.parts, strict=True)):
            square = ((a @ w @ b - c) ** 2).mean()
            logistic = torch.nn.functional.cross_entropy(x @ w.mT, labels)
            total = total + (square if i % 2 else logistic + 0.01 * square)
        return total

    def ours(self, name, lr, decay=0.0, hook=None, **hyper):
        flat = torch.cat([w.flatten() for w in self.start])[None].clone()
        config = OptimizerConfig(name=name, lr=lr, weight_decay=decay, hyper=hyper)
        optimizer = GroupOptimizer(LAYOUT, "matrix", [config])
        state = optimizer.init(flat)
        rate = torch.tensor([lr], dtype=torch.float64)
        for step in range(STEPS):
            leaf = flat.clone().requires_grad_()
            self.loss([view[0] for view in LAYOUT.views(leaf).values()]).backward()
            optimizer.step(flat, leaf.grad, state, rate)
            if hook:
                hook(step, state)
        return [view[0] for view in LAYOUT.views(flat).values()]

    def theirs(self, build, steps=STEPS, hook=None):
        weights = [torch.nn.Parameter(w.clone()) for w in self.start]
        optimizer = build(weights)
        for step in range(steps):
            optimizer.zero_grad()
            self.loss(weights).backward()
            optimizer.step()
            if hook:
                hook(step, optimizer, weights)
        return [w.detach() for w in weights]


def check(ours, theirs, start, rtol=1e-9, atol=1e-10):
    for a, b, first in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
        assert (a - first).abs().max() > 1e-3, "the weights hardly moved"


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw(decay):
    problem = Problem()
    hyper = {"beta1": 0.8, "beta2": 0.97, "eps": 1e-6}
    ours = problem.ours("adamw", 0.02, decay, **hyper)
    theirs = problem.theirs(
        lambda w: torch.optim.AdamW(w, lr=0.02, betas=(0.8, 0.97), eps=1e-6, weight_decay=decay)
    )
    check(ours, theirs, problem.start)


def test_adamw_in_float32():
    """At default settings; float32 rounding, of 1e-7 a step, is the difference."""
    problem = Problem(torch.float32)
    theirs = problem.theirs(lambda w: torch.optim.AdamW(w, lr=0.02, weight_decay=0.1))
    check(problem.ours("adamw", 0.02, 0.1), theirs, problem.start, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(momentum, nesterov):
    problem = Problem()
    ours = problem.ours("sgd", 1e-3, momentum=momentum, nesterov=nesterov)
    theirs = problem.theirs(lambda w: torch.optim.SGD(w, lr=1e-3, momentum=momentum, nesterov=nesterov))
    check(ours, theirs, problem.start)


def test_sgd_with_decay():
    """torch adds decay to the gradient, where it enters the momentum; ours is decoupled.

    Without momentum the two are one rule; with momentum the reference is torch without decay, and weights
    shrunk by hand before each step.
    """
    problem = Problem()
    theirs = problem.theirs(lambda w: torch.optim.SGD(w, lr=1e-3, weight_decay=0.3))
    check(problem.ours("sgd", 1e-3, 0.3, momentum=0.0), theirs, problem.start)

    class Shrinking(torch.optim.SGD):
        @torch.no_grad()
        def step(self):
            for weight in self.param_groups[0]["params"]:
                weight *= 1 - 1e-3 * 0.3
            super().step()

    theirs = problem.theirs(lambda w: Shrinking(w, lr=1e-3, momentum=0.9))
    check(problem.ours("sgd", 1e-3, 0.3, momentum=0.9), theirs, problem.start)


def orthogonal_in_full_precision(grad, coefficients, steps, eps):
    """Newton-Schulz on one matrix at its own precision, written from the polynomial a x + b x^3 + c x^5."""
    a, b, c = coefficients
    x = grad / grad.norm().clamp(min=eps)
    for _ in range(steps):
        x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
    return x


@pytest.mark.parametrize(("scaling", "adjust"), [("jordan", "original"), ("moonlight", "match_rms_adamw")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon(scaling, adjust, nesterov, monkeypatch):
    """torch.optim.Muon iterates in bfloat16; here its iteration is replaced by one in full precision."""
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", orthogonal_in_full_precision)
    problem = Problem()
    ours = problem.ours("muon", 0.02, 0.1, scaling=scaling, nesterov=nesterov)
    theirs = problem.theirs(
        lambda w: torch.optim.Muon(w, lr=0.02, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn=adjust)
    )
    # The polynomial multiplies rounding by up to 3.4445^5 = 500 a step.
    check(ours, theirs, problem.start, rtol=1e-6, atol=1e-7)


def test_muon_beside_bfloat16():
    """torch.optim.Muon as it is: bfloat16 has 3 digits, so steps differ by about a percent."""
    problem = Problem()
    ours = problem.ours("muon", 0.02)
    theirs = problem.theirs(lambda w: torch.optim.Muon(w, lr=0.02, weight_decay=0.0))
    for a, b, first in zip(ours, theirs, problem.start, strict=True):
        assert (a - b).norm() < 0.1 * (a - first).norm()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lion(decay):
    problem = Problem()
    theirs = problem.theirs(
        lambda w: pytorch_optimizer.Lion(w, lr=0.01, betas=(0.85, 0.97), weight_decay=decay)
    )
    check(problem.ours("lion", 0.01, decay, beta1=0.85, beta2=0.97), theirs, problem.start)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_signsgd(momentum):
    problem = Problem()
    theirs = problem.theirs(
        lambda w: pytorch_optimizer.SignSGD(w, lr=0.01, momentum=momentum, weight_decay=0.1)
    )
    check(problem.ours("signsgd", 0.01, 0.1, momentum=momentum), theirs, problem.start)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_shampoo(decay):
    """The reference starts its sums at ``eps I``; ours adds it under the root, which is the same sum.

    Its roots come from an SVD, ours from an eigendecomposition; a ridge of 1e-3 keeps both well conditioned.
    """
    problem = Problem()
    theirs = problem.theirs(
        lambda w: pytorch_optimizer.Shampoo(
            w, lr=0.1, matrix_eps=1e-3, weight_decay=decay, weight_decouple=True
        )
    )
    check(problem.ours("shampoo", 0.1, decay, eps=1e-3), theirs, problem.start, rtol=1e-6, atol=1e-7)


class FullPrecision:
    """The torch module, but for ``float32``, which stands for float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def test_soap(monkeypatch):
    """Twenty-five steps with six refreshes of the bases. Three differences of the reference are allowed for:

    - its first call only sets up the bases, so it gets one call more, and its statistics are emptied after
      that call, else they would count the first gradient twice;
    - that first basis is arbitrary where the first gradient is rank-deficient (every matrix that is not
      square), so the reference is given ours, after a check that ours diagonalizes what it should;
    - it refreshes its bases in float32, where columns that are nearly zero lose their digits; it is made to
      keep float64.
    """
    monkeypatch.setattr("pytorch_optimizer.optimizer.soap.torch", FullPrecision())
    problem = Problem()
    bases = {}

    def keep(step, state):
        if step == 0:
            bases.update({key: value.clone() for key, value in state.items() if "basis" in key})

    ours = problem.ours("soap", 0.02, hook=keep, beta1=0.9, beta2=0.95, shampoo_beta=0.8, every=4, eps=1e-4)
    position = [(part, i) for part, block in enumerate(LAYOUT.blocks()) for i in range(block.count)]

    def align(step, optimizer, weights):
        if step > 0:
            return
        for (part, i), weight in zip(position, weights, strict=True):
            state, grad = optimizer.state[weight], weight.grad
            for side, gram in enumerate((grad @ grad.T, grad.T @ grad)):
                basis = bases[f"{part}.{('left', 'right')[side]}_basis"][0, i]
                turned = basis.T @ gram @ basis
                assert (turned - turned.diagonal().diag()).abs().max() < 1e-10 * gram.abs().max()
                assert (turned.diagonal().diff() < 1e-10 * gram.abs().max()).all(), "largest first"
                state["Q"][side] = basis.clone()
                state["GG"][side].zero_()

    theirs = problem.theirs(
        lambda w: pytorch_optimizer.SOAP(
            w,
            lr=0.02,
            betas=(0.9, 0.95),
            shampoo_beta=0.8,
            weight_decay=0.0,
            precondition_frequency=4,
            eps=1e-4,
        ),
        steps=STEPS + 1,
        hook=align,
    )
    check(ours, theirs, problem.start, rtol=1e-6, atol=1e-7)
