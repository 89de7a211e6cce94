"""The driver: reads by direct get, writes by conditional publish, watches by an ephemeral consumer."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from groundplane.backends.nats import Changed, JetStream, StreamInfo, Synced, Watcher
from groundplane.core.errors import NotFound, Unavailable
from groundplane.kv.drivers.nats.feed import NatsFeed, subject_of
from groundplane.kv.drivers.nats.messages import (
    HEADER_BYTES,
    MARKERS_KEPT_DEEP_S,
    MARKERS_KEPT_S,
    Names,
    entry_of,
    is_removal,
)
from groundplane.kv.drivers.nats.names import filters
from groundplane.kv.drivers.nats.writing import Writing
from groundplane.kv.port import (
    VALUE_BYTES_MAX,
    BucketOptions,
    Capability,
    ChangeFeed,
    Entry,
    KeyPage,
    KVDriver,
    Limits,
    Selection,
    Status,
    Write,
    WriteKind,
    WriteOptions,
)
from groundplane.kv.refusals import check_after

CLEARED_AT_ONCE = 500
LISTING_KEPT_S = 10.0
LISTINGS_MAX = 8


class NatsKV:
    """One bucket on one connection."""

    def __init__(self, jetstream: JetStream, names: Names, options: BucketOptions, *, history: int) -> None:
        """`history` is that of the stream."""
        self.native = jetstream
        self.capabilities = Capability.HISTORY | Capability.FENCES
        if options.ttl:
            self.capabilities |= Capability.TTL
        self.limits = Limits(
            value_bytes_max=min(VALUE_BYTES_MAX, jetstream.link.max_payload - HEADER_BYTES),
            ttl_resolution_s=1.0 if options.ttl else None,
            history=options.history,
        )
        self._names = names
        self._options = options
        self._history = history
        self._writing = Writing(jetstream, names, deep=history > 1)
        self._listings: dict[str, tuple[float, list[str]]] = {}
        self._watchers: set[Watcher] = set()

    async def get(self, keys: Sequence[str]) -> dict[str, Entry]:
        """See the port."""
        if len(keys) == 1:
            message = await self.native.get_last(self._names.stream, self._names.subject(keys[0]))
            if message is None or is_removal(message):
                return {}
            self._writing.live(message.seq)
            return {keys[0]: entry_of(keys[0], message)}
        subjects = {self._names.subject(key): key for key in keys}
        found = await self.native.get_last_many(self._names.stream, list(subjects))
        live = {subjects[one.subject]: one for one in found if not is_removal(one)}
        return {key: entry_of(key, live[key]) for key in keys if key in live}

    async def write(self, writes: Sequence[Write], options: WriteOptions) -> list[int]:
        """See the port."""
        return await self._writing.write(writes, options)

    async def clear(self, prefix: str) -> int:
        """See the port."""
        keys = await self._live_keys(prefix)
        count = 0
        for at in range(0, len(keys), CLEARED_AT_ONCE):
            writes = [Write(kind=WriteKind.DELETE, key=key) for key in keys[at : at + CLEARED_AT_ONCE]]
            done = await self._writing.write(writes, WriteOptions(id=f"clear-{uuid.uuid4().hex}"))
            count += sum(revision > 0 for revision in done)
        return count

    async def keys(self, prefix: str, *, cursor: str | None, limit: int) -> KeyPage:
        """See the port. The pages of one listing are of one moment, when they are read within 10 s of each other."""
        found = self._listings.pop(prefix, None) if cursor is not None else None
        fresh = found is None or time.monotonic() - found[0] > LISTING_KEPT_S
        names = sorted(await self._live_keys(prefix)) if found is None or fresh else found[1]
        rest = [name for name in names if name > cursor] if cursor is not None else names
        if len(rest) <= limit:
            return KeyPage(items=rest)
        while len(self._listings) >= LISTINGS_MAX:
            del self._listings[next(iter(self._listings))]
        self._listings[prefix] = (time.monotonic(), rest[limit:])
        return KeyPage(items=rest[:limit], cursor=rest[limit - 1])

    async def history(self, key: str) -> list[Entry]:
        """See the port."""
        subject = self._names.subject(key)
        found: list[Entry] = []
        message = await self.native.get_next(self._names.stream, subject)
        while message is not None:
            if not is_removal(message):
                found.append(entry_of(key, message))
            message = await self.native.get_next(self._names.stream, subject, message.seq + 1)
        return found[::-1][: self._options.history]

    async def status(self) -> Status:
        """See the port."""
        info = await self._info()
        return Status(
            bucket=self._options.bucket,
            backend="nats",
            keys=len(await self._live_keys("")),
            bytes=info.state.bytes,
            revision=info.state.last_seq,
            history=int(info.config["max_msgs_per_subject"]),
            ttl=self._options.ttl,
            limits=self.limits,
        )

    @asynccontextmanager
    async def watch(self, selection: Selection) -> AsyncIterator[ChangeFeed]:
        """See the port."""
        if selection.after is not None:
            check_after(selection, (await self._info()).state.last_seq)
        try:
            watcher = self._watcher(self._subjects(selection), after=selection.after or 0)
            await watcher.__aenter__()
        except NotFound as error:
            raise _bucket_gone(self._options.bucket) from error
        self._watchers.add(watcher)
        try:
            yield NatsFeed(watcher, self._names, selection)
        finally:
            self._watchers.discard(watcher)
            await watcher.aclose()

    async def aclose(self) -> None:
        """See the port."""
        await asyncio.gather(*(watcher.aclose() for watcher in self._watchers))
        await self.native.link.aclose()

    def __repr__(self) -> str:
        return f"<NatsKV {self._options.namespace!r}/{self._options.bucket!r} on {self.native.link!r}>"

    async def _info(self) -> StreamInfo:
        try:
            return await self.native.stream_info(self._names.stream)
        except NotFound as error:
            raise _bucket_gone(self._options.bucket) from error

    def _subjects(self, selection: Selection) -> list[str]:
        if selection.key is not None:
            return [self._names.subject(selection.key)]
        return [self._names.keys + one for one in filters(selection.prefix)]

    def _watcher(self, subjects: list[str], *, after: int = 0, headers_only: bool = False) -> Watcher:
        return Watcher(
            self.native,
            self._names.stream,
            subjects,
            is_gone=is_removal,
            after=after,
            headers_only=headers_only,
            removals_kept_s=MARKERS_KEPT_S if self._history == 1 else MARKERS_KEPT_DEEP_S,
        )

    async def _live_keys(self, prefix: str) -> list[str]:
        """Those that begin with a prefix, in the order of their revisions."""
        found: dict[str, None] = {}
        patience_s = self.native.link.address.request_timeout_s
        try:
            async with self._watcher(self._subjects(Selection(prefix=prefix)), headers_only=True) as watcher:
                while True:
                    async with asyncio.timeout(patience_s):
                        event = await anext(watcher)
                    if isinstance(event, Synced):
                        return list(found)
                    key = self._names.key(subject_of(event))
                    if key is None or not key.startswith(prefix):
                        continue
                    found.pop(key, None)
                    if isinstance(event, Changed) and not is_removal(event.message):
                        found[key] = None
        except NotFound as error:
            raise _bucket_gone(self._options.bucket) from error
        except TimeoutError as error:
            raise Unavailable(f"kv: the server sent nothing for {patience_s:g} s", reason="broker_silent") from error


def _bucket_gone(bucket: str) -> Unavailable:
    return Unavailable(f"bucket: {bucket!r} is not there now; open it again", reason="bucket_gone", retryable=False)


_: type[KVDriver] = NatsKV
