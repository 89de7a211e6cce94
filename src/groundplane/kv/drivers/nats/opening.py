"""Opening a bucket: its stream is made, or given what it lacks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from groundplane.backends.nats import Address, JetStream, Link, StreamConfig, StreamInfo
from groundplane.backends.nats.config import differs
from groundplane.core.errors import FailedPrecondition, InvalidArgument, NotFound
from groundplane.kv.drivers.nats.driver import NatsKV
from groundplane.kv.drivers.nats.messages import Names
from groundplane.kv.drivers.nats.names import bucket_token
from groundplane.kv.port import BucketOptions, KVDriver

SERVER_LEAST = (2, 12)
EXTRA = frozenset({"replicas"})
MARKERS_KEPT_S, MARKERS_KEPT_DEEP_S = 60.0, 1.0
"""How long the server's note that a value has expired is kept. Where a stream keeps older values, nats-server raises
every TTL to that: there it is a second."""


@asynccontextmanager
async def open_driver(url: str, options: BucketOptions) -> AsyncIterator[KVDriver]:
    """Open a bucket. `invalid_argument` for a bad URL, `failed_precondition` for an older server or no JetStream."""
    address = Address.parse(url, field="kv", extra=EXTRA)
    names = Names.of(bucket_token(options.namespace, options.bucket))
    replicas = _replicas(address.options.get("replicas"))
    async with await Link.open(address, name=f"groundplane-kv-{options.bucket}") as link:
        check_version(link)
        jetstream = JetStream(link)
        info = await _ensure(jetstream, names, options, replicas)
        driver = NatsKV(jetstream, names, options, history=int(info.config["max_msgs_per_subject"]))
        try:
            yield driver
        finally:
            await driver.aclose()


def check_version(link: Link) -> None:
    """`failed_precondition` (`server_too_old`) for a server that cannot store several messages in one step."""
    version = tuple(int(part) for part in link.info.version.split(".")[:2] if part.isdigit())
    if version < SERVER_LEAST:
        raise FailedPrecondition(
            f"kv: nats-server {link.info.version!r} is older than 2.12, which buckets need; upgrade it",
            reason="server_too_old",
            details={"version": link.info.version},
        )


async def _ensure(jetstream: JetStream, names: Names, options: BucketOptions, replicas: int) -> StreamInfo:
    """The stream, with what this handle wants and what others wanted before. The server changes a stream without a
    condition: of two that let it keep more in the same moment, the one that wants less may win.
    """
    while True:
        try:
            found = await jetstream.stream_info(names.stream)
        except NotFound:
            try:
                return await jetstream.create_stream(_config(names, options.history, replicas))
            except FailedPrecondition as error:
                if error.reason != "stream_exists_differently":
                    raise
                continue  # another process made it in between
        wanted = _config(names, max(int(found.config["max_msgs_per_subject"]), options.history), replicas)
        return await jetstream.update_stream(wanted) if differs(wanted, found.config) else found


def _config(names: Names, history: int, replicas: int) -> StreamConfig:
    return StreamConfig(
        name=names.stream,
        subjects=(f"{names.keys}>", f"{names.fences}>"),
        max_msgs_per_subject=history,
        num_replicas=replicas,
        storage="file",
        discard="new",
        allow_direct=True,
        allow_rollup_hdrs=True,
        allow_msg_ttl=True,
        allow_atomic=True,
        deny_delete=True,
        subject_delete_marker_ttl_s=MARKERS_KEPT_S if history == 1 else MARKERS_KEPT_DEEP_S,
    )


def _replicas(text: str | None) -> int:
    """0 where the URL does not say: 1 for a new stream."""
    if text is None:
        return 0
    if text not in ("1", "3", "5"):
        raise InvalidArgument(f"kv: replicas={text!r} is not 1, 3 or 5")
    return int(text)
