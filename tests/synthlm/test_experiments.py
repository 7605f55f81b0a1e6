"""The learning-forgetting study with made-up results: searches, which bases are finetuned, fixpoint, table."""

import copy
import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from synthlm import experiments
from synthlm.config import InputError, parse
from synthlm.experiments import PRESETS, Suite, load_grid
from synthlm.experiments.consistency import ConsistencySettings, ConsistencyStudy, area, succeeded
from synthlm.experiments.sweep import Sweep
from synthlm.jobs import Finetune, Job, Pretrain
from synthlm.table import COLUMNS, ordered

FACTS = {"name": "facts", "alphabet": 8, "items": 16, "key_length": 2, "value_length": 1}
GRID: dict[str, Any] = {
    "seeds": 2,
    "model": {"width": 16, "layers": 1, "heads": 2, "mlp": 32},
    "pretraining": {
        "language": FACTS,
        "training": {"steps": 10, "batch": 4},
        "aux": {"name": "adamw", "lr": 0.003},
        "bases": {
            "adamw": {"optimizer": {"name": "adamw"}, "sweep": {"lowest": 1e-3, "highest": 4e-3, "count": 3}},
            "sgd": {"optimizer": {"name": "sgd"}, "sweep": {"lowest": 0.1, "highest": 0.4, "count": 3}},
        },
    },
    "finetuning": {
        "training": {"steps": 5},
        "languages": {"new-facts": FACTS | {"tag": 1, "label": "new-facts"}},
        "arms": {
            "full-adamw": {
                "optimizer": {"name": "adamw"},
                "sweep": {"lowest": 1e-3, "highest": 4e-3, "count": 3, "widen": 1},
            },
            "lora2-muon": {
                "method": {"kind": "lora", "rank": 2},
                "optimizer": {"name": "muon"},
                "sweep": {"lowest": 0.02, "highest": 0.02, "count": 1},
            },
        },
    },
}
MATCHED = {
    "optimizer": {"name": "adamw", "hyper": {"beta2": 0.99}},
    "sweep": {"lowest": 1e-3, "highest": 4e-3, "count": 3},
    "match_loss_of": "sgd",
}


def make(changes: dict[str, Any] | None = None) -> ConsistencyStudy:
    """The study of the grid with changes given as slash-separated paths."""
    return ConsistencyStudy(parse(ConsistencySettings, changed(GRID, changes or {}), "grid.toml"))


