"""The spans that a receiver of OTLP got, as trees that a test can compare."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundplane.testing.servers import otlp
from leaks import eventually

KINDS = {1: "INTERNAL", 2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}
ERROR = 2
WAIT_S = 60.0
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "5"}
"""Variables that let spans come soon."""


@dataclass(frozen=True)
class Seen:
    """One span as it came."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    links: list[str]
    """`<trace id>/<span id>`."""
    events: list[tuple[str, dict[str, Any]]]
    error: bool
    state: str = ""

    @property
    def service(self) -> str:
        return str(self.resource["service.name"])


@dataclass
class Trace:
    """A new trace of a test, and the header that starts it."""

    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    span_id: str = field(default_factory=lambda: secrets.token_hex(8))

    def header(self, flags: str = "01") -> str:
        return f"00-{self.trace_id}-{self.span_id}-{flags}"


def received(url: str) -> list[Seen]:
    """All spans."""
    return [
        _seen(span, _values(resource["resource"].get("attributes", ())))
        for one in otlp.received(url, "traces")
        for resource in one["request"]["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


PAGE = Path(__file__).resolve().parents[1] / "docs" / "howto" / "traces.md"
_WORDS = {
    "METHOD": "[A-Z]+",
    "ROUTE": r"/\S*",
    "MESSAGE": r"[a-z]+(/[a-zA-Z_]+)*( \S+)?",
    "QUEUE": r"[\w-]+",
    "ACTOR": r"\w+",
    "ENDPOINT": r"[\w-]+\.[\w-]+",
    "SUBJECT": r"(events|commands)\.[\w.-]+",
}


@dataclass(frozen=True)
class Row:
    """A row of the page's table of spans."""

    name: re.Pattern[str]
    kind: str
    processes: list[str]
    attributes: frozenset[str]
    of_bus: bool
    """Whether it is about requests, events and commands."""

    def describes(self, span: Seen) -> bool:
        """Whether the span is one of this row."""
        same = span.kind == self.kind and span.resource["groundplane.role"] in self.processes
        return same and bool(self.name.fullmatch(span.name)) and set(span.attributes) <= self.attributes


def documented() -> list[Row]:
    """What the page says of spans."""
    table = PAGE.read_text().partition("| span | kind |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    found = []
    for name, kind, process, attributes in rows:
        pattern = re.sub("[A-Z]+", lambda word: _WORDS[word.group()], name.strip("`"))
        own = frozenset(re.findall("`(.+?)`", attributes))
        of_bus = "ENDPOINT" in name or "SUBJECT" in name
        found.append(Row(re.compile(pattern), kind, process.split(", "), own, of_bus))
    return found


def of_trace(url: str, trace_id: str) -> list[Seen]:
    """The spans of one trace."""
    return [span for span in received(url) if span.trace_id == trace_id]


def tree(spans: list[Seen], root: str) -> str:
    """The spans below the span with the id `root`, one a line, indented, children in the order of their names."""
    return "\n".join(_lines(spans, root, 0)) + "\n"


def grown(url: str, trace: Trace, wanted: str) -> list[Seen]:
    """The trace once it is the tree that is wanted; fails with the one that it is."""
    last: list[Seen] = []

    def is_there() -> bool:
        last[:] = of_trace(url, trace.trace_id)
        return tree(last, trace.span_id) == wanted

    there = eventually(is_there, WAIT_S)
    assert there, f"wanted\n{wanted}\ngot\n{tree(last, trace.span_id)}\nof {[one.name for one in last]}"
    assert len(last) == len(wanted.splitlines()), "spans outside the tree"
    return last


def only(spans: list[Seen], name: str) -> Seen:
    """The one span of that name."""
    found = [span for span in spans if span.name == name]
    assert len(found) == 1, [span.name for span in spans]
    return found[0]


def _lines(spans: list[Seen], parent: str, depth: int) -> list[str]:
    children = sorted((one for one in spans if one.parent_id == parent), key=lambda one: (one.name, one.kind))
    return [
        line
        for one in children
        for line in ["  " * depth + f"{one.kind} {one.name} @{one.service}", *_lines(spans, one.span_id, depth + 1)]
    ]


def _seen(span: dict[str, Any], resource: dict[str, Any]) -> Seen:
    return Seen(
        name=span["name"],
        kind=KINDS[span["kind"]],
        trace_id=span["traceId"],
        span_id=span["spanId"],
        parent_id=span.get("parentSpanId", ""),
        attributes=_values(span.get("attributes", ())),
        resource=resource,
        links=[f"{link['traceId']}/{link['spanId']}" for link in span.get("links", ())],
        events=[(event["name"], _values(event.get("attributes", ()))) for event in span.get("events", ())],
        error=span.get("status", {}).get("code") == ERROR,
        state=span.get("traceState", ""),
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one["key"]: _value(one["value"]) for one in attributes}


def _value(value: dict[str, Any]) -> Any:
    (kind, found), *_ = value.items()
    if kind == "arrayValue":
        return [_value(one) for one in found.get("values", ())]
    return int(found) if kind == "intValue" else found
