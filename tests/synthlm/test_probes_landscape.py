"""Landscape and basin probes of stored models: rows against single evaluations, and what they refuse."""

import json
import math
import secrets
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from synthlm.analysis import directions
from synthlm.analysis.objective import language_objective
from synthlm.config import InputError, parse
from synthlm.geometry import GEOMETRIES
from synthlm.jobs import Finetune, Full, Pretrain, Probe, Training
from synthlm.lora import LoraConfig
from synthlm.model import ModelConfig
from synthlm.optimizers import OptimizerConfig
from synthlm.probes.basins import Basins, Certificate
from synthlm.probes.landscape import Landscape, Plane
from synthlm.probes.subject import StoredSubject
from synthlm.running import run_probe
from synthlm.store import Store
from synthlm.tasks import Cipher, Facts, Mixture
from synthlm.trained import final_weights, language_of
from synthlm.training import run_batch

SEED = secrets.randbits(30)
MODEL = ModelConfig(vocab=24, length=6, width=8, layers=1, heads=2, mlp=16)
OLD = Mixture(
    parts=(
        Facts(tag=0, alphabet=8, items=16, key_length=2, value_length=1),
        Cipher(tag=1, alphabet=8, length=2, items=30, heldout=12),
    )
)
NEW = Facts(label="new", tag=2, alphabet=8, items=16, key_length=2, value_length=1)
OTHER = Facts(label="other", tag=3, alphabet=8, items=16, key_length=2, value_length=1)
ADAMW = OptimizerConfig(name="adamw", lr=0.02)
BASE = Pretrain(
    seed=SEED, model=MODEL, language=OLD, optimizer=ADAMW, aux=ADAMW,
    training=Training(steps=60, batch=16, evaluations=2),
)  # fmt: skip


def tuned(language: Facts = NEW, method: Full | LoraConfig | None = None, lr: float = 0.01) -> Finetune:
    plan = Training(steps=10, batch=8, evaluations=2)
    optimizer = OptimizerConfig(name="adamw", lr=lr)
    return Finetune(
        seed=SEED, base=BASE, language=language, method=method or Full(), optimizer=optimizer, training=plan
    )