def changed(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    data = copy.deepcopy(data)
    for path, value in changes.items():
        inner = data
        *parents, leaf = path.split("/")
        for part in parents:
            inner = inner.setdefault(part, {})
        inner[leaf] = value
    return data


@dataclass
class FakeRecord:
    manifest: dict[str, Any]
    metrics: dict[str, list]


def rows(steps: dict[int, dict[str, tuple[float | None, float | None]]]) -> dict[str, list]:
    """Metrics from step -> role -> (loss, accuracy) of its one goal slice; another slice is only shown."""
    out: dict[str, list] = {}
    for step, roles in steps.items():
        for role, (loss, accuracy) in roles.items():
            for goal, lie in (("rote", 0.0), ("", 50.0)):
                row = {
                    "step": step, "role": role, "slice": f"{role}/{goal or 'shown'}", "goal": goal, "floor": 0.0,
                    "loss": loss and loss + lie, "accuracy": accuracy if goal else 0.0,
                    "exact": accuracy, "kl": 0.1 if role == "old" else None, "n": 16,
                }  # fmt: skip
                for name, value in row.items():
                    out.setdefault(name, []).append(value)
    return out


class World:
    """Made-up results: best at a rate per optimizer or arm, and worse by the distance from it."""

    def __init__(
        self,
        best: dict[str, float],
        accuracy: Callable[[Pretrain], float] = lambda job: 1.0,
        diverges: Callable[[Job], bool] = lambda job: False,
    ) -> None:
        self.best, self.accuracy, self.diverges = best, accuracy, diverges
        self.done: dict[str, FakeRecord] = {}
        self.order: list[Job] = []

    def __call__(self, job: Job) -> FakeRecord | None:
        return self.done.get(job.key)

    def distance(self, job: Job) -> float:
        """How many factors of two the learning rate is from the best one."""
        kind = job.optimizer.name if isinstance(job, Pretrain) else job.arm
        return abs(math.log2(job.optimizer.lr / self.best[kind]))

    def train(self, job: Job) -> None:
        self.order.append(job)
        broke = self.diverges(job)
        if isinstance(job, Pretrain) and broke:  # seen in training, after an evaluation better than any
            metrics = rows({0: {"old": (3.0, 0.0)}, 6: {"old": (0.001, 1.0)}})
        elif isinstance(job, Pretrain):
            loss = 0.1 + 0.2 * self.distance(job) + 0.01 * job.seed
            metrics = rows({0: {"old": (3.0, 0.0)}, 10: {"old": (loss, self.accuracy(job))}})
        else:
            learnt = math.exp(-self.distance(job))
            end = (
                {"old": (None, None), "new": (None, None)}
                if broke
                else {"old": (0.3, 0.8), "new": (0.4, learnt)}
            )
            metrics = rows({0: {"old": (0.1, 1.0), "new": (4.0, 0.0)}, 5: end})
        manifest = {"status": "diverged" if broke else "done", "steps": 10, "key": job.key}
        self.done[job.key] = FakeRecord(manifest, metrics)

    def run(self, study: ConsistencyStudy, limit: int = 100) -> list[Job]:
        """Train what is wanted until nothing is, and return it; parents must come no later than their children."""
        for _ in range(limit):
            wanted = study.jobs(self)
            todo = [job for job in wanted if job.key not in self.done]
            if not todo:
                return wanted
            for job in todo:
                assert all(parent in self.done for parent in job.parents)
                self.train(job)
        raise AssertionError("no fixpoint")


BEST = {"adamw": 2e-3, "sgd": 0.2, "full-adamw": 2e-3, "lora2-muon": 0.02}


def rates(jobs: list[Job], **wanted: Any) -> list[float]:
    """Sorted learning rates of the jobs with the wanted attributes (base: the base's optimizer)."""
    found = []
    for job in jobs:
        is_tuned = isinstance(job, Finetune)
        facts = {
            "kind": job.kind, "seed": job.seed, "optimizer": job.optimizer.name,
            "arm": job.arm if is_tuned else "", "base": job.base.optimizer.name if is_tuned else "",
        }  # fmt: skip
        if all(facts[name] == value for name, value in wanted.items()):
            found.append(job.optimizer.lr)
    return sorted(found)


# -- grids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_want_jobs(name: str) -> None:
    grid = load_grid(name)
    suite = Suite(grid)
    jobs = suite.jobs(lambda job: None)
    assert jobs
    assert all(isinstance(job, Pretrain) for job in jobs)
    assert len({job.key for job in jobs}) == len(jobs)
    assert str(grid.seeds) in suite.describe()
    alone = Suite(grid, ["consistency"])
    assert list(alone.studies) == ["consistency"]
    assert grid.consistency is not None
    assert sum(base.sweep.count for base in grid.consistency.pretraining.bases.values()) >= len(
        alone.jobs(lambda job: None)
    )


def test_a_preset_and_its_file_are_the_same_grid() -> None:
    path = Path(experiments.grids.__path__[0]) / "laptop.toml"
    assert load_grid(str(path)) == load_grid("laptop")
    data = tomllib.loads(path.read_text())
    grid = load_grid("laptop")
    assert grid.seeds == data["seeds"]
    assert grid.consistency is not None
    assert list(grid.consistency.finetuning.arms) == list(data["consistency"]["finetuning"]["arms"])


def test_seeds_and_figures_can_be_given_beside_the_grid() -> None:
    grid = load_grid("laptop", seeds=5, figures=["frontier"])
    assert grid.seeds == 5
    assert grid.figures == ("frontier",)
    before = load_grid("laptop").consistency
    assert before is not None
    assert grid.consistency == before.model_copy(update={"seeds": 5})
    with pytest.raises(InputError, match="seeds: 0"):
        load_grid("laptop", seeds=0)


def test_an_unknown_preset_is_refused_with_a_near_match(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"'labtop'.*smoke, laptop, paper.*did you mean 'laptop'"):
        load_grid("labtop")
    with pytest.raises(InputError, match="neither a preset"):
        load_grid(str(tmp_path))
    with pytest.raises(InputError, match="neither a preset"):
        load_grid(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'title = "x"\nseeds = = 3\n', ["g.toml", "line 2"]),
        (b"title = '\xff'\n", ["g.toml", "cannot be read"]),
        (b"title = 'x'\n", ["g.toml", "no study in it", "consistency"]),
        (b"title = 'x'\n[consistancy]\n", ["g.toml", "consistancy", "mean 'consistency'"]),
        (b"title = 'x'\nseeds = 'three'\n[consistency]\n", ["g.toml", "seeds", "'three'", "integer"]),
    ],
)
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "g.toml"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        load_grid(str(path))
    for word in words:
        assert word in str(raised.value)


