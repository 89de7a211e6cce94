"""What NATS' refusals mean here: JetStream's by its error codes, statuses by their number, the protocol's own by the
fixed words of `-ERR` (it has no numbers). Never by free text.

Sources: nats-server 2.15 `errors.json`; docs.nats.io, "Client Protocol", "-ERR".
"""

from __future__ import annotations

from typing import Any, NamedTuple

from groundplane.core.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    GroundplaneError,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unsupported,
    from_record,
)


class Meaning(NamedTuple):
    """The error's class, its reason, and what to do about it."""

    error: type[
        AlreadyExists
        | Conflict
        | FailedPrecondition
        | Internal
        | InvalidArgument
        | NotFound
        | PermissionDenied
        | ResourceExhausted
        | Unavailable
        | Unsupported
    ]
    reason: str
    remedy: str


STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
WRONG_LAST_SEQUENCE = frozenset({10071, 10164})

_NO_STREAM = Meaning(NotFound, "stream_not_found", "it was deleted, or never made")
_NO_CONSUMER = Meaning(NotFound, "consumer_not_found", "it was deleted, or expired, or never made")
_NO_MESSAGE = Meaning(NotFound, "message_not_found", "it was deleted, or expired, or never stored")
_TAKEN = Meaning(FailedPrecondition, "stream_exists_differently", "it was made with other settings: use another name")
_OVERLAP = Meaning(FailedPrecondition, "subjects_overlap", "another stream takes these subjects: use another plane")
_REVISION = Meaning(Conflict, "wrong_sequence", "somebody wrote meanwhile: read again")
_FULL = Meaning(ResourceExhausted, "server_exhausted", "free storage, or raise the account's or the server's limits")
_NOT_NOW = Meaning(Unavailable, "jetstream_unavailable", "a leader is being elected, or the server is starting")
_NONE = Meaning(FailedPrecondition, "jetstream_disabled", "enable JetStream in the server's or account's settings")
_TOO_LARGE = Meaning(InvalidArgument, "payload_too_large", "send less, or raise max_msg_size")
_TTL = Meaning(InvalidArgument, "ttl_invalid", "write whole seconds, at least 1")
_NO_TTL = Meaning(Unsupported, "ttl_disabled", "the stream was made without allow_msg_ttl")
_CONFIG = Meaning(InvalidArgument, "jetstream_config", "mend the stream's or consumer's settings")
_BATCH = Meaning(Unavailable, "batch_incomplete", "nothing of the batch was stored: send it again")
_BROKEN = Meaning(Unavailable, "jetstream_error", "read the server's log")

MEANINGS: dict[int, Meaning] = {
    STREAM_NOT_FOUND: _NO_STREAM,
    CONSUMER_NOT_FOUND: _NO_CONSUMER,
    10149: _NO_CONSUMER,
    10037: _NO_MESSAGE,
    10043: _NO_MESSAGE,
    10058: _TAKEN,
    10013: _TAKEN,
    10105: _TAKEN,
    10106: _TAKEN,
    10148: _TAKEN,
    10065: _OVERLAP,
    10071: _REVISION,
    10164: _REVISION,
    10070: _REVISION,
    10063: _REVISION,
    10060: Meaning(Conflict, "wrong_stream", "the subject belongs to another stream"),
    10158: Meaning(Unavailable, "jetstream_unavailable", "the same message is being stored: ask again"),
    10002: _FULL,
    10023: _FULL,
    10026: _FULL,
    10027: _FULL,
    10028: _FULL,
    10047: _FULL,
    10077: Meaning(ResourceExhausted, "stream_full", "the stream is at its limit: consume, purge or raise it"),
    10122: _FULL,
    10167: Meaning(ResourceExhausted, "too_many_requests", "ask less often"),
    10210: Meaning(ResourceExhausted, "too_many_requests", "send fewer batches at once"),
    10004: _NOT_NOW,
    10006: _NOT_NOW,
    10007: _NOT_NOW,
    10008: _NOT_NOW,
    10009: _NOT_NOW,
    10118: _NOT_NOW,
    10119: _NOT_NOW,
    10163: _NOT_NOW,
    10194: _NOT_NOW,
    10195: _NOT_NOW,
    10035: _NONE,
    10039: _NONE,
    10076: _NONE,
    10120: _NONE,
    10054: _TOO_LARGE,
    10097: _TOO_LARGE,
    10165: _TTL,
    10166: _NO_TTL,
    10174: Meaning(Unsupported, "batch_disabled", "the stream was made without allow_atomic"),
    10176: _BATCH,
    10185: Meaning(FailedPrecondition, "server_too_old", "upgrade nats-server"),
    10109: Meaning(FailedPrecondition, "stream_sealed", "it takes no changes any more"),
    10003: _CONFIG,
    10025: _CONFIG,
    10052: _CONFIG,
    10074: Meaning(FailedPrecondition, "not_a_cluster", "use replicas=1, or a cluster of enough nodes"),
    10005: Meaning(FailedPrecondition, "not_a_cluster", "have as many nodes with JetStream up, or use fewer replicas"),
}
_BY_STATUS: dict[int, Meaning] = {400: _CONFIG, 404: _NO_MESSAGE, 409: _NOT_NOW, 429: MEANINGS[10167], 503: _NOT_NOW}

