"""What actors are declared with, checked: every mistake names the field and shows the value."""

from __future__ import annotations

from typing import Any, Literal, get_args

from groundplane.core.durations import parse_duration
from groundplane.core.errors import InvalidArgument
from groundplane.core.retry import RetryPolicy
from groundplane.mesh.spec import ACTOR_TIMEOUT_S, ActorSpec

Mode = Literal["payload", "message"]

CONCURRENCY_MAX = 1024


def actor_spec(
    name: str,
    handler: str,
    *,
    timeout: Any = ACTOR_TIMEOUT_S,
    retry: Any = 1,
    retry_timeouts: Any = False,
    concurrency: Any = 1,
    join: Any = False,
    join_timeout: Any = None,
    key: Any = None,
    handler_mode: Any = "payload",
) -> ActorSpec:
    """The spec of an actor whose name is free."""
    if type(concurrency) is not int or not 1 <= concurrency <= CONCURRENCY_MAX:
        raise InvalidArgument(
            f"concurrency: {concurrency!r} of actor {name!r} is not a whole number from 1 to {CONCURRENCY_MAX}"
        )
    for option, value in (("join", join), ("retry_timeouts", retry_timeouts)):
        if type(value) is not bool:
            raise InvalidArgument(f"{option}: {value!r} of actor {name!r} is not True or False")
    if join_timeout is not None and not join:
        raise InvalidArgument(f"join_timeout: {join_timeout!r} of actor {name!r} needs join=True")
    if key is not None and (not isinstance(key, str) or not key):
        raise InvalidArgument(f"key: {key!r} of actor {name!r} is not the name of a payload field")
    if handler_mode not in get_args(Mode):
        raise InvalidArgument(f"handler_mode: {handler_mode!r} of actor {name!r} is not 'payload' or 'message'")
    return ActorSpec(
        name=name,
        handler=handler,
        timeout_s=_seconds("timeout", timeout),
        retry=_policy(name, retry),
        retry_timeouts=retry_timeouts,
        concurrency=concurrency,
        join=join,
        join_timeout_s=ACTOR_TIMEOUT_S if join_timeout is None else _seconds("join_timeout", join_timeout),
        key=key,
        handler_mode=handler_mode,
    )


def _policy(name: str, retry: Any) -> RetryPolicy:
    if isinstance(retry, RetryPolicy):
        return retry
    if type(retry) is not int or retry < 1:
        raise InvalidArgument(
            f"retry: {retry!r} of actor {name!r} is neither attempts in all (1 = never again) nor a RetryPolicy"
        )
    return RetryPolicy(attempts=retry)


def _seconds(field: str, value: Any) -> float:
    if not isinstance(value, int | float | str):
        raise InvalidArgument(f"{field}: {value!r} is not a positive duration; write seconds (30) or '30s', '5m'")
    return parse_duration(field, value)
