"""The analyses ``curvature`` and ``spectrum`` on stored models, against direct second derivatives."""

from typing import Any

import pandas as pd
import pytest
import torch

from synthlm.analysis import directions
from synthlm.analysis.objective import language_objective
from synthlm.config import InputError, parse
from synthlm.geometry import GEOMETRIES
from synthlm.jobs import Finetune, Pretrain, Probe
from synthlm.running import run_batch
from synthlm.store import Store
from synthlm.trained import final_weights, language_of

FACTS = {"name": "facts", "alphabet": 4, "items": 8, "key_length": 2, "value_length": 1}
BASE = {
    "model": {"vocab": 20, "length": 5, "width": 8, "layers": 1, "heads": 2, "mlp": 8, "activation": "gelu"},
    "language": FACTS,
    "optimizer": {"name": "adamw", "lr": 0.02},
    "aux": {"name": "adamw", "lr": 0.01},
    "training": {"steps": 15, "batch": 8, "evaluations": 3},
}
SETTINGS = {"eigenvalues": 2, "samples": 30, "pairs": 10, "steps": 5, "radii": [0.1], "adaptive_radii": [0.5]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Pretrain, Finetune]:
    store = Store(tmp_path_factory.mktemp("store"))
    base = parse(Pretrain, BASE, "job")
    tuned = parse(
        Finetune,
        {
            "base": base,
            "language": FACTS | {"tag": 1, "label": "new"},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "training": {"steps": 5, "batch": 8},
        },
        "job",
    )
    run_batch([base], store)
    run_batch([tuned], store)
    return store, base, tuned


def analyse(store: Store, *subjects: Any, **settings: Any) -> pd.DataFrame:
    job = parse(Probe, {"subjects": subjects, "analysis": settings}, "probe")
    assert job.cost > 0
    run_batch([job], store)
    return pd.DataFrame(store.load(job.key).metrics)


def test_every_number_of_curvature(trained: tuple[Store, Pretrain, Finetune]) -> None:
    store, base, tuned = trained
    rows = analyse(store, base, tuned, name="curvature", **SETTINGS)
    flat = final_weights(base, store)
    layout = base.model.layout
    objective = language_objective(base.model, language_of(base.language, 0), dtype=torch.float64)
    exact = torch.autograd.functional.hessian(lambda x: objective.loss(x[None])[0], flat.double())
    m = layout.matrix_size
    wanted = torch.linalg.eigvalsh(exact[:m, :m]).flip(0)[:2]
    found = rows[rows["quantity"] == "eigenvalue"].sort_values("index")["value"]
    assert found.tolist() == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-3)
    trace = rows[rows["quantity"] == "trace"].iloc[0]
    assert abs(trace["value"] - exact[:m, :m].trace().item()) < 5 * trace["error"]
    assert trace["n"] == 30
    losses = {
        "old": language_objective(base.model, language_of(base.language, 0), table="train"),
        "new": language_objective(base.model, language_of(tuned.language, 0), table="train"),
    }
    for gradient, loss in losses.items():
        _, grad = directions.gradient(loss, flat[None])
        for name, geometry in GEOMETRIES.items():
            step = directions.steepest(layout, geometry, grad)
            for kind, d in (("native", step), ("relative", directions.relative(layout, step, flat))):
                chosen = rows[
                    (rows["gradient"] == gradient) & (rows["geometry"] == name) & (rows["kind"] == kind)
                ].set_index("quantity")
                assert set(chosen["subject"]) == {0 if gradient == "old" else 1}
                wanted = (d.double() @ exact @ d.double().T).item()
                assert chosen.loc["curvature", "value"] == pytest.approx(wanted, rel=1e-3, abs=1e-3)
                length = d.double().square().sum().item()
                assert chosen.loc["rayleigh", "value"] == pytest.approx(wanted / length, rel=1e-3, abs=1e-4)
    descends = rows[(rows["gradient"] == "old") & (rows["quantity"] == "slope")]["value"]
    assert (descends < 0).all()
    worst = rows[rows["quantity"] == "worst"].set_index("kind")["value"]
    average = rows[rows["quantity"] == "average"]
    assert (worst > 0).all()
    assert len(average) == 2
    assert (average["n"] == 10).all()


def test_the_spectrum_is_a_density_over_the_exact_range(trained: tuple[Store, Pretrain, Finetune]) -> None:
    store, base, _ = trained
    rows = analyse(store, base, name="spectrum", which="all", probes=3, steps=20, points=300)
    nodes = rows[rows["what"] == "node"]
    assert nodes.groupby("probe")["weight"].sum().tolist() == pytest.approx([1, 1, 1])
    flat = final_weights(base, store).double()
    objective = language_objective(base.model, language_of(base.language, 0), dtype=torch.float64)
    values = torch.linalg.eigvalsh(
        torch.autograd.functional.hessian(lambda x: objective.loss(x[None])[0], flat)
    )
    assert nodes["eigenvalue"].max() == pytest.approx(values.max().item(), rel=1e-2)
    assert nodes["eigenvalue"].min() == pytest.approx(values.min().item(), rel=0.1, abs=0.01)
    density = rows[rows["what"] == "density"]
    assert torch.trapezoid(
        torch.tensor(density["weight"].to_numpy()), torch.tensor(density["eigenvalue"].to_numpy())
    ).item() == pytest.approx(1, abs=2e-3)


def test_the_same_numbers_twice_and_others_with_another_seed(
    trained: tuple[Store, Pretrain, Finetune],
) -> None:
    from synthlm.probes.subject import StoredSubject

    store, base, _ = trained
    data = {"subjects": [base], "analysis": {"name": "curvature", **SETTINGS}}
    jobs = [
        parse(Probe, data, "probe"),
        parse(Probe, data, "probe"),
        parse(Probe, {**data, "seed": 1}, "probe"),
    ]
    first, again, other = (job.analysis.run(StoredSubject(job, store, "cpu")) for job in jobs)
    assert first == again
    assert first["value"] != other["value"]
    stable = [v for q, v in zip(first["quantity"], first["value"], strict=True) if q == "eigenvalue"]
    assert stable == pytest.approx(
        [v for q, v in zip(other["quantity"], other["value"], strict=True) if q == "eigenvalue"], rel=1e-3
    )


def test_others_must_be_finetuned_from_the_first(trained: tuple[Store, Pretrain, Finetune]) -> None:
    _, base, tuned = trained
    stranger = tuned.model_copy(update={"base": base.model_copy(update={"seed": 5})})
    with pytest.raises(InputError, match="finetuned from the first"):
        parse(Probe, {"subjects": [base, stranger], "analysis": {"name": "curvature"}}, "probe")