BASE = "pretraining/bases/adamw"
ARM = "finetuning/arms/lora2-muon"
BAD = [
    ({"seed": 1}, ["seed", "unknown field", "mean 'seeds'"]),
    ({"seeds": 0}, ["seeds", "0", "greater than or equal to 1"]),
    ({"seeds": "three"}, ["seeds", "'three'", "integer"]),
    ({"model/widht": 3}, ["model.widht", "mean 'width'"]),
    ({"model/activation": "relu3"}, ["activation", "'relu3'", "swiglu", "mean 'relu2'"]),
    ({"model/heads": 3}, ["heads", "3", "16"]),
    ({"pretraining/training/step": 3}, ["pretraining.training.step", "mean 'steps'"]),
    ({"pretraining/language/itmes": 3}, ["pretraining.language", "itmes", "mean 'items'"]),
    ({"pretraining/language/name": "fact"}, ["pretraining.language", "'fact'", "cipher", "mean 'facts'"]),
    ({"pretraining/language": {"items": 3}}, ["pretraining.language", "name", "required"]),
    (
        {"finetuning/languages/new-facts/itmes": 3},
        ["finetuning.languages.new-facts", "itmes", "mean 'items'"],
    ),
    ({"finetuning/languages/new-facts/alphabet": 9}, ["finetuning.languages", "alphabet"]),
    ({"pretraining/bases": {}}, ["pretraining.bases", "at least 1"]),
    ({f"{BASE}/optimzer": {}}, [f"{BASE}/optimzer".replace("/", "."), "mean 'optimizer'"]),
    ({f"{BASE}/sweep/lowst": 1}, ["bases.adamw.sweep.lowst", "mean 'lowest'"]),
    ({f"{BASE}/sweep/lowest": 1}, ["bases.adamw.sweep", "highest: 0.004", "lowest 1"]),
    ({f"{BASE}/optimizer/name": "adamm"}, ["bases.adamw.optimizer", "'adamm'", "muon", "mean 'adamw'"]),
    ({f"{BASE}/optimizer/hyper": {"beta": 1}}, ["bases.adamw.optimizer", "beta", "mean 'beta"]),
    ({f"{BASE}/match_loss_of": "sdg"}, ["bases.adamw.match_loss_of", "'sdg'", "sgd"]),
    ({f"{BASE}/match_loss_of": "adamw"}, ["bases.adamw.match_loss_of", "'adamw'", "sgd"]),
    ({"pretraining/aux/name": "muon"}, ["pretraining", "aux", "'muon'", "matrices only"]),
    ({"finetuning/aux": {"name": "muon", "lr": 1}}, ["finetuning", "aux", "'muon'", "matrices only"]),
    ({f"{ARM}/optimizer/name": "mun"}, ["arms.lora2-muon.optimizer", "'mun'", "adamw", "mean 'muon'"]),
    ({f"{ARM}/method/rnk": 2}, ["arms.lora2-muon.method", "rnk", "mean 'rank'"]),
    (
        {f"{ARM}/method/targets": ["*.W_X"]},
        ["arms.lora2-muon", "method.targets", "'*.W_X'", "blocks.0.attn.W_Q"],
    ),
]


@pytest.mark.parametrize(("changes", "words"), BAD, ids=[next(iter(changes)) for changes, _ in BAD])
def test_wrong_settings_are_refused_when_the_grid_is_read(
    tmp_path: Path, changes: dict, words: list[str]
) -> None:
    """Before anything runs, naming the field, what was given and what is near."""
    with pytest.raises(InputError) as raised:
        make(changes)
    for word in words:
        assert word in str(raised.value)
    assert str(raised.value).startswith("grid.toml: ")


