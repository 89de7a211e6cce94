"""Words of a command line become arguments of the types that the tool's schema names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from groundplane.cli.arguments import parse_arguments, typed
from groundplane.core.errors import InvalidArgument
from groundplane.signatures import input_schema


@dataclass
class Point:
    x: int
    y: int


def takes_all(
    count: int,
    ratio: float,
    flag: bool,
    items: list[int],
    limits: dict[str, int],
    point: Point,
    level: Literal[1, 2],
    maybe: int | None,
    text: str,
    size: Literal["1", "2"],
    either: int | str,
    anything: Any,
) -> None: ...


@pytest.mark.req("CORE-05.1")
@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("count=10", 10),
        ("count=-3", -3),
        ("ratio=0.5", 0.5),
        ("ratio=2", 2),
        ("flag=true", True),
        ("items=[1, 2]", [1, 2]),
        ('limits={"a": 1}', {"a": 1}),
        ('point={"x": 1, "y": 2}', {"x": 1, "y": 2}),
        ("level=2", 2),
        ("maybe=7", 7),
        ("maybe=null", None),
        ("text=10", "10"),
        ("text=", ""),
        ("text=a=b", "a=b"),
        ("text=true", "true"),
        ("size=1", "1"),
        ("either=10", "10"),
        ("either:=10", 10),
        ("anything=[1]", "[1]"),
        ("unknown=10", "10"),
    ],
)
def test_a_text_is_converted_where_the_schema_takes_no_text(word: str, value: Any) -> None:
    (found,) = typed(parse_arguments((word,)), input_schema(takes_all)).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.req("CORE-05.1")
@pytest.mark.parametrize("text", ["ten", "01", "NaN", "[1,", "[" * 100_000, "", "True"])
def test_what_cannot_be_converted_stays_a_text_for_the_check_of_the_tool(text: str) -> None:
    assert typed(parse_arguments((f"count={text}",)), input_schema(takes_all)) == {"count": text}


@pytest.mark.req("CORE-05.1")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("value",), "'value' is neither name=text nor name:=JSON"),
        (("=1",), "'=1' is neither"),
        ((":=1",), "':=1' is neither"),
        (("a=1", "a:=2"), "a: is given twice"),
        (("a=\udcff",), "a: '\\udcff' is not UTF-8"),
        (("a:=ten",), "a: 'ten' is no JSON"),
        (("a:=" + "[" * 100_000,), "is no JSON"),
    ],
)
def test_a_word_that_is_no_argument_is_refused_by_name(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_arguments(words)
    assert said in caught.value.message
    assert len(caught.value.message) < 500


@pytest.mark.req("CORE-05.1")
def test_references_that_circle_or_lead_nowhere_leave_the_text() -> None:
    schema = {
        "properties": {
            "a": {"$ref": "#/$defs/A"},
            "b": {"$ref": "#/$defs/none"},
            "c": {"allOf": [{"$ref": "#/$defs/N"}]},
        },
        "$defs": {"A": {"$ref": "#/$defs/A"}, "N": {"type": "integer"}},
    }
    assert typed(parse_arguments(("a=1", "b=1", "c=1")), schema) == {"a": "1", "b": "1", "c": 1}
