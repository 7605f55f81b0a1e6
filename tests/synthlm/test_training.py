"""The training loop: the same bytes alone, in a batch, resumed and regrouped; honest about runs that broke."""

import itertools
import json
import math
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from synthlm import model as transformer
from synthlm import resume, schedules, training, weights
from synthlm.config import InputError
from synthlm.evaluation import Probe, evaluate, log_probabilities
from synthlm.jobs import Finetune, Full, Job, Pretrain, Training
from synthlm.lora import LoraConfig
from synthlm.model import ModelConfig
from synthlm.optimizers import OptimizerConfig
from synthlm.schedules import log_spaced
from synthlm.store import Store
from synthlm.tasks import Cipher, Facts, Injection, Mixture
from synthlm.trained import final_weights
from synthlm.training import Order, run_batch

SEED = secrets.randbits(30)
MODEL = ModelConfig(vocab=24, length=6, width=16, layers=1, heads=2, mlp=32)
OLD = Mixture(
    parts=(
        Facts(tag=0, alphabet=8, items=24, key_length=2, value_length=1, frequency="zipf"),
        Cipher(tag=1, alphabet=8, length=2, items=30, heldout=12),
    )
)
NEW = Facts(label="new", tag=2, alphabet=8, items=16, key_length=2, value_length=1)
AUX = OptimizerConfig(name="adamw", lr=0.01)
LR = {"adamw": 0.01, "muon": 0.03, "sgd": 0.2, "soap": 0.01}
FULL = Full()
LORA = LoraConfig(rank=2, targets=("*.attn.*",))


def optimizer(name: str, lr: float | None = None, **settings: Any) -> OptimizerConfig:
    return OptimizerConfig(name=name, lr=LR[name] if lr is None else lr, **settings)


def pretrain(
    name: str = "adamw", lr: float | None = None, seed: int = SEED, steps: int = 9, **changes: Any
) -> Pretrain:
    plan = Training(steps=steps, batch=8, evaluations=4, **changes.pop("training", {}))
    settings = {"model": MODEL, "language": OLD, "aux": AUX} | changes
    return Pretrain(seed=seed, optimizer=optimizer(name, lr), training=plan, **settings)


