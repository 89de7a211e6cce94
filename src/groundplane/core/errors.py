"""One base error, twelve codes, and a finer reason for each thing that can go wrong.

`retryable` is a fact of the error, not of its code: the default of a code is only used where neither the reason
nor the raiser says otherwise. Errors cross processes as `ErrorRecord` (`to_record` and `from_record`).
Every reason is a row of `groundplane.core.reasons.REASONS`, from which the documentation page is generated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from groundplane.core.reasons import REASONS

Code = Literal[
    "invalid_argument",
    "not_found",
    "already_exists",
    "conflict",
    "failed_precondition",
    "permission_denied",
    "resource_exhausted",
    "deadline_exceeded",
    "unavailable",
    "unsupported",
    "closed",
    "internal",
]

CODES: tuple[Code, ...] = get_args(Code)
RETRYABLE_BY_DEFAULT: frozenset[Code] = frozenset({"unavailable", "resource_exhausted"})


class ErrorRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error on the wire and at rest. `traceback` and `type` are those of a handler's exception, where there is
    one.
    """

    code: str
    message: str
    reason: str = ""
    details: dict[str, Any] = {}
    retryable: bool = False
    type: str = ""
    traceback: str = ""


class GroundplaneError(Exception):
    """Every error that Groundplane raises. Catch a subclass for one code, or look at `code` and `reason`."""

    code: Code

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        retryable: bool | None = None,
    ) -> None:
        if code not in CODES:
            raise ValueError(f"code: {code!r} is not one of {', '.join(CODES)}")
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.details: dict[str, Any] = dict(details or {})
        self.retryable = _retryable(code, reason) if retryable is None else retryable

    def __str__(self) -> str:
        return f"{self.message} [{self.code}{': ' + self.reason if self.reason else ''}]"

    def __reduce__(self) -> tuple[Any, ...]:
        return from_record, (self.to_record(),)

    def to_record(self) -> ErrorRecord:
        """This error as a value that crosses processes; its cause and Python traceback stay behind."""
        return ErrorRecord(self.code, self.message, self.reason, self.details, self.retryable)


class _Coded(GroundplaneError):
    """A subclass whose code is fixed, so that `except NotFound` reads as it should."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(type(self).code, message, reason=reason, details=details, retryable=retryable)


class InvalidArgument(_Coded):
    """The caller's input is wrong; the message begins with the field. Never retried."""

    code: Code = "invalid_argument"


class NotFound(_Coded):
    """The named thing does not exist."""

    code: Code = "not_found"


class AlreadyExists(_Coded):
    """The thing to be created is there already."""

    code: Code = "already_exists"


class Conflict(_Coded):
    """A revision, a key or a lease was taken by somebody else first."""

    code: Code = "conflict"


class FailedPrecondition(_Coded):
    """The state of the system forbids the call until somebody changes it."""

    code: Code = "failed_precondition"


class PermissionDenied(_Coded):
    """The caller may not do this."""

    code: Code = "permission_denied"


class ResourceExhausted(_Coded):
    """A bound was hit: queue, memory, disk, rate."""

    code: Code = "resource_exhausted"


class DeadlineExceeded(_Coded):
    """The time allowed ran out; the outcome may be unknown."""

    code: Code = "deadline_exceeded"


class Unavailable(_Coded):
    """The backend cannot be reached or does not answer now."""

    code: Code = "unavailable"


class Unsupported(_Coded):
    """The driver declares that it cannot do this."""

    code: Code = "unsupported"


class Closed(_Coded):
    """The object was closed before or during the call."""

    code: Code = "closed"


class Internal(_Coded):
    """A fault of Groundplane, or an exception of a handler."""

    code: Code = "internal"


_BY_CODE: dict[str, type[_Coded]] = {cls.code: cls for cls in _Coded.__subclasses__()}


def from_record(record: ErrorRecord) -> GroundplaneError:
    """The error that a record describes; an unknown code of a newer peer becomes `internal` and keeps its word."""
    cls = _BY_CODE.get(record.code)
    details = record.details
    if cls is None:
        cls, details = Internal, {**details, "code": record.code}
    return cls(record.message, reason=record.reason, details=details, retryable=record.retryable)


def _retryable(code: Code, reason: str) -> bool:
    row = REASONS.get(reason)
    return row.retryable if row is not None else code in RETRYABLE_BY_DEFAULT
