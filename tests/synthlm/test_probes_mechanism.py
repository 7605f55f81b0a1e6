"""The analyses ``activations`` and ``updates`` on stored models, against direct calls and plain arithmetic."""

from typing import Any

import pandas as pd
import pytest
import torch

from synthlm.analysis.activations import SIZES, STATISTICS, input_statistics
from synthlm.analysis.hessian import Hessian
from synthlm.analysis.objective import language_objective
from synthlm.analysis.structure import STRUCTURE
from synthlm.analysis.updates import PER_MATRIX, matrix_names
from synthlm.config import InputError, parse
from synthlm.jobs import Finetune, Pretrain, Probe
from synthlm.probes.updates import ALL, WHOLE
from synthlm.running import run_batch
from synthlm.store import Store
from synthlm.trained import final_weights, language_of, weights_at

FACTS = {"name": "facts", "alphabet": 6, "items": 24, "key_length": 2, "value_length": 1}
CIPHER = {"name": "cipher", "tag": 1, "alphabet": 6, "length": 3, "items": 20, "heldout": 8}
BASE = {
    "model": {"vocab": 22, "length": 8, "width": 8, "layers": 2, "heads": 2, "mlp": 12},
    "language": {"name": "mixture", "parts": [FACTS, CIPHER]},
    "optimizer": {"name": "adamw", "lr": 0.02},
    "aux": {"name": "adamw", "lr": 0.01},
    "training": {"steps": 30, "batch": 16, "evaluations": 3, "checkpoints": 3},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Pretrain, list[Finetune]]:
    store = Store(tmp_path_factory.mktemp("store"))
    base = parse(Pretrain, BASE, "job")
    methods: list[dict[str, Any]] = [{"kind": "full"}, {"kind": "lora", "rank": 2}]
    tuned = [
        parse(
            Finetune,
            {
                "base": base,
                "language": FACTS | {"tag": 2, "label": "new"},
                "method": method,
                "optimizer": {"name": "adamw", "lr": 0.02},
                "training": {"steps": 6, "batch": 8},
            },
            "job",
        )
        for method in methods
    ]
    run_batch([base], store)
    for job in tuned:
        run_batch([job], store)
    return store, base, tuned


def analyse(store: Store, *subjects: Any, step: int | None = None, **settings: Any) -> pd.DataFrame:
    job = parse(Probe, {"subjects": subjects, "analysis": settings, "step": step}, "probe")
    assert job.cost > 0
    run_batch([job], store)
    return pd.DataFrame(store.load(job.key).metrics)


def test_activations_are_those_of_the_checkpoint(trained: tuple[Store, Pretrain, list[Finetune]]) -> None:
    store, base, _ = trained
    layout = base.model.layout
    for step in (0, base.training.checkpoint_steps[1], None):
        rows = analyse(store, base, step=step, name="activations", items=None).set_index(["matrix", "slice"])
        flat = weights_at(base, store, step)
        objective = language_objective(base.model, language_of(base.language, base.seed))
        assert list(rows.columns) == ["n", *STATISTICS, *SIZES, *(f"weight/{name}" for name in STRUCTURE)]
        seen = set()
        for name, x, index in objective.inputs(flat[None]):
            for part, chosen in (
                (ALL, index >= 0),
                *((s, index == i) for i, s in enumerate(objective.slices)),
            ):
                row, expected = rows.loc[(name, part)], input_statistics(x[chosen])
                assert row["n"] == int(chosen.sum())
                for statistic in STATISTICS:
                    assert row[statistic] == pytest.approx(expected[statistic].item(), rel=1e-9)
                weight = layout.views(flat[None])[name][0].double()
                if part == ALL:
                    assert row["weight/norm/max"] == pytest.approx(weight.abs().max().item())
                    singular = torch.linalg.svdvals(weight)
                    assert row["weight/norm/spectral"] == pytest.approx(singular[0].item(), rel=1e-9)
                else:
                    assert pd.isna(row["weight/norm/max"])
                seen.add((name, part))
        assert set(rows.index) == seen


def test_fewer_items_give_fewer_tokens(trained: tuple[Store, Pretrain, list[Finetune]]) -> None:
    store, base, _ = trained
    few = analyse(store, base, name="activations", items=4)
    counts = few[few["matrix"] == "blocks.0.attn.W_Q"].set_index("slice")["n"]
    assert counts["facts/rote"] == 4 * 4  # tag, two symbols and the separator
    assert counts["cipher/rule/heldout"] == 4 * 7
    assert counts[ALL] == counts.drop(ALL).sum()


