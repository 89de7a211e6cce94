"""Claim checks: a payload over the inline limit lies in blobs, and the envelope carries the key.

Who owns a claim: the envelope on its queue. When the envelope moves on with the same claim, ownership moves with it;
when its delivery is acked and nothing carries the claim on, it is deleted. Dead letters keep theirs. What a crash left
behind is found by `collect` by its age, which must be above the longest that a message may wait in a queue.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from typing import Any

import msgspec

from groundplane.blobs.store import Blobs
from groundplane.core import codec
from groundplane.core.clock import SYSTEM_CLOCK, Clock, iso_z
from groundplane.core.dead_letters import DeadLetterSource
from groundplane.core.envelope import Claim, Envelope
from groundplane.core.errors import Internal, InvalidArgument
from groundplane.mesh.spec import Limits

PREFIX = "claims/"
COLLECT_AFTER_S = 14 * 86400.0


class Claims:
    """Payloads in and out of envelopes. May be called concurrently; nothing is retried here."""

    def __init__(self, blobs: Blobs, limits: Limits | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._blobs = blobs
        self._limits = limits or Limits()
        self._clock = clock

    async def outgoing(self, envelope: Envelope) -> tuple[Envelope, bytes]:
        """The envelope and its bytes as they go onto a queue, the payload put into blobs where it is over the limit.

        Raises `invalid_argument` (`payload_too_large`) above `payload_bytes_max`, and what the blobs raise.
        """
        data = envelope.to_bytes()
        if len(data) <= self._limits.payload_inline_bytes_max or envelope.payload is None:
            return envelope, data
        payload = codec.encode(envelope.payload)
        if len(payload) <= self._limits.payload_inline_bytes_max:
            return envelope, data
        if len(payload) > self._limits.payload_bytes_max:
            raise InvalidArgument(
                f"payload: {len(payload)} bytes are over the limit of {self._limits.payload_bytes_max}; "
                "send less, or put the data into blobs yourself and send its key",
                reason="payload_too_large",
            )
        key = f"{PREFIX}{iso_z(self._clock.now_ms())[:10]}/{envelope.root_id or envelope.id}/{uuid.uuid4()}"
        await self._blobs.put(key, payload, content_type="application/msgpack")
        claim = Claim(key, len(payload), hashlib.sha256(payload).hexdigest())
        checked = msgspec.structs.replace(envelope, payload=None, claim=claim)
        return checked, checked.to_bytes()

    async def payload(self, envelope: Envelope) -> Any:
        """The payload itself. Raises `not_found` for a claim whose blob is gone, `internal` for a damaged one."""
        if envelope.claim is None:
            return envelope.payload
        return await self.resolve(envelope.claim)

    async def resolve(self, claim: Claim) -> Any:
        """The payload that a claim stands for."""
        if not claim.key.startswith(PREFIX):  # an envelope from outside must not read other objects
            raise InvalidArgument(
                f"claim.key: {claim.key!r} does not begin with {PREFIX!r}", reason="msg_parsing_error"
            )
        data = await self._blobs.get(claim.key, bytes_max=self._limits.payload_bytes_max)
        if hashlib.sha256(data).hexdigest() != claim.checksum:
            raise Internal(f"claim: {claim.key!r} is not what was put there", reason="checksum_mismatch")
        return codec.decode(data) if codec.codec_of(data) == "msgpack" else msgspec.msgpack.decode(data)

    async def release(self, claims: Iterable[Claim], kept: Iterable[Envelope] = ()) -> None:
        """Delete the blobs of claims whose envelopes were acked, but those that `kept` envelopes carry on."""
        carried = {envelope.claim.key for envelope in kept if envelope.claim is not None}
        keys = [claim.key for claim in claims if claim.key not in carried]
        if keys:
            await self._blobs.delete(*keys)


async def collect(
    blobs: Blobs, dead: DeadLetterSource | None, *, older_than_s: float = COLLECT_AFTER_S, clock: Clock = SYSTEM_CLOCK
) -> int:
    """Delete claims that are older than that and that no dead letter refers to; how many."""
    before = clock.now_ms() - round(older_than_s * 1000)
    old = [info.key async for info in blobs.list(PREFIX) if info.modified_at < before]
    if not old:
        return 0
    wanted = await _of_dead_letters(dead) if dead is not None else set()
    unreferenced = [key for key in old if key not in wanted]
    return await blobs.delete(*unreferenced) if unreferenced else 0


async def _of_dead_letters(dead: DeadLetterSource) -> set[str]:
    keys: set[str] = set()
    cursor: str | None = None
    while True:
        page = await dead.list_dead(None, cursor=cursor, limit=1000)
        for letter in page.items:
            try:
                claim = Envelope.from_bytes(letter.payload).claim
            except InvalidArgument:
                continue  # not an envelope: it refers to nothing
            if claim is not None:
                keys.add(claim.key)
        cursor = page.cursor
        if cursor is None:
            return keys