def test_the_models_size_follows_from_the_languages() -> None:
    longer = FACTS | {"tag": 2, "label": "long", "key_length": 4}
    plan = make({"finetuning/languages/long": longer})
    assert plan.model.vocab == 24
    assert plan.model.length == 6
    assert make().model.length == 4


def test_sweeps_are_even_in_log_scale_and_go_on_beyond_their_ends() -> None:
    sweep = Sweep(lowest=1e-3, highest=8e-3, count=4)
    assert [sweep.rate(i) for i in range(-1, 5)] == [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    uneven = Sweep(lowest=1e-3, highest=2e-2, count=4)
    found = [uneven.rate(i) for i in range(4)]
    assert found[0] == 1e-3
    assert found[-1] == 2e-2
    assert found == [float(f"{rate:.4g}") for rate in found]
    assert Sweep(lowest=0.5, highest=0.5, count=1).rate(0) == 0.5


# -- the search -------------------------------------------------------------------------------------------------------


def test_first_only_the_sweeps_on_seed_0_are_wanted() -> None:
    jobs = make().jobs(lambda job: None)
    assert rates(jobs, optimizer="adamw") == [1e-3, 2e-3, 4e-3]
    assert rates(jobs, optimizer="sgd") == [0.1, 0.2, 0.4]
    assert {(job.kind, job.seed) for job in jobs} == {("pretrain", 0)}


def test_nothing_more_is_wanted_before_a_sweep_is_complete() -> None:
    world, plan = World(BEST), make()
    first = plan.jobs(world)
    for job in first[:2]:
        world.train(job)
        assert plan.jobs(world) == first


def test_a_whole_study_with_the_best_in_the_middle() -> None:
    world, plan = World(BEST), make()
    jobs = world.run(plan)
    assert len({job.key for job in jobs}) == len(jobs)
    assert rates(jobs, kind="pretrain", optimizer="adamw", seed=0) == [1e-3, 2e-3, 4e-3]
    assert rates(jobs, kind="pretrain", optimizer="adamw", seed=1) == [2e-3]
    assert rates(jobs, kind="pretrain", optimizer="sgd", seed=1) == [0.2]
    for base, seed in (("adamw", 0), ("adamw", 1), ("sgd", 0), ("sgd", 1)):
        assert rates(jobs, arm="full-adamw", base=base, seed=seed) == [1e-3, 2e-3, 4e-3]
        assert rates(jobs, arm="lora2-muon", base=base, seed=seed) == [0.02]
    tuned = [job for job in jobs if isinstance(job, Finetune)]
    assert len(tuned) == 16
    assert {job.base.optimizer.lr for job in tuned} == {2e-3, 0.2}
    assert all(job.seed == job.base.seed for job in tuned)
    assert {job.key for job in jobs} == set(world.done)
    assert plan.jobs(world) == jobs


def test_a_sweep_widens_below_until_the_best_is_inside() -> None:
    jobs = World(BEST | {"adamw": 5e-4}).run(make())
    assert rates(jobs, kind="pretrain", optimizer="adamw", seed=0) == [2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3]
    assert rates(jobs, kind="pretrain", optimizer="adamw", seed=1) == [5e-4]


def test_a_sweep_widens_no_further_than_its_limit() -> None:
    jobs = World(BEST | {"adamw": 1.0, "full-adamw": 1e-9}).run(make())
    above = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]  # three places more
    assert rates(jobs, kind="pretrain", optimizer="adamw", seed=0) == above
    assert rates(jobs, kind="pretrain", optimizer="adamw", seed=1) == [3.2e-2]
    assert rates(jobs, arm="full-adamw", base="sgd", seed=0) == [5e-4, 1e-3, 2e-3, 4e-3]


def test_a_cell_is_widened_for_all_its_seeds_at_once() -> None:
    world, plan = World(BEST | {"full-adamw": 8e-3}), make()
    jobs = world.run(plan)
    for seed in (0, 1):
        assert rates(jobs, arm="full-adamw", base="sgd", seed=seed) == [1e-3, 2e-3, 4e-3, 8e-3]
    assert rates(jobs, arm="lora2-muon", base="sgd", seed=0) == [0.02]


