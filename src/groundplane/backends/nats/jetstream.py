"""JetStream over a link: streams, consumers, stored messages, and publishing that returns when it is stored."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from groundplane.backends.nats.config import ConsumerConfig, StreamConfig, differs, document
from groundplane.backends.nats.errors import from_api, from_status
from groundplane.backends.nats.link import Link
from groundplane.backends.nats.message import Message, decode_headers, encode_headers, is_no_responder
from groundplane.core.errors import DeadlineExceeded, GroundplaneError, InvalidArgument, NotFound, Unavailable

MESSAGE_ID = "Nats-Msg-Id"
EXPECTED_LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
ROLLUP = "Nats-Rollup"
TTL = "Nats-TTL"
MARKER_REASON = "Nats-Marker-Reason"
RETRY_WAIT_S = (0.05, 0.2, 0.8)
"""Waits before the retries of a publish: 4 attempts in all."""
_NOTHING_STORED = frozenset({"not_connected", "no_responder", "jetstream_unavailable"})
_NAME = re.compile(r"[^\s.*>/\\\0]{1,255}").fullmatch
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MANY = 256
_BYTES_AT_ONCE = 8 * 1024 * 1024
"""Of one answer in several messages. Left to itself the server sends as much as it lets wait for a client that reads
slowly before it drops it (`max_pending`, 64 MiB).
"""


class PubAck(msgspec.Struct, frozen=True):
    """The stream has it, under `seq`; `duplicate`: it had it before, by its message id."""

    stream: str
    seq: int
    duplicate: bool = False


class _Answered(PubAck, frozen=True):
    """The same, or why not."""

    stream: str = ""
    seq: int = 0
    error: dict[str, Any] | None = None


_ACKS = msgspec.json.Decoder(_Answered)


class Stored(msgspec.Struct, frozen=True):
    """A message as a stream holds it. `time_ns` since 1970, by the server's clock. `headers` are the publisher's and
    those that JetStream adds.
    """

    subject: str
    seq: int
    time_ns: int
    payload: bytes
    headers: dict[str, str]


class _Found(msgspec.Struct, frozen=True):
    """A message as the leader of a stream hands it out."""

    subject: str
    seq: int
    time: str
    data: bytes = b""
    hdrs: bytes = b""


class StreamState(msgspec.Struct, frozen=True):
    """Counts of a stream now."""

    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    num_subjects: int = 0
    consumer_count: int = 0
    subjects: dict[str, int] = {}


class StreamInfo(msgspec.Struct, frozen=True):
    """A stream: its configuration as the server has it (durations in nanoseconds), its state, its cluster; `ts` is the
    server's time of the answer.
    """

    config: dict[str, Any]
    state: StreamState
    created: str = ""
    cluster: dict[str, Any] = {}
    ts: str = ""


class ConsumerInfo(msgspec.Struct, frozen=True):
    """A consumer: `num_pending` messages were not delivered yet, `num_ack_pending` were, and are not settled.

    `delivered` and `ack_floor` hold `consumer_seq` and `stream_seq`; `ts` is the server's time of the answer.
    """

    stream_name: str
    name: str
    config: dict[str, Any] = {}
    num_pending: int = 0
    num_ack_pending: int = 0
    num_redelivered: int = 0
    num_waiting: int = 0
    delivered: dict[str, Any] = {}
    ack_floor: dict[str, Any] = {}
    ts: str = ""


class JetStream:
    """What JetStream offers, on a link. Each call may be made concurrently and takes at most `request_timeout_s` for a
    request; it is not retried, except where it says so. Errors: by the table in `errors.py`, and those of `Link`.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        domain = link.address.domain
        self._prefix = f"$JS.{domain}.API." if domain else "$JS.API."

    async def api(self, what: str, body: Any = None, *, field: str = "", timeout_s: float | None = None) -> Any:
        """One request to `$JS.API.<what>`; its answer as builtins. `field` begins the message of its error."""
        payload = b"" if body is None else msgspec.json.encode(body)
        message = await self._answered(self._prefix + what, payload, timeout_s)
        answer = msgspec.json.decode(message.payload)
        if "error" in answer:
            raise from_api(field or what, answer["error"])
        return answer

    def api_subject(self, what: str) -> str:
        """The subject of a request, for who sends it himself."""
        return self._prefix + what

    # -- streams

    async def create_stream(self, config: StreamConfig) -> StreamInfo:
        """Make a stream; one that is there with the same configuration is the same. `failed_precondition`
        (`stream_exists_differently`, `subjects_overlap`), `invalid_argument` (`jetstream_config`).
        """
        check_name("stream", config.name)
        return self._stream(await self.api(f"STREAM.CREATE.{config.name}", document(config), field=_of(config.name)))

    async def update_stream(self, config: StreamConfig) -> StreamInfo:
        """Change a stream: fields with their default keep what the stream has. `not_found` (`stream_not_found`)."""
        actual = (await self.stream_info(config.name)).config
        changed = {**actual, **document(config)}
        return self._stream(await self.api(f"STREAM.UPDATE.{config.name}", changed, field=_of(config.name)))

    async def ensure_stream(self, config: StreamConfig) -> StreamInfo:
        """The stream with this configuration: made, changed where it differs, or as it is."""
        try:
            found = await self.stream_info(config.name)
        except NotFound:
            return await self.create_stream(config)
        return await self.update_stream(config) if differs(config, found.config) else found

    async def stream_info(self, name: str, *, subjects: str = "") -> StreamInfo:
        """A stream; with `subjects` (a filter) also the messages of each subject, at most 100,000 of them, else
        `api` pages with `offset`.
        """
        check_name("stream", name)
        if not subjects:
            return self._stream(await self.api(f"STREAM.INFO.{name}", field=_of(name)))
        found: dict[str, int] = {}
        while True:
            body = {"subjects_filter": subjects, "offset": len(found)}
            answer = await self.api(f"STREAM.INFO.{name}", body, field=_of(name))
            page = answer["state"].get("subjects") or {}
            found.update(page)
            if not page or len(found) >= answer.get("total", 0):
                answer["state"]["subjects"] = found
                return self._stream(answer)

    async def delete_stream(self, name: str) -> None:
        """Delete a stream with all it holds. `not_found` where there is none."""
        check_name("stream", name)
        await self.api(f"STREAM.DELETE.{name}", field=_of(name))

    async def purge(self, name: str, *, subject: str = "", keep: int = 0, before_seq: int = 0) -> int:
        """Remove messages (of one subject or filter; all but the last `keep`; those before a sequence); how many."""
        body = {key: value for key, value in (("filter", subject), ("keep", keep), ("seq", before_seq)) if value}
        answer = await self.api(f"STREAM.PURGE.{check_name('stream', name)}", body, field=_of(name))
        return int(answer["purged"])

    async def delete_message(self, name: str, seq: int) -> None:
        """Remove one message. `not_found` where it is not there."""
        await self.api(f"STREAM.MSG.DELETE.{check_name('stream', name)}", {"seq": seq}, field=_of(name))

    # -- stored messages

    async def get_last(self, stream: str, subject: str) -> Stored | None:
        """The last message of a subject, by direct get (`allow_direct`); in a cluster of the stream's leader, as its
        other replicas may be behind.
        """
        if self.clustered:
            return await self._get_of_leader(stream, {"last_by_subj": subject})
        message = await self._answered(f"{self._prefix}DIRECT.GET.{stream}.{subject}", b"")
        return self._stored_or_none(stream, message)

    async def get(self, stream: str, seq: int) -> Stored | None:
        """The message with this sequence, by direct get."""
        body = msgspec.json.encode({"seq": seq})
        return self._stored_or_none(stream, await self._answered(f"{self._prefix}DIRECT.GET.{stream}", body))

    async def get_next(self, stream: str, subject: str, seq: int = 1) -> Stored | None:
        """The first message of a subject (or filter) from this sequence on, as `get_last` reads."""
        if self.clustered:
            return await self._get_of_leader(stream, {"seq": max(1, seq), "next_by_subj": subject})
        body = msgspec.json.encode({"seq": max(1, seq), "next_by_subj": subject})
        return self._stored_or_none(stream, await self._answered(f"{self._prefix}DIRECT.GET.{stream}", body))

    async def get_batch(self, stream: str, subject: str, *, seq: int = 1, batch: int = 100) -> list[Stored]:
        """Up to `batch` messages of a subject (or filter) from this sequence on, by direct get, in their order."""
        found: list[Stored] = []
        while len(found) < batch:
            body = {
                "seq": max(1, seq), "next_by_subj": subject, "batch": batch - len(found), "max_bytes": _BYTES_AT_ONCE
            }  # fmt: skip
            messages = await self.link.collect(
                f"{self._prefix}DIRECT.GET.{stream}", msgspec.json.encode(body), ended=lambda one: one.status > 0
            )
            end = messages.pop()
            if end.status not in (204, 404):
                raise self._refused(stream, end)
            found.extend(stored_directly(message) for message in messages)
            if not messages or int(end.headers.get("Nats-Num-Pending", "0")) <= 0:
                break
            seq = found[-1].seq + 1
        return found

    async def get_last_many(self, stream: str, subjects: Sequence[str]) -> list[Stored]:
        """The last messages of subjects or filters, one round trip per 256 of them, in order of their sequence within
        it. `resource_exhausted` where one filter has more than 1,024. In a cluster subjects alone, not filters.
        """
        if self.clustered:
            each = await asyncio.gather(*(self.get_last(stream, subject) for subject in subjects))
            return sorted((one for one in each if one is not None), key=lambda one: one.seq)
        parts = [subjects[at : at + _MANY] for at in range(0, len(subjects), _MANY)]
        found = await asyncio.gather(*(self._last_of(stream, list(part)) for part in parts))
        return [one for part in found for one in part]

    @property
    def clustered(self) -> bool:
        """Whether the server is one of several."""
        return bool(self.link.info.cluster)

    async def _get_of_leader(self, stream: str, which: dict[str, Any]) -> Stored | None:
        try:
            answer = await self.api(f"STREAM.MSG.GET.{check_name('stream', stream)}", which, field=_of(stream))
        except NotFound as error:
            if error.reason != "message_not_found":
                raise
            return None
        found = msgspec.convert(answer["message"], _Found)
        headers = decode_headers(found.hdrs)
        return Stored(found.subject, found.seq, nanoseconds(found.time), found.data, headers)

    async def _last_of(self, stream: str, subjects: list[str]) -> list[Stored]:
        """In parts, each from where the one before ended, with no end fixed before: what is stored meanwhile moves a
        subject to a later part, or into one more time.
        """
        found: dict[str, Stored] = {}
        body: dict[str, Any] = {"multi_last": subjects, "max_bytes": _BYTES_AT_ONCE}
        while True:
            messages = await self.link.collect(
                f"{self._prefix}DIRECT.GET.{stream}",
                msgspec.json.encode(body),
                ended=lambda message: message.status > 0,
            )
            end = messages.pop()
            for message in messages:
                one = stored_directly(message)
                found.pop(one.subject, None)
                found[one.subject] = one
            if end.status == 413:
                return [*found.values(), *await self._halved(stream, subjects, end)]
            if end.status not in (204, 404):
                raise self._refused(stream, end)
            if end.status == 404 or int(end.headers.get("Nats-Num-Pending", "0")) <= 0 or not messages:
                return list(found.values())
            body["seq"] = int(end.headers["Nats-Last-Sequence"]) + 1

    async def _halved(self, stream: str, subjects: list[str], end: Message) -> list[Stored]:
        if len(subjects) == 1:
            raise from_api(
                f"subjects: {subjects[0]!r}", {"err_code": 10167, "code": 413, "description": end.status_text}
            )
        half = len(subjects) // 2
        return await self._last_of(stream, subjects[:half]) + await self._last_of(stream, subjects[half:])

    # -- publishing

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        message_id: str = "",
        timeout_s: float | None = None,
    ) -> PubAck:
        """Store a message; returns when it is stored. With `message_id` it is tried up to 4 times, and stored once
        within the stream's duplicate window; without one only errors after which nothing can have been stored are
        tried again. A condition (`Nats-Expected-…`) is tried once: the caller reads again and compares.

        `unavailable` (`no_responder`: no stream takes the subject), `deadline_exceeded`, `conflict` (`wrong_sequence`),
        `resource_exhausted` (`stream_full`), `invalid_argument`.
        """
        known = {**(headers or {}), MESSAGE_ID: message_id} if message_id else headers
        head = encode_headers(known) if known else b""
        conditional = any(name.startswith("Nats-Expected-") for name in known or ())
        waits = iter(() if conditional else RETRY_WAIT_S)
        while True:
            try:
                return await self._publish_once(subject, payload, head, timeout_s)
            except (Unavailable, DeadlineExceeded) as error:
                wait_s = next(waits, None)
                if wait_s is None or not (message_id or error.reason in _NOTHING_STORED):
                    raise
            if self.link.is_connected:
                await asyncio.sleep(wait_s)
            else:
                await self.link.connected(timeout_s or self.link.address.request_timeout_s)

    async def _publish_once(self, subject: str, payload: bytes, head: bytes, timeout_s: float | None) -> PubAck:
        allowed_s = self.link.address.request_timeout_s if timeout_s is None else timeout_s
        token, answer = self.link.call(subject, payload, head, allowed_s)
        try:
            return read_ack(subject, await answer)
        finally:
            self.link.give_up(token)

    # -- consumers

    async def create_consumer(self, stream: str, config: ConsumerConfig, *, action: str = "") -> ConsumerInfo:
        """Make a consumer, or change one of the same name; `action` `create` refuses one that differs."""
        name = check_name("consumer", config.durable_name or config.name)
        body: dict[str, Any] = {"stream_name": stream, "config": {**document(config), "name": name}}
        if action:
            body["action"] = action
        what = f"CONSUMER.CREATE.{check_name('stream', stream)}.{name}"
        return _consumer(await self.api(what, body, field=_of(stream, name)))

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo:
        """A consumer. `not_found` (`consumer_not_found`)."""
        check_name("consumer", name)
        return _consumer(await self.api(f"CONSUMER.INFO.{stream}.{name}", field=_of(stream, name)))

    async def delete_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer. `not_found` where there is none."""
        check_name("consumer", name)
        await self.api(f"CONSUMER.DELETE.{stream}.{name}", field=_of(stream, name))

    async def consumer_names(self, stream: str) -> list[str]:
        """The names of all consumers of a stream."""
        found: list[str] = []
        while True:
            answer = await self.api(f"CONSUMER.NAMES.{stream}", {"offset": len(found)}, field=_of(stream))
            page = answer.get("consumers") or []
            found.extend(page)
            if not page or len(found) >= answer["total"]:
                return found

    async def stream_names(self, *, subject: str = "") -> list[str]:
        """The names of all streams, or of those that take a subject."""
        found: list[str] = []
        while True:
            body: dict[str, Any] = {"offset": len(found), **({"subject": subject} if subject else {})}
            answer = await self.api("STREAM.NAMES", body)
            page = answer.get("streams") or []
            found.extend(page)
            if not page or len(found) >= answer["total"]:
                return found

    # -- settling

    def ack(self, delivery: Message) -> None:
        """Settle a delivery, without waiting: a lost ack is a redelivery. `unavailable` without a connection."""
        self.link.publish_raw(delivery.reply, b"+ACK")

    async def ack_confirmed(self, delivery: Message) -> None:
        """Settle a delivery; returns when the server knows (on R3: the quorum)."""
        await self.link.request(delivery.reply, b"+ACK")

    def nak(self, delivery: Message, *, delay_s: float = 0.0) -> None:
        """Hand it out again, after `delay_s`."""
        self.link.publish_raw(delivery.reply, b'-NAK {"delay": %d}' % round(delay_s * 1e9) if delay_s else b"-NAK")

    def in_progress(self, delivery: Message) -> None:
        """Begin its `ack_wait` anew: it is being worked on."""
        self.link.publish_raw(delivery.reply, b"+WPI")

    async def term(self, delivery: Message, *, reason: str = "") -> None:
        """Never hand it out again; returns when the server knows."""
        await self.link.request(delivery.reply, f"+TERM {reason}".rstrip().encode())

    # -- inside

    async def _answered(self, subject: str, payload: bytes, timeout_s: float | None = None) -> Message:
        """One request; that nobody serves it means that JetStream is not there, or not yet."""
        try:
            return await self.link.request(subject, payload, timeout_s=timeout_s)
        except Unavailable as error:
            if error.reason != "no_responder":
                raise
            raise Unavailable(
                f"jetstream: nobody answers on {subject!r}; the stream is missing or starting, or JetStream is off",
                reason="jetstream_unavailable",
                details=error.details,
            ) from error

    def _stored_or_none(self, stream: str, message: Message) -> Stored | None:
        status = message.status
        if status == 404:
            return None
        if status:
            raise self._refused(stream, message)
        return stored_directly(message)

    def _refused(self, stream: str, message: Message) -> GroundplaneError:
        return from_status(_of(stream), message.status, message.status_text)

    def _stream(self, answer: dict[str, Any]) -> StreamInfo:
        return msgspec.convert(answer, StreamInfo)


def check_name(field: str, name: str) -> str:
    """A name of a stream or consumer, as the server takes them. `invalid_argument`."""
    if _NAME(name) is None:
        raise InvalidArgument(f"{field}: {name!r} is no name; use up to 255 characters without space . * > / and \\")
    return name


def read_ack(subject: str, message: Message) -> PubAck:
    """What the answer to a publish says."""
    if is_no_responder(message):
        raise Unavailable(
            f"subject: no stream takes {subject!r} now; make it, or wait for its leader", reason="no_responder"
        )
    try:
        answer = _ACKS.decode(message.payload)
    except msgspec.DecodeError as error:
        raise _no_stream(subject) from error
    if answer.error is not None:
        raise from_api(f"subject: {subject!r}", answer.error)
    if not answer.stream:
        raise _no_stream(subject)
    return answer


def _no_stream(subject: str) -> Unavailable:
    return Unavailable(f"subject: {subject!r} is answered by what is no stream", reason="malformed_frame")


def stored_directly(message: Message) -> Stored:
    """A message that came by direct get."""
    headers = message.headers
    return Stored(
        headers["Nats-Subject"],
        int(headers["Nats-Sequence"]),
        nanoseconds(headers["Nats-Time-Stamp"]),
        message.payload,
        headers,
    )


def nanoseconds(text: str) -> int:
    """Since 1970, of a time as the server writes it (RFC 3339 in UTC, up to nine digits)."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no time in UTC")
    return _seconds(found[1]) * 1_000_000_000 + int((found[2] or "0").ljust(9, "0"))


@functools.lru_cache(maxsize=256)
def _seconds(text: str) -> int:
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)


def _consumer(answer: dict[str, Any]) -> ConsumerInfo:
    return msgspec.convert(answer, ConsumerInfo)


def _of(stream: str, consumer: str = "") -> str:
    return f"consumer: {consumer!r} of stream {stream!r}" if consumer else f"stream: {stream!r}"
