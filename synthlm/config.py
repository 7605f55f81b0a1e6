"""Validated settings: one frozen base class, one kind of error, one canonical form."""

import difflib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic


class InputError(Exception):
    """Something the user gave is wrong; the message names the field, its value and what is allowed."""


class Config(pydantic.BaseModel):
    """A frozen record of settings. Unknown fields are refused; every default becomes part of the record."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )


C = TypeVar("C", bound=Config)


def canonical_json(value: Config | Mapping[str, Any]) -> str:
    """JSON with every default written out, keys sorted and no spaces: equal settings give equal text."""
    data = value.model_dump(mode="json") if isinstance(value, pydantic.BaseModel) else value
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def near_match(word: str, allowed: list[str]) -> str:
    """`` (did you mean 'x'?)`` when one of the allowed words is close, else nothing."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def choose(field: str, value: str, allowed: list[str]) -> str:
    """Return ``value`` when it is allowed.

    Raises:
        InputError: naming the field, the value, what is allowed and the nearest match.
    """
    if value not in allowed:
        raise InputError(f"{field}: {value!r} is not one of {', '.join(allowed)}{near_match(value, allowed)}")
    return value


def parse(cls: type[C], data: Mapping[str, Any], source: str) -> C:
    """Validate ``data`` as a ``cls``.

    Raises:
        InputError: one line per fault, each naming the field, its value and what is allowed.
    """
    try:
        return cls.model_validate(data)
    except pydantic.ValidationError as error:
        faults = error.errors()
        # a list is too short only because a faulty item was taken out of it
        inner = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
        faults = [f for f in faults if f["type"] != "too_short" or f["loc"] not in inner]
        lines = [_explain(cls, data, fault) for fault in faults]
        raise InputError("\n".join(f"{source}: {line}" for line in dict.fromkeys(lines))) from None


def _explain(cls: type[Config], data: Any, fault: Any) -> str:
    field = _path(data, fault["loc"])
    name = str(fault["loc"][-1]) if fault["loc"] else ""
    context, kind = fault.get("ctx", {}), fault["type"]
    if kind == "extra_forbidden":
        allowed = sorted(_fields_at(cls, fault["loc"][:-1]))
        return f"{field}: unknown field{near_match(name, allowed)}" + (
            f"; allowed: {', '.join(allowed)}" if allowed else ""
        )
    if kind == "missing":
        return f"{field}: required, but not given"
    if kind == "union_tag_not_found":
        return f"{field}.{context['discriminator'].strip(chr(39))}: required, but not given"
    value = fault["input"]
    if kind in ("union_tag_invalid", "literal_error"):
        tagged = kind == "union_tag_invalid"
        listed = context["expected_tags" if tagged else "expected"].replace(" or ", ", ")
        allowed = [word.strip("' ") for word in listed.split(",")]
        if tagged:
            field, value = f"{field}.{context['discriminator'].strip(chr(39))}", context["tag"]
        hint = near_match(value, allowed) if isinstance(value, str) else ""
        return f"{field}: {value!r} is not one of {', '.join(allowed)}{hint}"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind in ("value_error", "assertion_error"):
        return f"{field}: {message}" if field else message
    return f"{field}: {value!r} should be {message}"


def _path(data: Any, location: tuple[int | str, ...]) -> str:
    """The path to a field as the user wrote it: pydantic's marks of which kind of union it took are left out."""
    shown: list[str] = []
    for part in location:
        if isinstance(data, Mapping):
            if part not in data and part in (data.get("name"), data.get("kind")):
                continue
            data = data.get(part)
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            data = None
        shown.append(str(part))
    return ".".join(shown)


def _fields_at(cls: Any, location: tuple[int | str, ...]) -> set[str]:
    """Names of the fields allowed at ``location`` inside ``cls`` (tagged unions: the tag is part of it)."""
    models = {cls}
    for part in location:
        inner: set[Any] = set()
        for model in models:
            fields = model.model_fields
            if isinstance(part, str) and part in fields:
                inner |= _models_in(fields[part].annotation)
            elif isinstance(part, int) or any(
                part in getattr(fields[name].annotation, "__args__", ())
                for name in ("name", "kind")
                if name in fields
            ):
                inner.add(model)
        models = inner or models  # a key of a table, such as a base's name, leads no deeper
    return {name for model in models for name in model.model_fields}


def _models_in(annotation: Any) -> set[Any]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return {annotation}
    return set().union(*(_models_in(part) for part in getattr(annotation, "__args__", ()))) or set()