def test_a_widen_of_0_keeps_the_sweep() -> None:
    plan = make({f"{BASE}/sweep/widen": 0})
    jobs = World(BEST | {"adamw": 1e-5}).run(plan)
    assert rates(jobs, kind="pretrain", optimizer="adamw", seed=0) == [1e-3, 2e-3, 4e-3]
    assert rates(jobs, kind="pretrain", optimizer="adamw", seed=1) == [1e-3]


def test_diverged_runs_are_the_worst() -> None:
    """The best rate would be 4e-3, but it diverges: then 2e-3 is the best, and inside the sweep."""
    world = World(BEST | {"adamw": 4e-3}, diverges=lambda job: job.optimizer.lr in (4e-3, 0.1, 0.2))
    jobs = world.run(make())
    assert rates(jobs, kind="pretrain", optimizer="adamw", seed=0) == [1e-3, 2e-3, 4e-3]
    assert rates(jobs, kind="pretrain", optimizer="adamw", seed=1) == [2e-3]
    assert rates(jobs, kind="pretrain", optimizer="sgd", seed=0) == [0.1, 0.2, 0.4, 0.8]
    assert rates(jobs, kind="pretrain", optimizer="sgd", seed=1) == [0.4]


def test_a_base_whose_every_rate_diverges_is_given_up() -> None:
    world, plan = World(BEST, diverges=lambda job: job.optimizer.name == "sgd"), make()
    jobs = world.run(plan)
    assert rates(jobs, kind="pretrain", optimizer="sgd") == [0.1, 0.2, 0.4]
    assert rates(jobs, kind="finetune", base="sgd") == []
    assert rates(jobs, kind="finetune", base="adamw", seed=1, arm="full-adamw") == [1e-3, 2e-3, 4e-3]
    table = ordered(plan.tables(world)["results"])
    assert set(table[table["optimizer"] == "sgd"]["status"]) == {"diverged"}


def test_a_base_that_did_not_learn_its_language_is_not_finetuned() -> None:
    def accuracy(job: Pretrain) -> float:
        return {"adamw": 0.95, "sgd": 0.89}[job.optimizer.name]

    jobs = World(BEST, accuracy=accuracy).run(make())
    assert rates(jobs, kind="finetune", base="sgd") == []
    assert len(rates(jobs, kind="finetune", base="adamw")) == 8
    assert rates(jobs, kind="pretrain", optimizer="sgd", seed=1) == [0.2]


def test_of_a_base_only_the_seeds_that_learned_it_are_finetuned() -> None:
    jobs = World(BEST, accuracy=lambda job: 0.2 if job.seed else 0.9).run(make())
    assert {job.seed for job in jobs if isinstance(job, Finetune)} == {0}
    jobs = World(BEST, diverges=lambda job: isinstance(job, Pretrain) and job.seed == 1).run(make())
    assert {job.seed for job in jobs if isinstance(job, Finetune)} == {0}


def test_finetuning_waits_for_every_seed_of_its_base() -> None:
    world, plan = World(BEST), make()
    for job in plan.jobs(world):
        world.train(job)
    wanted = [job for job in plan.jobs(world) if job.key not in world.done]
    assert [(job.kind, job.seed) for job in wanted] == [("pretrain", 1)] * 2
    world.train(wanted[0])
    after = [job for job in plan.jobs(world) if isinstance(job, Finetune)]
    assert {job.base.optimizer.name for job in after} == {wanted[0].optimizer.name}


# -- loss-matched bases -----------------------------------------------------------------------------------------------


