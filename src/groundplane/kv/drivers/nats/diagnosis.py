"""A look at NATS: who may log in, whether JetStream is there and takes what a bucket needs, and the server's clock."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from groundplane.backends.nats import TTL, Address, JetStream, Link, StreamConfig
from groundplane.core.diagnosis import Diagnose, Diagnosis, Stopwatch
from groundplane.core.errors import NotFound
from groundplane.kv.drivers.nats.messages import Names
from groundplane.kv.drivers.nats.names import bucket_token
from groundplane.kv.drivers.nats.opening import EXTRA, check_version


async def diagnose(url: str, *, namespace: str, names: Sequence[str] = ()) -> Diagnosis:
    """See `core.diagnosis`. A stream of one message in memory is made, read and deleted."""
    address = Address.parse(url, field="kv", extra=EXTRA)
    async with await Link.open(address, name="groundplane-doctor") as link:
        check_version(link)
        jetstream = JetStream(link)
        try:
            await jetstream.stream_info(Names.of(bucket_token(namespace, "default")).stream)
            stored = True
        except NotFound:
            stored = False
        ahead, error = await _try(jetstream)
        version = link.info.version
    return Diagnosis(server=f"NATS {version}", stored=stored, clock_ahead_ms=ahead, clock_error_ms=error)


async def _try(jetstream: JetStream) -> tuple[int, int]:
    """Store a message as buckets do, and compare its time with ours."""
    name = f"groundplane-doctor-{uuid.uuid4()}"
    config = StreamConfig(
        name=name,
        subjects=(f"$KV.{name}.>",),
        storage="memory",
        max_msgs=1,
        allow_direct=True,
        allow_msg_ttl=True,
        allow_atomic=True,
    )
    await jetstream.create_stream(config)
    try:
        watch = Stopwatch()
        await jetstream.publish(f"$KV.{name}.probe", b"doctor", headers={TTL: "60"})
        found = await jetstream.get_last(name, f"$KV.{name}.probe")
        return watch.ahead(found.time_ns / 1e6) if found is not None else (0, 0)
    finally:
        await jetstream.delete_stream(name)


_: Diagnose = diagnose
