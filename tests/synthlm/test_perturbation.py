"""Training at perturbed weights: closed forms on a quadratic, and runs that stay alone, resumable and exact."""

import json
import math
import secrets
from pathlib import Path
from typing import Any

import pytest
import torch

from synthlm import perturbation
from synthlm.config import InputError, parse
from synthlm.jobs import Finetune, Pretrain, Training, job_from_json
from synthlm.lora import LoraConfig
from synthlm.model import ModelConfig
from synthlm.optimizers import OptimizerConfig
from synthlm.perturbation import ASAM_ETA, GaussianNoise, Sam
from synthlm.seeds import torch_generator
from synthlm.store import Store
from synthlm.tasks import Cipher, Facts
from synthlm.trained import final_weights
from synthlm.training import _Loop, run_batch

SEED = secrets.randbits(30)
MODEL = ModelConfig(vocab=24, length=6, width=16, layers=1, heads=2, mlp=32)
OLD = Cipher(tag=1, alphabet=8, length=2, items=30, heldout=12)
NEW = Facts(label="new", tag=2, alphabet=8, items=16, key_length=2, value_length=1)
ADAMW = OptimizerConfig(name="adamw", lr=0.01)
SGD = OptimizerConfig(name="sgd", lr=0.1, hyper={"momentum": 0.0})
SETTINGS = [GaussianNoise(sigma=0.05), Sam(rho=0.3), Sam(rho=0.5, adaptive=True)]
EACH = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.label)


def pretrain(
    setting: GaussianNoise | Sam | None, seed: int = SEED, steps: int = 7, **changes: Any
) -> Pretrain:
    training = Training(steps=steps, batch=8, evaluations=3, perturb=setting, **changes.pop("training", {}))
    settings = {"optimizer": ADAMW, "aux": ADAMW} | changes
    return Pretrain(seed=seed, model=MODEL, language=OLD, training=training, **settings)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    print(f"seed {SEED}")
    return Store(tmp_path / "store")


def trained(jobs: list[Any], root: Path, *bases: Pretrain) -> list[torch.Tensor]:
    store = Store(root / secrets.token_hex(4))
    for base in bases:
        run_batch([base], store)
    run_batch(jobs, store)
    return [final_weights(job, store) for job in jobs]


# -- where the gradient is taken -------------------------------------------------------------------------------------


