"""How far the consumers of a plane are behind, asked from the server."""

from __future__ import annotations

from typing import Any

from groundplane.backends.nats import JetStream
from groundplane.bus.drivers.nats.naming import PATTERN, Naming
from groundplane.bus.port import Lag


async def lags_of(jetstream: JetStream, naming: Naming) -> list[Lag]:
    """Of each consumer, by name; those of one name that differ in priority added up. What waits for its next attempt
    counts as in flight.
    """
    found: dict[str, Lag] = {}
    for stream in await jetstream.stream_names(subject=naming.all_subjects):
        for info in await _consumers(jetstream, stream):
            config = info["config"]
            pattern = (config.get("metadata") or {}).get(PATTERN)
            if pattern is None:
                continue
            name = config["durable_name"].partition("~")[0]
            old = found.get(name)
            found[name] = Lag(
                consumer=name,
                pattern=pattern,
                waiting=info["num_pending"] + (old.waiting if old else 0),
                in_flight=info["num_ack_pending"] + (old.in_flight if old else 0),
            )
    return [found[name] for name in sorted(found)]


async def _consumers(jetstream: JetStream, stream: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        answer = await jetstream.api(f"CONSUMER.LIST.{stream}", {"offset": len(found)}, field=f"stream: {stream!r}")
        page = answer.get("consumers") or []
        found.extend(page)
        if not page or len(found) >= answer["total"]:
            return found
