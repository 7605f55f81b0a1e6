"""One job from command-line options, from a file, or from the record of a failure."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthlm.config import InputError, choose, parse
from synthlm.jobs import Finetune, Job, Pretrain, job_from_json
from synthlm.optimizers import RULES
from synthlm.store import Store
from synthlm.tasks import LANGUAGES, sizes

LEARNING_RATES = {
    "adamw": 0.003,
    "muon": 0.02,
    "sgd": 0.1,
    "signsgd": 0.002,
    "lion": 0.002,
    "shampoo": 0.2,
    "soap": 0.006,
}
"""Where ``--lr`` is not given: of every rule, from trials on small models."""

AUX = {"name": "adamw", "lr": 0.003}
"""What moves embeddings, head and gains in pretraining."""


def assignments(settings: Sequence[str], option: str = "set") -> dict[str, Any]:
    """``["model.width=64", "language.label=new"]`` as a nested dict; values are TOML, else text.

    Raises:
        InputError: for a setting without ``=``, or one inside another that is no table.
    """
    nested: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not all(path.split(".")):
            raise InputError(f"{option}: {setting!r} should be PATH=VALUE, such as model.width=64")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *parents, name = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise InputError(f"{option}: {setting!r} contradicts an earlier setting of {parent!r}")
        place[name] = value
    return nested


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid on top, table by table."""
    out = dict(base)
    for name, value in over.items():
        below = out.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = merged(below, value)
        out[name] = value
    return out


def read_job(path: Path, kind: str) -> Job:
    """A job from a JSON file: a job, a stored ``config.json``, or a store's record of a failed job.

    Raises:
        InputError: when the file cannot be read, holds no job, or one of another kind.
    """
    try:
        text = path.read_text()
        data = json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"job: {path} cannot be read ({error})") from None
    except json.JSONDecodeError as error:
        raise InputError(f"job: {path} is not valid JSON ({error})") from None
    if isinstance(data, dict) and isinstance(data.get("job"), dict):
        text = json.dumps(data["job"])
    job = job_from_json(text)
    if job.kind != kind:
        command = {"pretrain": "train", "probe": "analyze"}.get(job.kind, job.kind)
        raise InputError(f"job: {path} is a {job.kind} job; use 'synthlm {command} --job {path}'")
    return job


def optimizer(name: str, lr: float | None) -> dict[str, Any]:
    """Settings of an optimizer, with its usual learning rate unless one is given.

    Raises:
        InputError: for an unknown optimizer.
    """
    choose("optimizer", name, list(RULES))
    return {"name": name, "lr": LEARNING_RATES[name] if lr is None else lr}


def pretrain_job(
    language: str,
    optimizer_name: str,
    lr: float | None,
    steps: int,
    seed: int,
    settings: Sequence[str],
    command: str = "train",
) -> Pretrain:
    """A pretraining job. The model's vocabulary and length follow from the language unless they are set.

    Args:
        command: whose options these are, for messages.

    Raises:
        InputError: naming the option or setting that is wrong.
    """
    choose("language", language, list(LANGUAGES))
    data = merged(
        {
            "seed": seed,
            "model": {},
            "language": {"name": language},
            "optimizer": optimizer(optimizer_name, lr),
            "aux": AUX,
            "training": {"steps": steps},
        },
        assignments(settings),
    )
    for name in ("language", "model"):
        if not isinstance(data[name], Mapping):
            raise InputError(
                f"set: {name} is a table, not {data[name]!r}; set its fields, as in {name}.FIELD=1"
            )
    kind = choose("language.name", str(data["language"]["name"]), list(LANGUAGES))
    vocab, length = sizes(parse(LANGUAGES[kind], data["language"], "language"))
    data["model"] = merged({"vocab": vocab, "length": length}, data["model"])
    return parse(Pretrain, data, command)


def finetune_job(
    store: Store,
    base: str,
    language: str,
    optimizer_name: str,
    lr: float | None,
    steps: int,
    seed: int | None,
    rank: int | None,
    settings: Sequence[str],
) -> Finetune:
    """A finetuning job on a stored base (by its key or the beginning of it); LoRA when a rank is given.

    Raises:
        InputError: naming the option or setting that is wrong, or when the base is not in the store.
    """
    choose("language", language, list(LANGUAGES))
    pretrained = job_from_json(json.dumps(store.load(store.find(base)).config))
    if not isinstance(pretrained, Pretrain):
        raise InputError(f"base: {base!r} is a {pretrained.kind} job; a base must be a pretrain job")
    data = merged(
        {
            "seed": pretrained.seed if seed is None else seed,
            "base": pretrained.model_dump(mode="json"),
            # a label and a tag of its own make it a new language, drawn anew, and told apart from the old one
            "language": {"name": language, "label": f"new-{language}", "tag": 11},
            "method": {"kind": "full"} if rank is None else {"kind": "lora", "rank": rank},
            "optimizer": optimizer(optimizer_name, lr),
            "training": {"steps": steps},
        },
        assignments(settings),
    )
    return parse(Finetune, data, "finetune")
