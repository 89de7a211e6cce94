"""What a driver answers to a condition that does not hold. No input or output."""

from __future__ import annotations

from groundplane.core.errors import AlreadyExists, Conflict, DeadlineExceeded, InvalidArgument, NotFound
from groundplane.kv.port import BucketOptions, Selection, Write, WriteKind


def refused(write: Write, actual: int) -> AlreadyExists | NotFound | Conflict | None:
    """Why a write may not be done on a key whose live entry has revision `actual`, 0 for none; None where it may."""
    if write.expected is None or write.expected == actual:
        return None
    if write.expected == 0:
        return AlreadyExists(
            f"key: {write.key!r} is there with revision {actual!r}; update it, or choose another key",
            details={"key": write.key, "revision": actual},
        )
    if actual == 0:
        advice = "create it" if write.kind is WriteKind.PUT else "nothing is left to delete"
        return NotFound(
            f"key: {write.key!r} is not there; {advice}",
            details={"key": write.key, "expected": write.expected},
        )
    return Conflict(
        f"revision: {write.key!r} has {actual!r}, not {write.expected!r}; get it and decide anew",
        details={"key": write.key, "expected": write.expected, "actual": actual},
    )


def missing_bucket(options: BucketOptions) -> NotFound:
    """Of a bucket that is only to be looked at."""
    return NotFound(
        f"bucket: {options.bucket!r} is not there; mind its name, or put a first value, which makes it",
        reason="bucket_not_found",
        details={"bucket": options.bucket, "namespace": options.namespace},
    )


def check_after(selection: Selection, last: int) -> Selection:
    """The selection, when the bucket has come to the revision that it begins after."""
    if selection.after is not None and selection.after > last:
        raise InvalidArgument(
            f"after: {selection.after!r} is ahead of the bucket, which is at revision {last!r}: it was made anew; "
            "watch without `after`",
            details={"after": selection.after, "revision": last},
        )
    return selection


def outcome_unknown(key: str) -> DeadlineExceeded:
    """The answer to a write was lost and the key has changed since."""
    return DeadlineExceeded(
        f"key: the answer to a write of {key!r} was lost, and the key was changed since; whether the write was done "
        "is not known: get the entry and decide anew",
        reason="outcome_unknown",
        details={"key": key},
    )
