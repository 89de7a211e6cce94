"""Subjects, streams and headers of a plane on a NATS server: both ways, and nothing of another plane."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from groundplane.backends.nats import MESSAGE_ID, StreamConfig, encode_headers
from groundplane.backends.nats import Message as Arrived
from groundplane.bus.port import DEDUP_WINDOW_S, EVENTS_KEPT_S, RESULTS_KEPT_S, Deliver, Message, Priority
from groundplane.bus.subjects import durable_store, has_wildcard, matches, namespace_token, store_of
from groundplane.core.errors import Unsupported

SUBJECT = "Groundplane-Subject"
REDRIVES = "Groundplane-Redrives"
STORED_AT = "Groundplane-Stored-At"
IDENTITY = "Groundplane-Id"
PATTERN = "groundplane.pattern"
"""Metadata of a consumer: its pattern."""
_OURS = ("Nats-", "Groundplane-")
_REDRIVE = "~redrive"
_DEAD = "~dead"
_SPARED = "~spared"
_URGENCY = {
    Priority.LOW: "commands~low",
    Priority.NORMAL: "commands",
    Priority.HIGH: "commands~high",
    Priority.CRITICAL: "commands~critical",
}
_PRIORITY = {token: priority for priority, token in _URGENCY.items()}
_RESULTS = ("commands.callback.*", "commands.cancel.*")


class Naming:
    """The names of one plane."""

    def __init__(self, namespace: str, *, replicas: int, inbox: str) -> None:
        self.token = namespace_token(namespace)
        self._prefix = f"{self.token}."
        self._redrive = f"{self._prefix}{_REDRIVE}."
        self._inbox = f"{inbox}."
        self._replicas = replicas

    # -- subjects

    def subject(self, message: Message) -> str:
        """Where a message is sent. The subject of an answer is one of the server's, and stays."""
        subject = message.subject
        if subject.startswith(self._inbox):
            return subject
        if message.priority is not Priority.NORMAL and durable_store(subject) == "commands":
            return self._prefix + _URGENCY[message.priority] + subject[len("commands") :]
        return self._prefix + subject

    def patterns(self, pattern: str) -> list[str]:
        """What to subscribe to for a pattern of the bus: also the commands beside it."""
        first, dot, rest = pattern.partition(".")
        tokens = _URGENCY.values() if first == "commands" and dot and durable_store(pattern) == "commands" else [first]
        return [f"{self._prefix}{token}{dot}{rest}" for token in tokens]

    def taker(self, pattern: str, deliver: Deliver) -> Callable[[Arrived], None]:
        """What hands on an arrived message as the bus knows it, unless it is not on `pattern` (its own names have a
        `~`).
        """
        if has_wildcard(pattern) or durable_store(pattern) == "commands":
            return partial(self._arrived, pattern, deliver)
        durable = durable_store(pattern) is not None

        def take(message: Arrived) -> None:
            payload, reply_to = message.payload, "" if durable else message.reply
            if not message.head:
                deliver(Message(subject=pattern, payload=payload, reply_to=reply_to))
                return
            id_, headers = message.headers.get(MESSAGE_ID, ""), carried(message)
            deliver(Message(subject=pattern, payload=payload, id=id_, headers=headers, reply_to=reply_to))

        return take

    def _arrived(self, pattern: str, deliver: Deliver, message: Arrived) -> None:
        subject, priority = self._plain(message.subject)
        if not subject or (has_wildcard(pattern) and not matches(pattern, subject)):
            return
        deliver(
            Message(
                subject=subject,
                payload=message.payload,
                id=message.headers.get(MESSAGE_ID, ""),
                headers=carried(message),
                reply_to="" if durable_store(subject) else message.reply,
                priority=priority,
            )
        )

    def delivered(self, message: Arrived) -> Message:
        """A durable message as the bus knows it; a redriven one under its first subject."""
        headers = message.headers
        subject, priority = self._plain(message.subject)
        identity = headers.get(MESSAGE_ID, "")
        if not subject:
            subject, identity = headers.get(SUBJECT, ""), headers.get(IDENTITY, "")
            word = message.subject.split(".")[2].upper()
            priority = Priority.__members__.get(word, priority)
        return Message(
            subject=subject, payload=message.payload, id=identity, headers=carried(message), priority=priority
        )

    def redriven_from(self, message: Arrived) -> tuple[int, int]:
        """How often a durable message came back from the dead, and when it was first stored (Unix ms); else 0, 0."""
        if not message.subject.startswith(self._redrive):
            return 0, 0
        found = [message.headers.get(name, "") for name in (REDRIVES, STORED_AT)]
        redrives, stored_at = (int(one) if one.isascii() and one.isdecimal() else 0 for one in found)
        return redrives, stored_at

    def _plain(self, subject: str) -> tuple[str, Priority]:
        if not subject.startswith(self._prefix):
            return "", Priority.NORMAL
        first, dot, rest = subject[len(self._prefix) :].partition(".")
        if first in _PRIORITY:
            return f"commands{dot}{rest}", _PRIORITY[first]
        return ("" if "~" in first else f"{first}{dot}{rest}"), Priority.NORMAL

    # -- streams

    @property
    def events(self) -> str:
        """The stream of events."""
        return f"bus+{self.token}+events"

    @property
    def results(self) -> str:
        """The stream of results."""
        return f"bus+{self.token}+results"

    @property
    def dead(self) -> str:
        """The stream of dead letters."""
        return f"bus+{self.token}+dead"

    @property
    def all_subjects(self) -> str:
        """What all streams of the plane lie within."""
        return f"{self._prefix}>"

    def stream_of(self, subject: str) -> str:
        """The stream that keeps a subject or pattern."""
        store = store_of(subject)
        if store != "commands":
            return self.events if store == "events" else self.results
        service = subject.split(".")[1]
        if service in "*>":
            raise Unsupported(
                f"pattern: {subject!r} takes commands of every service; on NATS name one: commands.<service>.*"
            )
        return f"bus+{self.token}+commands+{service}"

    def stream(self, name: str) -> StreamConfig:
        """The configuration of one of these streams."""
        _, _, kind, *service = name.split("+")
        subjects: tuple[str, ...]
        if kind == "events":
            subjects = (f"{self._prefix}events.>", f"{self._prefix}{_REDRIVE}.events.>")
            return self._config(name, subjects, max_age_s=EVENTS_KEPT_S)
        if kind == "results":
            subjects = tuple(self._prefix + one for one in (*_RESULTS, f"{_SPARED}.*.*"))
            return self._config(name, subjects, max_age_s=RESULTS_KEPT_S, last_alone=True)
        if kind == "dead":
            return self._config(name, (f"{self._prefix}{_DEAD}.>",))
        subjects = tuple(f"{self._prefix}{token}.{service[0]}.>" for token in _URGENCY.values())
        redriven = tuple(f"{self._prefix}{_REDRIVE}.{one.name.lower()}.{service[0]}.>" for one in Priority)
        return self._config(name, subjects + redriven, until_done=True)

    def filters(self, name: str, pattern: str, priority: Priority | None) -> tuple[str, ...]:
        """What a consumer is given: its pattern, and what is redriven to it alone."""
        if priority is None:
            return f"{self._prefix}{pattern}", self.redriven(name, pattern, Priority.NORMAL)
        return (
            f"{self._prefix}{_URGENCY[priority]}{pattern[len('commands') :]}",
            self.redriven(name, pattern, priority),
        )

    def redriven(self, name: str, subject: str, priority: Priority) -> str:
        """Where a dead letter of the consumer `name` goes back to."""
        first, service = subject.split(".")[:2]
        if first == "events":
            return f"{self._prefix}{_REDRIVE}.events.{name}"
        return f"{self._prefix}{_REDRIVE}.{priority.name.lower()}.{service}.{name}"

    def spared(self, consumer: str, seq: int) -> str:
        """Where it is counted how often a message was handed to a consumer without costing an attempt."""
        return f"{self._prefix}{_SPARED}.{consumer}.{seq}"

    def dead_subject(self, queue: str) -> str:
        """Where dead letters of a consumer lie; of all with `*`."""
        return f"{self._prefix}{_DEAD}.letter.{queue}"

    @property
    def dead_payload_subject(self) -> str:
        """Where payloads lie that are too large to share a message with their letter."""
        return f"{self._prefix}{_DEAD}.payload"

    def _config(
        self,
        name: str,
        subjects: tuple[str, ...],
        *,
        max_age_s: float = 0.0,
        last_alone: bool = False,
        until_done: bool = False,
    ) -> StreamConfig:
        return StreamConfig(
            name=name,
            subjects=subjects,
            description="Groundplane",
            retention="workqueue" if until_done else "limits",
            storage="file",
            num_replicas=self._replicas,
            max_age_s=max_age_s,
            max_msgs_per_subject=1 if last_alone else 0,
            duplicate_window_s=DEDUP_WINDOW_S,
            allow_direct=True,
        )


def head_of(message: Message) -> bytes:
    """The headers of a message as bytes, its id among them."""
    if message.headers:
        return encode_headers({**message.headers, MESSAGE_ID: message.id} if message.id else message.headers)
    return encode_headers({MESSAGE_ID: message.id}) if message.id else b""


def carried(message: Arrived) -> dict[str, str]:
    """The sender's headers, without those of the server and of this driver."""
    return (
        {name: value for name, value in message.headers.items() if not name.startswith(_OURS)} if message.head else {}
    )