def test_a_matched_base_stops_at_the_final_loss_of_its_target() -> None:
    world, plan = World(BEST | {"sgd": 0.3}), make({"pretraining/bases/adamw-matched": MATCHED})
    jobs = world.run(plan)
    sgd_rate = rates(jobs, kind="pretrain", optimizer="sgd", seed=1)[0]
    stopped = [job for job in jobs if isinstance(job, Pretrain) and job.stop_loss is not None]
    assert [job.seed for job in stopped] == [0, 1]
    for job in stopped:
        assert job.optimizer.hyper["beta2"] == 0.99
        assert job.optimizer.lr == 2e-3
        target = [
            each for each in jobs
            if isinstance(each, Pretrain) and (each.optimizer.name, each.seed) == ("sgd", job.seed)
            and each.optimizer.lr == sgd_rate
        ]  # fmt: skip
        assert job.stop_loss == world(target[0]).metrics["loss"][2]  # the last step's goal slice
    cells = {(job.base.key, job.arm) for job in jobs if isinstance(job, Finetune)}
    assert all((job.key, "full-adamw") in cells for job in stopped)
    table = ordered(plan.tables(world)["results"])
    chosen = table[(table["kind"] == "pretrain") & table["chosen"]]
    assert chosen.groupby("base")["job"].nunique().to_dict() == {"adamw": 2, "adamw-matched": 2, "sgd": 2}
    assert set(table[table["kind"] == "finetune"]["base"]) == {"adamw", "adamw-matched", "sgd"}


def test_a_matched_base_is_finetuned_once_all_its_targets_are_known() -> None:
    world, plan = World(BEST), make({"pretraining/bases/adamw-matched": MATCHED})

    def stopped(jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if (job.base if isinstance(job, Finetune) else job).stop_loss is not None]

    late = []
    for _ in range(5):  # all that can be done without seed 1 of the target
        todo = [job for job in plan.jobs(world) if job.key not in world.done]
        late = [job for job in todo if (job.optimizer.name, job.seed, job.kind) == ("sgd", 1, "pretrain")]
        for job in todo:
            if job not in late:
                world.train(job)
    assert len(late) == 1
    assert [(job.kind, job.seed) for job in stopped(world.order)] == [("pretrain", 0)]
    assert stopped(plan.jobs(world)) == stopped(world.order)
    world.run(plan)
    assert {(job.kind, job.seed) for job in stopped(world.order)} == {
        ("pretrain", 0), ("pretrain", 1), ("finetune", 0), ("finetune", 1),
    }  # fmt: skip


def test_a_matched_base_may_have_the_settings_of_another() -> None:
    same = MATCHED | {"optimizer": {"name": "adamw"}}
    world, plan = World(BEST), make({"pretraining/bases/adamw-matched": same})
    jobs = world.run(plan)
    assert rates(jobs, kind="pretrain", optimizer="adamw", seed=0) == [1e-3, 2e-3, 2e-3, 4e-3]
    table = ordered(plan.tables(world)["results"])
    assert not table.duplicated(["job", "step", "role", "slice", "goal"]).any()
    bases = table[table["kind"] == "finetune"].groupby("base")["job"].nunique().to_dict()
    assert bases == {"adamw": 8, "adamw-matched": 8, "sgd": 8}


def test_a_matched_base_of_a_target_that_diverged_uses_the_seeds_that_did_not() -> None:
    def diverges(job: Job) -> bool:
        return isinstance(job, Pretrain) and job.optimizer.name == "sgd" and job.seed == 1

    world, plan = World(BEST, diverges=diverges), make({"pretraining/bases/adamw-matched": MATCHED})
    jobs = world.run(plan)
    stopped = [job for job in jobs if isinstance(job, Pretrain) and job.stop_loss is not None]
    assert [job.seed for job in stopped] == [0]
    tuned = [job for job in jobs if isinstance(job, Finetune) and job.base == stopped[0]]
    assert len(tuned) == 4


# -- scores and the table ---------------------------------------------------------------------------------------------


def record(steps: dict, status: str = "done") -> FakeRecord:
    return FakeRecord({"status": status}, rows(steps))


def test_area_is_under_what_is_kept_at_equal_learning() -> None:
    steps = {
        0: {"old": (0.1, 1.0), "new": (3.0, 0.2)},
        1: {"old": (0.1, 0.9), "new": (3.0, 0.68)},  # 0.6 of what there was to learn
        2: {"old": (0.1, 0.3), "new": (3.0, 1.0)},
    }
    assert area(record(steps)) == pytest.approx(0.6 * (1.0 + 0.9) / 2 + 0.4 * (0.9 + 0.3) / 2, abs=1e-9)
    steps[2] = {"old": (None, None), "new": (None, None)}
    up_to_there = area(record(steps, "diverged"))
    assert up_to_there == pytest.approx(
        0.6 * 0.95, abs=0.01
    )  # a level between two grid points may count half
    assert up_to_there < 0.6
    del steps[1]
    assert area(record(steps, "diverged")) <= 0.01
    assert area(None) == -math.inf


