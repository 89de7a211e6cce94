"""Names, subjects and patterns of the bus: what may be one, decided before anything is sent.

    rpc.<service>.<method>                  requests, to one instance of the service
    rpc.<service>.<method>.<instance>       requests to that instance
    events.<domain>.<type>                  events; a type may be several names
    commands.<service>.<command>            commands, to one handler
    commands.progress.<id>                  how far a command is
    commands.callback.<id>                  how a command ended; kept, to be read again
    commands.cancel.<id>                    the wish to cancel a command; kept
    control.cancel.<service>                requests that their callers gave up
    control.presence.<service>              instances of a service: here, or leaving
    control.who.<service>                   asks them to tell

A name matches `[A-Za-z0-9][A-Za-z0-9_-]{0,63}`. In a pattern `*` stands for one name, a trailing `>` for one or more.
"""

from __future__ import annotations

import functools
import re
from typing import Literal

from groundplane.core.errors import InvalidArgument

SUBJECT_MAX = 255
RESERVED_SERVICES = frozenset({"progress", "callback", "cancel"})
"""Of commands: these tokens stand where a service would."""
Store = Literal["events", "commands", "results"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def check_token(field: str, value: str) -> str:
    """`value` when it is one name of the bus."""
    if not isinstance(value, str) or not _is_name(value):  # type: ignore[redundant-expr]
        raise InvalidArgument(
            f"{field}: {value!r} is not a name; use 1 to 64 ASCII letters, digits, '_' or '-', beginning with a letter "
            "or a digit",
            reason="bad_subject",
        )
    return value


def check_subject(field: str, value: str) -> str:
    """`value` when it is a subject to publish on: names joined by dots, at most 255 characters, no wildcards."""
    _check_text(field, value)
    return _checked_subject(field, value)


@functools.lru_cache(maxsize=4096)
def _checked_subject(field: str, value: str) -> str:
    for token in value.split("."):
        if not _NAME.fullmatch(token):
            raise InvalidArgument(f"{field}: {value!r} {_complaint(token)}", reason="bad_subject")
    return value


def event_subject(domain: str, event_type: str) -> str:
    """What events of a domain and type are published on."""
    check_token("domain", domain)
    _check_text("type", event_type)
    return _event_subject(domain, event_type)


@functools.lru_cache(maxsize=4096)
def _event_subject(domain: str, event_type: str) -> str:
    check_subject("type", event_type)
    return check_subject("subject", f"events.{domain}.{event_type}")


def check_pattern(field: str, value: str) -> str:
    """`value` when it is a pattern to subscribe with: names or `*`, perhaps a trailing `>`, and at least one name."""
    _check_text(field, value)
    tokens = value.split(".")
    for place, token in enumerate(tokens):
        if token == "*" or (token == ">" and place == len(tokens) - 1):
            continue
        if token == ">":
            raise InvalidArgument(f"{field}: {value!r} has '>' before its end; it stands last", reason="bad_subject")
        if not _NAME.fullmatch(token):
            raise InvalidArgument(f"{field}: {value!r} {_complaint(token)}", reason="bad_subject")
    if all(token in "*>" for token in tokens):
        raise InvalidArgument(f"{field}: {value!r} has wildcards alone; name at least one part", reason="bad_subject")
    return value


def check_service(field: str, value: str) -> str:
    """`value` when it may be a service that takes commands."""
    if check_token(field, value) in RESERVED_SERVICES:
        raise InvalidArgument(
            f"{field}: {value!r} stands for subjects of the bus itself; choose another", reason="bad_subject"
        )
    return value


def two_parts(field: str, value: object, shape: str, *, more: bool = False) -> tuple[str, str]:
    """The two parts of a `value` of that shape, as `service.method`; with `more` the second may have dots."""
    first, _, second = value.partition(".") if isinstance(value, str) else ("", "", "")
    if not (first and second) or ("." in second and not more):
        raise InvalidArgument(f"{field}: {value!r} is not {shape}", reason="bad_subject")
    return first, second


def has_wildcard(pattern: str) -> bool:
    """Whether it is a pattern rather than one subject."""
    return "*" in pattern or pattern.endswith(">")


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject fits a pattern. Both are valid."""
    return pattern == subject or (has_wildcard(pattern) and _expression(pattern).fullmatch(subject) is not None)


def overlap(one: str, other: str) -> bool:
    """Whether some subject fits both patterns."""
    left, right = one.split("."), other.split(".")
    for a, b in zip(left, right, strict=False):
        if a == ">" or b == ">":
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(left) == len(right)


def store_of(subject: str) -> Store:
    """Where a durable message of this subject is kept: `events` by age, `commands` until done, of `results` the last
    of each subject.
    """
    store = durable_store(subject)
    if store is None:
        raise InvalidArgument(
            f"subject: {subject!r} is not durable; events.…, commands.<service>.<command>, commands.callback.<id> and "
            "commands.cancel.<id> are",
            reason="bad_subject",
        )
    return store


def durable_store(subject: str) -> Store | None:
    """`store_of`, and None for a subject that is not durable."""
    first, _, rest = subject.partition(".")
    if first == "events":
        return "events"
    if first == "commands":
        second = rest.partition(".")[0]
        if second in ("callback", "cancel"):
            return "results"
        if second != "progress":
            return "commands"
    return None


def namespace_token(namespace: str) -> str:
    """A namespace as one token of a server's subjects and streams: `acme`, or `acme~eu` of `acme.eu`."""
    return namespace.replace(".", "~")


@functools.lru_cache(maxsize=4096)
def _is_name(value: str) -> bool:
    return _NAME.fullmatch(value) is not None


@functools.lru_cache(maxsize=1024)
def _expression(pattern: str) -> re.Pattern[str]:
    tokens = [{"*": r"[^.]+", ">": r".+"}.get(token) or re.escape(token) for token in pattern.split(".")]
    return re.compile(r"\.".join(tokens))


def _check_text(field: str, value: object) -> None:
    if not isinstance(value, str) or not value or len(value) > SUBJECT_MAX:
        raise InvalidArgument(
            f"{field}: {value!r} must have 1 to {SUBJECT_MAX} characters: names joined by dots", reason="bad_subject"
        )


def _complaint(token: str) -> str:
    if not token:
        return "has an empty part; write names joined by single dots"
    if "*" in token or ">" in token:
        return f"has a wildcard in {token!r}; '*' and '>' stand alone, and only where a subscription begins"
    return f"has {token!r}, which is no name: 1 to 64 ASCII letters, digits, '_' or '-'"
