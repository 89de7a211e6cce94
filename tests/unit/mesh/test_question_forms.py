"""What a handler may ask for, as a form that MCP clients can show, and how answers are read."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import pytest
from mcp_types import _v2026_07_28 as mcp
from pydantic import TypeAdapter

from groundplane.mesh.runtime import Context, Declined, Fault, Suspended, question_form

pytestmark = pytest.mark.req("GATE-16.1")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Order:
    name: str
    count: int = 1
    colour: Colour = Colour.RED
    gift: bool | None = None
    tags: list[Literal["new", "old"]] = field(default_factory=list)


class Trip(msgspec.Struct):
    goal: str
    price: float
    note: str | None = None


_VALID = TypeAdapter(mcp.PrimitiveSchemaDefinition)


def _allowed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, where MCP's own types take it without dropping a word."""
    mcp.RequestedSchema.model_validate(schema)
    for one in schema["properties"].values():
        kept = _VALID.validate_python(one).model_dump(by_alias=True, exclude_unset=True)
        assert kept == one
    return schema


@pytest.mark.parametrize(
    ("given", "shown", "answer"),
    [
        (bool, {"type": "boolean"}, True),
        (int, {"type": "integer"}, 7),
        (float, {"type": "number"}, 0.5),
        (str, {"type": "string"}, "x"),
        (["red", "blue"], {"type": "string", "enum": ["red", "blue"]}, "red"),
        (Literal["red", "blue"], {"type": "string", "enum": ["red", "blue"]}, "red"),
        (Colour, {"type": "string", "enum": ["red", "blue"]}, "red"),
        (list[Literal["a", "b"]], {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}, ["a"]),
    ],
)
def test_one_value_is_asked_for_as_a_form_with_one_field(given: Any, shown: Any, answer: Any) -> None:
    schema, read = question_form(given)
    assert _allowed(schema) == {"type": "object", "properties": {"value": shown}, "required": ["value"]}
    assert read({"value": answer}) == answer


def test_a_map_of_names_asks_for_several_values() -> None:
    schema, read = question_form(
        {"age": int, "mail": str | None, "size": {"type": "string", "enum": ["s", "m"], "default": "m"}}
    )
    assert _allowed(schema)["required"] == ["age"]
    assert schema["properties"]["mail"] == {"type": "string"}
    assert read({"age": 3}) == {"age": 3}


def test_a_dataclass_asks_for_its_fields_and_is_made_of_the_answer() -> None:
    schema, read = question_form(Order)
    assert _allowed(schema) == {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "count": {"type": "integer", "default": 1},
            "colour": {"type": "string", "enum": ["red", "blue"], "default": "red"},
            "gift": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string", "enum": ["new", "old"]}, "default": []},
        },
        "required": ["name"],
    }
    assert read({"name": "x", "colour": "blue", "tags": ["old"]}) == Order("x", 1, Colour.BLUE, None, ["old"])


def test_a_struct_asks_for_its_fields_and_is_made_of_the_answer() -> None:
    schema, read = question_form(Trip)
    assert _allowed(schema)["required"] == ["goal", "price"]
    assert read({"goal": "Rome", "price": 12}) == Trip("Rome", 12.0)


def test_every_shape_that_mcp_allows_is_taken_as_it_is() -> None:
    choices = [{"const": "r", "title": "Red"}, {"const": "b", "title": "Blue"}]
    given = {
        "type": "object",
        "properties": {
            "mail": {"type": "string", "format": "email", "minLength": 3, "maxLength": 99, "title": "Mail"},
            "day": {"type": "string", "format": "date", "default": "2026-01-01"},
            "one": {"type": "string", "oneOf": choices, "default": "r"},
            "old": {"type": "string", "enum": ["r", "b"], "enumNames": ["Red", "Blue"]},
            "some": {"type": "array", "items": {"anyOf": choices}, "minItems": 1, "maxItems": 2, "default": ["r"]},
            "count": {"type": "integer", "minimum": 1, "maximum": 9, "default": 2, "description": "How many"},
            "share": {"type": "number", "minimum": 0.5},
            "sure": {"type": "boolean", "default": False},
        },
        "required": ["mail", "one"],
    }
    assert question_form(given)[0] == _allowed(given)


