"""Names of Kubernetes' objects (RFC 1123): lower case letters, digits and `-`, shorter than ours may be.

A name that is one already stays as it is. Any other is mapped, and ends in a digest of what it was, so that two names
never become one; the name itself is kept in an annotation of the object.
"""

from __future__ import annotations

import hashlib
import re

from groundplane.core.errors import InvalidArgument

OBJECT_MAX = 52
"""Leaves room for what controllers append to the name of a Deployment or Job within the 63 characters of a label."""
_LABEL = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_PART = r"[a-z0-9][a-z0-9._-]*"
_IMAGE = re.compile(
    rf"{_PART}(?::[0-9]+(?=/))?(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9._-]*)?(?:@sha256:[0-9a-f]{{64}})?"
)


def object_name(*parts: str) -> str:
    """The parts, joined by `-`, as the name of an object. The same parts give the same name."""
    plain = "-".join(parts)
    if len(plain) <= OBJECT_MAX and _LABEL.fullmatch(plain):
        return plain
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
    mapped = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
    mapped = mapped if mapped[:1].isalpha() else f"n-{mapped}"
    return f"{mapped[: OBJECT_MAX - 9].rstrip('-')}-{digest}"


def check_namespace(value: str) -> str:
    """A namespace of Kubernetes. `invalid_argument` for what it would refuse."""
    if not _NAMESPACE.fullmatch(value):
        raise InvalidArgument(
            f"namespace: {value!r} is no namespace of Kubernetes; use 1 to 63 of a to z, 0 to 9 and '-', "
            "beginning and ending with a letter or a digit"
        )
    return value


def check_image(field: str, value: str) -> str:
    """The reference of an image, as `registry.example.com/acme/plane:1.0`."""
    if not _IMAGE.fullmatch(value):
        raise InvalidArgument(
            f"{field}: {value!r} is no reference of an image; write registry.example.com/acme/plane:1.0"
        )
    return value
