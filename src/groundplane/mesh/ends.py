"""The end actors: they persist the outcome to blobs, tell the job, and never route. `python -m groundplane.mesh.ends`.

`happy-end` gets what finished (or was ended early by its handler), `error-end` what failed. Each outcome is one JSON
object under `<prefix>/<date>/<hour>/<last actor>/<id>.json`; date and hour (UTC) are those when the message came into
the end's queue, so that a repeat writes the same object. An end is tried again until it is persisted and reported.
"""

from __future__ import annotations

import base64
import re
import traceback
from typing import Any

import msgspec

from groundplane.blobs.store import Blobs
from groundplane.core import codec, failpoints
from groundplane.core.clock import SYSTEM_CLOCK, Clock, iso_z
from groundplane.core.envelope import Envelope
from groundplane.core.errors import ErrorRecord, GroundplaneError, InvalidArgument
from groundplane.jobs.port import Finish
from groundplane.mesh.claims import Claims
from groundplane.mesh.filing import Filing
from groundplane.mesh.joins import waits_ahead
from groundplane.mesh.repeats import Repeats, key_of
from groundplane.mesh.reporting import Reporter
from groundplane.mesh.routing import finished, last_actor
from groundplane.mesh.settling import Settler
from groundplane.mesh.sidecar.calls import Active
from groundplane.mesh.start import JOB_TOKEN, TOLD
from groundplane.mesh.tracing import opened
from groundplane.queues.port import Ack, Delivery, Nack, Reject
from groundplane.telemetry import trace_names as names
from groundplane.telemetry import traces
from groundplane.telemetry.logs import Logger
from groundplane.telemetry.metrics import ActorMetrics

