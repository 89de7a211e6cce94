"""Opening a bucket: its stream is made, or given what it lacks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from groundplane.backends.nats import EXPECTED_LAST_SUBJECT_SEQUENCE, Address, JetStream, Link, StreamConfig, StreamInfo
from groundplane.backends.nats.config import differs
from groundplane.core.errors import Conflict, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from groundplane.kv.drivers.nats.driver import NatsKV
from groundplane.kv.drivers.nats.messages import MARKERS_KEPT_DEEP_S, MARKERS_KEPT_S, Names
from groundplane.kv.drivers.nats.names import bucket_token
from groundplane.kv.port import BucketOptions, KVDriver
from groundplane.kv.refusals import missing_bucket

SERVER_LEAST = (2, 12)
EXTRA = frozenset({"replicas"})


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
    condition, so the deepest history that anybody wanted is kept in a record that only rises: whoever has changed the
    stream looks there whether that was too little.
    """
    record, asked_again = 0, False
    while True:
        try:
            found = await jetstream.stream_info(names.stream)
        except DeadlineExceeded:  # nobody answers yet for a stream that another process has a cluster make just now
            if asked_again:
                raise
            asked_again = True
            continue
        except NotFound:
            if not options.create:
                raise missing_bucket(options) from None
            try:
                return await jetstream.create_stream(_config(names, options.history, replicas))
            except FailedPrecondition as error:
                if error.reason != "stream_exists_differently":
                    raise
                continue  # another process made it in between
        kept = int(found.config["max_msgs_per_subject"])
        wanted = _config(names, max(kept, options.history, record), replicas)
        if not differs(wanted, found.config):
            return found
        await jetstream.update_stream(wanted)
        record = await _raise_record(jetstream, names, wanted.max_msgs_per_subject)


async def _raise_record(jetstream: JetStream, names: Names, history: int) -> int:
    """The deepest history that was ever wanted, this one included."""
    subject = f"{names.fences}kept.history"
    while True:
        last = await jetstream.get_last(names.stream, subject)
        known = 0 if last is None else int(last.payload)
        if known >= history:
            return known
        expected = {EXPECTED_LAST_SUBJECT_SEQUENCE: str(last.seq if last is not None else 0)}
        try:
            await jetstream.publish(subject, b"%d" % history, headers=expected)
        except Conflict:
            continue
        return history


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
