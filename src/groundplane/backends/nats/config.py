"""Streams and consumers as JetStream takes them. Durations are seconds here and nanoseconds on the wire.

A field that keeps its default is not sent: the server's default counts. Source: NATS ADR-31, 40, 43, 48, 50.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

_SECONDS = ("duplicate_window_s", "max_age_s", "subject_delete_marker_ttl_s", "ack_wait_s", "inactive_threshold_s",
            "idle_heartbeat_s", "backoff_s")  # fmt: skip


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a stream keeps, and for how long. `max_age_s` 0: for ever; -1: no limit."""

    name: str
    subjects: tuple[str, ...] = ()
    description: str = ""
    retention: Literal["", "limits", "interest", "workqueue"] = ""
    discard: Literal["", "old", "new"] = ""
    storage: Literal["", "file", "memory"] = ""
    compression: Literal["", "none", "s2"] = ""
    num_replicas: int = 0
    max_consumers: int = 0
    max_msgs: int = 0
    max_bytes: int = 0
    max_msg_size: int = 0
    max_msgs_per_subject: int = 0
    max_age_s: float = 0.0
    duplicate_window_s: float = 0.0
    subject_delete_marker_ttl_s: float = 0.0
    discard_new_per_subject: bool = False
    allow_rollup_hdrs: bool = False
    allow_direct: bool = False
    allow_msg_ttl: bool = False
    allow_atomic: bool = False
    deny_delete: bool = False
    deny_purge: bool = False
    metadata: dict[str, str] = {}


class ConsumerConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a consumer reads a stream. With `durable_name` it stays; with `name` alone until `inactive_threshold_s`
    without interest.
    """

    name: str = ""
    durable_name: str = ""
    description: str = ""
    deliver_subject: str = ""
    deliver_policy: Literal["", "all", "last", "new", "by_start_sequence", "last_per_subject"] = ""
    opt_start_seq: int = 0
    ack_policy: Literal["", "none", "all", "explicit"] = "explicit"
    filter_subject: str = ""
    filter_subjects: tuple[str, ...] = ()
    max_deliver: int = 0
    max_ack_pending: int = 0
    max_waiting: int = 0
    max_batch: int = 0
    num_replicas: int = 0
    ack_wait_s: float = 0.0
    backoff_s: tuple[float, ...] = ()
    inactive_threshold_s: float = 0.0
    idle_heartbeat_s: float = 0.0
    flow_control: bool = False
    headers_only: bool = False
    mem_storage: bool = False
    metadata: dict[str, str] = {}


def document(config: StreamConfig | ConsumerConfig) -> dict[str, Any]:
    """What is sent."""
    found: dict[str, Any] = msgspec.to_builtins(config)
    if isinstance(config, ConsumerConfig):
        found["ack_policy"] = config.ack_policy or "none"
    for name in _SECONDS:
        if name in found:
            value = found.pop(name)
            found[name[:-2]] = (
                [_nanoseconds(one) for one in value] if isinstance(value, list | tuple) else _nanoseconds(value)
            )
    return found


def differs(wanted: StreamConfig, actual: dict[str, Any]) -> list[str]:
    """The fields that a stream's configuration has otherwise than `wanted` says."""
    return [name for name, value in document(wanted).items() if not _same(value, actual.get(name))]


def _same(wanted: Any, actual: Any) -> bool:
    if isinstance(wanted, dict):  # the server adds metadata of its own
        return isinstance(actual, dict) and all(actual.get(key) == value for key, value in wanted.items())
    if isinstance(wanted, list | tuple) and isinstance(actual, list):
        return sorted(wanted) == sorted(actual)
    return bool(wanted == actual)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
