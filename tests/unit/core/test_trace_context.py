"""W3C trace context: what is one, what is carried of it, and that nothing else is."""

from __future__ import annotations

import pytest

from groundplane.core.trace_context import TRACESTATE_MAX, TraceContext, carried, parse

pytestmark = pytest.mark.req("TEL-05.1", "GATE-10")

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_context_tells_its_ids_and_whether_it_was_sampled() -> None:
    found = parse(PARENT)
    assert found == TraceContext(PARENT)
    assert (found.trace_id, found.span_id, found.sampled) == (TRACE, SPAN, True)
    quiet = parse(f"00-{TRACE}-{SPAN}-02")  # another flag
    assert quiet is not None
    assert (quiet.flags, quiet.sampled) == (2, False)


@pytest.mark.parametrize(
    "text",
    [
        "", "00", PARENT + "-", PARENT + "-more", PARENT.upper(), " " + PARENT, PARENT[:-1], f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE[:-1]}g-{SPAN}-01", PARENT + "\n",
        f"01-{TRACE}-{SPAN}-01-{'x' * 600}", None, 7, b"00",
    ],
)  # fmt: skip
def test_what_is_no_traceparent_is_as_good_as_absent(text: object) -> None:
    assert parse(text, "vendor=1") is None


def test_a_later_version_may_have_more_and_is_carried_as_it_is() -> None:
    later = f"cc-{TRACE}-{SPAN}-01-what-the-future-holds"
    found = parse(later)
    assert found is not None
    assert (found.headers(), found.trace_id) == ({"traceparent": later}, TRACE)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        (" a=1 , , fw529a3039@dt=x;y ", "a=1,fw529a3039@dt=x;y"),
        ("A=1", ""), ("a=1,b", ""), ("a==", ""), ("a=ü", ""), ("a=", ""), (7, ""), (None, ""), ("", ""),
        (",".join(f"k{n}=v" for n in range(33)), ""),
    ],
)  # fmt: skip
def test_a_tracestate_that_is_none_is_left_out_and_the_parent_stays(given: object, kept: str) -> None:
    assert parse(PARENT, given) == TraceContext(PARENT, kept)


def test_of_a_long_tracestate_the_newest_members_are_kept() -> None:
    members = [f"k{n}={'v' * 90}" for n in range(8)]
    found = parse(PARENT, ",".join(members))
    assert found is not None
    assert found.tracestate == ",".join(members[:5])
    assert len(found.tracestate) <= TRACESTATE_MAX


def test_headers_get_a_context_instead_of_the_one_they_had() -> None:
    had = {"mine": 1, "traceparent": "old", "tracestate": "old=1"}
    assert TraceContext(PARENT).onto(had) == {"mine": 1, "traceparent": PARENT}
    assert TraceContext(PARENT, "a=1").onto(had) == {"mine": 1, "traceparent": PARENT, "tracestate": "a=1"}
    assert carried(TraceContext(PARENT, "a=1").onto(had)) == TraceContext(PARENT, "a=1")
    assert carried({"mine": 1}) is None
