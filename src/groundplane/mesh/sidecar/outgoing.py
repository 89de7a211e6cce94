"""The messages that a decision sends."""

from __future__ import annotations

import msgspec

from groundplane.core.envelope import Envelope
from groundplane.core.errors import InvalidArgument
from groundplane.mesh.claims import Claims
from groundplane.mesh.routing import Decision, Send, dedup_key
from groundplane.mesh.sidecar.work import Work
from groundplane.mesh.start import TOLD, transport_headers
from groundplane.queues.port import OutgoingMessage


class Outgoing:
    """Makes messages of decisions, payloads over the limit put into claims. Nothing is sent here.

    A payload that is too large even for a claim is refused (`payload_too_large`), but never one of a rejection: that
    goes without it, so that each failure can be told.
    """

    def __init__(self, claims: Claims | None) -> None:
        self._claims = claims

    async def messages(self, work: Work, decision: Decision) -> tuple[list[Envelope], list[OutgoingMessage]]:
        """The envelopes as they go onto their queues, and a message for each, in the order of `decision.sends`.

        Where a join is rejected, what it gathered goes along.
        """
        kept: list[Envelope] = []
        messages: list[OutgoingMessage] = []
        for send in decision.sends:
            if decision.settlement == "reject" and work.join is not None:
                send = Send(send.queue, msgspec.structs.replace(send.envelope, payload=work.payload), send.delay_s)
            envelope, data = await self._packed(send.envelope, decision)
            kept.append(envelope)
            redrives = work.delivery.redrives if decision.settlement == "reject" else 0
            messages.append(message_of(send, envelope, data, redrives))
        return kept, messages

    async def _packed(self, envelope: Envelope, decision: Decision) -> tuple[Envelope, bytes]:
        if self._claims is None:
            return envelope, envelope.to_bytes()
        try:
            return await self._claims.outgoing(envelope)
        except InvalidArgument as error:
            if decision.settlement != "reject" or error.reason != "payload_too_large":
                raise
        # what a join gathered may be over every limit: the failure is told without it, the dead letter has its part
        record = dict(envelope.error or {})
        record["details"] = {**record.get("details", {}), "payload": "left out: over the limit"}
        small = msgspec.structs.replace(envelope, payload=None, error=record)
        return small, small.to_bytes()


def message_of(send: Send, envelope: Envelope, data: bytes, redrives: int = 0) -> OutgoingMessage:
    """The queue's message for an envelope that was packed."""
    return OutgoingMessage(
        queue=send.queue,
        payload=data,
        id=envelope.id,
        headers=transport_headers(envelope),
        delay_s=send.delay_s,
        dedup_key=dedup_key(envelope, redrives=redrives),
    )


def told_of(message: OutgoingMessage) -> OutgoingMessage:
    """The message for an end actor whose outcome the job is told already: nobody waits for that."""
    return msgspec.structs.replace(message, headers={**message.headers, TOLD: "1"}, urgent=False)


__all__ = ["Outgoing", "message_of", "told_of"]
