"""Fan-in: children wait in the ledger until all have arrived, or until the join's time is over.

A child's arrival is durable before its delivery is acked. The delivery that completes the join carries the call: its
retries and its dead letter are those of the joined envelope. The first arrival sends a delayed timer into the actor's
own queue; when it comes and children are missing, the handler gets the partial list and the reason `join_timeout`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from groundplane.core import codec
from groundplane.core.envelope import Branch, Claim, Envelope
from groundplane.core.ids import joined_id
from groundplane.core.trace_context import NAMES, TraceContext, carried
from groundplane.jobs.port import Change, Joined
from groundplane.mesh.ledger.port import JoinKey
from groundplane.mesh.routing import RESERVED, Send
from groundplane.mesh.spec import ActorSpec

TIMER = RESERVED + "timer"
"""Header of a timer envelope."""


class Gathered(msgspec.Struct, frozen=True):
    """A join that is to be handled: the joined envelope (payload still missing), the children, what is missing."""

    envelope: Envelope
    items: dict[int, bytes]
    total: int

    @property
    def missing(self) -> list[int]:
        """Indexes of children that have not arrived."""
        return [index for index in range(self.total) if index not in self.items]

    def info(self) -> dict[str, Any]:
        """What the handler's context tells of the join."""
        missing = self.missing
        return {"total": self.total, "missing": missing, "reason": "join_timeout" if missing else None}

    def traces(self) -> list[TraceContext]:
        """Where the children come from, those whose sender had a trace."""
        found = (carried(codec.decode(data)) for _, data in sorted(self.items.items()))
        return [trace for trace in found if trace is not None]

    def claims(self) -> list[Claim]:
        """Claims that children brought along; they belong to the joined envelope now."""
        return [claim for claim, _ in map(unpack, self.items.values()) if claim is not None]


def is_join(spec: ActorSpec, envelope: Envelope) -> bool:
    """Whether this envelope is a child (or the timer) that waits for its siblings here."""
    return spec.join and bool(envelope.branches)


def is_timer(envelope: Envelope) -> bool:
    """Whether it is the timer of a join."""
    return TIMER in envelope.headers


def key_of(spec: ActorSpec, envelope: Envelope) -> JoinKey:
    """The join that it belongs to: the innermost fan-out."""
    branch = envelope.branches[-1]
    return JoinKey(branch.parent_id, branch.hop, spec.name)


def timer(spec: ActorSpec, envelope: Envelope) -> Send:
    """The message that ends the waiting. Its id is the same whichever child sends it."""
    branch = envelope.branches[-1]
    headers = {key: value for key, value in envelope.headers.items() if key.startswith(RESERVED) or key in NAMES}
    made = msgspec.structs.replace(
        envelope,
        id=f"{joined_id(branch.parent_id, branch.hop)}/{spec.name}/timer",
        payload=None,
        claim=None,
        attempt=1,
        headers={**headers, TIMER: "join"},
    )
    return Send(spec.name, made, spec.join_timeout_s)


def joined(envelope: Envelope) -> Envelope:
    """The envelope that stands for all children: a deterministic id, the fan-outs around it, the same route."""
    branch: Branch = envelope.branches[-1]
    return msgspec.structs.replace(
        envelope,
        id=joined_id(branch.parent_id, branch.hop),
        parent_id=branch.parent_id,
        branches=envelope.branches[:-1],
        payload=None,
        claim=None,
        headers={key: value for key, value in envelope.headers.items() if key != TIMER},
    )


def report(envelope: Envelope, made: Envelope) -> list[Change]:
    """The job is told that one envelope goes on instead of the children."""
    if envelope.job_id is None:
        return []
    return [Joined(job_id=envelope.job_id, parent_id=envelope.branches[-1].parent_id, envelope_id=made.id)]


def waits_ahead(envelope: Envelope, joins: frozenset[str]) -> bool:
    """Whether a join further on the route waits for this failed child: then the job goes on without it."""
    return bool(envelope.branches) and any(actor in joins for actor in envelope.route.future)


def pack(envelope: Envelope) -> bytes:
    """What the ledger keeps of a child: its payload, or its claim, and its trace context where it has one."""
    kept = {"claim": envelope.claim} if envelope.claim is not None else {"payload": envelope.payload}
    trace = carried(envelope.headers)
    return codec.encode({**kept, **trace.headers()} if trace is not None else kept)


def unpack(data: bytes) -> tuple[Claim | None, Any]:
    """Claim or payload of a child that the ledger kept."""
    kept = codec.decode(data)
    if "claim" in kept:
        return msgspec.convert(kept["claim"], Claim), None
    return None, kept["payload"]