def quadratic(generator: torch.Generator, n: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return root @ root.T, torch.randn(3, n, generator=generator, dtype=torch.float64)


def test_nothing_moves_without_a_setting() -> None:
    flat = torch.randn(2, 5)

    def never(*_: Any) -> torch.Tensor:
        raise AssertionError("not asked for")

    assert perturbation.point(None, flat, never, never) is flat


def test_sam_goes_to_the_worst_point_of_the_ball_to_first_order() -> None:
    generator = torch.Generator().manual_seed(SEED)
    h, flat = quadratic(generator)
    at = perturbation.point(Sam(rho=0.3), flat, lambda w: w @ h, lambda: flat)
    step = at - flat
    torch.testing.assert_close(step.norm(dim=1), torch.full((3,), 0.3, dtype=torch.float64))
    others = torch.randn(500, 3, 9, generator=generator, dtype=torch.float64)
    others = 0.3 * others / others.norm(dim=-1, keepdim=True)
    grad = flat @ h
    assert ((step * grad).sum(-1) >= (others * grad).sum(-1)).all()


def test_asam_goes_to_the_worst_point_of_the_ellipsoid_and_ignores_scale() -> None:
    """|T^-1 step| = rho and the inner product with the gradient is rho |T g|; large weights make eta vanish."""
    generator = torch.Generator().manual_seed(SEED)
    h, flat = quadratic(generator)
    setting = Sam(rho=0.2, adaptive=True)
    step = perturbation.point(setting, flat, lambda w: w @ h, lambda: flat) - flat
    t, grad = flat.abs() + ASAM_ETA, flat @ h
    torch.testing.assert_close((step / t).norm(dim=1), torch.full((3,), 0.2, dtype=torch.float64))
    torch.testing.assert_close((step * grad).sum(1), 0.2 * (t * grad).norm(dim=1))
    big, stretch = 1e6 * flat, torch.rand(9, generator=generator, dtype=torch.float64) + 0.5
    plain = perturbation.point(setting, big, lambda w: w @ h, lambda: flat) - big
    stretched_h = h / stretch[:, None] / stretch
    moved = perturbation.point(setting, big * stretch, lambda w: w @ stretched_h, lambda: flat)
    torch.testing.assert_close(moved - big * stretch, plain * stretch, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_run_without_a_gradient_stays_and_leaves_the_others_alone(adaptive: bool) -> None:
    generator = torch.Generator().manual_seed(SEED)
    h, flat = quadratic(generator)
    setting = Sam(rho=0.2, adaptive=adaptive)

    def gradient(w: torch.Tensor) -> torch.Tensor:
        return (w @ h) * torch.tensor([1.0, 0, 1]).double()[:, None]

    at = perturbation.point(setting, flat, gradient, lambda: flat)
    assert torch.equal(at[1], flat[1])
    alone = perturbation.point(setting, flat[2:], lambda w: w @ h, lambda: flat)
    torch.testing.assert_close(at[2:], alone, rtol=1e-12, atol=0)


def test_noise_is_sigma_times_the_draw() -> None:
    flat, draw = torch.randn(2, 2, 5)
    at = perturbation.point(GaussianNoise(sigma=0.25), flat, lambda w: w, lambda: draw)
    torch.testing.assert_close(at, flat + draw / 4)


# -- in the training loop --------------------------------------------------------------------------------------------


def by_hand(job: Pretrain, store: Store) -> torch.Tensor:
    """One SGD step of a job, from the loop's own initial weights, batch and gradient, at the point computed here."""
    loop = _Loop([job], store, "cpu")
    start = loop.trainable.flat.clone()
    batch = loop._batch()
    setting = job.training.perturb
    at = start
    if isinstance(setting, GaussianNoise):
        generator = torch_generator(job.seed, "noise", "pretrain", 0)
        at = start + setting.sigma * torch.randn(start.shape[1], generator=generator)
    elif setting is not None:
        _, first = loop._gradient(start, *batch)
        t = start.abs() + ASAM_ETA if setting.adaptive else 1.0
        at = start + setting.rho * t * t * first / (t * first).norm()
    _, grad = loop._gradient(at, *batch)
    return (start - SGD.lr * grad)[0]


@pytest.mark.parametrize("setting", [None, *SETTINGS], ids=str)
def test_the_gradient_of_the_perturbed_point_is_applied_to_the_weights(
    setting: GaussianNoise | Sam | None, store: Store
) -> None:
    job = pretrain(setting, steps=1, optimizer=SGD, aux=SGD)
    run_batch([job], store)
    torch.testing.assert_close(final_weights(job, store), by_hand(job, store), rtol=0, atol=1e-6)


@EACH
def test_a_run_beside_others_is_the_run_alone_to_the_bit(
    setting: GaussianNoise | Sam, tmp_path: Path
) -> None:
    jobs = [
        pretrain(setting, seed=SEED + i, optimizer=OptimizerConfig(name="adamw", lr=0.01 * (i + 1)))
        for i in range(3)
    ]
    together = trained(jobs, tmp_path)
    for job, flat in zip(jobs, together, strict=True):
        assert torch.equal(trained([job], tmp_path)[0], flat)
    assert not torch.equal(together[0], trained([pretrain(None)], tmp_path)[0])


@EACH
@pytest.mark.parametrize("method", ["full", "lora"])
def test_finetuning_is_perturbed_too(setting: GaussianNoise | Sam, method: str, tmp_path: Path) -> None:
    base = pretrain(None)

    def tuned(setting: GaussianNoise | Sam | None, seed: int = SEED) -> Finetune:
        extra: dict[str, Any] = {"method": LoraConfig(rank=2)} if method == "lora" else {}
        training = Training(steps=4, batch=8, evaluations=2, perturb=setting)
        return Finetune(seed=seed, base=base, language=NEW, optimizer=ADAMW, training=training, **extra)

    both = trained([tuned(setting), tuned(setting, SEED + 1)], tmp_path, base)
    alone = trained([tuned(setting)], tmp_path, base)[0]
    plain = trained([tuned(None)], tmp_path, base)[0]
    assert torch.equal(both[0], alone)
    assert not torch.equal(alone, plain)
    assert torch.equal(alone[MODEL.layout.matrix_size :], plain[MODEL.layout.matrix_size :])


@EACH
def test_a_resumed_run_ends_in_the_same_bytes(setting: GaussianNoise | Sam, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise Interrupted

    jobs = [pretrain(setting, seed=SEED + i) for i in range(2)]
    whole = trained(jobs, tmp_path)
    store = Store(tmp_path / "resumed")
    with pytest.raises(Interrupted):
        run_batch(jobs, store, on_step=stop, save_seconds=0.0)
    steps: list[int] = []
    run_batch(jobs, store, on_step=lambda done, total: steps.append(done))
    assert steps[0] in (4, 5)
    for job, flat in zip(jobs, whole, strict=True):
        assert torch.equal(final_weights(job, store), flat)


def test_noise_is_fresh_at_every_step_stage_and_seed(store: Store) -> None:
    setting = GaussianNoise(sigma=1.0)
    loop = _Loop([pretrain(setting), pretrain(setting, seed=SEED + 1)], store, "cpu")
    draws = [loop._noise()]
    loop.step = 1
    draws.append(loop._noise())
    loop.stage = "finetune"
    draws.append(loop._noise())
    rows = torch.cat(draws)
    correlation = torch.corrcoef(rows) - torch.eye(6)
    assert correlation.abs().max() < 6 / math.sqrt(rows.shape[1])
    assert rows.std().item() == pytest.approx(1, abs=0.05)


def test_a_broken_perturbed_run_is_marked_and_takes_no_other_with_it(tmp_path: Path) -> None:
    good = pretrain(Sam(rho=0.3))
    bad = pretrain(Sam(rho=0.3), optimizer=OptimizerConfig(name="adamw", lr=1e30), seed=SEED + 1)
    store = Store(tmp_path / "both")
    run_batch([good, bad], store)
    assert store.load(bad.key).manifest["status"] == "diverged"
    assert torch.equal(final_weights(good, store), trained([good], tmp_path)[0])


# -- settings --------------------------------------------------------------------------------------------------------


def test_settings_are_part_of_key_shape_and_cost() -> None:
    jobs = [pretrain(setting) for setting in (None, *SETTINGS, GaussianNoise(sigma=0.1))]
    assert len({job.key for job in jobs}) == len({job.shape for job in jobs}) == len(jobs)
    plain, noise, sam = jobs[:3]
    assert noise.cost == plain.cost
    probing = plain.cost - (pretrain(None, steps=14).cost - plain.cost)
    assert sam.cost - probing == pytest.approx(2 * (plain.cost - probing))
    for job in jobs:
        assert job_from_json(job.model_dump_json()).key == job.key
    assert "noise 0.05" in noise.label
    assert "asam 0.5" in jobs[3].label


@pytest.mark.parametrize(
    ("perturb", "message"),
    [
        ({"kind": "noise", "sigma": 0}, "perturb.sigma: 0 should be greater than 0"),
        ({"kind": "nois", "sigma": 1}, "did you mean 'noise'"),
        ({"kind": "sam", "rh": 1}, "unknown field"),
        ({"kind": "sam", "rho": -1}, "perturb.rho: -1 should be greater than 0"),
    ],
)
def test_wrong_settings_are_named(perturb: dict[str, Any], message: str) -> None:
    data = json.loads(Training(steps=3).model_dump_json()) | {"perturb": perturb}
    with pytest.raises(InputError, match=message):
        parse(Training, data, "grid.toml")
