"""What a mesh is made of: actors, what clients are offered (tools, prompts, resources), and the limits that hold for
all of them. Values, no I/O.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from groundplane.core.envelope import ERROR_END, HAPPY_END
from groundplane.core.retry import RetryPolicy

ACTOR_TIMEOUT_S = 300.0
TOOL_TIMEOUT_S = 300.0
PROMPT_TIMEOUT_S = 30.0
TASK_AFTER_S = 0.25
PAYLOAD_INLINE_BYTES_MAX = 256 * 1024
PAYLOAD_BYTES_MAX = 100 * 1024 * 1024
HOPS_MAX = 64
FANOUT_MAX = 10_000
GRACE_S = 30.0
RESULTS_PREFIX, ERRORS_PREFIX = "results", "errors"
TaskPolicy = Literal["never", "optional", "required"]
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

    `on_disconnect` says what a caller's disconnect does to the job of a synchronous call. With `content` its result is
    a list of MCP content blocks. `task` says whether a call becomes an MCP task where the client takes one, after
    `task_after_s` seconds in which it may end or ask. `updates` are URIs of resources that are other than before when
    a job of it has succeeded. `origin` is `app` or file:line.
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
    title: str = ""
    content: bool = False
    task: TaskPolicy = "optional"
    task_after_s: float = TASK_AFTER_S
    annotations: dict[str, Any] = {}
    updates: list[str] = []


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """How one argument is completed: from `values`, or by `actor`, which is given those of `value` (what was typed) and
    `arguments` (the others) that it `takes`, and returns a list of texts.
    """

    values: list[str] = []
    actor: str | None = None
    takes: tuple[str, ...] = ("value",)


class PromptArgument(msgspec.Struct, frozen=True, kw_only=True):
    """An argument of a prompt. Its value is text."""

    name: str
    description: str = ""
    required: bool = False


class PromptSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt: messages that a client puts before its model, made by a route of actors, or `text` as it is."""

    name: str
    route: list[str] = []
    text: str | None = None
    title: str = ""
    description: str = ""
    arguments: list[PromptArgument] = []
    complete: dict[str, Completion] = {}
    timeout_s: float = PROMPT_TIMEOUT_S
    origin: str = "app"


class ResourceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A resource that clients read at `uri`: made by a route of actors, or `text` or `data` as they are.

    A `uri` with variables (`notes://{id}`, with `{+path}` over slashes) is a template; they are the route's arguments.
    """

    uri: str
    name: str
    route: list[str] = []
    text: str | None = None
    data: bytes | None = None
    title: str = ""
    description: str = ""
    mime_type: str = "text/plain"
    variables: list[str] = []
    complete: dict[str, Completion] = {}
    timeout_s: float = PROMPT_TIMEOUT_S
    origin: str = "app"


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """All that an App offers to clients."""

    tools: list[ToolSpec] = []
    prompts: list[PromptSpec] = []
    resources: list[ResourceSpec] = []


__all__ = [
    "ERROR_END", "HAPPY_END", "ActorSpec", "Completion", "Limits", "Offer", "PromptArgument", "PromptSpec",
    "ResourceSpec", "TaskPolicy", "ToolSpec",
]  # fmt: skip
