"""How work enters the mesh: the first envelope of a tool's route, and the job that it belongs to."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.envelope import Envelope
from groundplane.core.errors import InvalidArgument
from groundplane.core.ids import new_id
from groundplane.core.names import check_name
from groundplane.core.trace_context import NAMES, TRACEPARENT
from groundplane.jobs.port import Created, NewJob, OutboxMessage
from groundplane.mesh.routing import RESERVED, dedup_key
from groundplane.mesh.spec import ERROR_END, HAPPY_END, HOPS_MAX, ActorSpec, ToolSpec
from groundplane.queues.port import ATTEMPTS_MAX, MAY_REPEAT, MESSAGE_BYTES_MAX, OutgoingMessage, QueueSpec

if TYPE_CHECKING:
    from groundplane.jobs.store import Jobs
    from groundplane.mesh.claims import Claims

JOB_TOKEN = RESERVED + "job-token"
ENDED_JOB = "groundplane-ended-job"
TOLD = RESERVED + "told"
"""Header of a queue's message to an end actor: the job was told in the transaction that sent it."""
TOOL = RESERVED + "tool"
TOKEN_BYTES = 32
END_ATTEMPTS_MAX = 1000


def check_route(route: Sequence[str], hops_max: int = HOPS_MAX) -> list[str]:
    """The route when it is one: names, at least one, at most `hops_max`, no end actor among them."""
    if not route or len(route) > hops_max:
        raise InvalidArgument(
            f"route: {list(route)[:5]!r} has {len(route)} actors; name 1 to {hops_max}", reason="route_error"
        )
    for name in route:
        check_name("route", name)
        if name in (HAPPY_END, ERROR_END):
            raise InvalidArgument(f"route: {name!r} is an end actor; every route goes there by itself")
    return list(route)


def token_hash(token: str) -> str:
    """What a store keeps of a job's token: SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def arguments_hash(tool: str, arguments: Any) -> str:
    """SHA-256 in hex over tool and arguments, whatever the order of their keys."""
    ordered = msgspec.msgpack.encode([tool, arguments], order="deterministic")
    return hashlib.sha256(ordered).hexdigest()


def first_message(
    tool: ToolSpec,
    arguments: Any,
    *,
    job_id: str,
    headers: Mapping[str, Any] | None = None,
    deadline_at: int | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> OutboxMessage:
    """The message that begins a tool's route. The envelope's id is the job's id.

    Raises `invalid_argument`: `route_error`, or `payload_too_large` for arguments over the size of a message
    (`start_job` with `claims` has room for more).
    """
    envelope = _first(tool, arguments, job_id, headers, deadline_at, clock)
    return outbox_message(tool.route[0], envelope, envelope.to_bytes())


def outbox_message(queue: str, envelope: Envelope, data: bytes, *, dedup: str | None = None) -> OutboxMessage:
    """An envelope as the job store's outbox takes it. Raises `invalid_argument` (`payload_too_large`)."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise InvalidArgument(
            f"arguments: {len(data)} bytes with headers are over the limit of {MESSAGE_BYTES_MAX} of a message; "
            "put the data into blobs and send its key",
            reason="payload_too_large",
        )
    return OutboxMessage(
        queue=queue,
        id=envelope.id,
        payload=data,
        headers=transport_headers(envelope),
        dedup_key=dedup or dedup_key(envelope),
    )


def relayed(one: OutboxMessage) -> OutgoingMessage:
    """A message of the job store's outbox as the queues take it; one that may have been sent before says so."""
    headers = {**one.headers, MAY_REPEAT: "1"} if one.taken_before else one.headers
    return OutgoingMessage(queue=one.queue, payload=one.payload, id=one.id, headers=headers, dedup_key=one.dedup_key)


async def start_job(
    jobs: Jobs,
    tool: ToolSpec,
    arguments: Any,
    *,
    owner: str = "",
    job_id: str | None = None,
    idempotency_key: str | None = None,
    headers: Mapping[str, Any] | None = None,
    timeout_s: float | None = None,
    claims: Claims | None = None,
    live_max: int | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Created:
    """Create the job and its first envelope in one transaction. `timeout_s` defaults to the tool's; with `claims`,
    arguments over the inline limit travel as a claim check. `job_id` is a new one by default.

    A repeated idempotency key of the same owner gives the job that is there. Raises as `first_message` does,
    `conflict` (`idempotency_mismatch`), `already_exists` for a `job_id` that is taken, and `resource_exhausted`
    (`live_jobs`) where the owner has `live_max` jobs that have not ended.
    """
    limit_s = tool.timeout_s if timeout_s is None else timeout_s
    if not limit_s > 0:
        raise InvalidArgument(f"timeout_s: {timeout_s!r} must be more than 0 seconds")
    job_id = job_id or new_id()
    token = secrets.token_urlsafe(TOKEN_BYTES)
    deadline_at = clock.now_ms() + round(limit_s * 1000)
    given = dict(headers or {})
    envelope = _first(tool, arguments, job_id, {**given, JOB_TOKEN: token}, deadline_at, clock)
    envelope, data = await claims.outgoing(envelope) if claims is not None else (envelope, envelope.to_bytes())
    message = outbox_message(tool.route[0], envelope, data)
    job = NewJob(
        job_id=job_id,
        tool=tool.name,
        route=list(tool.route),
        arguments=arguments,
        arguments_hash=arguments_hash(tool.name, arguments),
        owner=owner,
        idempotency_key=idempotency_key,
        deadline_at=deadline_at,
        token_hash=token_hash(token),
        trace=str(given.get(TRACEPARENT, "")),
        live_max=live_max,
    )
    return await jobs.create(job, [message])


def _first(
    tool: ToolSpec,
    arguments: Any,
    job_id: str,
    headers: Mapping[str, Any] | None,
    deadline_at: int | None,
    clock: Clock,
) -> Envelope:
    return Envelope.new(
        check_route(tool.route),
        arguments,
        headers={**(headers or {}), TOOL: tool.name},
        job_id=job_id,
        deadline_at=deadline_at,
        envelope_id=job_id,
        clock=clock,
    )


def transport_headers(envelope: Envelope) -> dict[str, str]:
    """Headers of the queue's message: what tools that do not read envelopes need."""
    kind = {"content-type": "application/msgpack"}
    trace = {name: text for name in NAMES if isinstance(text := envelope.headers.get(name), str)}
    return {**kind, **trace} if trace else kind


def queue_specs(
    actors: Sequence[ActorSpec], *, happy_end: str = HAPPY_END, error_end: str = ERROR_END
) -> list[QueueSpec]:
    """The queues that actors and end actors need. One attempt more than the mesh uses itself: with it the sidecar
    tells the error end of a message whose attempts were all ended by crashes.
    """
    own = [QueueSpec(name=a.name, attempts_max=max(ATTEMPTS_MAX, a.retry.attempts) + 1) for a in actors]
    ends = [QueueSpec(name=name, attempts_max=END_ATTEMPTS_MAX) for name in (happy_end, error_end)]
    return [*own, *ends]


__all__ = [
    "JOB_TOKEN", "TOOL", "arguments_hash", "check_route", "first_message", "outbox_message", "queue_specs", "relayed",
    "start_job", "token_hash", "transport_headers",
]  # fmt: skip
