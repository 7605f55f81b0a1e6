"""Which probes surround the bases of a study, when they are asked for, and how their rows are labelled."""

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from synthlm.experiments.consistency import FinetunedCell
from synthlm.experiments.surroundings import Surroundings, SurroundingsSettings
from synthlm.jobs import Finetune, Full, Pretrain, Training
from synthlm.lora import LoraConfig
from synthlm.model import ModelConfig
from synthlm.optimizers import OptimizerConfig
from synthlm.perturbation import GaussianNoise
from synthlm.tasks import Facts

MODEL = ModelConfig(vocab=24, length=6, width=8, layers=1, heads=2, mlp=16)
LANGUAGE = Facts(tag=0, alphabet=8, items=16, key_length=2, value_length=1)
ARMS = {
    "full-adamw": (Full(), "adamw"),
    "full-muon": (Full(), "muon"),
    "lora2-adamw": (LoraConfig(rank=2), "adamw"),
}
SEEDS = 2


def pretrain(optimizer: str, seed: int, noise: float | None = None) -> Pretrain:
    perturb = None if noise is None else GaussianNoise(sigma=noise)
    return Pretrain(
        seed=seed, model=MODEL, language=LANGUAGE, optimizer=OptimizerConfig(name=optimizer, lr=0.1),
        aux=OptimizerConfig(name="adamw", lr=0.1), training=Training(steps=5, perturb=perturb),
    )  # fmt: skip


def finetune(base: Pretrain, language: str, arm: str, lr: float) -> Finetune:
    method, optimizer = ARMS[arm]
    new = Facts(label=language, tag=1, alphabet=8, items=8, key_length=2, value_length=1)
    return Finetune(
        seed=base.seed, base=base, language=new, method=method, training=Training(steps=3),
        optimizer=OptimizerConfig(name=optimizer, lr=lr),
    )  # fmt: skip


class Models:
    """A study with two bases, two languages and three arms at two learning rates."""

    def __init__(self, languages: tuple[str, ...] = ("new-rule", "new-facts"), known: int = 2) -> None:
        self._bases = {
            (name, seed): pretrain(name, seed) for name in ("adamw", "muon") for seed in range(SEEDS)
        }
        self._cells = [
            FinetunedCell(
                name, language, arm,
                tuple(finetune(self._bases[name, seed], language, arm, 0.1) for seed in range(SEEDS)),
                tuple(
                    finetune(self._bases[name, seed], language, arm, lr) for lr in (0.1, 0.2) for seed in range(SEEDS)
                ),
            )
            for name in ("adamw", "muon") for language in languages[:known] for arm in ARMS
        ]  # fmt: skip
        fine = SimpleNamespace(languages=languages, arms=ARMS)
        self.consistency: Any = SimpleNamespace(
            settings=SimpleNamespace(finetuning=fine), finetuned=lambda results: self._cells
        )
        self.noise: Any = None

    def bases(self, results: Any) -> dict[tuple[str, int], Pretrain]:
        return self._bases


def record(rows: dict[str, list[Any]] | None = None, status: str = "done") -> Any:
    metrics = rows or {"step": [0, 5], "role": ["old"] * 2, "goal": ["rote"] * 2, "accuracy": [0.0, 1.0]}
    return SimpleNamespace(manifest={"status": status}, metrics=metrics)


def done(job: Any) -> Any:
    return record()


def test_each_base_gets_its_probes_once_its_searches_are_over() -> None:
    surroundings = Surroundings(SurroundingsSettings(), Models())
    found = list(surroundings.probes(done))
    counts = pd.Series([table for table, _, _ in found]).value_counts().to_dict()
    # basins: the base and, for each language, the model of its own optimizer
    assert counts == {"landscape": 4, "basins": 4 + 8, "certificate": 4, "plane": 2}
    assert len({probe.key for _, _, probe in found}) == len(found)
    for table, head, probe in found:
        first = probe.subjects[0]
        base = first.base if isinstance(first, Finetune) else first
        assert (head["base"], head["seed"]) == (base.optimizer.name, base.seed)
        assert all(isinstance(job, Finetune) and job.base == base for job in probe.subjects[1:])
        if table == "landscape":
            assert {job.arm for job in probe.subjects[1:]} == {"full-adamw", "full-muon"}
        if table == "plane":
            assert [job.optimizer.name for job in probe.subjects[:2]] == [head["base"]] * 2
            assert probe.subjects[2].optimizer.name != head["base"]
            assert base.seed == 0
        if head["centre"] == "finetuned":
            assert first.optimizer.name == head["base"]
            assert (head["language"], head["arm"]) == (first.language.label, first.arm)
    assert surroundings.jobs(done) == [probe for _, _, probe in found]
    assert not list(Surroundings(SurroundingsSettings(), Models(known=1)).probes(done))


