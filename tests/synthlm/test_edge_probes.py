"""Analyses of recorded trajectories: rows that are those of the functions themselves, on the run's own trace."""

import json
import math
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from synthlm.analysis.edge_statistics import edge_statistics, normalized
from synthlm.analysis.onsets import onset
from synthlm.analysis.spectral_edge import effective_dimensions
from synthlm.config import InputError
from synthlm.jobs import Finetune, Full, Pretrain, Probe, Training, job_from_json
from synthlm.model import ModelConfig
from synthlm.optimizers import OptimizerConfig
from synthlm.probes.edge import Edge, EdgeModes, EdgeOnsets
from synthlm.recording import EdgeConfig, edge_rows, load_modes
from synthlm.running import run_batch
from synthlm.store import Store
from synthlm.tasks import Facts, Modular
from synthlm.trained import modes_name, weights_at

SEED = secrets.randbits(30)
MODEL = ModelConfig(vocab=24, length=4, width=16, layers=1, heads=2, mlp=32)
EDGE = EdgeConfig(every=1, window=4, sets=("all", "attention"), modes=3)
TRAINING = Training(steps=40, batch=16, evaluations=3, checkpoints=4, edge=EDGE)


def pretrain(**changes: Any) -> Pretrain:
    settings = {
        "optimizer": OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.5),
        "training": TRAINING,
    } | changes
    language = Modular(alphabet=8, modulus=7)
    aux = OptimizerConfig(name="adamw", lr=0.01)
    return Pretrain(seed=SEED, model=MODEL, language=language, aux=aux, **settings)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    torch.set_num_threads(1)
    kept = Store(tmp_path_factory.mktemp("store"))
    run_batch([pretrain()], kept)
    return kept


def rows(store: Store, probe: Probe) -> pd.DataFrame:
    print(f"seed {SEED}")
    run_batch([probe], store)
    return pd.DataFrame(store.load(probe.key).metrics)


def test_windows_beside_their_nulls(store: Store) -> None:
    found = rows(store, Probe(subjects=(pretrain(),), analysis=Edge(samples=39)))
    assert rows(store, Probe(subjects=(pretrain(),), analysis=Edge(samples=39))).equals(found)
    for name, trace in edge_rows(store.table(pretrain().key, "edge")).items():
        here = found[found["set"] == name]
        assert here["step"].tolist() == list(range(4, 41))
        expected = edge_statistics(trace["rows"], trace["parameters"], trace["lr"])
        for key in ("ratio", "k_mass", "change", "adiabatic_sigma", "rotation_2"):
            np.testing.assert_allclose(here[key].astype(float), expected[key])
        np.testing.assert_allclose(here["sigma_3"], expected["sigma"][:, 2])
        plain = edge_statistics(normalized(trace["rows"]), trace["parameters"])
        np.testing.assert_allclose(here["g23/normalized"], plain["g23"])
        assert ((here["p"] >= 1 / 40) & (here["p"] <= 1)).all()
        for null in ("directions", "stationary"):
            bands = [here[f"ratio/{null}/{q}"] for q in ("low", "mid", "high")]
            assert (bands[0] <= bands[1]).all()
            assert (bands[1] <= bands[2]).all()
            assert here[f"k_ratio/{null}/mean"].between(1, 4).all()
    # AdamW's updates are correlated over time: random directions cannot look so, their own lag correlation does
    whole = found[found["set"] == "all"]
    nulls = ("directions", "stationary")
    distance = {null: (whole["share"] - whole[f"share/{null}/mid"]).abs().mean() for null in nulls}
    assert distance["stationary"] < 0.3 * distance["directions"]


def test_onsets_in_the_run_and_under_the_nulls(store: Store) -> None:
    found = rows(store, Probe(subjects=(pretrain(),), analysis=EdgeOnsets(samples=5, set="attention")))
    trace = edge_rows(store.table(pretrain().key, "edge"))["attention"]
    counts = found.groupby("source")["sample"].nunique()
    assert counts.to_dict() == {"observed": 1, "normalized": 1, "directions": 5, "stationary": 5}
    for source, used in (("observed", trace["rows"]), ("normalized", normalized(trace["rows"]))):
        at = int(onset(edge_statistics(used, 1)["g23"], falling=True))
        got = found[(found["source"] == source) & (found["signal"] == "g23")]["onset"].iloc[0]
        assert (math.isnan(got) and at < 0) or got == trace["step"][3 + at]
    with pytest.raises(InputError, match="set: 'mlp' was not recorded"):
        rows(store, Probe(subjects=(pretrain(),), analysis=EdgeOnsets(samples=5, set="mlp")))