@pytest.mark.parametrize(("accuracy", "expected"), [(0.9, True), (0.899, False), (1.0, True)])
def test_success_is_an_accuracy_in_every_goal_slice_at_the_end(accuracy: float, expected: bool) -> None:
    steps = {0: {"old": (1.0, 0.0)}, 5: {"old": (1.0, accuracy)}}
    assert succeeded(record(steps)) is expected
    assert not succeeded(record(steps, "diverged"))
    assert not succeeded(record({0: {"old": (1.0, 1.0)}, 5: {"old": (1.0, 0.5)}}))
    assert not succeeded(None)
    two = record(steps)
    for name, column in record({5: {"old": (1.0, 0.7)}}).metrics.items():
        two.metrics[name] = two.metrics[name] + column
    assert not succeeded(two)


def test_the_table_has_every_result_once() -> None:
    world, plan = World(BEST, diverges=lambda job: job.optimizer.lr == 4e-3), make()
    jobs = world.run(plan)
    table = plan.tables(world)["results"]
    assert set(table.columns) == set(COLUMNS)
    table = ordered(table)
    assert len(table) == sum(len(world(job).metrics["step"]) for job in jobs)
    assert not table.duplicated(["job", "step", "role", "slice"]).any()
    by_key = {job.key[:12]: job for job in jobs}
    assert set(table["job"]) == set(by_key)
    for row in table.to_dict("records"):
        job = by_key[row["job"]]
        metrics = world(job).metrics
        places = zip(metrics["step"], metrics["role"], metrics["slice"], strict=True)
        place = list(places).index((row["step"], row["role"], row["slice"]))
        for name in ("loss", "accuracy", "exact", "kl", "floor"):
            wanted = metrics[name][place]
            assert row[name] == wanted if wanted is not None else math.isnan(row[name])
        assert row["goal"] == metrics["goal"][place]
        tuned = isinstance(job, Finetune)
        assert (row["kind"], row["seed"], row["lr"]) == (job.kind, job.seed, job.optimizer.lr)
        assert row["base"] == (job.base if tuned else job).optimizer.name
        assert row["arm"] == (job.arm if tuned else "")
        assert row["method"] == (job.method.kind if tuned else "")
        assert row["rank"] == (2 if row["arm"] == "lora2-muon" else 0)
        assert row["optimizer"] == job.optimizer.name
        assert row["language"] == ("new-facts" if tuned else "pretraining")
        assert row["steps_total"] == (5 if tuned else 10)
        assert row["status"] == world(job).manifest["status"]
        assert row["chosen"] == (not tuned and job.optimizer.lr in (2e-3, 0.2))
        assert row["n"] == 16


def test_the_table_of_an_unfinished_study_holds_what_is_known() -> None:
    world, plan = World(BEST), make()
    assert len(plan.tables(world)["results"]) == 0
    first = plan.jobs(world)[0]
    world.train(first)
    table = ordered(plan.tables(world)["results"])
    assert set(table["job"]) == {first.key[:12]}
    assert not table["chosen"].any()


def test_jobs_do_not_depend_on_the_order_in_which_results_came() -> None:
    world, plan = World(BEST | {"adamw": 5e-4}), make()
    jobs = world.run(plan)
    shuffled = World(BEST)
    shuffled.done = dict(reversed(world.done.items()))
    assert plan.jobs(shuffled) == jobs
    assert json.loads(jobs[-1].model_dump_json())["kind"] == "finetune"
    again = ConsistencyStudy(parse(ConsistencySettings, GRID, "again"))
    assert [job.key for job in again.jobs(shuffled)] == [job.key for job in jobs]


def test_seeds_added_later_keep_the_jobs_of_the_first() -> None:
    small, large = World(BEST), World(BEST)
    keys = {job.key for job in small.run(make({"seeds": 1}))}
    assert keys < {job.key for job in large.run(make({"seeds": 3}))}
