"""Keys: every setting counts, order and spelling do not; shapes: what may share a run axis; wrong input refused."""

import copy
import itertools
import json
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from synthlm import jobs
from synthlm.config import InputError, parse
from synthlm.jobs import Finetune, Pretrain, Training, job_from_json, sizes
from synthlm.lora import LoraConfig
from synthlm.optimizers import RULES
from synthlm.tasks import LANGUAGES, Facts, Mixture

LANGUAGE = {"name": "facts", "tag": 1, "alphabet": 8, "items": 16, "key_length": 2, "value_length": 1}
PRETRAIN: dict[str, Any] = {
    "kind": "pretrain",
    "seed": 3,
    "model": {"vocab": 30, "length": 9, "width": 16, "layers": 1, "heads": 2, "mlp": 32},
    "language": LANGUAGE,
    "optimizer": {"name": "muon", "lr": 0.02},
    "aux": {"name": "adamw", "lr": 0.003},
    "training": {"steps": 10, "batch": 4},
}
FINETUNE: dict[str, Any] = {
    "kind": "finetune",
    "seed": 3,
    "base": PRETRAIN,
    "language": LANGUAGE | {"tag": 2, "label": "new"},
    "method": {"kind": "lora", "rank": 2},
    "optimizer": {"name": "adamw", "lr": 0.01},
    "training": {"steps": 5},
}


def make(data: dict[str, Any], changes: dict[str, Any] | None = None) -> Pretrain | Finetune:
    """The job with changes given as dotted paths."""
    data = copy.deepcopy(data)
    for path, value in (changes or {}).items():
        inner = data
        *parents, leaf = path.split(".")
        for part in parents:
            inner = inner.setdefault(part, {})
        inner[leaf] = value
    return parse({"pretrain": Pretrain, "finetune": Finetune}[data["kind"]], data, "job")


MODEL_FIELDS = {
    "model.vocab": 31, "model.length": 10, "model.width": 18, "model.layers": 2, "model.heads": 4, "model.mlp": 33,
    "model.activation": "gelu", "model.positions": "rotary", "model.tied": True,
}  # fmt: skip
LANGUAGE_FIELDS = {
    "language.tag": 3, "language.label": "other", "language.alphabet": 9, "language.items": 17,
    "language.key_length": 3, "language.value_length": 2, "language.frequency": "zipf", "language.exponent": 1.5,
    "language.tail": 0.5, "language.probe": 8,
    "language": {"name": "reverse", "tag": 1, "alphabet": 8, "length": 2, "items": 16, "heldout": 4},
}  # fmt: skip
TRAINING_FIELDS = {
    "training.steps": 11, "training.batch": 5, "training.clip": 1.0, "training.evaluations": 3,
    "training.evaluate_every": 2, "training.perturb": {"kind": "noise", "sigma": 0.01},
    "training.edge": {"every": 1, "window": 3},
    "training.checkpoints": 1, "training.schedule.shape": "linear", "training.schedule.warmup_fraction": 0.1,
    "training.schedule.decay_fraction": 0.3, "training.schedule.final": 0.2,
}  # fmt: skip
PRETRAIN_FIELDS = {
    **MODEL_FIELDS, **LANGUAGE_FIELDS, **TRAINING_FIELDS, "seed": 4, "stop_loss": 0.5,
    "optimizer.lr": 0.021, "optimizer.weight_decay": 0.1, "optimizer.hyper": {"momentum": 0.9}, "aux.lr": 0.004,
    "aux.weight_decay": 0.1, "aux.hyper": {"beta2": 0.99}, "aux": {"name": "lion", "lr": 0.003},
    "optimizer": {"name": "soap", "lr": 0.02},
}  # fmt: skip
FINETUNE_FIELDS = {
    **LANGUAGE_FIELDS, **TRAINING_FIELDS, **{f"base.{name}": value for name, value in PRETRAIN_FIELDS.items()},
    "seed": 4, "method.rank": 3, "method.alpha": 8.0, "method.targets": ["*.attn.*"], "method": {"kind": "full"},
    "aux": {"name": "adamw", "lr": 0.003}, "optimizer.lr": 0.02, "optimizer.weight_decay": 0.1,
    "optimizer.hyper": {"eps": 1e-7}, "optimizer": {"name": "sgd", "lr": 0.01},
}  # fmt: skip
CHANGES = [(PRETRAIN, field, value) for field, value in PRETRAIN_FIELDS.items()]
CHANGES += [(FINETUNE, field, value) for field, value in FINETUNE_FIELDS.items()]


