"""What the lanes of the gateway share: the ports, the tools, the feed, and the one way in which a job is started."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from groundplane.blobs import Blobs
from groundplane.core import codec
from groundplane.core.errors import InvalidArgument, Unavailable
from groundplane.gateway.feed import Feed
from groundplane.gateway.metrics import GatewayMetrics
from groundplane.gateway.settings import GatewaySettings
from groundplane.gateway.tools import Tool, ToolTable
from groundplane.jobs import Jobs
from groundplane.jobs.port import Created, Job
from groundplane.mesh.claims import Claims
from groundplane.mesh.start import start_job
from groundplane.queues import Queues

IDEMPOTENCY_KEY_MAX = 255
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


@dataclass(kw_only=True)
class Services:
    """One gateway's parts. Callers are not told apart yet: every job's owner is the empty one."""

    jobs: Jobs
    queues: Queues
    blobs: Blobs | None
    tools: ToolTable
    feed: Feed
    settings: GatewaySettings
    metrics: GatewayMetrics
    owner: str = ""
    draining: bool = field(default=False, init=False)

    async def start(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        lane: str,
        idempotency_key: str | None = None,
        traceparent: str | None = None,
        timeout_s: float | None = None,
    ) -> Created:
        """Create the job durably with its first envelope. `arguments` have been checked by `tool.arguments`."""
        if self.draining:
            raise Unavailable("gateway: is shutting down; call again")
        if timeout_s is not None and timeout_s > tool.spec.timeout_s:
            raise InvalidArgument(
                f"timeout: {timeout_s!r} is longer than the tool's {tool.spec.timeout_s:g} seconds",
                details={"field": "timeout"},
            )
        created = await start_job(
            self.jobs,
            tool.spec,
            arguments,
            owner=self.owner,
            idempotency_key=check_idempotency_key(idempotency_key),
            headers={"traceparent": traceparent} if is_traceparent(traceparent) and traceparent else {},
            timeout_s=timeout_s,
            claims=Claims(self.blobs) if self.blobs is not None else None,
        )
        if created.created:
            self.metrics.accepted(tool.spec.name, lane)
        return created

    async def whole(self, job: Job) -> Job:
        """The job with its result also where that was too large for the record, which then names the blob."""
        key = job.result.get("$blob") if isinstance(job.result, dict) else None
        if self.blobs is None or key is None or key != job.result_key:
            return job
        document = codec.decode(await self.blobs.get(key))
        return msgspec.structs.replace(job, result=document["payload"])


def check_idempotency_key(key: str | None) -> str | None:
    """The key when it is 1 to 255 printable characters, or None."""
    if key is None:
        return None
    if not 1 <= len(key) <= IDEMPOTENCY_KEY_MAX or not key.isprintable():
        raise InvalidArgument(
            f"idempotency-key: {key[:100]!r} is not 1 to {IDEMPOTENCY_KEY_MAX} printable characters",
            details={"field": "idempotency-key"},
        )
    return key


def is_traceparent(text: str | None) -> bool:
    """Whether it is a W3C trace context header; one that is not is ignored, as the recommendation says."""
    return text is not None and len(text) <= 512 and _TRACEPARENT.fullmatch(text) is not None


__all__ = ["Services", "check_idempotency_key", "is_traceparent"]