def test_updates_tell_of_every_finetuned_model(trained: tuple[Store, Pretrain, list[Finetune]]) -> None:
    store, base, tuned = trained
    rows = analyse(store, base, *tuned, name="updates", items=None, directions=3)
    names = matrix_names(base.model.layout)
    assert rows["subject"].tolist() == [1] * (len(names) + 1) + [2] * (len(names) + 1)
    assert rows["matrix"].tolist() == [*names, ALL] * 2
    start = final_weights(base, store)
    objective = language_objective(base.model, language_of(base.language, base.seed))
    hessian = Hessian(objective, start, "matrix")
    for place, job in enumerate(tuned, start=1):
        mine = rows[rows["subject"] == place]
        whole, parts = mine[mine["matrix"] == ALL].iloc[0], mine[mine["matrix"] != ALL]
        flat = final_weights(job, store)
        d = (flat - start).double()
        assert whole["distance"] == pytest.approx(d.norm().item(), rel=1e-6)
        ratio = d.norm().item() / start.double().norm().item()
        assert whole["distance/relative"] == pytest.approx(ratio, rel=1e-6)
        for name in PER_MATRIX:
            assert whole[name] == pytest.approx(parts[name].mean(), rel=1e-9), name
        total = parts["norm/frobenius"].pow(2).sum() ** 0.5
        assert whole["distance"] == pytest.approx(total, rel=1e-6)  # what is not a matrix is frozen
        rise = objective.loss(flat[None]).item() - objective.loss(start[None]).item()
        assert whole["rise"] == pytest.approx(rise, rel=1e-4, abs=1e-6)
        step = d[: hessian.size].float()
        first = (hessian.gradient() @ step).item()
        assert whole["first_order"] == pytest.approx(first, rel=1e-3, abs=1e-7)
        bent = first + (step @ hessian(step[None])[0]).item() / 2
        assert whole["second_order"] == pytest.approx(bent, rel=1e-3, abs=1e-6)
        assert 0 <= whole["overlap"] <= 1
        assert whole["kl"] > 0
        assert parts[list(WHOLE)].isna().all(axis=None)
    # rank two in every matrix, by construction
    lora = rows[(rows["subject"] == 2) & (rows["matrix"] != ALL)]
    assert (lora["stable_rank"] <= 2 + 1e-6).all()
    assert (rows[(rows["subject"] == 1) & (rows["matrix"] != ALL)]["stable_rank"] > 1).all()


def test_the_base_itself_need_not_be_among_the_subjects(
    trained: tuple[Store, Pretrain, list[Finetune]],
) -> None:
    store, base, tuned = trained
    both = analyse(store, base, *tuned, name="updates", items=8, directions=0)
    alone = analyse(store, *tuned, name="updates", items=8, directions=0)
    assert both["overlap"].isna().all()
    pd.testing.assert_frame_equal(
        both[both["subject"] == 1].drop(columns="subject").reset_index(drop=True),
        alone[alone["subject"] == 0].drop(columns="subject").reset_index(drop=True),
        rtol=1e-5,
    )


def test_updates_of_different_bases_are_refused(trained: tuple[Store, Pretrain, list[Finetune]]) -> None:
    _, base, tuned = trained
    other = parse(Pretrain, BASE | {"seed": 9}, "job")
    stranger = parse(Finetune, tuned[0].model_dump() | {"base": other}, "job")
    for subjects, found in (((base,), "only pretrained models"), ((tuned[0], stranger), "2 bases")):
        with pytest.raises(InputError, match=f"needs models finetuned from one base, not {found}"):
            parse(Probe, {"subjects": subjects, "analysis": {"name": "updates"}}, "probe")


def test_a_model_that_never_moved_has_no_rows(trained: tuple[Store, Pretrain, list[Finetune]]) -> None:
    store, base, tuned = trained
    still = parse(
        Finetune, tuned[0].model_dump() | {"base": base, "optimizer": {"name": "sgd", "lr": 1e-30}}, "job"
    )
    run_batch([still], store)
    assert analyse(store, base, still, name="updates", items=8).empty