def finetune(
    base: Pretrain, method: Full | LoraConfig = FULL, name: str = "adamw", lr: float | None = None,
    aux: OptimizerConfig | None = None, **changes: Any,
) -> Finetune:  # fmt: skip
    plan = Training(steps=6, batch=8, evaluations=3, **changes.pop("training", {}))
    settings = {"language": NEW, "seed": base.seed} | changes
    return Finetune(
        base=base, method=method, optimizer=optimizer(name, lr), aux=aux, training=plan, **settings
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    print(f"seed {SEED}")
    return Store(tmp_path / "store")


def fresh(tmp_path: Path, *bases: Pretrain) -> Store:
    """Another store that already holds the given bases."""
    store = Store(tmp_path / f"store-{secrets.token_hex(4)}")
    for base in bases:
        run_batch([base], store)
    return store


def files(store: Store, job: Job) -> dict[str, bytes]:
    """All of a finished job, but for the time that it took."""
    found = {path.name: path.read_bytes() for path in store.folder(job.key).iterdir()}
    manifest = json.loads(found["manifest.json"])
    assert manifest.pop("seconds") > 0
    del found["done.json"]  # holds the manifest's sha256
    return found | {"manifest.json": json.dumps(manifest).encode()}


def result(store: Store, job: Job) -> dict[str, bytes]:
    """All of a finished job but what says with whom, and in what time, it was trained."""
    return {
        name: data for name, data in files(store, job).items() if name not in ("manifest.json", "done.json")
    }


def flat_of(store: Store, job: Job) -> torch.Tensor:
    return final_weights(job, store)


class Interrupted(Exception):
    pass


def stop_after(step: int) -> Callable[[int, int], None]:
    def on_step(done: int, total: int) -> None:
        if done == step:
            raise Interrupted

    return on_step


def interrupt(jobs: list[Job], store: Store, step: int) -> None:
    with pytest.raises(Interrupted):
        run_batch(jobs, store, on_step=stop_after(step), save_seconds=0.0)
    assert not any(store.has(job.key) for job in jobs)


# -- what a run leaves ------------------------------------------------------------------------------------------------


def test_a_run_leaves_config_manifest_metrics_weights_and_checkpoints(store: Store) -> None:
    job = pretrain(steps=20, training={"checkpoints": 3, "clip": 1.0})
    steps: list[tuple[int, int]] = []
    run_batch([job], store, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(i + 1, 20) for i in range(20)]
    record = store.load(job.key)
    assert record.config == json.loads(job.model_dump_json())
    manifest = record.manifest
    expected = {"key": job.key, "kind": "pretrain", "status": "done", "diverged_at": None, "stopped": False}
    assert manifest.items() >= (expected | {"steps": 20, "device": "cpu", "runs_side_by_side": 1}).items()
    assert manifest["language_sha256"] == OLD.build(SEED).sha256
    metrics = record.metrics
    evaluated = [0, *log_spaced(4, 20)]
    slices = list(OLD.build(SEED).slices)
    assert metrics["step"] == [step for step in evaluated for _ in slices]
    assert metrics["slice"] == slices * len(evaluated)
    assert set(metrics["role"]) == {"old"}
    assert {len(column) for column in metrics.values()} == {len(metrics["step"])}
    saved = [f"step-{step:07d}.safetensors" for step in log_spaced(3, 20)]
    assert {path.name for path in store.folder(job.key).iterdir()} == {
        "config.json", "manifest.json", "metrics.json", "done.json", "final.safetensors", *saved,
    }  # fmt: skip
    assert files(store, job)[saved[-1]] == files(store, job)["final.safetensors"]
    assert len({files(store, job)[name] for name in saved}) == 3
    assert not list((store.root / "partial").iterdir())


def test_metrics_are_those_of_the_weights_that_are_kept(store: Store) -> None:
    base = pretrain(training={"checkpoints": 2})
    run_batch([base], store)
    tuned = finetune(base, LORA)
    run_batch([tuned], store)
    old, new = Probe([OLD.build(SEED)], "cpu"), Probe([NEW.build(SEED)], "cpu")

    def numbers(flat: torch.Tensor, probe: Probe, reference: torch.Tensor | None = None) -> dict[str, list]:
        log_p = log_probabilities(MODEL, MODEL.layout.views(flat[None]), probe)
        against = None
        if reference is not None:
            against = log_probabilities(MODEL, MODEL.layout.views(reference[None]), probe)
        return evaluate(probe, log_p, against)[0]

    def recorded(job: Job, step: int, role: str) -> dict[str, list]:
        rows = store.load(job.key).metrics
        chosen = [
            i for i, at in enumerate(zip(rows["step"], rows["role"], strict=True)) if at == (step, role)
        ]
        return {name: [rows[name][i] for i in chosen] for name in rows if name not in ("step", "role")}

    start = transformer.init(MODEL, training.torch_generator(SEED, "init"))
    assert recorded(base, 0, "old") == numbers(start, old)
    assert recorded(base, 9, "old") == numbers(flat_of(store, base), old)
    middle = weights.load(store.weights(base.key, "step-0000001.safetensors"), MODEL.layout)
    assert recorded(base, 1, "old") == numbers(middle, old)
    end = flat_of(store, base)
    assert recorded(tuned, 0, "old") == numbers(end, old, end)
    assert set(recorded(tuned, 0, "old")["kl"]) == {0.0}
    assert recorded(tuned, 0, "new") == numbers(end, new)
    assert recorded(tuned, 6, "old") == numbers(flat_of(store, tuned), old, end)
    assert recorded(tuned, 6, "new") == numbers(flat_of(store, tuned), new)
    assert min(recorded(tuned, 6, "old")["kl"]) > 0


def test_training_learns(store: Store) -> None:
    language = Facts(alphabet=8, items=12, key_length=2, value_length=1)
    job = pretrain("muon", language=language, steps=80)
    run_batch([job], store)
    rows = store.load(job.key).metrics
    assert rows["accuracy"][-1] == 1.0
    assert rows["loss"][-1] < 0.2 < 1.5 < rows["loss"][0]


def test_a_step_is_that_of_a_plain_loop(store: Store) -> None:
    """SGD without momentum, decay and schedule, against autograd on sequences picked one by one."""
    plain = {"name": "sgd", "lr": 0.3, "hyper": {"momentum": 0.0}}
    changes = {"clip": 0.5, "schedule": {"shape": "linear", "warmup_fraction": 0.5}}
    plan = Training(steps=4, batch=8, evaluations=2, **changes)
    job = Pretrain(
        seed=SEED, model=MODEL, language=OLD, optimizer=plain, aux=plain | {"lr": 0.1}, training=plan
    )
    run_batch([job], store)
    language, layout = OLD.build(SEED), MODEL.layout
    flat = transformer.init(MODEL, training.torch_generator(SEED, "init")).double()[None]
    order = Order([language], [SEED], "pretrain", 8)
    rate = torch.full((layout.size,), 0.1, dtype=torch.float64)
    rate[: layout.matrix_size] = 0.3
    clipped = 0
    for step in range(4):
        leaf = flat.clone().requires_grad_()
        total, count = 0.0, 0
        for item in order(step)[0]:
            tokens = torch.tensor(language.train.tokens[item])[None, None]
            log_p = transformer.forward(MODEL, layout.views(leaf), tokens)[0, 0].log_softmax(-1)
            for t, target in enumerate(language.train.targets[item]):
                if target >= 0:
                    total, count = total - log_p[t, target], count + 1
        (grad,) = torch.autograd.grad(total / count, leaf)
        clipped += grad.norm() > 0.5
        factor = schedules.factor(step, 4, plan.schedule)
        flat = flat - rate * factor * grad * min(1, 0.5 / (grad.norm().item() + 1e-6))
    assert clipped
    torch.testing.assert_close(flat_of(store, job).double(), flat[0], rtol=1e-4, atol=1e-5)


def test_clipping_changes_a_run_only_when_the_limit_is_reached(store: Store) -> None:
    jobs = [pretrain("sgd", training={"clip": clip}) for clip in (None, 1e9, 0.01)]
    for job in jobs:
        run_batch([job], store)
    free, wide, tight = (flat_of(store, job) for job in jobs)
    start = transformer.init(MODEL, training.torch_generator(SEED, "init"))
    assert torch.equal(free, wide)
    assert (tight - start).norm() < 0.5 * (free - start).norm()


# -- alone, together, resumed -----------------------------------------------------------------------------------------


def cases(base: Pretrain) -> dict[str, Job]:
    return {
        "pretrain-adamw": pretrain("adamw", training={"checkpoints": 3}),
        "pretrain-muon": pretrain("muon"),
        "pretrain-sgd": pretrain("sgd"),
        "pretrain-soap": pretrain("soap"),
        "full-adamw": finetune(base),
        "full-muon-aux": finetune(base, name="muon", aux=AUX, training={"checkpoints": 2, "clip": 0.3}),
        "lora-adamw": finetune(base, LORA, training={"checkpoints": 2}),
        "lora-muon": finetune(base, LORA, "muon"),
        "lora-soap": finetune(base, LORA, "soap"),
    }


CASES = list(cases(pretrain()))


@pytest.mark.parametrize("name", CASES)
def test_resumed_equals_uninterrupted_in_every_byte(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.setattr(training, "ORDER_CHUNK", 4)  # so that data order is drawn several times
    base = pretrain("sgd", steps=3)
    job = cases(base)[name]
    whole, broken = fresh(tmp_path, base), fresh(tmp_path, base)
    run_batch([job], whole)
    for step in (2, 5):
        interrupt([job], broken, step)
    run_batch([job], broken)
    assert files(broken, job) == files(whole, job)
    assert store_is_clean(broken)


def store_is_clean(store: Store) -> bool:
    return not any(any((store.root / name).iterdir()) for name in ("partial", "tmp", "damaged", "failed"))


@pytest.mark.parametrize("name", CASES)
def test_a_run_in_a_batch_of_three_is_the_run_alone(tmp_path: Path, name: str) -> None:
    base, other = pretrain("sgd", steps=3), pretrain("adamw", steps=3, seed=SEED + 1)
    job = cases(base)[name]
    rates = [job.optimizer.lr * 0.5, job.optimizer.lr * 2]
    beside = [
        job.model_copy(update={"optimizer": optimizer(job.optimizer.name, rate), "seed": SEED + 1} | changes)
        for rate, changes in zip(rates, ({}, {"base": other} if job.kind == "finetune" else {}), strict=True)
    ]
    beside = [type(job).model_validate(each.model_dump()) for each in beside]
    alone, together = fresh(tmp_path, base, other), fresh(tmp_path, base, other)
    batch = [beside[0], job, beside[1]]
    run_batch(batch, together)
    for each in batch:
        run_batch([each], alone)
        assert result(together, each) == result(alone, each)
    manifest = together.load(job.key).manifest
    assert manifest["runs_side_by_side"] == 3
    same = {"runs_side_by_side": 1, "seconds": 0.0}
    assert manifest | same == alone.load(job.key).manifest | same
    assert len({result(together, each)["final.safetensors"] for each in batch}) == 3


def test_runs_may_be_regrouped_on_resume(tmp_path: Path) -> None:
    jobs = [pretrain("muon", lr) for lr in (0.01, 0.02, 0.04)]
    whole, broken = fresh(tmp_path), fresh(tmp_path)
    run_batch(jobs, whole)
    interrupt(jobs, broken, 4)
    seen: list[int] = []
    run_batch([jobs[2], jobs[0]], broken, on_step=lambda done, total: seen.append(done))
    assert seen == [5, 6, 7, 8, 9]
    run_batch([jobs[1]], broken)
    for job in jobs:
        assert result(broken, job) == result(whole, job)


def test_runs_at_different_steps_begin_anew_together(tmp_path: Path) -> None:
    jobs = [pretrain("sgd", lr) for lr in (0.1, 0.2)]
    whole, broken = fresh(tmp_path), fresh(tmp_path)
    run_batch(jobs, whole)
    interrupt(jobs[:1], broken, 3)
    interrupt(jobs[1:], broken, 5)
    run_batch(jobs, broken)
    for job in jobs:
        assert files(broken, job) == files(whole, job)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "no-history", "flipped", "other-shape"])
