"""Arguments are checked against the schema, with errors that name the field and show the value."""

from __future__ import annotations

from typing import Any

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.gateway.parameters import DEPTH_MAX, ArgumentCheck

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "mode": {"enum": ["fast", "deep"], "default": "fast"},
        "names": {"type": "array", "items": {"type": "string"}},
        "where": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "zip": {"type": "string", "default": "0000"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "ratio": {"type": ["number", "null"], "minimum": 0},
    },
    "required": ["value"],
    "additionalProperties": False,
}


@pytest.fixture
def check() -> ArgumentCheck:
    return ArgumentCheck("tool 'double'", SCHEMA)


@pytest.mark.req("GATE-01", "GATE-04.4")
def test_defaults_are_filled_in_at_every_level_and_the_input_is_left_alone(check: ArgumentCheck) -> None:
    given = {"value": 1, "where": {"city": "Ulm"}}
    assert check(given) == {"value": 1, "mode": "fast", "where": {"city": "Ulm", "zip": "0000"}}
    assert given == {"value": 1, "where": {"city": "Ulm"}}


@pytest.mark.req("GATE-04.4")
def test_a_default_that_a_caller_changes_is_the_next_callers_as_it_was() -> None:
    listed = {"type": "array", "items": {"type": "string"}, "default": ["x"]}
    check = ArgumentCheck("tool 'double'", {"type": "object", "properties": {"names": listed}})
    check({})["names"].append("y")
    assert check({}) == {"names": ["x"]}


@pytest.mark.req("GATE-04.4")
@pytest.mark.parametrize(
    ("arguments", "field", "message"),
    [
        ({}, "arguments.value", "is missing; tool 'double' needs an integer"),
        (None, "arguments.value", "is missing"),
        ({"value": "x"}, "arguments.value", "'x' is not an integer"),
        ({"value": True}, "arguments.value", "True is not an integer"),
        ({"value": 1.0}, "arguments.value", "1.0 is not an integer"),
        ({"value": 1, "vlaue": 2}, "arguments.vlaue", "2 is unknown to tool 'double'; did you mean 'value'?"),
        ({"value": 1, "mode": "fsat"}, "arguments.mode", "'fsat' is not one of 'fast', 'deep'; did you mean 'fast'?"),
        ({"value": 1, "names": ["a", 3]}, "arguments.names[1]", "3 is not text"),
        ({"value": 1, "where": {}}, "arguments.where.city", "is missing"),
        ({"value": 1, "where": {"city": "a", "x": 1}}, "arguments.where.x", "1 is unknown"),
        ({"value": 1, "ratio": "a"}, "arguments.ratio", "'a' is not a number or null"),
        ({"value": 1, "ratio": -1}, "arguments.ratio", "-1 is less than the minimum of 0"),
        ([1], "arguments", "[1] is not an object"),
        ({"value": float("nan")}, "arguments.value", "nan is no JSON number"),
        ({"value": 2**70}, "arguments.value", "has more than 64 bits"),
        ({"value": 1, "names": ["\ud800"]}, "arguments.names[0]", "lone surrogate"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(check: ArgumentCheck, arguments: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check(arguments)
    assert caught.value.message.startswith(f"{field}: ")
    assert message in caught.value.message
    assert caught.value.details["field"] == field


def test_all_bad_arguments_are_listed_and_a_wrong_name_comes_before_a_missing_one(check: ArgumentCheck) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check({"vlaue": 1, "mode": 3})
    fields = [problem["field"] for problem in caught.value.details["problems"]]
    assert fields == ["arguments.mode", "arguments.vlaue", "arguments.value"]


def test_what_is_nested_too_deeply_is_refused_without_recursion(check: ArgumentCheck) -> None:
    bomb: Any = 1
    for _ in range(20 * DEPTH_MAX):
        bomb = [bomb]
    with pytest.raises(InvalidArgument, match="nested deeper than"):
        check({"value": bomb})


def test_a_long_value_is_shown_cut_short(check: ArgumentCheck) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check({"value": "x" * 100_000})
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("schema", [{"type": "array"}, {"type": "object", "properties": {"a": {"type": "nonsense"}}}])
def test_a_tool_with_no_schema_of_an_object_is_refused_when_it_is_defined(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="input_schema"):
        ArgumentCheck("tool 'a'", schema)