@pytest.mark.parametrize(("data", "field", "value"), CHANGES, ids=[f"{d['kind']}-{f}" for d, f, _ in CHANGES])
def test_every_field_is_part_of_the_key(data: dict, field: str, value: Any) -> None:
    assert make(data, {field: value}).key != make(data).key


def test_the_fields_above_are_all_there_are() -> None:
    """A field added to a setting must be added here, and with it to the key's test."""

    def leaves(value: Any, path: str = "") -> set[str]:
        if isinstance(value, dict) and path.rsplit(".", 1)[-1] != "hyper":
            return set().union(*(leaves(inner, f"{path}.{name}".strip(".")) for name, inner in value.items()))
        return {path}

    for data, fields in ((PRETRAIN, PRETRAIN_FIELDS), (FINETUNE, FINETUNE_FIELDS)):
        dumped = leaves(json.loads(make(data).model_dump_json()))
        heads = {path for path in dumped if path.split(".")[-1] in ("name", "kind")}
        assert dumped - heads - set(fields) == set()


def test_classes_of_equal_fields_have_different_keys() -> None:
    strings = {"tag": 1, "label": "x", "alphabet": 8, "length": 2, "items": 16, "heldout": 4}
    kinds = ("copy", "reverse")
    languages = [make(PRETRAIN, {"language": strings | {"name": name}}) for name in kinds]
    assert languages[0].language.model_dump(exclude={"name"}) == languages[1].language.model_dump(
        exclude={"name"}
    )
    assert languages[0].key != languages[1].key

    class Retrain(Pretrain):
        kind: Literal["retrain"] = "retrain"

    data = {name: value for name, value in PRETRAIN.items() if name != "kind"}
    assert parse(Pretrain, data, "job").key == make(PRETRAIN).key
    assert parse(Retrain, data, "job").key != make(PRETRAIN).key


@pytest.mark.parametrize("name", [name for name in RULES if name != "muon"])
def test_hyper_parameters_in_the_key_are_those_of_the_rule_with_defaults(name: str) -> None:
    optimizer = {"name": name, "lr": 0.02}
    job = make(PRETRAIN, {"optimizer": optimizer})
    defaults = RULES[name].Hyper().model_dump()
    assert json.loads(job.model_dump_json())["optimizer"]["hyper"] == defaults
    assert make(PRETRAIN, {"optimizer": optimizer | {"hyper": defaults}}).key == job.key
    keys = {job.key}
    for field, value in defaults.items():
        changed = (
            not value
            if isinstance(value, bool)
            else value + 1
            if isinstance(value, int)
            else value / 2 or 0.25
        )
        keys.add(make(PRETRAIN, {"optimizer": optimizer | {"hyper": {field: changed}}}).key)
    assert len(keys) == 1 + len(defaults)


def test_a_changed_default_changes_the_key(monkeypatch) -> None:
    before = make(PRETRAIN).key

    class Changed(Training):
        evaluations: int = 13

    class Other(Pretrain):
        training: Changed

    assert parse(Other, PRETRAIN, "job").key != before
    assert (
        parse(
            Other, copy.deepcopy(PRETRAIN) | {"training": {"steps": 10, "batch": 4, "evaluations": 12}}, "job"
        ).key
        == before
    )
    monkeypatch.setattr(jobs, "SCHEMA", jobs.SCHEMA + 1)
    assert make(PRETRAIN).key != before


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shuffled(inner) for name, inner in reversed(value.items())}
    return value