@pytest.mark.parametrize("ended", ["stopped", "diverged", "stood still"])
def test_runs_without_a_full_window_have_no_rows(
    store: Store, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    def cut(columns: Any) -> dict[str, dict[str, Any]]:
        found = edge_rows(columns)
        for trace in found.values():
            if ended == "stopped":
                trace |= {key: trace[key][:3] for key in ("step", "lr", "rows")}
            else:
                trace["rows"][3 if ended == "diverged" else 0 :] = np.nan if ended == "diverged" else 0.0
        return found

    seed = secrets.randbits(30)  # results are kept: others than those of the whole run
    monkeypatch.setattr("synthlm.recording.edge_rows", cut)
    assert rows(store, Probe(subjects=(pretrain(),), analysis=EdgeOnsets(samples=3), seed=seed)).empty
    with pytest.raises(InputError, match="set: 'mlp' was not recorded; there are all, attention"):
        rows(store, Probe(subjects=(pretrain(),), analysis=EdgeOnsets(samples=3, set="mlp"), seed=seed))
    windows = rows(store, Probe(subjects=(pretrain(),), analysis=Edge(samples=19), seed=seed))
    if ended == "stopped":
        assert windows.empty
    else:
        assert windows["p"].isna().all()
        assert windows["k_ratio/stationary/mean"].isna().all()
        assert not windows["k_ratio"].any()


def test_a_sketched_run_tells_its_effective_dimension(store: Store) -> None:
    edge = EdgeConfig(every=1, window=4, sets=("all", "attention"), sketch=64)
    job = pretrain(training=TRAINING.model_copy(update={"edge": edge}))
    run_batch([job], store)
    found = rows(store, Probe(subjects=(job,), analysis=Edge(samples=39)))
    sizes = {entry.name: entry.size for entry in MODEL.layout.entries}
    expected = effective_dimensions(sizes, 4, edge.sets, 64)
    for name, here in found.groupby("set"):
        assert set(here["dimension"]) == {expected[name]}
        assert expected[name] < here["parameters"].iloc[0]
    exact = rows(store, Probe(subjects=(pretrain(),), analysis=Edge(samples=39)))
    assert "dimension" not in exact
    # random directions spread over fewer dimensions: their leading share is larger
    shares = [table["share/directions/mid"].astype(float).mean() for table in (found, exact)]
    assert shares[0] > shares[1]


def test_sets_too_small_for_the_window_are_refused() -> None:
    edge = EdgeConfig(every=1, window=10, sets=("all",), sketch=10)
    with pytest.raises(ValueError, match=r"training.edge.sketch: 10 numbers .* dimensions to the set 'all'"):
        pretrain(training=TRAINING.model_copy(update={"edge": edge}))


def test_modes_at_a_checkpoint(store: Store) -> None:
    job = pretrain()
    step = job.training.checkpoint_steps[-2]
    probe = Probe(subjects=(job,), step=step, analysis=EdgeModes(controls=3, draws=3, batch=8))
    found = rows(store, probe)
    counts = found["kind"].value_counts().to_dict()
    assert counts == {"matched": 18, "projected": 18, "mode": 6, "flow": 6, "none": 1, "defect": 1}
    flat, start = (weights_at(job, store, at) for at in (step, 0))
    modes, sigma = load_modes(store.weights(job.key, modes_name(step)), MODEL.layout)
    taken = found[found["kind"] == "mode"]
    for _, row in taken.iterrows():
        vector = flat - start if row["origin"] == "update" else flat
        part = abs(float(vector @ modes[int(row["mode"]) - 1]))
        assert row["removed"] == pytest.approx(part, rel=1e-4)
        assert row["sigma"] == pytest.approx(float(sigma[int(row["mode"]) - 1]))
    matched = found[found["kind"] == "matched"]
    merged = matched.merge(taken, on=["origin", "mode"], suffixes=("", "_mode"))
    np.testing.assert_allclose(merged["removed"], merged["removed_mode"], rtol=1e-6)
    metrics = pd.DataFrame(store.load(job.key).metrics)
    assert found[found["kind"] == "none"]["loss"].iloc[0] > 0
    assert set(metrics["step"]) >= {0, 40}
    assert found[found["kind"] == "defect"]["value"].iloc[0] > 0


def test_modes_of_finetuning(store: Store) -> None:
    language = Facts(label="new", tag=2, alphabet=8, items=16, key_length=2, value_length=1)
    job = Finetune(
        seed=SEED, base=pretrain(), language=language, method=Full(),
        optimizer=OptimizerConfig(name="adamw", lr=0.01), training=TRAINING,
    )  # fmt: skip
    run_batch([job], store)
    found = rows(store, Probe(subjects=(job,), step=40, analysis=EdgeModes(controls=1, draws=1, batch=8)))
    assert np.isfinite(found[found["kind"] == "mode"][["curvature", "slope", "loss"]].to_numpy(float)).all()


def test_what_cannot_be_analysed_is_refused() -> None:
    plain = json.loads(pretrain(training=Training(steps=40, checkpoints=4)).model_dump_json())
    good = json.loads(pretrain().model_dump_json())
    cases = [
        (plain, None, {"name": "edge"}, "did not record its edge"),
        (plain, 40, {"name": "edge-modes"}, "did not record its edge"),
        (good, 1, {"name": "edge-modes"}, "step: no modes were kept at 1"),
        (good, None, {"name": "edge-modes"}, "step: no modes were kept at None"),
    ]
    for job, step, analysis, message in cases:
        data = {"kind": "probe", "subjects": [job], "step": step, "analysis": analysis}
        with pytest.raises(InputError, match=message):
            job_from_json(json.dumps(data))


def test_a_damaged_trace_is_set_aside(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    run_batch([pretrain()], other)
    path = other.folder(pretrain().key) / "edge.json"
    path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(InputError, match="no sound entry"):
        rows(other, Probe(subjects=(pretrain(),), analysis=Edge(samples=19)))
