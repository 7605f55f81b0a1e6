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
        lines = [_explain(cls, fault) for fault in error.errors()]
        raise InputError("\n".join(f"{source}: {line}" for line in dict.fromkeys(lines))) from None


def _explain(cls: type[Config], fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    field = ".".join(location)
    if fault["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(cls, fault["loc"][:-1]))
        return f"{field}: unknown field{near_match(location[-1], allowed)}" + (
            f"; allowed: {', '.join(allowed)}" if allowed else ""
        )
    if fault["type"] == "missing":
        return f"{field}: required, but not given"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if fault["type"] in ("value_error", "assertion_error"):
        return f"{field}: {message}" if field else message
    value = fault["input"]
    hint = ""
    if fault["type"] in ("literal_error", "union_tag_invalid") and isinstance(value, str):
        allowed = [word.strip("' ") for word in message.replace(" or ", ",").split(",")]
        hint = near_match(value, allowed)
    return f"{field}: {value!r} should be {message}{hint}"


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
        models = inner
    return {name for model in models for name in model.model_fields}


def _models_in(annotation: Any) -> set[Any]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return {annotation}
    return set().union(*(_models_in(part) for part in getattr(annotation, "__args__", ()))) or set()