@pytest.mark.parametrize("data", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_the_key_depends_on_no_order_spelling_or_explicit_default(data: dict) -> None:
    job = make(data)
    assert len(job.key) == 64
    assert int(job.key, 16) >= 0
    assert make(shuffled(data)).key == job.key
    assert make(json.loads(job.model_dump_json())).key == job.key
    assert make(data, {"optimizer.lr": float(data["optimizer"]["lr"])}).key == job.key
    assert make(data, {"optimizer.weight_decay": 0, "training.clip": None}).key == job.key
    assert make(data, {"seed": "3"}).key == job.key
    assert hash(make(data)) == hash(job)
    assert make(data) == job
    assert len({make(data), job}) == 1


@pytest.mark.parametrize("data", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_json_round_trip_keeps_the_job_and_its_key(data: dict) -> None:
    changes = {"optimizer.lr": 1 / 3, "optimizer.hyper": {"momentum": 0.1 + 0.2}, "seed": 2**40}
    if data is FINETUNE:
        changes["optimizer.hyper"] = {"eps": 1e-300}
    job = make(data, changes)
    again = job_from_json(job.model_dump_json())
    assert again == job
    assert type(again) is type(job)
    assert again.key == job.key
    assert again.shape == job.shape
    assert job_from_json(json.dumps(json.loads(job.model_dump_json()), indent=3)).key == job.key


def test_parents_are_the_bases_key() -> None:
    assert make(PRETRAIN).parents == ()
    job = make(FINETUNE)
    assert job.parents == (make(PRETRAIN).key,)
    assert make(FINETUNE, {"base.optimizer.lr": 0.5}).parents == (make(PRETRAIN, {"optimizer.lr": 0.5}).key,)


SHARED = {
    "seed": 9, "optimizer.lr": 0.5, "optimizer.weight_decay": 0.1, "optimizer.hyper": {"momentum": 0.5},
    "aux.lr": 0.1, "aux.weight_decay": 0.2, "aux.hyper": {"beta1": 0.5, "eps": 1e-6},
}  # fmt: skip
APART = {
    **MODEL_FIELDS, **LANGUAGE_FIELDS, **TRAINING_FIELDS, "optimizer": {"name": "sgd", "lr": 0.02},
    "aux": {"name": "sgd", "lr": 0.003}, "stop_loss": 0.5, "optimizer.hyper": {"scaling": "moonlight"},
}  # fmt: skip


@pytest.mark.parametrize("field", SHARED)
def test_seeds_and_numbers_of_the_optimizer_share_an_axis(field: str) -> None:
    job = make(PRETRAIN, {field: SHARED[field]})
    assert job.shape == make(PRETRAIN).shape
    assert job.key != make(PRETRAIN).key
    if field != "optimizer.hyper":
        assert make(FINETUNE, {f"base.{field}": SHARED[field]}).shape == make(FINETUNE).shape


@pytest.mark.parametrize("field", APART)
def test_all_else_keeps_jobs_apart(field: str) -> None:
    assert make(PRETRAIN, {field: APART[field]}).shape != make(PRETRAIN).shape


@pytest.mark.parametrize(
    "hyper",
    [
        {"nesterov": False},
        {"ns_steps": 6},
        {"orthogonalization": "svd"},
        {"orthogonalization": "none"},
        {"scaling": "moonlight"},
    ],
)
def test_settings_that_are_no_floats_keep_jobs_apart(hyper: dict) -> None:
    assert make(PRETRAIN, {"optimizer.hyper": hyper}).shape != make(PRETRAIN).shape


def test_shapes_of_finetuning() -> None:
    job = make(FINETUNE)
    together = {"seed": 9, "optimizer.lr": 1.0, "optimizer.hyper": {"eps": 1e-3}, "base.optimizer.lr": 1.0}
    together |= {"base.seed": 4, "base.optimizer": {"name": "sgd", "lr": 1.0}, "base.training.steps": 77}
    together |= {"base.stop_loss": 0.1, "base.aux.lr": 0.3}
    for field, value in together.items():
        assert make(FINETUNE, {field: value}).shape == job.shape, field
    apart = {
        "method": {"kind": "full"},
        "method.rank": 3,
        "method.alpha": 8.0,
        "method.targets": ["*.attn.*"],
    }
    apart |= {"optimizer": {"name": "sgd", "lr": 0.01}, "aux": {"name": "adamw", "lr": 0.003}}
    apart |= {"language.items": 17, "base.language.items": 17, "base.model.mlp": 33, "training.batch": 3}
    for field, value in apart.items():
        assert make(FINETUNE, {field: value}).shape != job.shape, field
    assert job.shape != make(PRETRAIN).shape


def test_draws_of_a_subset_share_an_axis() -> None:
    subset = {"name": "subset", "of": LANGUAGE, "share": 0.5}
    mixture = {"name": "mixture", "parts": [subset, LANGUAGE | {"tag": 2, "label": "other"}]}

    def drawn(draw: int, **changes: Any) -> list[Pretrain | Finetune]:
        part = subset | {"draw": draw} | changes
        mixed = mixture | {"parts": [part, mixture["parts"][1]]}
        return [
            make(PRETRAIN, {"language": part}),
            make(PRETRAIN, {"language": mixed}),
            make(FINETUNE, {"base.language": part}),
            make(FINETUNE, {"language": part | {"of": LANGUAGE | {"tag": 2, "label": "new"}}}),
        ]

    for one, other, apart in zip(drawn(0), drawn(1), drawn(1, share=0.25), strict=True):
        assert one.shape == other.shape != apart.shape
        assert one.key != other.key


def test_jobs_that_stop_early_train_alone() -> None:
    one, other = (make(PRETRAIN, {"stop_loss": 0.5, "seed": seed}) for seed in (1, 2))
    assert one.shape != other.shape


BAD = [
    (PRETRAIN, {"optimizer": {"name": "adamm", "lr": 1}}, ["optimizer", "'adamm'", "muon", "mean 'adamw'"]),
    (PRETRAIN, {"optimizer.lr": -1}, ["optimizer.lr", "-1", "greater than or equal to 0"]),
    (PRETRAIN, {"optimizer.lr": "fast"}, ["optimizer.lr", "'fast'", "number"]),
    (
        PRETRAIN,
        {"optimizer.hyper": {"momentun": 0.5}},
        ["optimizer.hyper", "momentun", "mean 'momentum'", "ns_steps"],
    ),
    (PRETRAIN, {"optimizer.hyper": {"momentum": 1.5}}, ["optimizer.hyper", "momentum", "1.5", "less than 1"]),
    (
        PRETRAIN,
        {"optimizer.hyper": {"scaling": "jordn"}},
        ["scaling", "'jordn'", "moonlight", "mean 'jordan'"],
    ),
    (PRETRAIN, {"aux": {"name": "muon", "lr": 0.1}}, ["aux", "'muon'", "matrices only"]),
    (PRETRAIN, {"model.heads": 3}, ["model", "heads: 3", "16"]),
    (PRETRAIN, {"model.vocab": 20}, ["model.vocab", "20", "24"]),
    (PRETRAIN, {"model.length": 3}, ["model.length", "3", "4"]),
    (PRETRAIN, {"model.activation": "relu"}, ["model.activation", "'relu'", "gelu", "mean 'relu2'"]),
    (PRETRAIN, {"training.steps": 0}, ["training.steps", "0", "greater than or equal to 1"]),
    (PRETRAIN, {"training.step": 5}, ["training.step", "unknown field", "mean 'steps'", "batch"]),
    (PRETRAIN, {"training.schedule.shape": "cosin"}, ["training.schedule.shape", "'cosin'", "mean 'cosine'"]),
    (PRETRAIN, {"language.items": 65}, ["language", "items: 65", "64 keys"]),
    (PRETRAIN, {"language.name": "fact"}, ["language", "'fact'", "cipher", "mean 'facts'"]),
    (PRETRAIN, {"device": "cuda"}, ["device", "unknown field", "language", "model"]),
    (FINETUNE, {"method.targets": ["*.W_X"]}, ["method.targets", "'*.W_X'", "blocks.0.attn.W_Q"]),
    (FINETUNE, {"method.rank": 0}, ["method", "rank", "0", "greater than or equal to 1"]),
    (FINETUNE, {"method.kind": "lorra"}, ["method", "'lorra'", "full", "mean 'lora'"]),
    (FINETUNE, {"base.optimizer.lr": None}, ["base.optimizer.lr", "None", "number"]),
    (FINETUNE, {"language.alphabet": 40, "language.items": 9}, ["model.vocab", "30", "56"]),
    (FINETUNE, {"aux": {"name": "soap", "lr": 0.1}}, ["aux", "'soap'", "matrices only"]),
]


@pytest.mark.parametrize(
    ("data", "changes", "words"), BAD, ids=[next(iter(changes)) for _, changes, _ in BAD]
)
def test_wrong_input_names_field_value_and_what_is_allowed(
    data: dict, changes: dict, words: list[str]
) -> None:
    with pytest.raises(InputError) as raised:
        make(data, changes)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not valid JSON"]),
        ("[1]", ["kind", "None", "pretrain", "finetune"]),
        ('{"seed": 1}', ["kind", "None", "pretrain, finetune"]),
        ('{"kind": "pretrian"}', ["kind", "'pretrian'", "pretrain, finetune"]),
        ('{"kind": "pretrain"}', ["job: model", "required"]),
    ],
)
def test_text_that_is_no_job_is_refused(text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        job_from_json(text)
    for word in words:
        assert word in str(raised.value)


def test_jobs_are_frozen() -> None:
    job = make(PRETRAIN)
    with pytest.raises(ValidationError):
        job.seed = 4
    with pytest.raises(ValidationError):
        job.training.steps = 4
    assert job.key == make(PRETRAIN).key


@pytest.mark.parametrize("name", LANGUAGES)
def test_sizes_are_those_of_any_seed(name: str) -> None:
    config = LANGUAGES[name]()
    drawn = config.build(77)
    assert sizes(config) == (drawn.vocab, drawn.length)


def test_cost_and_disk_grow_with_the_work() -> None:
    job = make(PRETRAIN, {"training.steps": 10000})
    more = {"training.steps": 20000, "training.batch": 8, "model.mlp": 64, "model.layers": 2}
    for field, value in more.items():
        assert make(PRETRAIN, {"training.steps": 10000, field: value}).cost > 1.3 * job.cost > 0
    assert make(PRETRAIN, {"training.checkpoints": 3}).disk > job.disk > 4 * job.model.layout.size
    tuned, full = make(FINETUNE), make(FINETUNE, {"method": {"kind": "full"}})
    assert tuned.disk < full.disk


def test_labels() -> None:
    assert make(PRETRAIN).label == "pretrain muon lr 0.02 seed 3"
    job = make(FINETUNE)
    assert job.label == "finetune muon-base lora2-adamw lr 0.01 seed 3"
    assert job.arm == "lora2-adamw"
    assert make(FINETUNE, {"method": {"kind": "full"}}).arm == "full-adamw"
    assert LoraConfig(rank=16).label == "lora16"


def test_no_two_jobs_of_a_sweep_share_a_key() -> None:
    fields = {"seed": range(3), "optimizer.lr": (0.01, 0.02, 0.04), "method.rank": (1, 2, 4)}
    found = [
        make(FINETUNE, dict(zip(fields, values, strict=True)))
        for values in itertools.product(*fields.values())
    ]
    assert len({job.key for job in found}) == 27
    mixture = Mixture(parts=(Facts(tag=0), Facts(tag=1, label="b")))
    assert hash(mixture) == hash(Mixture(parts=(Facts(tag=0), Facts(tag=1, label="b"))))


def test_a_run_too_short_for_its_window_is_refused() -> None:
    edge = {"training.steps": 29, "training.edge": {"every": 3, "window": 10}}
    with pytest.raises(
        InputError, match="29 steps recorded every 3 give 9 updates, which do not fill a window of 10"
    ):
        make(PRETRAIN, edge)
    assert make(PRETRAIN, edge | {"training.steps": 30}).training.edge is not None
