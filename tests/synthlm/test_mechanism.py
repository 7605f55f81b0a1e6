"""The mechanism study with made-up results: what is asked for and when, nothing trained twice, tables, bad settings."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest

from synthlm.analysis.activations import SIZES, STATISTICS
from synthlm.analysis.structure import STRUCTURE
from synthlm.analysis.updates import PER_MATRIX
from synthlm.config import InputError, parse
from synthlm.experiments import Grid, Suite
from synthlm.experiments.mechanism import MechanismStudy
from synthlm.experiments.noise import PLAIN
from synthlm.frontier import frontiers
from synthlm.jobs import Finetune, Job, Pretrain, Probe
from synthlm.probes.updates import ALL, WHOLE
from synthlm.table import ordered

FACTS = {"name": "facts", "alphabet": 8, "items": 16, "key_length": 2, "value_length": 1}
NEW = FACTS | {"tag": 1, "label": "new-facts"}


def grid(**mechanism: Any) -> Grid:
    sweep = {"lowest": 1e-3, "highest": 4e-3, "count": 2}
    data = {
        "title": "t",
        "seeds": 2,
        "consistency": {
            "model": {"width": 16, "layers": 1, "heads": 2, "mlp": 32},
            "pretraining": {
                "language": FACTS,
                "training": {"steps": 10, "batch": 4, "checkpoints": 3},
                "aux": {"name": "adamw", "lr": 0.003},
                "bases": {
                    "adamw": {"optimizer": {"name": "adamw"}, "sweep": sweep | {"widen": 0}},
                    "muon": {"optimizer": {"name": "muon"}, "sweep": sweep | {"widen": 0}},
                },
            },
            "finetuning": {
                "training": {"steps": 5},
                "languages": {"new-facts": NEW},
                "arms": {
                    "full-adamw": {"optimizer": {"name": "adamw"}, "sweep": sweep | {"widen": 1}},
                    "small-lora": {
                        "method": {"kind": "lora", "rank": 2},
                        "optimizer": {"name": "adamw"},
                        "sweep": sweep | {"widen": 0},
                    },
                },
            },
        },
        "mechanism": mechanism,
    }
    return parse(Grid, data, "grid.toml")


NOISE = {
    "base": "adamw",
    "arm": "full-adamw",
    "language": "new-facts",
    "variants": {
        "noisy": {"perturb": {"kind": "noise", "sigma": 0.02}},
        "twice": {"steps": 2.0},
        "decay": {"weight_decay": 0.1},
    },
}


@dataclass
class FakeRecord:
    manifest: dict[str, Any]
    metrics: dict[str, list]


def training_rows(steps: dict[int, dict[str, float]]) -> dict[str, list]:
    """step -> "old rote", "old rule" and "new rote" accuracies."""
    rows = []
    for step, accuracies in steps.items():
        for name, accuracy in accuracies.items():
            role, goal = name.split()
            rows.append({
                "step": step, "role": role, "slice": f"{role}/{goal}", "goal": goal, "loss": 1 - accuracy, "floor": 0.0,
                "accuracy": accuracy, "exact": accuracy, "kl": 0.0 if role == "old" else None, "n": 8,
            })  # fmt: skip
    return {name: [row[name] for row in rows] for name in rows[0]}


class World:
    """Made-up results; ``bad(job)``: a base that fails, or a finetuning that diverges."""

    def __init__(self, bad: Callable[[Job], bool] = lambda job: False) -> None:
        self.bad, self.done, self.order = bad, {}, []

    def __call__(self, job: Job) -> Any:
        return self.done.get(job.key)

    def finish(self, job: Job) -> None:
        assert all(parent in self.done for parent in job.parents), job.label
        assert job.key not in self.done
        self.order.append(job)
        bad = self.bad(job)
        if isinstance(job, Pretrain):
            end = {"old rote": 0.5 if bad else 1.0, "old rule": 1.0}
            metrics = training_rows({0: {"old rote": 0.0, "old rule": 0.0}, job.training.steps: end})
        elif isinstance(job, Finetune):
            gap = abs(math.log2(job.optimizer.lr / 2e-3))
            start = {"old rote": 1.0, "old rule": 0.9, "new rote": 0.2}
            end = {"old rote": 0.7 - 0.1 * gap, "old rule": 0.8, "new rote": 0.6}
            metrics = training_rows({0: start, 5: end})
        else:
            metrics = self.analysed(job)
        status = "diverged" if bad and isinstance(job, Finetune) else "done"
        steps = 10 if isinstance(job, Probe) else job.training.steps
        self.done[job.key] = FakeRecord({"status": status, "steps": steps}, metrics)

    def analysed(self, job: Probe) -> dict[str, list]:
        name, count = job.analysis.name, len(job.subjects)
        if name == "activations":
            columns = ("n", *STATISTICS, *SIZES, *(f"weight/{part}" for part in STRUCTURE))
            rows = [
                {"matrix": "m", "slice": part, **dict.fromkeys(columns, 1.0)}
                for part in (ALL, "old/rote", "old/rule")
            ]
        elif name == "updates":
            rows = [
                {
                    "subject": i, "matrix": matrix,
                    **{part: 10 * i + k for k, part in enumerate(PER_MATRIX)},
                    **{part: float(i) if matrix == ALL else None for part in WHOLE},
                }
                for i in range(1, count) for matrix in ("m", ALL)
            ]  # fmt: skip
        elif name == "curvature":
            rows = [
                {
                    "quantity": quantity, "gradient": gradient, "geometry": geometry, "kind": "native",
                    "subject": i, "index": 0, "radius": None, "value": 2.0 + i, "error": None, "n": None,
                }
                for i in range(count) for gradient, quantity, geometry in
                ((("new" if i else "old"), "curvature", "max"), (("new" if i else "old"), "slope", "max"))
            ]  # fmt: skip
            rows.append(rows[0] | {"quantity": "trace", "gradient": "", "geometry": "", "kind": ""})
        elif name == "spectrum":
            rows = [{"what": "node", "probe": 0, "eigenvalue": 1.0, "weight": 1.0}]
        else:  # of another part of the study: tested there
            rows = [{"subject": 0, "value": 1.0}]
        return {key: [row[key] for row in rows] for key in rows[0]}

    def run(self, suite: Suite, limit: int = 60) -> list[Job]:
        for _ in range(limit):
            wanted = suite.jobs(self)
            todo = [job for job in wanted if job.key not in self.done]
            if not todo:
                return list(wanted)
            for job in todo:
                self.finish(job)
        raise AssertionError("no fixpoint")


def probes(jobs: list[Job], name: str) -> list[Probe]:
    return [job for job in jobs if isinstance(job, Probe) and job.analysis.name == name]


def mechanism(suite: Suite) -> MechanismStudy:
    study = suite.studies["mechanism"]
    assert isinstance(study, MechanismStudy)
    return study


def test_nothing_is_trained_twice() -> None:
    """Without noise the study adds analyses alone; with it, the variants and their finetunings."""
    alone = World().run(Suite(grid(), ["consistency"]))
    both = World().run(Suite(grid()))
    trained = [job for job in both if not isinstance(job, Probe)]
    assert {job.key for job in trained} == {job.key for job in alone}
    noisy = World().run(Suite(grid(noise=NOISE)))
    extra = [job for job in noisy if not isinstance(job, Probe) and job.key not in {j.key for j in alone}]
    bases = [job for job in extra if isinstance(job, Pretrain)]
    assert len(bases) == 3 * 2
    assert all(job.base in bases for job in extra if isinstance(job, Finetune))


def test_variants_change_one_thing_of_the_chosen_base() -> None:
    world, suite = World(), Suite(grid(noise=NOISE))
    world.run(suite)
    study = mechanism(suite)
    assert study.noise is not None
    chosen = study.consistency.chosen(world)
    for (variant, seed), job in study.noise.bases(world).items():
        plain = chosen["adamw", seed]
        assert job.seed == seed
        training, old = job.training, plain.training
        assert training.steps == (20 if variant == "twice" else 10)
        assert (training.perturb is not None) == (variant == "noisy")
        assert job.optimizer.weight_decay == (0.1 if variant == "decay" else plain.optimizer.weight_decay)
        assert job.optimizer.lr == plain.optimizer.lr
        assert (job.language, job.model, job.aux) == (plain.language, plain.model, plain.aux)
        assert training.model_copy(update={"perturb": None, "steps": 10, "checkpoints": 3}) == old


def test_analyses_wait_for_what_they_need() -> None:
    suite, world = Suite(grid()), World()
    assert not [job for job in suite.jobs(world) if isinstance(job, Probe)]
    while not probes(world.order, "updates"):
        for job in suite.jobs(world):
            if job.key not in world.done:
                world.finish(job)
        cells = mechanism(suite).consistency.finetuned(world)
        if len(cells) < 4:  # two bases, two arms: some search is going on
            asked = probes(list(suite.jobs(world)), "updates")
            over = {cell.base for cell in cells if sum(c.base == cell.base for c in cells) == 2}
            assert {job.subjects[0].optimizer.name for job in asked} == over
    first = next(i for i, job in enumerate(world.order) if isinstance(job, Probe))
    assert world.order[first].analysis.name in ("activations", "spectrum")


def test_every_finetuned_model_of_a_base_and_seed_is_in_its_update_probe() -> None:
    suite, world = Suite(grid()), World()
    jobs = world.run(suite)
    tuned = [job for job in jobs if isinstance(job, Finetune)]
    found = probes(jobs, "updates")
    assert len(found) == 4
    assert sum(len(job.subjects) - 1 for job in found) == len(tuned)
    for job in found:
        base, *others = job.subjects
        assert {one.key for one in others} == {one.key for one in tuned if one.base == base}
        assert all(one.seed == base.seed for one in others)
    for job in probes(jobs, "curvature"):
        assert len(job.subjects) == 2  # the base, and one model for its language
    steps = {(job.subjects[0].key, job.step) for job in probes(jobs, "activations")}
    kept = next(job for job in jobs if isinstance(job, Pretrain)).training.checkpoint_steps
    assert kept[-1] == 10
    assert {step for _, step in steps} == {0, *kept[:-1], None}
    assert len(steps) == 4 * (len(kept) + 1)


def test_asking_again_gives_the_same_jobs() -> None:
    world, suite = World(), Suite(grid(noise=NOISE))
    jobs = world.run(suite)
    assert [job.key for job in suite.jobs(world)] == [job.key for job in jobs]
    assert [job.key for job in Suite(grid(noise=NOISE)).jobs(world)] == [job.key for job in jobs]


def test_failed_bases_and_diverged_models_are_left_out() -> None:
    def bad(job: Job) -> bool:
        if isinstance(job, Pretrain):
            return job.optimizer.name == "muon" and job.seed == 1
        return isinstance(job, Finetune) and job.arm == "lora2-adamw" and job.optimizer.lr == 1e-3

    world, suite = World(bad), Suite(grid())
    jobs = world.run(suite)
    for job in jobs:
        if isinstance(job, Probe):
            assert not any(bad(one) for one in job.subjects)
    assert len(probes(jobs, "updates")) == 3


def test_tables() -> None:
    world, suite = World(), Suite(grid(noise=NOISE))
    world.run(suite)
    tables = mechanism(suite).tables(world)
    activations = tables["activations"]
    assert set(activations["goal"]) == {"", "rote", "rule"}
    assert set(activations.loc[activations["slice"] == ALL, "goal"]) == {""}
    assert set(activations["own"]) == {"max", "spectral"}
    last = activations.groupby(["base", "seed"])["step"].max()
    assert (last == 10).all()
    models = tables["predictors"]
    assert (
        len(models) == len({*models["model"]}) == len([j for j in world.order if _plain_finetune(j, world)])
    )
    for row in models.itertuples():
        gap = abs(math.log2(row.lr / 2e-3))
        assert row.learnt == pytest.approx(0.6)
        assert row.relative == pytest.approx(0.5)
        assert row.forgetting == pytest.approx((0.3 + 0.1 * gap + 0.1) / 2)
    rote, rule = models["forgetting/rote"], models["forgetting/rule"]
    pd.testing.assert_series_equal((rote + rule) / 2, models["forgetting"], check_names=False)
    assert set(models["arm"]) == {"full-adamw", "small-lora"}
    assert set(models.loc[models["arm"] == "small-lora", "rank"]) == {2}
    for name, own in (("adamw", "max"), ("muon", "spectral")):
        mine = models[models["base"] == name]
        pd.testing.assert_series_equal(
            mine["own/reach"], mine[f"reach/{own}"].astype(float), check_names=False
        )
    assert "forgetting" not in tables["updates"]
    assert set(tables["updates"]["matrix"]) == {"m"}
    sharpness = tables["sharpness"]
    assert set(sharpness["gradient"]) == {"old", "new"}
    new = sharpness[sharpness["gradient"] == "new"]
    assert set(new["language"]) == {"new-facts"}
    assert (new["curvature"] == 3.0).all()
    for table in tables.values():
        assert table["job"].str.fullmatch("[0-9a-f]{12}").all()


def _plain_finetune(job: Job, world: World) -> bool:
    return (
        isinstance(job, Finetune)
        and job.base.training.perturb is None
        and job.base.training.steps == 10
        and (job.base.optimizer.weight_decay != 0.1)
    )


def test_the_noise_table_is_one_that_frontiers_read() -> None:
    world, suite = World(), Suite(grid(noise=NOISE))
    world.run(suite)
    table = ordered(mechanism(suite).tables(world)["noise"])
    assert set(table["base"]) == {PLAIN, "noisy", "twice", "decay"}
    cells = frontiers(table).cells
    assert set(zip(cells["base"], cells["seed"], strict=True)) == {
        (base, seed) for base in set(table["base"]) for seed in (0, 1)
    }
    counts = table[table["kind"] == "finetune"].groupby("base")["lr"].nunique()
    assert counts.nunique() == 1  # the same sweep for all


def test_a_study_without_results_has_no_tables() -> None:
    assert mechanism(Suite(grid(noise=NOISE))).tables(World()) == {}


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (
            {"base": "adam"},
            r"mechanism.noise.base: 'adam' is not one of adamw, muon \(did you mean 'adamw'\?\)",
        ),
        ({"arm": "full-sgd"}, r"mechanism.noise.arm: 'full-sgd' is not one of full-adamw, small-lora"),
        ({"language": "x"}, r"mechanism.noise.language: 'x' is not one of new-facts"),
        ({"variants": {"muon": {"steps": 2.0}}}, r"mechanism.noise.variants.muon: is the name of a base"),
        ({"variants": {"same": {}}}, r"mechanism.noise.variants.same: changes nothing"),
        ({"variants": {"x": {"perturb": {"kind": "nois", "sigma": 1}}}}, r"'nois' is not one of noise, sam"),
        (
            {"variants": {"x": {"perturb": {"kind": "noise", "sigma": 0}}}},
            r"sigma: 0 should be greater than 0",
        ),
    ],
)
def test_bad_settings_are_named(noise: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        grid(noise=NOISE | noise)


def test_the_study_describes_itself() -> None:
    text = Suite(grid(noise=NOISE)).describe()
    assert "noisy, twice, decay" in text
    assert "Variants" not in Suite(grid()).describe()
