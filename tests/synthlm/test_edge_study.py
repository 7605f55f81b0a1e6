"""The edge study: which jobs it wants as results come in, its tables, and the settings it refuses."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from synthlm.config import InputError, parse
from synthlm.experiments import Grid, Suite
from synthlm.experiments.edge import EdgeSettings, EdgeStudy
from synthlm.experiments.edge_search import (
    FIRST_SEED,
    Milestones,
    RunLabel,
    Search,
    Setting,
    accuracy_curves,
    milestones,
    score,
)
from synthlm.jobs import Finetune, Pretrain, Probe
from synthlm.running import run_batch
from synthlm.store import Record, Store

ADAMW = {"name": "adamw", "lr": 3e-3, "weight_decay": 1.0}
EDGE = {"every": 2, "window": 4, "modes": 2}
SETTINGS: dict[str, Any] = {
    "seeds": 2,
    "samples": 19,
    "trajectories": 2,
    "modes": ["adamw"],
    "search_seeds": 2,
    "arms": {
        "adamw": {"optimizer": {"name": "adamw"}, "rates": [2e-3, 3e-3], "decays": [3e-3], "aux": ADAMW},
        "muon": {"optimizer": {"name": "muon"}, "rates": [0.02, 0.04], "decays": [6e-3], "aux": ADAMW},
    },
    "tasks": {
        "subtraction": {
            "language": {"name": "modular", "operation": "x-y", "modulus": 5, "alphabet": 5, "train_fraction": 0.8},
            "model": {"width": 8, "layers": 1, "heads": 2, "mlp": 16},
            "training": {"steps": 30, "batch": 8, "evaluations": 2, "evaluate_every": 5, "checkpoints": 3,
                         "edge": EDGE},
        },
        "recall": {
            "language": {"name": "recall", "alphabet": 8, "keys": 4, "values": 4, "pairs": 2, "queries": 1,
                         "items": 40, "heldout": 10},
            "model": {"width": 8, "layers": 2, "heads": 2, "mlp": 16},
            "control": "layers",
            "decays": False,
            "arms": ["adamw"],
            "training": {"steps": 20, "batch": 8, "evaluations": 2, "evaluate_every": 5,
                         "edge": {"every": 2, "window": 4}},
        },
    },
    "forgetting": {
        "training": {"steps": 10, "batch": 8, "evaluations": 3, "edge": {"every": 1, "window": 3}},
        "tasks": ["subtraction"],
    },
}  # fmt: skip


def settings(**changes: Any) -> EdgeSettings:
    return parse(EdgeSettings, copy.deepcopy(SETTINGS) | changes, "edge")


def fill(study: EdgeStudy, store: Store) -> list[Any]:
    """Run what the study wants until it wants nothing new; all jobs, in the order of being wanted first."""
    seen: dict[str, Any] = {}
    while True:
        new = [job for job in study.jobs(lambda job: store.get(job.key)) if not store.has(job.key)]
        if not new:
            return list(seen.values())
        for job in new:
            seen[job.key] = job
            run_batch([job], store)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[EdgeStudy, Store, list[Any]]:
    """A study in which the main runs of seed 0 generalize: so small a run never does, so milestones are given."""
    torch.set_num_threads(1)
    study, store = EdgeStudy(settings()), Store(tmp_path_factory.mktemp("store"))
    generalizes = Milestones(5.0, 10.0, 20.0)

    def milestones(run: RunLabel, record: Record) -> Milestones:
        made_it = run.condition == "main" and run.seed == 0
        return generalizes if made_it else Milestones(5.0, math.nan, math.nan)

    study.milestones = milestones  # type: ignore[method-assign]
    return study, store, fill(study, store)


def job_of(study: EdgeStudy, store: Store, task: str) -> Pretrain:
    """The main run of seed 0 under AdamW."""
    job = study.pretrain(RunLabel(task, "adamw", "main", 0), lambda job: store.get(job.key))
    assert job is not None
    return job


def test_what_is_run(filled: tuple[EdgeStudy, Store, list[Any]]) -> None:
    study, _, jobs = filled
    runs = list(study.runs())
    assert len(runs) == 2 * 2 * 2 + 2 * 2  # subtraction: two arms; recall: one
    by_kind = {kind: [job for job in jobs if isinstance(job, kind)] for kind in (Pretrain, Finetune, Probe)}
    trials = [job for job in by_kind[Pretrain] if job.seed >= FIRST_SEED]
    assert len(trials) == 3 * 2 * 2  # cells, settings, seeds of the search
    assert all(job.training.edge is None and not job.training.checkpoints for job in trials)
    by_kind[Pretrain] = [job for job in by_kind[Pretrain] if job not in trials]
    assert len(by_kind[Pretrain]) == 12
    assert len(by_kind[Finetune]) == 2  # seed 0 of both arms, of the one task that is to be forgotten
    names = pd.Series([job.analysis.name for job in by_kind[Probe]]).value_counts().to_dict()
    kept = [s for s in study.settings.tasks["subtraction"].training.checkpoint_steps if s >= 8]
    assert names == {"edge": 14, "edge-onsets": 12, "edge-modes": 4 * len(kept)}
    decay = {(job.optimizer.weight_decay > 0, job.aux.weight_decay > 0) for job in by_kind[Pretrain]}
    assert decay == {(True, True), (False, False)}
    layers = {job.model.layers for job in by_kind[Pretrain] if job.language.name == "recall"}
    assert layers == {1, 2}
    for job in by_kind[Finetune]:
        assert job.optimizer.weight_decay == job.aux.weight_decay == 0.0
        assert job.language.label == "new"


def test_pairs_differ_in_what_the_control_lacks_alone() -> None:
    study = EdgeStudy(settings())
    for run in study.runs():
        if run.condition == "main":
            setting = study.search.settings(run.task, run.arm)[-1]
            main, control = (
                study.search.job(RunLabel(run.task, run.arm, condition, run.seed), setting).model_dump()
                for condition in ("main", "control")
            )
            main_model, control_model = main.pop("model"), control.pop("model")
            if run.task == "recall":
                assert main == control
                assert {k for k in main_model if main_model[k] != control_model[k]} == {"layers"}
            else:
                assert main_model == control_model
                for group in ("optimizer", "aux"):
                    assert main[group].pop("weight_decay") > control[group].pop("weight_decay") == 0
                assert main == control


def test_tables(filled: tuple[EdgeStudy, Store, list[Any]]) -> None:
    study, store, _ = filled
    tables = study.tables(lambda job: store.get(job.key))
    assert set(tables) == {"edge_search", "edge_runs", "edge_windows", "edge_onsets", "edge_modes"}
    tried = tables["edge_search"]
    assert len(tried) == 12
    assert (tried.groupby(["task", "arm"])["chosen"].sum() == 2).all()  # one setting, on two seeds
    chosen = tried[tried["chosen"]].drop_duplicates(["task", "arm"]).set_index(["task", "arm"])["lr"]
    used = tables["edge_runs"].groupby(["task", "arm"])["lr"].unique()
    assert {cell: [lr] for cell, lr in chosen.items()} == {cell: list(lr) for cell, lr in used.items()}
    runs = tables["edge_runs"]
    assert len(runs) == 12
    twins = runs[(runs["seed"] == 0) & (runs["condition"] == "control")]
    assert (twins["deadline"] == 20).all()
    assert twins["grokked"].isna().all()
    windows = tables["edge_windows"]
    assert windows.groupby("job").size().min() > 0
    main = windows[
        (windows["condition"] == "main") & (windows["seed"] == 0) & (windows["task"] == "subtraction")
    ]
    phases = main.drop_duplicates(["arm", "step"]).groupby("step")["phase"].first()
    assert phases[8] == "plateau"
    assert phases[12] == phases[20] == "transition"
    assert phases[22] == "after"
    assert set(windows[windows["condition"] == "finetuned"]["phase"]) == {"forgetting"}
    record = store.load(job_of(study, store, "subtraction").key)
    curves = accuracy_curves(record).set_index("step")
    row = main[(main["arm"] == "adamw") & (main["step"] == 14) & (main["set"] == "all")].iloc[0]
    assert row["heldout"] == curves.loc[10, "heldout"]
    assert row["train_loss"] == curves.loc[10, "train_loss"]
    why = tables["edge_onsets"].groupby("seed")["why"].first()
    assert why[0] == ""
    assert why[1] == "the main run did not generalize"
    assert set(tables["edge_modes"]["step"]) == {s for s in (5, 30) if s >= 8}
    for table in tables.values():
        assert table["job"].str.fullmatch("[0-9a-f]{12}").all()
    empty = study.tables(lambda job: None)
    assert all(len(table) == 0 for table in empty.values())


def test_curves_are_of_the_goal_slices(filled: tuple[EdgeStudy, Store, list[Any]]) -> None:
    study, store, _ = filled
    record = store.load(job_of(study, store, "recall").key)
    curves = accuracy_curves(record)
    metrics = pd.DataFrame(record.metrics)
    last = metrics[metrics["step"] == 20].set_index("slice")
    assert curves["step"].tolist() == sorted(set(metrics["step"]))
    assert curves["heldout"].iloc[-1] == last.loc["recall/rule/heldout", "accuracy"]
    assert curves["train"].iloc[-1] == last.loc["recall/rule/train", "accuracy"]
    assert np.isfinite(curves[["train_loss", "heldout_loss"]].to_numpy()).all()


def test_a_run_that_diverged_is_shown_and_not_analysed(tmp_path: Path) -> None:
    broken = {"optimizer": {"name": "sgd"}, "rates": [1e36], "decays": [1e-3], "aux": ADAMW}
    tasks = {"subtraction": SETTINGS["tasks"]["subtraction"]}
    study = EdgeStudy(settings(arms={"sgd": broken}, tasks=tasks, modes=[], seeds=1))
    store = Store(tmp_path / "store")
    jobs = fill(study, store)
    assert all(isinstance(job, Pretrain) for job in jobs)
    tables = study.tables(lambda job: store.get(job.key))
    assert set(tables["edge_runs"]["status"]) == {"diverged"}
    assert tables["edge_windows"].empty


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": ["lion"]}, "modes: 'lion' is not one of adamw, muon"),
        ({"forgetting": {**SETTINGS["forgetting"], "tasks": ["x"]}}, "forgetting.tasks: 'x'"),
        ({"forgetting": {"training": {"steps": 5}}}, "forgetting.training.edge"),
        ({"tasks": {"a": {**SETTINGS["tasks"]["recall"], "arms": ["sgd"]}}}, "tasks.a.arms: 'sgd'"),
        (
            {"tasks": {"a": {**SETTINGS["tasks"]["recall"], "model": {"layers": 1}}}},
            "tasks.a.model.layers: the control has one layer",
        ),
        (
            {"tasks": {"a": {**SETTINGS["tasks"]["recall"], "training": {"steps": 5}}}},
            "tasks.a.training.edge",
        ),
        (
            {"arms": {**SETTINGS["arms"], "muon": {**SETTINGS["arms"]["muon"], "rates": [0.1]}}},
            "arms: all need as many rates and as many decays to choose from, not adamw 2 and 1; muon 1 and 1",
        ),
        (
            {
                "arms": {
                    "adamw": {
                        **SETTINGS["arms"]["adamw"],
                        "optimizer": {"name": "adamw", "weight_decay": 0.5},
                    }
                }
            },
            "optimizer.weight_decay: 0.5 is what decays are for",
        ),
        (
            {"forgetting": None, "tasks": {"a": {**SETTINGS["tasks"]["subtraction"], "decays": False}}},
            "tasks.a.control: the main runs have no decay",
        ),
        (
            {
                "forgetting": None,
                "tasks": {"a": {**SETTINGS["tasks"]["recall"], "model": {"width": 9, "layers": 2}}},
            },
            "must divide width",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**changes)


def record(heldout: list[float]) -> Record:
    """A finished run with this held-out accuracy at steps 0, 10, 20, ..."""
    metrics: dict[str, list[Any]] = {
        "step": [],
        "role": [],
        "slice": [],
        "goal": [],
        "accuracy": [],
        "loss": [],
    }
    for place, value in enumerate(heldout):
        for part, accuracy, goal in (("train", 1.0, "rule"), ("heldout", value, "rule")):
            row = (10 * place, "old", f"m/{part}", goal, accuracy, 0.1)
            for column, entry in zip(metrics.values(), row, strict=True):
                column.append(entry)
    return Record(config={}, manifest={"status": "done"}, metrics=metrics)


def test_settings_are_ranked_by_late_generalization_then_any_then_when_then_the_end() -> None:
    def trial(
        memorized: float, rise: float, grokked: float, heldout: float = 1.0
    ) -> tuple[Milestones, float]:
        return Milestones(memorized, rise, grokked), heldout

    never, nearly = trial(10, math.nan, math.nan, 0.0), trial(10, math.nan, math.nan, 0.5)
    at_once, sooner = trial(100, 20, 90), trial(100, 20, 60)  # generalizes before it has memorized
    late, soon = trial(10, 40, 90), trial(10, 20, 60)
    ranked = [
        [never, never], [nearly, never], [never, at_once], [at_once, at_once], [at_once, sooner], [never, late],
        [never, soon], [at_once, soon], [late, late], [late, soon], [soon, soon],
    ]  # fmt: skip
    scores = [score(pair) for pair in ranked]
    assert scores == sorted(scores)
    assert len(set(scores)) == len(scores)


def test_milestones() -> None:
    rises = [0.0, 0.1, 0.1, 0.5, *[0.96] * 5]
    found = milestones(accuracy_curves(record(rises)), 0.05)
    assert found == Milestones(0.0, 20.0, 40.0)
    assert found.delayed
    assert not Milestones(30.0, 20.0, 40.0).delayed
    assert not milestones(accuracy_curves(record([0.0] * 9)), 0.05).delayed


def test_the_best_setting_is_known_once_every_trial_is_done() -> None:
    given = settings()
    search = Search(given.tasks, given.arms, 2)
    first, second = search.settings("subtraction", "muon")
    assert (first, second) == (Setting(0.02, 0.3), Setting(0.04, 0.15))
    done: dict[str, Record] = {}
    for seed in (FIRST_SEED, FIRST_SEED + 1):
        assert search.best("subtraction", "muon", lambda job: done.get(job.key)) is None
        done[search.trial("subtraction", "muon", first, seed).key] = record([0.2] * 9)
        done[search.trial("subtraction", "muon", second, seed).key] = record([0.3] * 9)
    assert search.best("subtraction", "muon", lambda job: done.get(job.key)) == second


def test_a_grid_with_an_edge_section() -> None:
    grid = parse(
        Grid, {"title": "t", "seeds": 1, "edge": {k: v for k, v in SETTINGS.items() if k != "seeds"}}, "grid"
    )
    suite = Suite(grid)
    assert list(suite.studies) == ["edge"]
    assert grid.edge is not None
    assert grid.edge.seeds == 1
    assert "subtraction, recall" in suite.describe()
    assert len(suite.jobs(lambda job: None)) == 12  # the search alone, until it is done