def test_a_damaged_resume_point_is_not_used(tmp_path: Path, damage: str) -> None:
    job = pretrain("adamw")
    whole, broken = fresh(tmp_path), fresh(tmp_path)
    run_batch([job], whole)
    interrupt([job], broken, 6)
    path = broken.partial(job.key) / resume.RESUME
    data = bytearray(path.read_bytes())
    if damage == "no-history":
        safetensors.torch.save_file({"flat": torch.zeros(3)}, path)
    elif damage == "other-shape":
        with safetensors.safe_open(path, framework="pt") as file:
            history = file.metadata()
        safetensors.torch.save_file({"flat": torch.zeros(3)}, path, metadata=history)
    else:
        flipped = data.copy()
        flipped[-100] ^= 0x40
        head = b"\xff" * 64
        damaged = {"truncated": data[:-50], "empty": b"", "garbage": head + data[64:], "flipped": flipped}
        path.write_bytes(damaged[damage])
    seen: list[int] = []
    run_batch([job], broken, on_step=lambda done, total: seen.append(done))
    assert seen[0] == 1
    assert files(broken, job) == files(whole, job)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path, name: str) -> None:
    one, other = pretrain(name), pretrain(name, seed=SEED + 1)
    first, second = fresh(tmp_path, one, other), fresh(tmp_path, one)
    assert files(first, one) == files(second, one)
    assert result(first, one)["final.safetensors"] != result(first, other)["final.safetensors"]
    assert result(first, one)["metrics.json"] != result(first, other)["metrics.json"]


