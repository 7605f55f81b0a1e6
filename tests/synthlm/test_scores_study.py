"""Small-data finetuning and memorization item by item: what is trained, and that tables hold what the models say."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from synthlm.config import InputError, parse
from synthlm.experiments.small_data import SmallData, unseen_choice
from synthlm.experiments.tendency import TendencySettings, TendencyStudy
from synthlm.jobs import Finetune, Pretrain, Probe, evaluation_steps
from synthlm.probes.subject import StoredSubject
from synthlm.running import run_batch
from synthlm.store import Record, Store
from synthlm.tasks import Facts, build

MODEL = {"width": 16, "layers": 1, "heads": 2, "mlp": 16}
ADAMW = {"optimizer": {"name": "adamw"}, "sweep": {"lowest": 0.005, "highest": 0.02, "count": 2, "widen": 0}}
MUON = {"optimizer": {"name": "muon"}, "sweep": {"lowest": 0.02, "highest": 0.08, "count": 2, "widen": 0}}
ONE_ADAMW = {**ADAMW, "sweep": {"lowest": 0.02, "highest": 0.02, "count": 1}}
ONE_MUON = {**MUON, "sweep": {"lowest": 0.08, "highest": 0.08, "count": 1}}
AUX = {"name": "adamw", "lr": 0.01}
COMMON = {"model": MODEL, "aux": AUX, "optimizers": {"adamw": ADAMW, "muon": MUON}}
EXCEPTIONS = {
    "name": "exceptions",
    "alphabet": 8,
    "rule": {"name": "cipher", "length": 2, "items": 24, "heldout": 8},
    "exceptions": 6,
}


def training(steps: int) -> dict[str, Any]:
    return {"steps": steps, "batch": 16, "evaluations": 3}


def study(**parts: Any) -> TendencyStudy:
    return TendencyStudy(parse(TendencySettings, {"seeds": 2, **parts}, "tendency"))


def finish(made: Any, store: Store) -> Any:
    """Run all that is wanted, until nothing more is; returns the results."""

    def results(job: Any) -> Any:
        return store.load(job.key) if store.has(job.key) else None

    for _ in range(20):
        waiting = [job for job in made.jobs(results) if not store.has(job.key)]
        ready = [job for job in waiting if all(store.has(key) for key in job.parents)]
        if not waiting:
            return results
        for shape in {job.shape for job in ready}:
            run_batch([job for job in ready if job.shape == shape], store)
    raise AssertionError("the study never ends")


def test_counterfactual_scores_are_differences_of_ensemble_means(tmp_path: Path) -> None:
    made = study(counterfactual={**COMMON, "training": training(50), "language": EXCEPTIONS, "draws": 6})
    results = finish(made, Store(tmp_path))
    table = made.tables(results)["counterfactual"]
    assert set(table["optimizer"]) == {"adamw", "muon"}
    assert set(table["seed"]) == {0, 1}
    assert (table["models"] == 6).all()
    heldout = table["slice"].str.endswith("heldout")
    assert (table.loc[heldout, "n_with"] == 0).all()
    assert table.loc[heldout, "score"].isna().all()
    both = table[(table["n_with"] > 0) & (table["n_without"] > 0)]
    assert len(both) > 20
    # by hand, for one optimizer and seed: the models' own exact answers
    probes = [job for job in made.jobs(results) if isinstance(job, Probe)]
    probe = probes[0]
    rows = pd.DataFrame(results(probe).metrics)
    mine = table[table["job"] == probe.key[:12]].set_index("item")
    for item, group in rows.groupby("item"):
        inside, outside = (group.loc[group["trained"] == flag, "exact"] for flag in (1, 0))
        expected = inside.mean() - outside.mean()
        assert math.isnan(expected) == math.isnan(mine.loc[item, "score"])
        if not math.isnan(expected):
            assert mine.loc[item, "score"] == pytest.approx(expected)
    # the ensemble differs in its draws alone, and shares one learning rate
    subjects = probe.subjects
    assert [job.language.draw for job in subjects] == list(range(6))
    assert len({job.model_copy(update={"language": subjects[0].language}).key for job in subjects}) == 1


def test_canaries_repeated_more_often_are_more_exposed(tmp_path: Path) -> None:
    language = {
        "name": "canaries", "alphabet": 8, "length": 3, "repeats": [1, 16], "each": 6, "references": 31,
        "background": {"name": "facts", "alphabet": 8, "items": 24, "key_length": 2, "value_length": 1},
    }  # fmt: skip
    optimizers = {"adamw": ADAMW}
    made = study(
        exposure={**COMMON, "optimizers": optimizers, "training": training(60), "language": language}
    )
    table = made.tables(finish(made, Store(tmp_path)))["exposure"]
    assert len(table) == 2 * 2 * 6
    assert (table["references"] == 31).all()
    assert table["exposure"].between(0, 5).all()
    for row in table.itertuples():  # the fewest samples of which one in two sets contains the string
        miss = -math.expm1(-row.loss)
        assert 1 - miss**row.samples >= 0.5 > 1 - miss ** (row.samples - 1)
    mean = table.groupby("repeats")["exposure"].mean()
    assert mean[16] > mean[1] + 0.5


def test_stored_bits_are_those_of_the_models_own_losses(tmp_path: Path) -> None:
    language = {"name": "facts", "alphabet": 8, "key_length": 2, "value_length": 1, "probe": 4, "items": 1}
    made = study(
        capacity={
            **COMMON, "optimizers": {"adamw": ADAMW}, "training": training(120), "language": language,
            "items": [8, 32],
        }
    )  # fmt: skip
    store = Store(tmp_path)
    results = finish(made, store)
    table = made.tables(results)["capacity"]
    assert sorted(table["items"]) == [
        8,
        8,
        32,
        32,
    ]  # every item is counted, whatever the probe of the settings
    assert (table["exact_bits"] == table["items"] * 3).all()
    assert (table["bits"] >= table["net_bits"]).all()
    assert (table["bits"] <= table["exact_bits"] + 1e-9).all()
    assert table.loc[table["items"] == 8, "recall"].min() > 0.8
    probe = next(job for job in made.jobs(results) if isinstance(job, Probe))
    objective = StoredSubject(probe, store, "cpu").objective(goals_only=False)
    loss = objective.loss(StoredSubject(probe, store, "cpu").flat()[None]).item()
    row = table[table["job"] == probe.key[:12]].iloc[0]
    net = (math.log(8) - loss) / math.log(2) * row["items"]
    assert row["net_bits"] == pytest.approx(net, abs=1e-3)
    assert row["parameters"] == probe.subjects[0].model.layout.size
    assert row["exposures"] == 120 * 16 / row["items"]


def test_bits_of_strings_are_counted_beside_a_prefix_alone() -> None:
    def at(**language: Any) -> TendencyStudy:
        strings = {"name": "strings", "alphabet": 8, "length": 4, "items": 1, **language}
        return study(
            capacity={**COMMON, "training": training(5), "items": [8, 32], "language": strings},
        )

    with pytest.raises(InputError, match=r"capacity.language.*prefix: 0 .*1\.\.3"):
        at()
    with pytest.raises(InputError, match="length: 1 leaves no room"):
        at(length=1)
    for language in at(prefix=2).scores[0].languages():
        # what a perfect memorizer stores, counted symbol by symbol
        assert build(language, 0).bits == pytest.approx(language.items * 2 * 3)


def test_corruption_is_set_against_a_language_of_one_exception(tmp_path: Path) -> None:
    whole = {**EXCEPTIONS, "exceptions": 1}
    made = study(
        corruption={
            **COMMON, "optimizers": {"adamw": ADAMW}, "training": training(60), "language": whole,
            "exceptions": [1, 8],
        }
    )  # fmt: skip
    results = finish(made, Store(tmp_path))
    table = made.tables(results)["corruption"]
    assert sorted(zip(table["exceptions"], table["seed"], strict=True)) == [(1, 0), (1, 1), (8, 0), (8, 1)]
    assert (table["heldout"] == 8).all()
    assert (table["items"] == 24).all()
    assert (table.loc[table["exceptions"] == 1, "excess"] == 0).all()
    for row in table.itertuples():
        control = table[(table["exceptions"] == 1) & (table["seed"] == row.seed)]["wrong"].item()
        assert row.excess == pytest.approx(row.wrong - control)
        probe = next(job for job in made.jobs(results) if job.key.startswith(row.job))
        metrics = pd.DataFrame(results(probe.subjects[0]).metrics)
        end = metrics[metrics["step"] == 60].set_index("slice")
        assert row.wrong == pytest.approx(1 - end.loc["exceptions/rule/heldout", "exact"])
        assert row.exact == pytest.approx(end.loc["exceptions/exception", "exact"])
        recall = metrics[metrics["slice"] == "exceptions/exception"]
        assert math.isnan(row.fitted_90) == (recall["accuracy"].max() < 0.9)


INJECTION = {
    "name": "injection", "alphabet": 8, "length": 3, "step": 20, "repeats": 2, "items": 4, "references": 40,
    "background": {"name": "facts", "alphabet": 8, "items": 12, "key_length": 2, "value_length": 1},
}  # fmt: skip


def test_what_was_injected_is_remembered_and_searched_for_without_it(tmp_path: Path) -> None:
    made = study(
        injection={
            **COMMON, "optimizers": {"adamw": ADAMW}, "training": training(60), "language": INJECTION,
        }
    )  # fmt: skip
    store = Store(tmp_path)
    results = finish(made, store)
    table = made.tables(results)["injection"]
    jobs = made.jobs(results)
    assert not any(isinstance(job, Probe) for job in jobs)
    searched = [job for job in jobs if job.language.name == "facts"]
    trained = {job.key[:12]: job for job in jobs if job.language.name == "injection"}
    assert len(searched) == 2
    assert {job.seed for job in searched} == {0}
    assert len(trained) == 2
    assert set(table["job"]) == set(trained)
    assert {job.seed for job in trained.values()} == {0, 1}
    assert len({job.optimizer.lr for job in trained.values()}) == 1
    assert (table["chance"] == 9).all()
    for key, rows in table.groupby("job"):
        job = trained[key]
        assert rows["step"].tolist() == evaluation_steps(job.training, job.language)
        assert (rows["since"] == rows["step"] - 20).all()
        metrics = pd.DataFrame(results(job).metrics).set_index(["step", "slice"])
        for row in rows.itertuples():
            loss = {
                name: metrics.loc[(row.step, f"injection/{name}"), "loss"] * 3 / math.log(2)
                for name in ("injected", "reference/heldout")
            }
            assert row.injected == pytest.approx(loss["injected"])
            assert row.remembered == pytest.approx(loss["reference/heldout"] - loss["injected"])
            assert row.background == metrics.loc[(row.step, "facts/rote"), "accuracy"]
        at = rows.set_index("since")
        added = at.loc[2, "remembered"] - at.loc[0, "remembered"]
        assert added > 1
        assert at.loc[2, "retained"] == 1
        assert at.loc[:1, "retained"].isna().all()
        later = (at.loc[3:, "remembered"] - at.loc[0, "remembered"]) / added
        np.testing.assert_allclose(at.loc[3:, "retained"], later)
        assert at["half_life"].nunique(dropna=False) == 1
        assert at["half_life"].isna().all() == (at.loc[2:, "retained"] > 0.5).all()


def test_an_injection_that_teaches_nothing_or_diverges_has_no_share() -> None:
    made = study(injection={**COMMON, "training": training(60), "language": INJECTION})
    part = made.scores[0]
    slices = ("facts/rote", "injection/injected", "injection/reference/heldout")
    goals = ("rote", "", "")

    def record(losses: dict[int, tuple[float | None, float | None]]) -> Any:
        metrics: dict[str, list[Any]] = {"step": [], "slice": [], "goal": [], "loss": [], "accuracy": []}
        for step, pair in losses.items():
            metrics["step"] += [step] * 3
            metrics["slice"] += slices
            metrics["goal"] += goals
            metrics["loss"] += [None if None in pair else 1.0, *pair]
            metrics["accuracy"] += [None if None in pair else 0.5] * 3
        return Record({}, {"status": "done"}, metrics)

    bit = math.log(2) / 3  # a bit of a string, as nats per token
    nothing = part._rows(record({0: (5.0, 5.0), 20: (5.0, 5.0), 22: (5.0, 5.0), 60: (4.0, 5.0)}))
    assert nothing["retained"].isna().all()
    assert nothing["half_life"].isna().all()
    losses = {0: (9 * bit, 9 * bit), 20: (9 * bit, 8 * bit), 21: (0.0, 9 * bit), 22: (5 * bit, 8 * bit)}
    rows = part._rows(record({**losses, 23: (8 * bit, 8 * bit), 25: (None, None)}))
    np.testing.assert_allclose(rows["remembered"], [0, -1, 9, 3, 0, math.nan], atol=1e-9)
    np.testing.assert_allclose(rows["retained"], [math.nan] * 3 + [1, 0.25, math.nan])
    assert rows["half_life"].iloc[0] == pytest.approx(math.expm1(math.log(2) * 2 / 3))


SMALL = {
    "model": MODEL,
    "pretraining": {
        "language": {"name": "facts", "alphabet": 8, "items": 12, "key_length": 2, "value_length": 2},
        "training": training(200),
        "aux": AUX,
        "bases": {"adamw": ONE_ADAMW, "muon": ONE_MUON},
    },
    "training": training(30),
    "arms": {"adamw": ADAMW, "muon": MUON},
    "languages": {
        "new-rule": {
            "name": "cipher", "alphabet": 8, "length": 2, "heldout": 8, "tag": 3, "label": "new-rule", "items": 1,
        }
    },
    "examples": [4, 32],
}  # fmt: skip


def test_small_data_tells_the_end_of_every_finetuning(tmp_path: Path) -> None:
    made = study(small_data=SMALL)
    results = finish(made, Store(tmp_path))
    table = made.tables(results)["small_data"]
    assert len(table) == 2 * 2 * 2 * 2 * 2  # base, arm, examples, rate, seed
    assert set(table["examples"]) == {4, 32}
    assert (table.groupby(["base", "arm", "examples", "seed"])["chosen"].sum() == 1).all()
    assert (table["step"] == 30).all()
    jobs = {job.key[:12]: job for job in made.jobs(results) if isinstance(job, Finetune)}
    for row in table.itertuples():
        job = jobs[row.job]
        assert (job.base.optimizer.name, job.optimizer.name) == (row.base, row.arm)
        assert len(build(job.language, job.seed).train.key) == row.examples
        rows = pd.DataFrame(results(job).metrics)
        end = rows[(rows["step"] == 30) & (rows["slice"] == "new-rule/rule/heldout")]
        assert row.accuracy == end["accuracy"].item()


def test_small_data_tells_which_bases_are_left_out(tmp_path: Path) -> None:
    made = study(small_data=SMALL)
    store = Store(tmp_path)
    results = finish(made, store)
    bases = made.tables(results)["small_data_bases"]
    assert sorted(zip(bases["base"], bases["seed"], strict=True)) == [
        (name, seed) for name in ("adamw", "muon") for seed in (0, 1)
    ]
    assert bases["passed"].all()
    assert (bases["accuracy"] >= 0.9).all()
    muon = set(bases.loc[bases["base"] == "muon", "job"])

    def one_diverged(job: Any) -> Any:
        record = results(job)
        if job.key[:12] in muon and job.seed == 1:
            record.manifest["status"] = "diverged"
        return record

    made = study(small_data=SMALL)
    tables = made.tables(one_diverged)
    bases = tables["small_data_bases"].set_index(["base", "seed"])
    assert not bases.loc[("muon", 1), "passed"]
    assert bases["passed"].sum() == 3
    assert set(tables["small_data"].query("base == 'muon'")["seed"]) == {0}
    assert made.tables(lambda job: None) == {}


def test_no_seed_chooses_its_rate_by_itself() -> None:
    scores = {(0, 0.1): 1.0, (0, 0.2): 0.0, (1, 0.1): 0.4, (1, 0.2): 0.5, (2, 0.1): 0.2, (2, 0.2): 0.3}
    assert unseen_choice(scores) == {0: 0.2, 1: 0.1, 2: 0.1}
    assert unseen_choice({(4, 0.1): 0.0, (4, 0.2): 1.0}) == {4: 0.2}
    assert unseen_choice({(0, 0.1): 1.0, (0, 0.2): 1.0, (1, 0.1): 1.0, (1, 0.2): -math.inf})[0] == 0.1


def test_what_does_not_fit_is_refused_before_anything_runs() -> None:
    wrong = {
        "counterfactual": {**COMMON, "training": training(5), "language": EXCEPTIONS, "draws": 2},
        "capacity": {**COMMON, "training": training(5), "language": {"name": "facts", "alphabet": 8}, "items": [9]},
        "small_data": {**SMALL, "examples": [100]},
        "exposure": {**COMMON, "aux": {"name": "muon", "lr": 0.1}, "training": training(5),
                     "language": {"name": "canaries"}},
        "injection": {**COMMON, "training": training(22), "language": INJECTION},
    }  # fmt: skip
    for part, message in {
        "counterfactual": "draws: 2",
        "capacity": "items",
        "small_data": "items: 100",
        "exposure": "matrices only",
        "injection": r"step: 20 .*0\.\.19",
    }.items():
        with pytest.raises(InputError, match=message):
            study(**{part: wrong[part]})


def test_a_diverged_member_of_an_ensemble_is_left_out(tmp_path: Path) -> None:
    made = study(
        counterfactual={
            **COMMON, "optimizers": {"adamw": ADAMW}, "training": training(20), "language": EXCEPTIONS, "draws": 4,
        }
    )  # fmt: skip
    store = Store(tmp_path)
    results = finish(made, store)

    def one_diverged(job: Any) -> Any:
        record = results(job)
        if isinstance(job, Pretrain) and job.language.name == "subset" and job.language.draw == 1:
            record.manifest["status"] = "diverged"
        return record

    probes = [job for job in made.jobs(one_diverged) if isinstance(job, Probe)]
    assert [[job.language.draw for job in probe.subjects] for probe in probes] == [[0, 2, 3]] * 2


def test_description_names_every_part() -> None:
    made = study(
        small_data=SMALL,
        counterfactual={**COMMON, "training": training(5), "language": EXCEPTIONS},
        capacity={
            **COMMON, "training": training(5), "items": [8, 16],
            "language": {"name": "facts", "alphabet": 8, "key_length": 2, "items": 1},
        },
    )  # fmt: skip
    text = made.describe()
    for word in ("4, 32 examples", "20 models a seed", "8, 16 items"):
        assert word in text
    assert isinstance(made.small_data, SmallData)
    assert Facts(items=16, alphabet=8, key_length=2, probe=None) in made.scores[-1].languages()
    assert np.isfinite([job.cost for job in made.jobs(lambda job: None)]).all()