def _of(**one: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": one}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (bytes, "schema.value: <class 'bytes'> cannot be asked for"),
        (list[str], "schema.value.items: {'type': 'string'} is no choice"),
        (dict[str, int], "schema.value: dict"),
        (int | str, "schema.value: int | str cannot"),
        ([1, 2], "schema.value.enum: [1, 2] is no list of texts"),
        ([], "schema.value.enum: [] is no list of texts"),
        ({"a": {"b": int}}, "schema.a: {'b': <class 'int'>} is no text"),
        ({"type": "array"}, "schema: {'type': 'array'} is no object with properties"),
        (_of(type="object"), "schema.x: {'type': 'object'} is no text"),
        (_of(type=["string", "null"]), "schema.x: {'type': ['string', 'null']} is no text"),
        (_of(type="string", pattern="a+"), "schema.x.pattern: 'a+' is nothing"),
        (_of(type="string", format="ipv4"), "schema.x.format: 'ipv4' is none of"),
        (_of(type="string", oneOf=[{"const": 1, "title": "x"}]), "schema.x.oneOf: "),
        (_of(type="array", items={"type": "integer"}), "schema.x.items: {'type': 'integer'} is no choice"),
        (_of(type="integer", default="1"), "schema.x.default: '1' does not fit 'integer'"),
        (_of(type="integer", default=True), "schema.x.default: True does not fit 'integer'"),
        ({**_of(type="string"), "required": ["y"]}, "schema.required: ['y'] is no list"),
        ({**_of(type="string"), "anyOf": []}, "schema.anyOf: [] is nothing"),
    ],
)
def test_what_no_client_can_show_is_refused_with_field_and_value(given: Any, message: str) -> None:
    with pytest.raises(Fault) as caught:
        question_form(given)
    assert str(caught.value).startswith(message)
    assert (caught.value.code, caught.value.retryable) == ("invalid_argument", False)


class _Link:
    """A sidecar that knows some answers, and what it was asked."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []

    def ask(self, _call: int, question: dict[str, Any]) -> dict[str, Any]:
        self.asked += question["questions"]
        given = [self.answers.pop(0) for _ in question["questions"]] if self.answers else []
        return {"state": "answered", "answers": given} if given else {"state": "suspended"}

    def event(self, message: dict[str, Any]) -> None:
        self.events.append(message)


def _context(*answers: dict[str, Any]) -> tuple[Context, _Link]:
    link = _Link(*answers)
    return Context(link, {"id": 1, "envelope": {"id": "e"}}), link


def test_questions_without_a_key_are_numbered_in_the_order_of_the_run() -> None:
    yes = {"action": "accept", "content": {"value": True}}
    ctx, link = _context(yes, yes, yes)
    assert [ctx.ask("a"), ctx.ask("b", key="named"), ctx.ask("c")] == [True, True, True]
    assert [one["key"] for one in link.asked] == ["0", "named", "1"]
    with pytest.raises(Suspended) as caught:
        ctx.ask("d")
    assert not isinstance(caught.value, Exception)


@pytest.mark.parametrize("action", ["decline", "cancel"])
def test_a_question_that_is_declined_raises(action: str) -> None:
    ctx, _ = _context({"action": action, "content": None})
    with pytest.raises(Declined) as caught:
        ctx.ask("a", key="sure")
    assert (caught.value.action, caught.value.key, caught.value.retryable) == (action, "sure", False)


@pytest.mark.parametrize("key", ["", "0", "a b", "ä", "x" * 65, 5])
def test_a_key_is_a_plain_word(key: Any) -> None:
    with pytest.raises(Fault, match=r"^key: "):
        _context()[0].ask("a", key=key)


def test_arguments_that_are_none_are_refused_with_field_and_value() -> None:
    ctx, link = _context()
    for call, field_ in (
        (lambda: ctx.ask("x" * 20_000), "message"),
        (lambda: ctx.ask(5), "message"),  # type: ignore[arg-type]
        (lambda: ctx.ask_all({}), "questions"),
        (lambda: ctx.sample([], max_tokens=1), "messages"),
        (lambda: ctx.sample([{"role": "system", "content": "x"}], max_tokens=1), "messages"),
        (lambda: ctx.sample("x", max_tokens=0), "max_tokens"),
    ):
        with pytest.raises(Fault, match=f"^{field_}: "):
            call()
    for level, data, field_ in (("loud", {}, "level"), ("info", {"x": "y" * 70_000}, "data")):
        with pytest.raises(ValueError, match=f"^{field_}: "):
            ctx.log(level, "m", **data)
    assert (link.asked, link.events) == ([], [])