FIRST, SECOND, THIRD = tuned(), tuned(lr=0.03), tuned(OTHER, LoraConfig(rank=2, targets=("*.attn.*",)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    print(f"seed {SEED}")
    store = Store(tmp_path_factory.mktemp("store"))
    for job in (BASE, FIRST, SECOND, THIRD):
        run_batch([job], store)
    return store


def rows_of(store: Store, analysis: Any, *subjects: Any) -> pd.DataFrame:
    probe = Probe(subjects=subjects, analysis=analysis, seed=SEED)
    run_probe(probe, store)
    return pd.DataFrame(store.load(probe.key).metrics)


def old_objective(items: int | None = None) -> Any:
    return language_objective(MODEL, language_of(OLD, SEED), items=items)


# -- slices ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slices(store: Store) -> pd.DataFrame:
    analysis = Landscape(
        kinds=("relative", "native", "filter"), radii=(0.1, 0.5), path=(0.5, 1.0), draws=2, steps=2
    )
    return rows_of(store, analysis, BASE, FIRST, SECOND, THIRD)


def test_every_direction_kind_and_geometry_has_its_lines(slices: pd.DataFrame) -> None:
    lines = slices.drop_duplicates(["direction", "kind", "geometry", "subject", "draw"])
    counts = lines.groupby(["direction", "kind", "subject"]).size().to_dict()
    wanted = {("centre", "", 0): 1, ("gaussian", "relative", 0): 2, ("gaussian", "native", 0): 6}
    wanted |= {("gaussian", "filter", 0): 2, ("worst", "relative", 0): 3, ("worst", "native", 0): 3}
    for subject in (1, 3):  # the second learnt the language of the first
        wanted |= {("gradient", kind, subject): 3 for kind in ("relative", "native", "filter")}
    for subject in (1, 2, 3):
        wanted |= {("update", kind, subject): 1 for kind in ("relative", "filter", "path")}
        wanted[("update", "native", subject)] = 3
    assert counts == wanted


def test_scores_are_those_of_the_old_language_at_the_point(slices: pd.DataFrame, store: Store) -> None:
    objective = old_objective()
    base = final_weights(BASE, store)
    found = slices[slices["direction"] == "centre"]
    assert list(found["slice"]) == list(objective.slices)
    assert found["loss"].to_numpy() == pytest.approx(objective.losses(base[None])[0].numpy(), rel=1e-5)
    for index, job in ((1, FIRST), (3, THIRD)):
        at_end = slices[(slices["kind"] == "path") & (slices["subject"] == index) & (slices["radius"] == 1)]
        flat = final_weights(job, store)[None]
        assert at_end["loss"].to_numpy() == pytest.approx(objective.losses(flat)[0].numpy(), rel=1e-4)
        assert at_end["accuracy"].to_numpy() == pytest.approx(objective.accuracies(flat)[0].numpy(), abs=1e-6)


def test_a_gradient_line_follows_the_steepest_step_of_the_finetuning_loss(
    slices: pd.DataFrame, store: Store
) -> None:
    base, layout, objective = final_weights(BASE, store), MODEL.layout, old_objective()
    new = language_objective(MODEL, language_of(NEW, SEED), table="train", items=64)
    _, grad = directions.gradient(new, base[None])
    for name, geometry in GEOMETRIES.items():
        step = directions.relative(layout, directions.steepest(layout, geometry, grad), base)
        at = slices[
            (slices["direction"] == "gradient") & (slices["kind"] == "relative") & (slices["subject"] == 1)
            & (slices["geometry"] == name) & (slices["radius"] == 0.5)
        ]  # fmt: skip
        wanted = objective.losses(base + 0.5 * step)[0].numpy()
        assert at["loss"].to_numpy() == pytest.approx(wanted, rel=1e-4)


def test_the_same_probe_gives_the_same_rows_and_another_seed_other_draws(store: Store) -> None:
    analysis = Landscape(radii=(0.3,), draws=2, steps=1, kinds=("relative",))
    probes = [Probe(subjects=(BASE,), analysis=analysis, seed=seed) for seed in (1, 1, 2)]
    found = [pd.DataFrame(analysis.run(StoredSubject(probe, store, "cpu"))) for probe in probes]
    pd.testing.assert_frame_equal(found[0], found[1])
    gaussian = [frame[frame["direction"] == "gaussian"]["loss"] for frame in found]
    assert not np.allclose(gaussian[0], gaussian[2])
    assert set(found[0]["direction"]) == {"centre", "gaussian", "worst"}


# -- planes ----------------------------------------------------------------------------------------------------------


def test_a_plane_has_its_grid_and_models(store: Store) -> None:
    found = rows_of(store, Plane(points=4, margin=0.5), BASE, FIRST, SECOND)
    assert set(found["role"]) == {"old", "new"}
    grid, models = found[found["what"] == "grid"], found[found["what"] == "model"]
    for _, part in grid.groupby(["role", "slice"]):
        assert len(part) == 16
        assert len(part.drop_duplicates(["x", "y"])) == 16
    places = models.drop_duplicates("subject").set_index("subject")[["x", "y"]].to_numpy()
    flats = torch.stack([final_weights(job, store) for job in (BASE, FIRST, SECOND)])
    wanted = torch.cdist(flats.double(), flats.double()).numpy()
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    assert apart == pytest.approx(wanted, rel=1e-5, abs=1e-9)
    objective = old_objective(64)
    old = models[models["role"] == "old"].sort_values(["subject", "slice"])
    order = np.argsort(objective.slices)
    assert old["loss"].to_numpy() == pytest.approx(
        objective.losses(flats)[:, order].flatten().numpy(), rel=1e-4
    )


@pytest.mark.parametrize(
    ("analysis", "subjects", "message"),
    [
        (Plane(), (BASE, FIRST), "needs 2 models finetuned from the first, not 1"),
        (Plane(), (BASE, FIRST, SECOND, THIRD), "needs three subjects, not 4"),
        (Landscape(), (FIRST, SECOND), "must be finetuned from the first"),
        (Basins(), (BASE, BASE), "must be finetuned from the first"),
        (Certificate(), (FIRST, BASE), "must be finetuned from the first"),
    ],
)
def test_subjects_that_do_not_belong_together_are_refused(
    analysis: Any, subjects: tuple[Any, ...], message: str
) -> None:
    data = {
        "subjects": [json.loads(job.model_dump_json()) for job in subjects],
        "analysis": json.loads(analysis.model_dump_json()),
    }
    with pytest.raises(InputError, match=message):
        parse(Probe, data, "probe")


def test_models_on_a_line_are_refused_when_the_plane_is_drawn(store: Store) -> None:
    with pytest.raises(InputError, match="span no plane"):
        rows_of(store, Plane(points=2), BASE, FIRST, FIRST)


# -- basins ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def around_base(store: Store) -> pd.DataFrame:
    return rows_of(store, Basins(count=6, draws=3, steps=2, items=8), BASE, FIRST, THIRD)


def test_profiles_and_widths_are_of_the_same_scores(around_base: pd.DataFrame) -> None:
    widths = around_base[around_base["row"] == "width"]
    profiles = around_base[around_base["row"] == "profile"]
    centre = profiles[profiles["case"] == "centre"]["accuracy"].mean()
    keys = ["case", "scale", "subject"]
    assert set(map(tuple, widths[keys].drop_duplicates().to_numpy())) == {
        ("most", "absolute", 0), ("most", "relative", 0), ("worst", "absolute", 0),
        ("finetuning", "absolute", 1), ("finetuning", "absolute", 2),
    }  # fmt: skip
    for _, row in widths[(widths["slice"] == "all") & (widths["measure"] == "accuracy")].iterrows():
        same = (profiles[keys] == row[keys].to_list()).all(axis=1)
        mean = profiles[same].groupby("sigma")["accuracy"].mean()
        inside = mean[mean.index <= row["width"] * (1 - 1e-9)]
        assert (centre - inside <= row["tolerance"] + 1e-6).all()
        if row["bound"] == "":
            first_outside = mean[mean.index >= row["width"]].iloc[0]
            assert centre - first_outside > row["tolerance"]


def test_the_worst_case_is_narrower_and_noise_has_an_interval(around_base: pd.DataFrame) -> None:
    widths = around_base[(around_base["row"] == "width") & (around_base["slice"] == "all")]
    loss = widths[widths["measure"] == "loss"].set_index(["case", "scale", "subject"])
    assert loss.loc[("worst", "absolute", 0), "width"] < loss.loc[("most", "absolute", 0), "width"]
    most = loss.loc[("most", "absolute", 0)]
    assert most["low"] <= most["width"] <= most["high"]
    assert most["n"] == 3
    assert math.isnan(loss.loc[("worst", "absolute", 0), "low"])


def test_a_finetuned_model_has_basins_in_both_languages(store: Store) -> None:
    found = rows_of(store, Basins(count=4, draws=2, steps=1, scales=("absolute",)), FIRST)
    assert set(found["role"]) == {"old", "new"}
    centre = found[(found["case"] == "centre") & (found["role"] == "new")]
    new = language_objective(MODEL, language_of(NEW, SEED))
    assert centre["loss"].to_numpy() == pytest.approx(
        new.losses(final_weights(FIRST, store)[None])[0].numpy(), rel=1e-4
    )


def test_a_grid_of_sigmas_must_ascend() -> None:
    with pytest.raises(InputError, match=r"highest: 0\.001 must be above lowest 0\.002"):
        parse(Basins, {"highest": 0.001, "lowest": 0.002}, "grid.toml")


# -- certificates ----------------------------------------------------------------------------------------------------


def test_certificates_hold_for_the_finetuned_models(store: Store) -> None:
    found = rows_of(
        store, Certificate(sigmas=(0.02, 0.5), trials=200, draws=20, items=64), BASE, FIRST, SECOND, THIRD
    )
    assert len(found) == 8
    flats = [final_weights(job, store) for job in (BASE, FIRST, SECOND, THIRD)]
    objective = old_objective(64)
    for _, row in found.iterrows():
        flat = flats[int(row["subject"])]
        assert row["distance"] == pytest.approx((flat - flats[0]).double().norm().item(), rel=1e-6)
        assert row["accuracy"] == pytest.approx(objective.accuracy(flat[None]).item(), abs=1e-6)
        assert (
            row["noised"] >= row["bound"] - 0.1
        )  # a guarantee; 0.1 for the few noises of the measured score
        assert row["weak_bound"] <= row["bound"] + 1e-9
        assert row["low"] <= row["successes"] / row["trials"] <= row["high"]
        assert row["weak_radius"] <= row["radius"] + 1e-9
    here = found[found["subject"] == 0]
    assert here["bound"].to_numpy() == pytest.approx(here["low"].to_numpy())