def test_diverged_models_are_left_out() -> None:
    def results(job: Any) -> Any:
        broken = (
            isinstance(job, Finetune) and job.optimizer.name == "muon" and job.base.optimizer.name == "adamw"
        )
        return record(status="diverged" if broken else "done")

    surroundings = Surroundings(SurroundingsSettings(), Models())
    found = [(table, head["base"], probe) for table, head, probe in surroundings.probes(results)]
    assert [base for table, base, _ in found if table == "plane"] == ["muon"]
    for table, base, probe in found:
        if base == "adamw" and table != "plane":
            assert all(job.optimizer.name == "adamw" for job in probe.subjects)


@pytest.mark.parametrize("off", ["landscape", "plane", "basins", "certificate"])
def test_an_analysis_can_be_left_out(off: str) -> None:
    surroundings = Surroundings(SurroundingsSettings.model_validate({off: False}), Models())
    assert {table for table, _, _ in surroundings.probes(done)} == {
        "landscape",
        "plane",
        "basins",
        "certificate",
    } - {off}


def test_variants_get_basins_beside_the_plain_base() -> None:
    models = Models()
    noisy = {("noise-2", seed): pretrain("adamw", seed, noise=0.02) for seed in range(SEEDS)}
    models.noise = SimpleNamespace(settings=SimpleNamespace(base="adamw"), bases=lambda results: noisy)
    surroundings = Surroundings(SurroundingsSettings(), models)
    variants = [(head, probe) for _, head, probe in surroundings.probes(done) if head["variant"] != "plain"]
    assert [head["seed"] for head, _ in variants] == [0, 1]
    for head, probe in variants:
        assert (head["base"], head["variant"], head["perturb"]) == ("adamw", "noise-2", "noise 0.02")
        assert probe.subjects == (noisy["noise-2", head["seed"]],)

    def failed(job: Any) -> Any:
        noise = isinstance(job, Pretrain) and job.training.perturb is not None
        return record(status="diverged") if noise else record()

    assert all(head["variant"] == "plain" for _, head, _ in surroundings.probes(failed))


def test_rows_say_which_model_they_speak_of() -> None:
    surroundings = Surroundings(SurroundingsSettings(), Models())

    def results(job: Any) -> Any:
        if job.kind == "probe":
            subjects = len(job.subjects)
            return record({"subject": [*range(subjects), -1], "loss": [1.0] * (subjects + 1)})
        return record()

    tables = surroundings.tables(results)
    assert {name: len(table) > 0 for name, table in tables.items()} == dict.fromkeys(tables, True)
    landscape = tables["landscape"]
    assert "subject" not in landscape
    one = landscape[(landscape["base"] == "adamw") & (landscape["seed"] == 1)]
    assert list(one["of_arm"]) == ["", "full-adamw", "full-muon", "full-adamw", "full-muon", ""]
    assert list(one["of_language"]) == ["", *["new-rule"] * 2, *["new-facts"] * 2, ""]
    assert (one["of_model"] != "").sum() == 4
    assert set(tables["basins"]["centre"]) == {"pretrained", "finetuned"}


def test_nothing_finished_gives_empty_tables() -> None:
    models = Models()
    surroundings = Surroundings(SurroundingsSettings(), models)
    tables = surroundings.tables(lambda job: None if job.kind == "probe" else record())
    assert all(table.empty for table in tables.values())