def test_results_do_not_depend_on_global_generators(tmp_path: Path) -> None:
    job = pretrain("muon")
    torch.manual_seed(1)
    first = fresh(tmp_path, job)
    torch.manual_seed(2)
    np.random.seed(3)  # noqa: NPY002
    torch.rand(17)
    assert files(first, job) == files(fresh(tmp_path, job), job)


def test_how_often_a_resume_point_is_written_changes_nothing(tmp_path: Path) -> None:
    job = pretrain("soap")
    seldom, often = fresh(tmp_path), fresh(tmp_path)
    run_batch([job], seldom, save_seconds=1e9)
    run_batch([job], often, save_seconds=0.0)
    assert files(seldom, job) == files(often, job)


# -- steps whose items are prescribed ----------------------------------------------------------------------------------

BACKGROUND = Facts(alphabet=8, items=24, key_length=2, value_length=1, frequency="zipf")


def injection(step: int, **changes: Any) -> Injection:
    return Injection(
        background=BACKGROUND, step=step, items=3, references=20, length=3, alphabet=8, **changes
    )


def test_order_is_that_of_the_background_but_for_the_injected_steps(monkeypatch) -> None:
    monkeypatch.setattr(training, "ORDER_CHUNK", 4)
    seeds = [SEED, SEED + 1]
    plain = Order([BACKGROUND.build(seed) for seed in seeds], seeds, "pretrain", 8)
    languages = [injection(5, repeats=2).build(SEED), injection(9).build(SEED + 1)]
    order = Order(languages, seeds, "pretrain", 8)
    for step in (*range(12), 5, 6, 4, 9):  # in any order, and again
        background = plain(step)
        for r, injected in enumerate(((5, 6), (9,))):
            if step in injected:
                assert order(step)[r].tolist() == [24, 25, 26, 24, 25, 26, 24, 25]
            else:
                assert (order(step)[r] == background[r]).all()
    with pytest.raises(ValueError, match=r"batch: 2 .* 3 items"):
        Order(languages, seeds, "pretrain", 2)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_injection_changes_a_run_from_its_step_on(tmp_path: Path, name: str) -> None:
    checkpoints = {"checkpoints": 40, "evaluate_every": 1}
    with_it, without = (
        pretrain(name, steps=9, language=injection(step), training=checkpoints) for step in (4, 9)
    )
    store = fresh(tmp_path, with_it, without)
    one, other = (store.load(job.key).metrics for job in (with_it, without))
    assert one["step"] == other["step"]
    for at, a, b in zip(one["step"], one["loss"], other["loss"], strict=True):
        assert (a == b) == (at <= 4)
    one, other = result(store, with_it), result(store, without)
    for step in range(1, 10):
        file = f"step-{step:07d}.safetensors"
        assert (file in one) == (file in other)
        if file in one:
            assert (one[file] == other[file]) == (step <= 4)
    # nothing but numerics of the head stands between this and the background alone
    alone = pretrain(name, steps=9, language=BACKGROUND, training=checkpoints)
    run_batch([alone], store)
    wanted = store.load(alone.key).metrics
    rows = store.load(without.key).metrics
    losses = [x for s, x in zip(rows["slice"], rows["loss"], strict=True) if s in set(wanted["slice"])]
    np.testing.assert_allclose(losses, wanted["loss"], rtol=1e-3)


