"""Settings: wrong input is refused in words that help, and equal settings have one text."""

import json
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from synthlm.config import Config, InputError, canonical_json, choose, near_match, parse


class Circle(Config):
    kind: Literal["circle"] = "circle"
    radius: float = Field(1.0, gt=0)


class Square(Config):
    kind: Literal["square"] = "square"
    side: int = 2


Shape = Annotated[Circle | Square, Field(discriminator="kind")]


class Inner(Config):
    colour: Literal["red", "green", "blue"] = "red"
    weight: float = Field(0.5, ge=0)


class Outer(Config):
    count: int
    inner: Inner = Inner()
    shape: Shape = Circle()
    several: tuple[Shape, ...] = ()
    named: dict[str, Inner] = Field(default_factory=dict)
    maybe: Inner | None = None


def message(data: dict) -> str:
    with pytest.raises(InputError) as raised:
        parse(Outer, data, "file.toml")
    return str(raised.value)


def test_parse_fills_in_defaults() -> None:
    outer = parse(Outer, {"count": 3, "shape": {"kind": "square"}}, "x")
    assert outer == Outer(count=3, inner=Inner(colour="red", weight=0.5), shape=Square(side=2))


def test_a_config_is_frozen() -> None:
    outer = Outer(count=1)
    with pytest.raises(ValidationError):
        outer.count = 2
    assert outer.count == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"count": 1, "innr": {}}, ["innr", "did you mean 'inner'", "allowed", "several"]),
        ({"count": 1, "inner": {"color": 1}}, ["inner.color", "did you mean 'colour'", "weight"]),
        ({"count": 1, "maybe": {"wieght": 1}}, ["maybe.wieght", "did you mean 'weight'"]),
        ({"count": 1, "named": {"any": {"wieght": 1}}}, ["named.any.wieght", "did you mean 'weight'"]),
        ({"count": 1, "shape": {"kind": "square", "sid": 1}}, ["sid", "did you mean 'side'"]),
        (
            {"count": 1, "several": [{"kind": "square", "sid": 1}]},
            ["several.0", "sid", "did you mean 'side'"],
        ),
        ({}, ["count", "required"]),
        ({"count": "many"}, ["count", "'many'", "integer"]),
        ({"count": 1, "inner": {"weight": -0.25}}, ["inner.weight", "-0.25", "greater than or equal to 0"]),
        ({"count": 1, "inner": {"weight": float("nan")}}, ["inner.weight", "nan", "finite"]),
        ({"count": 1, "inner": {"weight": float("inf")}}, ["inner.weight", "inf", "finite"]),
        ({"count": 1, "inner": {"colour": "gren"}}, ["inner.colour", "'gren'", "red", "mean 'green'"]),
        ({"count": 1, "shape": {"kind": "squre"}}, ["shape", "'squre'", "circle", "did you mean 'square'"]),
        ({"count": 1, "shape": {"radius": 2.0}}, ["shape", "kind", "required"]),
        ({"count": 1, "shape": {"kind": "circle", "radius": 0}}, ["radius", "0", "greater than 0"]),
    ],
)
def test_a_fault_names_source_field_value_and_what_is_allowed(data: dict, words: list[str]) -> None:
    text = message(data)
    assert text.startswith("file.toml: ")
    for word in words:
        assert word in text
    assert "pydantic" not in text
    assert "Unable to" not in text


def test_an_unknown_field_names_only_fields_of_its_own_place() -> None:
    text = message({"count": 1, "shape": {"kind": "square", "radius": 3.0}})
    assert "radius: unknown field" in text
    assert "side" in text.split("allowed:")[1]
    assert "radius" not in text.split("allowed:")[1]


def test_every_fault_gets_a_line() -> None:
    lines = message({"count": "x", "innr": 1, "inner": {"weight": -1}}).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("file.toml: ") for line in lines)


def test_canonical_json_has_defaults_sorted_keys_and_no_spaces() -> None:
    text = canonical_json(Outer(count=1))
    data = json.loads(text)
    assert data["inner"] == {"colour": "red", "weight": 0.5}
    assert data["shape"] == {"kind": "circle", "radius": 1.0}
    assert list(data) == sorted(data)
    assert " " not in text
    assert text == canonical_json(Outer(count=1, shape=Circle(radius=1), inner=Inner()))
    assert text == canonical_json(dict(reversed(list(data.items()))))
    assert parse(Outer, data, "x") == Outer(count=1)


@pytest.mark.parametrize("changed", [{"count": 2}, {"shape": Square()}, {"inner": Inner(weight=0.50001)}])
def test_canonical_json_differs_where_settings_differ(changed: dict) -> None:
    assert canonical_json(Outer(count=1)) != canonical_json(Outer(**({"count": 1} | changed)))


def test_canonical_json_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": float("nan")})


def test_choose_and_near_match() -> None:
    assert choose("base", "muon", ["adamw", "muon"]) == "muon"
    with pytest.raises(InputError, match=r"base: 'muno' is not one of adamw, muon \(did you mean 'muon'\?\)"):
        choose("base", "muno", ["adamw", "muon"])
    assert near_match("entirely-else", ["adamw", "muon"]) == ""
