"""The envelope and its codec: carried unchanged or refused, never altered."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.core import codec
from groundplane.core.envelope import VERSION, Envelope, Route
from groundplane.core.errors import InvalidArgument
from groundplane.core.ids import child_id, joined_id, new_id

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
payloads = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


@given(payloads)
@pytest.mark.req("MESH-11", "MESH-05")
def test_any_payload_passes_messagepack_unchanged(payload: Any) -> None:
    envelope = Envelope.new(["a", "b"], payload, headers={"k": "v"}, job_id="j", deadline_at=7)
    assert Envelope.from_bytes(envelope.to_bytes()) == envelope


@given(payloads)
def test_json_is_accepted_where_messagepack_is_the_default(payload: Any) -> None:
    value = {"payload": payload}
    try:
        text = codec.encode(value, "json")
    except InvalidArgument:
        assert any(math.isinf(one) for one in _floats(payload))
        return
    assert codec.codec_of(text) == "json"
    assert codec.decode(text) == value


def _floats(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [one for item in value.values() for one in _floats(item)]
    if isinstance(value, list):
        return [one for item in value for one in _floats(item)]
    return [value] if isinstance(value, float) else []


class Price(msgspec.Struct):
    value: Any


@dataclass
class Plain:
    value: Any


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, {"a": [math.nan]}, {math.inf}, Price([math.nan]), Plain(Price(math.nan))]
)
def test_json_refuses_what_it_would_turn_into_null(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="cannot be written as json"):
        codec.encode(value, "json")


@pytest.mark.parametrize("value", [object(), {"a": {1, 2}.__iter__()}, 2**64])
def test_what_no_codec_carries_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        codec.encode(value)
    assert caught.value.reason == "msg_parsing_error"


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"{", b"[1", b"nonsense", b"\x81\xa1a", b"\xff" * 40, b"null", b"[]", b"{}", b"\x80"]
)
def test_bytes_that_are_no_envelope_are_a_parsing_error(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Envelope.from_bytes(data)
    assert caught.value.reason == "msg_parsing_error"


@given(st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_but_invalid_argument(data: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        assert Envelope.from_bytes(data).route.actors


def test_deeply_nested_data_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(InvalidArgument):
        codec.decode(b"[" * 100_000)
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(InvalidArgument):
        codec.encode(nested)
    while nested:  # taken apart by hand: the interpreter would recurse
        nested = nested.pop()


def test_a_newer_version_is_refused_and_a_newer_field_is_not() -> None:
    envelope = codec.decode(Envelope.new(["a"]).to_bytes())
    assert Envelope.from_bytes(codec.encode({**envelope, "colour": "blue"})).route.actor == "a"
    with pytest.raises(InvalidArgument, match="newer than"):
        Envelope.from_bytes(codec.encode({**envelope, "version": VERSION + 1}))


@pytest.mark.parametrize("current", [-1, 3])
def test_a_route_whose_index_is_outside_is_a_route_error(current: int) -> None:
    envelope = codec.decode(Envelope.new(["a", "b"]).to_bytes())
    envelope["route"]["current"] = current
    with pytest.raises(InvalidArgument) as caught:
        Envelope.from_bytes(codec.encode(envelope))
    assert caught.value.reason == "route_error"


def test_an_envelope_needs_a_route() -> None:
    with pytest.raises(InvalidArgument, match=r"^route: "):
        Envelope.new([])


def test_a_route_knows_its_past_its_present_and_its_future() -> None:
    route = Route(["a", "b", "c"], 1)
    assert (route.actor, route.past, route.future) == ("b", ["a", "b"], ["c"])
    assert route.advanced().advanced().actor is None


@pytest.mark.req("MESH-12.1")
def test_the_children_of_a_repeated_parent_have_the_same_ids_and_no_claim_of_their_parent() -> None:
    parent = Envelope.new(["a", "b"], headers={"traceparent": "00-1"}, job_id="j", deadline_at=9)
    one, same, other = parent.child(0, 2, "x"), parent.child(0, 2, "x"), parent.child(1, 2, "y")
    assert one.id == same.id != other.id
    assert (one.parent_id, one.root_id, one.attempt, one.claim) == (parent.id, parent.root_id, 1, None)
    assert (one.headers, one.job_id, one.deadline_at) == (parent.headers, "j", 9)
    assert one.route.actor == "b"
    assert [(b.parent_id, b.index, b.total) for b in one.branches] == [(parent.id, 0, 2)]


def test_ids_of_one_process_sort_in_the_order_in_which_they_were_made() -> None:
    made = [new_id() for _ in range(5000)]
    assert made == sorted(set(made))
    assert {one[14] for one in made} == {"7"}
    assert {one[19] for one in made} <= set("89ab")


def test_ids_sort_also_while_the_clock_stands_still_or_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = time.time_ns() + 3_600_000_000_000
    times = iter([ahead] * 300 + [ahead - 60_000_000_000] * 300)
    monkeypatch.setattr("groundplane.core.ids._last", 0)
    monkeypatch.setattr(time, "time_ns", lambda: next(times))
    made = [new_id() for _ in range(600)]
    assert made == sorted(set(made))


def test_a_forked_child_gives_other_ids_than_its_parent() -> None:
    code = (
        "import os; from groundplane.core.ids import new_id; new_id(); child = os.fork(); "
        "os.write(1, new_id()[19:].encode()); child and os.waitpid(child, 0)"
    )
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, check=True).stdout
    assert len(told) == 34
    assert told[:17] != told[17:]


def test_deterministic_ids_differ_by_parent_hop_index_and_kind() -> None:
    found = {child_id("p", 0, 0), child_id("p", 0, 1), child_id("p", 1, 0), child_id("q", 0, 0), joined_id("p", 0)}
    assert len(found) == 5
    assert child_id("p", 0, 0) == child_id("p", 0, 0)
