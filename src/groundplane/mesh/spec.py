"""What a mesh is made of: actors, tools (named routes), and the limits that hold for all of them. Values, no I/O."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from groundplane.core.envelope import ERROR_END, HAPPY_END
from groundplane.core.retry import RetryPolicy

ACTOR_TIMEOUT_S = 300.0
TOOL_TIMEOUT_S = 300.0
PAYLOAD_INLINE_BYTES_MAX = 256 * 1024
PAYLOAD_BYTES_MAX = 100 * 1024 * 1024
HOPS_MAX = 64
FANOUT_MAX = 10_000
GRACE_S = 30.0
RESULTS_PREFIX, ERRORS_PREFIX = "results", "errors"
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the mesh. Payloads above `payload_inline_bytes_max` travel as a claim check, up to
    `payload_bytes_max`. A route has at most `hops_max` actors, a fan-out at most `fanout_max` children.
    """

    payload_inline_bytes_max: int = PAYLOAD_INLINE_BYTES_MAX
    payload_bytes_max: int = PAYLOAD_BYTES_MAX
    hops_max: int = HOPS_MAX
    fanout_max: int = FANOUT_MAX
    grace_s: float = GRACE_S


class ActorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An actor: a named handler behind a durable queue of the same name.

    `concurrency` calls at once (worker processes for a sync handler, tasks for an async one). `join` makes it a
    fan-in with
    `join_timeout_s` seconds from the first child's arrival. `key` names a payload field by which order is kept (by one
    sidecar). `retry_timeouts` lets a call past its timeout be retried as `retry` says; by default it is not.
    """

    name: str
    handler: str
    timeout_s: float = ACTOR_TIMEOUT_S
    retry: RetryPolicy = RetryPolicy()
    concurrency: int = 1
    join: bool = False
    join_timeout_s: float = ACTOR_TIMEOUT_S
    key: str | None = None
    handler_mode: Literal["payload", "message"] = "payload"
    retry_timeouts: bool = False


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tool: what clients call. `input_schema` is a JSON Schema (2020-12) object; its properties are the arguments.

    `on_disconnect` says what a caller's disconnect does to the job of a synchronous call. `origin` is `app` or
    file:line.
    """

    name: str
    route: list[str]
    description: str = ""
    input_schema: dict[str, Any] = msgspec.field(default_factory=lambda: {**_NO_ARGUMENTS})
    output_schema: dict[str, Any] | None = None
    timeout_s: float = TOOL_TIMEOUT_S
    progress: bool = True
    on_disconnect: Literal["cancel", "detach"] = "detach"
    metadata: dict[str, Any] = {}
    origin: str = "app"


__all__ = ["ERROR_END", "HAPPY_END", "ActorSpec", "Limits", "ToolSpec"]
