"""Errors of the store, by code: the `<Code>` of its answer, else the HTTP status, else that there was no answer."""

from __future__ import annotations

import re
from typing import Any

from groundplane.backends.s3.address import S3Address
from groundplane.core.errors import (
    Conflict,
    FailedPrecondition,
    GroundplaneError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)

_CODE = re.compile(r'<Error>\s*<Code>(\w+)</Code>|(?<![\w"])code: "(\w+)"')  # of an answer; of one of many deletions
_STATUS = re.compile(r"status code: (\d{3})")

_KEYS = "mend the credentials in the URL, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_TABLE: dict[str, tuple[type[Any], str, str]] = {
    "NoSuchBucket": (NotFound, "bucket_not_found", "create it, add create=true to the URL, or mend the URL"),
    "NoSuchKey": (NotFound, "", "look at `list`"),
    "NoSuchVersion": (NotFound, "", "look at `versions`"),
    "NoSuchUpload": (Conflict, "", "the upload was ended by somebody else; begin again"),
    "InvalidAccessKeyId": (PermissionDenied, "store_keys_refused", _KEYS),
    "SignatureDoesNotMatch": (PermissionDenied, "store_keys_refused", _KEYS),
    "ExpiredToken": (PermissionDenied, "store_keys_refused", "renew the credentials"),
    "InvalidToken": (PermissionDenied, "store_keys_refused", "renew the credentials"),
    "AccessDenied": (PermissionDenied, "store_access_refused", "allow it in the bucket's or the user's policy"),
    "AllAccessDisabled": (PermissionDenied, "store_access_refused", "allow it in the bucket's or the user's policy"),
    "RequestTimeTooSkewed": (FailedPrecondition, "clock_skew", "set the clock of this machine, or of the server"),
    "PreconditionFailed": (Conflict, "", "read it again"),
    "ConditionalRequestConflict": (Conflict, "", "read it again"),
    "SlowDown": (ResourceExhausted, "store_busy", "try again later"),
    "IncompleteBody": (Unavailable, "store_error", "the store lost a part of what was sent: look at its log and disk"),
    "RequestTimeout": (Unavailable, "store_error", "the network is slow, or the store was; try again"),
    "XMinioStorageFull": (ResourceExhausted, "disk_full", "free space on the store"),
    "QuotaExceeded": (ResourceExhausted, "disk_full", "free space in the bucket, or raise its quota"),
    "XMinioAdminBucketQuotaExceeded": (ResourceExhausted, "disk_full", "free space in the bucket, or raise its quota"),
    "EntityTooLarge": (InvalidArgument, "payload_too_large", "send less"),
    "KeyTooLongError": (InvalidArgument, "", "use a shorter key"),
    "XMinioInvalidObjectName": (InvalidArgument, "", "use another key"),
    "MetadataTooLarge": (InvalidArgument, "", "put less into metadata"),
    "MalformedXML": (InvalidArgument, "", "this store does not know one of the rules; leave it out"),
    "InvalidArgument": (InvalidArgument, "", "this store does not know what it was told"),
    "InvalidRequest": (InvalidArgument, "", "this store does not take it"),
    "NotImplemented": (Unsupported, "", "this store cannot do it"),
    "PermanentRedirect": (InvalidArgument, "", "mend region and endpoint in the URL"),
    "AuthorizationHeaderMalformed": (InvalidArgument, "", "mend the region in the URL"),
}  # fmt: skip
_BY_STATUS: dict[int, tuple[type[Any], str, str]] = {
    401: (PermissionDenied, "store_keys_refused", _KEYS),
    403: (PermissionDenied, "store_access_refused", f"{_KEYS}, or allow it in the bucket's policy"),
    404: (NotFound, "", "look at `list`"),
    409: (Conflict, "", "read it again"),
    412: (Conflict, "", "read it again"),
    429: (ResourceExhausted, "store_busy", "try again later"),
    501: (Unsupported, "", "this store cannot do it"),
    507: (ResourceExhausted, "disk_full", "free space on the store"),
}


def extra_missing() -> FailedPrecondition:
    """What to raise where obstore or boto3 cannot be imported."""
    return FailedPrecondition(
        "blobs: s3:// needs the packages of the extra s3; pip install 'groundplane[s3]'", reason="missing_extra"
    )


def code_of(error: BaseException) -> tuple[str, int]:
    """The store's code and the HTTP status in an error of obstore or boto3; "" and 0 where there was no answer."""
    response = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:
        code = str(response["Error"].get("Code", ""))
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return ("" if code.isdecimal() else code), status
    text = str(error)
    codes, number = _CODE.findall(text), _STATUS.search(text)  # the last code: an odd key may stand before it
    return ("".join(codes[-1]) if codes else ""), (int(number[1]) if number else 0)


def translate(error: BaseException, doing: str, address: S3Address) -> GroundplaneError:
    """The error of ours. `doing` begins with the field and says what was tried (`key: reading 'a'`)."""
    code, status = code_of(error)
    row = _TABLE.get(code) or _BY_STATUS.get(status)
    said = code or (f"HTTP {status}" if status else "")
    details = {key: value for key, value in (("code", code), ("status", status)) if value}
    if row is not None:
        kind, reason, remedy = row
        return _made(kind, f"{doing} in {address.shown} failed ({said}); {remedy}", reason, details)
    if status >= 500:
        return Unavailable(
            f"{doing} in {address.shown} failed ({said}); look at the store's log",
            reason="store_error",
            details=details,
        )
    if status:
        return FailedPrecondition(f"{doing} in {address.shown} was refused ({said})", details=details)
    return Unavailable(
        f"{doing}: the store of {address.shown} takes no connection, or does not answer; start it, or mend `endpoint`",
        reason="store_unreachable",
    )


def _made(kind: type[Any], message: str, reason: str, details: dict[str, Any]) -> GroundplaneError:
    made: GroundplaneError = kind(message, reason=reason, details=details)
    return made