def test_injected_strings_alone_are_trained_on_in_their_step(store: Store) -> None:
    """One step of plain SGD on the injected strings, from the weights right before it."""
    plain = {"name": "sgd", "lr": 0.3, "hyper": {"momentum": 0.0}}
    plan = Training(steps=5, batch=6, evaluations=2, checkpoints=40)
    job = Pretrain(seed=SEED, model=MODEL, language=injection(4), optimizer=plain, aux=plain, training=plan)
    run_batch([job], store)
    before = weights.load(store.weights(job.key, "step-0000004.safetensors"), MODEL.layout)[None]
    table = job.language.build(SEED).train.take(np.arange(24, 27))
    leaf = before.clone().requires_grad_()
    log_p = transformer.forward(MODEL, MODEL.layout.views(leaf), torch.tensor(table.tokens)[None])[0]
    log_p, target = log_p.log_softmax(-1)[:, :3], torch.tensor(table.targets)[:, :3]
    loss = -log_p.gather(-1, target[..., None]).mean()
    (grad,) = torch.autograd.grad(loss, leaf)
    expected = (before - 0.3 * grad).detach()[0]
    torch.testing.assert_close(flat_of(store, job), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon", "soap"])
@pytest.mark.parametrize("step", [4, 5], ids=["right-before", "right-after"])
def test_killed_at_the_injection_it_ends_in_the_same_bytes(
    tmp_path: Path, name: str, step: int, monkeypatch
) -> None:
    monkeypatch.setattr(training, "ORDER_CHUNK", 4)
    job = pretrain(name, language=injection(4), training={"checkpoints": 3})
    whole, broken = fresh(tmp_path, job), fresh(tmp_path)
    interrupt([job], broken, step)
    run_batch([job], broken)
    assert files(broken, job) == files(whole, job)
    assert store_is_clean(broken)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_runs_with_an_injection_side_by_side_are_the_runs_alone(tmp_path: Path, stage: str) -> None:
    bases = [pretrain("sgd", steps=3, seed=SEED + i) for i in range(2)]
    language = injection(4, repeats=2)
    batch: list[Job] = [
        pretrain("muon", lr, SEED + i, language=language) for lr in (0.01, 0.03) for i in range(2)
    ]
    if stage == "finetune":
        batch = [finetune(base, aux=AUX, lr=lr, language=language) for lr in (0.01, 0.02) for base in bases]
    alone, together = fresh(tmp_path, *bases), fresh(tmp_path, *bases)
    run_batch(batch, together)
    for job in batch:
        run_batch([job], alone)
        assert result(together, job) == result(alone, job)
    assert len({result(together, job)["final.safetensors"] for job in batch}) == 4


def test_evaluations_are_dense_around_an_injection(store: Store) -> None:
    job = pretrain(steps=40, language=injection(10))
    run_batch([job], store)
    evaluated = sorted(set(store.load(job.key).metrics["step"]))
    assert evaluated == sorted({0, *log_spaced(4, 40), *job.language.evaluation_steps(40)})
    assert {10, 11, 12, 13} <= set(evaluated)


def test_a_batch_too_small_for_an_injection_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training\.batch: 8 is too small for the 9 items"):
        pretrain(language=Injection(background=BACKGROUND, items=9, alphabet=8))


# -- runs that end early ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd", "soap"])
@pytest.mark.parametrize("evaluations", [2, 9], ids=["seen-in-training", "seen-in-evaluation"])
def test_a_diverged_run_is_marked_and_disturbs_nobody(tmp_path: Path, name: str, evaluations: int) -> None:
    plan = Training(steps=9, batch=8, evaluations=evaluations, checkpoints=4)
    jobs = [pretrain(name, lr).model_copy(update={"training": plan}) for lr in (LR[name], 1e36, LR[name] / 2)]
    jobs = [Pretrain.model_validate(job.model_dump()) for job in jobs]
    alone, together, broken = fresh(tmp_path), fresh(tmp_path), fresh(tmp_path)
    run_batch(jobs, together)
    interrupt(jobs, broken, 6)
    run_batch(jobs, broken)
    for job in jobs:
        run_batch([job], alone)
        assert result(together, job) == result(alone, job)
        assert files(broken, job) == files(together, job)
    for job in (jobs[0], jobs[2]):
        assert together.load(job.key).manifest["status"] == "done"
        assert None not in together.load(job.key).metrics["loss"]
    record = together.load(jobs[1].key)
    ended = record.manifest["diverged_at"]
    assert record.manifest["status"] == "diverged"
    assert 1 <= ended < 9
    assert record.manifest["steps"] == ended
    assert record.manifest["stopped"] is False
    assert max(record.metrics["step"]) <= ended
    assert all(int(file.name[5:12]) <= ended for file in together.folder(jobs[1].key).glob("step-*"))
    same = {"runs_side_by_side": 3, "seconds": 0.0}
    assert alone.load(jobs[1].key).manifest | same == record.manifest | same


def test_a_diverged_finetuning_run_is_marked(store: Store) -> None:
    base = pretrain()
    run_batch([base], store)
    jobs = [finetune(base, LORA, "sgd", lr) for lr in (0.1, 1e36)]
    run_batch(jobs, store)
    assert [store.load(job.key).manifest["status"] for job in jobs] == ["done", "diverged"]
    metrics = store.load(jobs[1].key).metrics
    assert metrics["loss"][: metrics["step"].count(0)].count(None) == 0


def mean_losses(rows: dict[str, list], goals_only: bool) -> list[float]:
    """Mean loss over the slices at each evaluation."""
    out: dict[int, list[float]] = {}
    for step, goal, loss in zip(rows["step"], rows["goal"], rows["loss"], strict=True):
        if goal or not goals_only:
            out.setdefault(step, []).append(loss)
    return [float(np.mean(losses)) for losses in out.values()]


def first_at(losses: list[float], target: float) -> int | None:
    return next((step for step, loss in enumerate(losses) if loss <= target), None)


def test_stop_loss_stops_at_the_first_evaluation_at_or_below_it(store: Store) -> None:
    def stopping(at: float) -> Pretrain:
        return pretrain("muon", steps=60, stop_loss=at, training={"checkpoints": 5})

    never = stopping(0.0)
    run_batch([never], store)
    whole = store.load(never.key)
    assert whole.manifest["stopped"] is False
    assert sorted(set(whole.metrics["step"])) == list(range(61))  # at every step, as steps / 100 is below 1
    losses, others = mean_losses(whole.metrics, True), mean_losses(whole.metrics, False)
    # a loss of goal slices first reached at its own step, where a mean over all slices would stop elsewhere
    targets = [x for step, x in enumerate(losses) if 0 < step < 60 and first_at(losses, x) == step]
    targets = [x for x in targets if first_at(others, x) != first_at(losses, x)]
    for target in (targets[0], targets[len(targets) // 2]):
        job = stopping(target)
        run_batch([job], store)
        record = store.load(job.key)
        end = first_at(losses, target)
        assert record.manifest["stopped"] is True
        assert record.manifest["status"] == "done"
        assert record.manifest["steps"] == end == record.metrics["step"][-1]
        for name, column in record.metrics.items():  # the same numbers up to there
            assert whole.metrics[name][: len(column)] == column
        saved = [int(path.name[5:12]) for path in store.folder(job.key).glob("step-*")]
        assert sorted(saved) == [step for step in log_spaced(5, 60) if step < end]


# -- finetuning -------------------------------------------------------------------------------------------------------


def test_what_finetuning_moves(store: Store) -> None:
    base = pretrain()
    run_batch([base], store)
    before = files(store, base)
    jobs = {
        "full": finetune(base),
        "aux": finetune(base, aux=AUX),
        "lora": finetune(base, LORA),
    }
    for job in jobs.values():
        run_batch([job], store)
    assert files(store, base) == before
    start = MODEL.layout.views(flat_of(store, base)[None])
    for kind, job in jobs.items():
        end = MODEL.layout.views(flat_of(store, job)[None])
        moved = {name for name in start if not torch.equal(start[name], end[name])}
        matrices = {entry.name for entry in MODEL.layout.entries if entry.group == "matrix"}
        attention = {name for name in matrices if ".attn." in name}
        # rows of embeddings of positions and tokens that never occur stay, but each tensor moves
        assert moved == {"full": matrices, "aux": set(start), "lora": attention}[kind]


def test_final_weights_of_lora_are_base_plus_product(store: Store) -> None:
    base = pretrain()
    job = finetune(base, LORA)
    for each in (base, job):
        run_batch([each], store)
    named = safetensors.torch.load_file(store.weights(job.key))
    attention = [f"blocks.0.attn.W_{which}" for which in "QKVO"]
    assert set(named) == {f"{name}.lora_{which}" for name in attention for which in "AB"}
    start, end = (MODEL.layout.views(flat_of(store, each)[None]) for each in (base, job))
    for name in attention:
        product = named[f"{name}.lora_B"].double() @ named[f"{name}.lora_A"].double()
        torch.testing.assert_close((end[name] - start[name])[0].double(), 8.0 * product, rtol=1e-3, atol=1e-6)
        assert product.norm() > 1e-3


def test_a_damaged_base_is_refused(store: Store) -> None:
    base = pretrain()
    run_batch([base], store)
    path = store.folder(base.key) / "final.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError):
        run_batch([finetune(base)], store)


def test_jobs_of_different_shapes_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="different shapes"):
        run_batch([pretrain("adamw"), pretrain("sgd")], store)


# -- data -------------------------------------------------------------------------------------------------------------


def test_every_optimizer_and_method_sees_the_same_data_in_the_same_order(store: Store, monkeypatch) -> None:
    seen: list[torch.Tensor] = []
    hidden = transformer.hidden

    def recording(config, views, tokens, *rest):
        if tokens.shape[1] == 8:  # a training batch; probes have more items
            seen.append(tokens.clone())
        return hidden(config, views, tokens, *rest)

    monkeypatch.setattr(transformer, "hidden", recording)

    def data(job: Job) -> torch.Tensor:
        seen.clear()
        run_batch([job], store)
        return torch.stack(seen)

    bases = [pretrain(name) for name in ("adamw", "muon", "sgd", "soap")]
    streams = [data(base) for base in bases]
    assert streams[0].shape[0] == 9
    assert all(torch.equal(stream, streams[0]) for stream in streams)
    tuned = [
        finetune(base, method, name)
        for base in bases[:2]
        for method in (Full(), LORA)
        for name in ("sgd", "muon")
    ]
    streams = [data(job) for job in tuned]
    assert all(torch.equal(stream, streams[0]) for stream in streams)
    other = data(pretrain(seed=SEED + 1))
    assert not torch.equal(other, data(pretrain("adamw", 0.02)))


def test_items_are_drawn_with_their_probabilities() -> None:
    language = Facts(alphabet=8, items=20, key_length=2, frequency="zipf", exponent=1.2).build(SEED)
    order = Order([language], [SEED], "pretrain", 64)
    draws = np.concatenate([order(step)[0] for step in range(600)])
    counts = np.bincount(draws, minlength=20)
    wanted = np.arange(1, 21) ** -1.2
    wanted = wanted / wanted.sum() * len(draws)
    chi2 = ((counts - wanted) ** 2 / wanted).sum()
    assert chi2 < 70  # 19 degrees of freedom: p about 1e-7
    assert len(counts) == 20


def test_order_is_a_function_of_seed_stage_and_step_alone() -> None:
    languages = [OLD.build(seed) for seed in (1, 2)]
    both = Order(languages, [1, 2], "pretrain", 16)
    alone = Order(languages[1:], [2], "pretrain", 16)
    steps = [0, 700, 3, 255, 256, 257, 700, 0]  # back and forth over the chunks
    for step in steps:
        assert np.array_equal(both(step)[1], alone(step)[0])
        assert both(step).shape == (2, 16)
    assert np.array_equal(both(700), Order(languages, [1, 2], "pretrain", 16)(700))
    assert not np.array_equal(both(0), both(256))
    assert not np.array_equal(both(0), Order(languages, [1, 2], "finetune", 16)(0))
    assert not np.array_equal(both(0)[0], both(0)[1])


def test_items_of_probability_zero_are_never_drawn() -> None:
    language = NEW.build(SEED)
    table = language.train
    weight = np.zeros(16)
    weight[[3, 8]] = (0.25, 0.75)
    starved = type(language)(
        **(vars(language) | {"train": type(table)(**(vars(table) | {"weight": weight}))})
    )
    order = Order([starved], [SEED], "x", 50)
    counts = np.bincount(np.concatenate([order(step)[0] for step in range(100)]), minlength=16)
    assert set(np.flatnonzero(counts)) == {3, 8}
    assert abs(counts[8] / 5000 - 0.75) < 0.04


@pytest.mark.parametrize(
    ("count", "steps"), [(0, 5), (1, 5), (2, 1), (2, 100), (12, 1000), (12, 7), (40, 30)]
)
def test_log_spaced_steps(count: int, steps: int) -> None:
    found = log_spaced(count, steps)
    assert len(found) <= count
    assert found == sorted(set(found))
    if count:
        assert found[-1] == steps
        assert found[0] >= 1
    if count > 1:
        assert found[0] == 1
    if (count, steps) == (12, 1000):
        ratios = [math.log(b / a) for a, b in itertools.pairwise(found[4:])]
        assert max(ratios) / min(ratios) < 1.1