RESULT_INLINE_BYTES_MAX = 16 * 1024 * 1024
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class End:
    """One end actor. `failed` says which of the two."""

    def __init__(
        self,
        name: str,
        *,
        failed: bool,
        prefix: str,
        blobs: Blobs,
        claims: Claims,
        settler: Settler,
        active: Active,
        metrics: ActorMetrics,
        log: Logger,
        reporter: Reporter | None = None,
        joins: frozenset[str] = frozenset(),
        repeats: Repeats | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = name
        self._failed = failed
        self._prefix = prefix
        self._blobs = blobs
        self._filing = Filing(blobs)
        self._claims = claims
        self._settler = settler
        self._active = active
        self._metrics = metrics
        self._log = log
        self._reporter = reporter
        self._joins = joins
        self._repeats = repeats
        self._clock = clock

    async def handle(self, delivery: Delivery) -> None:
        """Persist, report, ack; else hand it back without costing an attempt, to be tried again."""
        self._metrics.received.inc()
        self._metrics.size.observe(len(delivery.payload))
        self._metrics.active.inc()
        try:
            await self._handle(delivery)
            self._metrics.processed.inc()
            self._active.at_ease()
        except GroundplaneError as error:
            self._active.troubled(error)
            traces.current().fail(error.reason or error.code)
            self._metrics.failed(error.reason or error.code)
            self._log.warning("end_not_finished", message_id=delivery.id, error=str(error))
            await self._again(delivery, error.to_record())
        except Exception as error:  # noqa: BLE001 - a fault of ours must not stop the end; it costs an attempt
            self._metrics.failed("internal")
            traces.current().fail("internal", type(error).__name__)
            self._log.error("end_fault", message_id=delivery.id, traceback=traceback.format_exc())
            await self._settle(Nack(delivery, RETRY_S[-1], error=ErrorRecord("internal", repr(error))))
        finally:
            self._metrics.active.dec()
            self._active.progressed()

    async def _handle(self, delivery: Delivery) -> None:
        try:
            envelope = Envelope.from_bytes(delivery.payload)
        except InvalidArgument as error:
            self._metrics.dead.inc()
            await self._settler.settle(Reject(delivery, error.reason or "msg_parsing_error", error.to_record()))
            return
        failpoints.hit("received")
        envelope = opened(delivery, envelope)
        if self._repeats is not None and envelope.claim is not None and not self._failed:
            await self._once(delivery, envelope, self._repeats)
        else:
            await self._end(delivery, envelope)

    async def _once(self, delivery: Delivery, envelope: Envelope, repeats: Repeats) -> None:
        """An end may be repeated, as each step of it changes nothing the second time; but not when the claim that it
        reads is deleted with the first.
        """
        key = key_of(delivery, envelope)
        if not await repeats.begin(key):
            self._metrics.repeats.inc()
            traces.current().event(names.REPEAT)
            await self._settler.settle(Ack(delivery))
            return
        try:
            await self._end(delivery, envelope, key)
        finally:
            repeats.end(key)

    async def _end(self, delivery: Delivery, envelope: Envelope, handled: str = "") -> None:
        """The end itself. `handled` is the delivery's key, to be recorded before the ack."""
        payload, lost = await self._payload(envelope)
        key = object_key(self._prefix, envelope, delivery)
        result = None if self._failed else inline_result(payload, key)
        end = self._outcome(envelope, result, key)
        told = TOLD in delivery.headers
        if not told and (self._failed or result is payload):  # unless it is only there, nobody need wait for the disk
            await self._report(envelope, end)
            told, end = True, None
        data = to_json(outcome_document(envelope, payload, self._clock.now_ms(), lost))
        with traces.start(names.PERSIST, attributes={names.BLOB_KEY: key}):
            if told:
                await self._filing.put(key, data)
            else:
                await self._blobs.put(key, data, content_type="application/json")
        carry = await self._reporter.carried([end], of_live=False) if self._reporter and end else None
        if carry is None:
            await self._report(envelope, end)
        failpoints.hit("final_report")
        if handled and self._repeats is not None:
            await self._repeats.record(handled)
        await self._settler.settle(Ack(delivery), carry=carry)
        self._log.debug("persisted", key=key)
        if envelope.claim is not None and not self._failed:
            await self._claims.release([envelope.claim])

    async def _payload(self, envelope: Envelope) -> tuple[Any, str]:
        """The payload, or why its claim cannot be had any more (a redriven dead letter has used it up)."""
        try:
            return await self._claims.payload(envelope), ""
        except GroundplaneError as error:
            if error.retryable:
                raise
            return None, error.message

    def _outcome(self, envelope: Envelope, result: Any, key: str) -> Finish | None:
        """What the job is told, if it is of one."""
        if envelope.job_id is None:
            return None
        if not self._failed:
            return finished(envelope, result, key)
        return Finish(
            job_id=envelope.job_id,
            envelope_id=envelope.id,
            error=error_of(envelope),
            result_key=key,
            holds=waits_ahead(envelope, self._joins),
        )

    async def _report(self, envelope: Envelope, end: Finish | None) -> None:
        if end is None or self._reporter is None:
            return
        outcomes = await self._reporter.apply([end], str(envelope.headers.get(JOB_TOKEN, "")))
        if outcomes and outcomes[0].detail == "late":
            self._log.info("late_outcome", job_id=envelope.job_id, detail=outcomes[0].detail)

    async def _again(self, delivery: Delivery, error: ErrorRecord) -> None:
        waited_s = max(0.0, (self._clock.now_ms() - delivery.enqueued_at) / 1000)
        delay_s = next((step for step in RETRY_S if step > waited_s), RETRY_S[-1])
        await self._settle(Nack(delivery, delay_s, counts=False, error=error))

    async def _settle(self, settlement: Nack) -> None:
        try:
            await self._settler.settle(settlement)
        except GroundplaneError as error:  # the consumer hands it back when it closes
            self._log.warning("hand_back_failed", message_id=settlement.delivery.id, error=str(error))


def object_key(prefix: str, envelope: Envelope, delivery: Delivery) -> str:
    """`<prefix>/<date>/<hour>/<last actor>/<id>.json`."""
    moment = iso_z(delivery.enqueued_at)
    actor = _UNSAFE.sub("_", last_actor(envelope)) or "_"
    name = _UNSAFE.sub("_", envelope.id) or "_"
    return f"{prefix}/{moment[:10]}/{moment[11:13]}/{actor}/{name}.json"


def outcome_document(envelope: Envelope, payload: Any, now_ms: int, lost: str = "") -> dict[str, Any]:
    """What is persisted: the envelope with its payload, without the job's token."""
    document: dict[str, Any] = {
        "id": envelope.id,
        "root_id": envelope.root_id or envelope.id,
        "parent_id": envelope.parent_id,
        "job_id": envelope.job_id,
        "status": "failed" if envelope.error is not None else "aborted" if envelope.aborted else "succeeded",
        "route": {"actors": envelope.route.actors, "current": envelope.route.current},
        "last_actor": last_actor(envelope),
        "headers": {key: value for key, value in envelope.headers.items() if key != JOB_TOKEN},
        "payload": payload,
        "error": envelope.error,
        "branches": [msgspec.to_builtins(branch) for branch in envelope.branches],
        "created_at": iso_z(envelope.created_at),
        "finished_at": iso_z(now_ms),
        "schema": 1,
    }
    if envelope.aborted and envelope.error is None:
        document["reason"] = "aborted"
    if lost:
        document["payload_lost"] = lost
    return document


def to_json(document: dict[str, Any]) -> bytes:
    """The document as JSON. A payload that JSON cannot carry unchanged goes along as base64 of its MessagePack."""
    try:
        if not _has_bytes(document["payload"]):
            return codec.encode(document, "json")
    except InvalidArgument:
        pass  # NaN, an infinity or a non-text key: below
    packed = base64.b64encode(codec.encode(document["payload"])).decode()
    plain = {**document, "payload": None, "payload_msgpack_base64": packed}
    try:
        return codec.encode(plain, "json")
    except InvalidArgument:
        headers = base64.b64encode(codec.encode(plain["headers"])).decode()
        return codec.encode({**plain, "headers": {}, "headers_msgpack_base64": headers, "error": None}, "json")


def inline_result(payload: Any, key: str) -> Any:
    """The result as the job keeps it; one over 16 MiB stays in blobs: `{"$blob": key, "size": bytes}`."""
    size = len(codec.encode(payload))
    return payload if size <= RESULT_INLINE_BYTES_MAX else {"$blob": key, "size": size}


def error_of(envelope: Envelope) -> ErrorRecord:
    """The error that an envelope carries; one without is `internal`."""
    try:
        return msgspec.convert(envelope.error, ErrorRecord)
    except msgspec.ValidationError:
        return ErrorRecord("internal", f"error: {str(envelope.error)[:500]!r} is no error record")


def _has_bytes(value: Any) -> bool:
    if isinstance(value, dict):
        return any(not isinstance(key, str) or _has_bytes(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return any(map(_has_bytes, value))
    return isinstance(value, bytes | bytearray | msgspec.Raw | msgspec.msgpack.Ext)


__all__ = ["End", "inline_result", "object_key", "outcome_document", "to_json"]


if __name__ == "__main__":
    import sys

    from groundplane.mesh.ends_process import main

    sys.exit(main())