_REFUSALS: dict[str, Meaning] = {
    "authorization violation": Meaning(PermissionDenied, "login_refused", "mend user, password, token or creds"),
    "user authentication expired": Meaning(PermissionDenied, "login_refused", "renew the credentials"),
    "user authentication revoked": Meaning(PermissionDenied, "login_refused", "get new credentials"),
    "account authentication expired": Meaning(PermissionDenied, "login_refused", "renew the account"),
    "authentication timeout": Meaning(Unavailable, "broker_unreachable", "the login came too late: look at the load"),
    "maximum connections exceeded": _FULL,
    "maximum account active connections exceeded": _FULL,
    "maximum payload violation": Meaning(InvalidArgument, "payload_too_large", "send less"),
    "maximum subscriptions exceeded": _FULL,
    "secure connection - tls required": Meaning(FailedPrecondition, "tls_failed", "write tls://"),
    "stale connection": Meaning(Unavailable, "connection_lost", "it was silent for too long"),
    "slow consumer": Meaning(Unavailable, "connection_lost", "this process read too slowly"),
    "invalid subject": Meaning(InvalidArgument, "bad_subject", "mend the subject"),
}


def from_api(field: str, error: dict[str, Any]) -> GroundplaneError:
    """The error of an answer of JetStream. `field` begins the message; code and words are in `details`."""
    number, status = int(error.get("err_code", 0)), int(error.get("code", 0))
    meaning = MEANINGS.get(number) or (
        _CONFIG if 400 <= status < 404 else _BY_STATUS.get(status, _BROKEN) if not number else _BROKEN
    )
    words = str(error.get("description", ""))
    return meaning.error(
        f"{field}: NATS answered {number or status} {words!r}; {meaning.remedy}",
        reason=meaning.reason,
        details={"err_code": number, "status": status, "description": words},
    )


def sequence_met(refusal: GroundplaneError) -> int | None:
    """The last sequence that a refused condition met, which JetStream's API has in its words alone; None where it gives
    none (10164: another message is under way).
    """
    _, _, number = str(refusal.details.get("description", "")).partition("wrong last sequence: ")
    return int(number) if number.isdecimal() else None


def from_status(field: str, status: int, words: str) -> GroundplaneError:
    """The error of a message that is only a status."""
    meaning = _BY_STATUS.get(status, _BROKEN)
    return meaning.error(
        f"{field}: NATS answered {status} {words!r}; {meaning.remedy}",
        reason=meaning.reason,
        details={"status": status, "description": words},
    )


def from_refusal(words: str) -> GroundplaneError:
    """The error of `-ERR`: of the connection, or for a permission, of one subject (in `details`)."""
    lowered = words.lower()
    if lowered.startswith("permissions violation"):
        subject = words.partition('"')[2].partition('"')[0]
        return PermissionDenied(
            f"subject: {subject!r}: the server refused ({words}); give the user this permission",
            reason="access_refused",
            details={"subject": subject, "publish": " publish " in lowered},
        )
    meaning = _REFUSALS.get(lowered, Meaning(Unavailable, "connection_lost", "read the server's log"))
    return meaning.error(f"nats: the server refused with {words!r}; {meaning.remedy}", reason=meaning.reason)


def no_responder(subject: str) -> Unavailable:
    """The error of a request that nobody serves."""
    return Unavailable(
        f"subject: nobody serves {subject!r}; start the service, or mend the name",
        reason="no_responder",
        details={"subject": subject},
        retryable=False,
    )


def too_late(what: str, timeout_s: float) -> DeadlineExceeded:
    """The error of an answer that did not come in time."""
    return DeadlineExceeded(
        f"nats: {what!r} was not answered within {timeout_s:g} s; whether it happened is unknown",
        reason="broker_slow",
        details={"timeout_s": timeout_s},
    )


def not_connected(where: str, why: GroundplaneError | None) -> Unavailable:
    """The error of a call while there is no connection: nothing was sent."""
    error = Unavailable(
        f"nats: {where} is not connected now ({why.message if why else 'opening'}); nothing was sent, it reconnects "
        "by itself",
        reason="not_connected",
    )
    error.__cause__ = why
    return error


def again(error: GroundplaneError) -> GroundplaneError:
    """The same error once more, for another who waits: each raises one of its own, all with the same cause."""
    copy = from_record(error.to_record())
    copy.__cause__ = error.__cause__
    return copy
