"""App: what decorators make of handlers, and what they refuse at definition time."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest

from groundplane import App, Context, Envelope, FanOut, RetryPolicy
from groundplane.core.errors import InvalidArgument
from groundplane.signatures import input_schema


class Point(msgspec.Struct):
    x: int
    y: float = 0.0


@dataclasses.dataclass
class Order:
    number: int


class Loose(TypedDict):
    name: str


def double(value: int) -> int:
    return value * 2


async def add_five(value: int) -> int:
    return value + 5


def described(
    question: str,
    limit: Annotated[int, msgspec.Meta(ge=1, le=50)] = 5,
    mode: Literal["fast", "good"] = "good",
    where: Point | None = None,
    *,
    ctx: Context,
) -> FanOut:
    """Finds things.

    More words that are no description.

    Args:
        question: What is
            wanted.
        limit: At most so many.
    """
    return FanOut([question, limit, mode, where])


def sphinx(a: int) -> int:
    """Says.

    :param a: the first
    """
    return a


def whole(envelope: Envelope) -> Envelope:
    return envelope


def open_ended(a: int, **rest: Any) -> int:
    return a + len(rest)


def unannotated(value):  # type: ignore[no-untyped-def]
    return value


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def process(self, step: int = 1) -> int:
        """Counts."""
        self.count += step
        return self.count


class Caller:
    def __call__(self, order: Order, loose: Loose) -> int:
        return order.number


class Nothing:
    pass


@pytest.fixture
def app() -> App:
    return App("acme")


def test_a_bare_decorator_returns_the_function_and_names_the_actor_after_it(app: App) -> None:
    assert app.actor(double) is double
    assert double(2) == 4
    spec = app.actors["double"]
    assert spec.handler == f"{__name__}:double"
    assert (spec.timeout_s, spec.retry.attempts, spec.concurrency, spec.join, spec.key) == (300, 1, 1, False, None)


def test_every_option_of_an_actor_reaches_its_spec(app: App) -> None:
    policy = RetryPolicy(attempts=3, base_s=0.5)
    app.actor(
        name="twice", timeout="1.5m", retry=policy, concurrency=4, join=True, join_timeout="10s", key="customer",
        retry_timeouts=True,
    )(double)  # fmt: skip
    spec = app.actors["twice"]
    assert (spec.timeout_s, spec.retry, spec.retry_timeouts, spec.concurrency) == (90, policy, True, 4)
    assert (spec.join, spec.join_timeout_s, spec.key) == (True, 10, "customer")
    assert app.actor(name="other", retry=4)(double) is double
    assert app.actors["other"].retry == RetryPolicy(attempts=4)


def test_a_route_takes_functions_and_names(app: App) -> None:
    app.actor(double)
    app.actor(name="plus")(add_five)
    app.actor(Counter)
    spec = app.tool("pipeline", route=[double, "plus", add_five, Counter], description="Does it.", timeout=30)
    assert spec.route == ["double", "plus", "plus", "Counter"]
    assert (spec.description, spec.timeout_s, spec.progress, spec.on_disconnect) == ("Does it.", 30, True, "detach")
    assert spec.origin.startswith("test_app.py:")
    assert app.tools == {"pipeline": spec}


def test_the_arguments_of_a_tool_are_those_of_its_first_actor(app: App) -> None:
    app.actor(described)
    spec = app.tool("find", route=[described])
    assert spec.description == "Finds things."
    schema = spec.input_schema
    assert schema["type"] == "object"
    assert schema["required"] == ["question"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {"question", "limit", "mode", "where"}
    assert schema["properties"]["question"] == {"type": "string", "description": "What is wanted."}
    assert schema["properties"]["limit"] == {
        "type": "integer", "minimum": 1, "maximum": 50, "default": 5, "description": "At most so many.",
    }  # fmt: skip
    assert schema["properties"]["mode"]["default"] == "good"
    assert schema["$defs"]["Point"]["required"] == ["x"]


def test_schemas_of_other_kinds_of_handlers() -> None:
    assert input_schema(sphinx)["properties"]["a"]["description"] == "the first"
    assert input_schema(whole) == {"type": "object"}
    assert input_schema(open_ended)["additionalProperties"] is True
    assert input_schema(Counter)["properties"] == {"step": {"type": "integer", "default": 1}}
    assert input_schema(Caller)["required"] == ["order", "loose"]
    assert input_schema(double, "message") == {"type": "object"}


def test_a_schema_may_be_given(app: App) -> None:
    app.actor(double)
    schema = {"type": "object", "properties": {"value": {"type": "integer", "maximum": 9}}}
    assert app.tool("t", route=[double], input_schema=schema).input_schema == schema


def test_a_handler_of_somebody_else_is_declared_by_name_and_not_imported(app: App) -> None:
    assert app.add_actor("not_there.at_all:handle", handler_mode="message") == "handle"
    assert app.add_actor("not_there.other", name="x", timeout="5s") == "x"
    assert app.actors["handle"].handler == "not_there.at_all:handle"
    assert app.actors["x"].handler == "not_there:other"
    assert app.actors["handle"].handler_mode == "message"
    assert app.tool("t", route=["handle"]).input_schema == {"type": "object"}


def _lambda(app: App) -> None:
    app.actor(lambda value: value)


def _local(app: App) -> None:
    def inside(value: int) -> int:
        return value

    app.actor(inside)


_WRONG: list[tuple[Any, str, str]] = [
    (_lambda, "handler", "<lambda>"),
    (_local, "handler", "inside"),
    (lambda app: app.actor(Counter().process), "handler", "process"),
    (lambda app: app.actor(Nothing), "handler", "Nothing"),
    (lambda app: app.actor(3), "handler", "3"),
    (lambda app: app.actor("double"), "actor", "'double'"),
    (lambda app: app.actor(unannotated), "handler", "'value'"),
    (lambda app: app.actor(name="two words")(double), "name", "'two words'"),
    (lambda app: app.actor(name="happy-end")(double), "name", "'happy-end'"),
    (lambda app: (app.actor(double), app.actor(double)), "name", "'double'"),
    (lambda app: app.actor(timeut=3)(double), "timeut", "'timeout'"),
    (lambda app: app.actor(timeout=0)(double), "timeout", "0"),
    (lambda app: app.actor(timeout="soon")(double), "timeout", "'soon'"),
    (lambda app: app.actor(timeout=None)(double), "timeout", "None"),
    (lambda app: app.actor(retry=0)(double), "retry", "0"),
    (lambda app: app.actor(retry=True)(double), "retry", "True"),
    (lambda app: app.actor(retry="3")(double), "retry", "'3'"),
    (lambda app: app.actor(retry_timeouts=1)(double), "retry_timeouts", "1"),
    (lambda app: app.actor(concurrency=0)(double), "concurrency", "0"),
    (lambda app: app.actor(concurrency=1.5)(double), "concurrency", "1.5"),
    (lambda app: app.actor(join="yes")(double), "join", "'yes'"),
    (lambda app: app.actor(join_timeout=3)(double), "join_timeout", "3"),
    (lambda app: app.actor(key="")(double), "key", "''"),
    (lambda app: app.actor(name="")(double), "name", "''"),
    (lambda app: app.actor(handler_mode="raw")(double), "handler_mode", "'raw'"),
    (lambda app: app.add_actor("plain"), "handler", "'plain'"),
    (lambda app: app.add_actor("a b:c"), "handler", "'a b:c'"),
    (lambda app: app.tool("t", route=[]), "route", "[]"),
    (lambda app: app.tool("t", route="double"), "route", "'double'"),
    (lambda app: app.tool("t", route=[double]), "route[0]", "'double'"),
    (lambda app: (app.actor(double), app.tool("t", route=[double, "doubel"])), "route[1]", "did you mean 'double'"),
    (lambda app: (app.actor(double), app.tool("a b", route=[double])), "tool", "'a b'"),
    (lambda app: (app.actor(double), [app.tool("t", route=[double]) for _ in "ab"]), "tool", "'t'"),
    (lambda app: (app.actor(double), app.tool("t", route=["double"] * 65)), "route", "65"),
    (lambda app: (app.actor(double), app.tool("t", route=[double], timeout=-1)), "timeout", "-1"),
    (lambda app: (app.actor(double), app.tool("t", route=[double], on_disconnect="hang")), "on_disconnect", "'hang'"),
    (lambda app: (app.actor(double), app.tool("t", route=[double], description=3)), "description", "3"),
    (lambda app: (app.actor(double), app.tool("t", route=[double], input_schema={})), "input_schema", "{}"),
    (lambda app: App("no name"), "name", "'no name'"),
]


@pytest.mark.parametrize(("declare", "field", "value"), _WRONG)
def test_a_mistake_is_refused_at_definition_with_its_field_and_value(
    app: App, declare: Any, field: str, value: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        declare(app)
    assert caught.value.message.startswith(f"{field}: "), caught.value.message
    assert value in caught.value.message


def test_a_function_that_serves_two_actors_must_be_named_in_a_route(app: App) -> None:
    app.actor(double)
    app.actor(name="twice")(double)
    with pytest.raises(InvalidArgument, match="double, twice"):
        app.tool("t", route=[double])
    assert app.tool("t", route=["twice"]).route == ["twice"]


def test_an_argument_that_json_cannot_carry_is_refused_when_a_tool_begins_with_it(app: App) -> None:
    app.actor(name="odd")(_takes_a_file)
    with pytest.raises(InvalidArgument, match="'file'"):
        app.tool("t", route=["odd"])


def _takes_a_file(file: object.__class__) -> int:  # type: ignore[name-defined]
    return 1


def test_the_repr_lists_what_is_declared(app: App) -> None:
    app.actor(double)
    app.tool("t", route=[double])
    assert repr(app) == "<App acme actors=['double'] tools=['t']>"
