"""Names of objects in a bucket, and labels of objects as headers. No input or output.

A key's name keeps the order of keys and shows the key: `reports/2026.json` is `reports/2026.json!`. The `!` at the end
keeps an object `a` apart from the folder of `a/b`: stores on a file system cannot have both, or list only one. It is
less than any other character of a name, so that `a` is listed before `a-b` and `a/b`; therefore a space is written
`!0` and a `!` itself `!1`. A segment that grows to 200 bytes goes on in a folder (`!2/+`), as file systems end names at
255. A name over 1024 bytes ends in `!4` and the SHA-256 of its key, which then stands in a header.

With `keys=plain` a name is the key itself: for buckets that others read and write, on stores that allow it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping

import msgspec

from groundplane.blobs.port import BlobInfo, PutOptions
from groundplane.core.errors import Internal, InvalidArgument

NAME_BYTES_MAX = 1024
HEADERS_BYTES_MAX = 2048
SEGMENT_BYTES = 200

_END, _BREAK, _HASHED = "!", "!2/+", "!4"
_ESCAPES = {" ": "!0", "!": "!1"}
_HASH_LENGTH = len(_HASHED) + 64 + len(_END)
_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,60}")
_PLAIN_VALUE = re.compile(r"[!-~]([ -~]{0,510}[!-~])?")
_OURS = "groundplane-"
_CHECKSUM, _MODIFIED, _KEY, _MORE = (f"{_OURS}{one}" for one in ("sha256", "modified", "key", "more"))


class Names:
    """Keys as names below one prefix of a bucket, and back."""

    def __init__(self, prefix: str, *, plain: bool = False) -> None:
        self.folder = prefix
        self._head = f"{prefix}/" if prefix else ""
        self._plain = plain

    def name(self, key: str) -> str:
        """The whole name of a key's object. `invalid_argument` for a key that is too long for a plain one."""
        name = self._head + (key if self._plain else _encoded(key) + _END)
        if len(name.encode()) <= NAME_BYTES_MAX:
            return name
        if self._plain:
            raise InvalidArgument(f"key: {key!r} is over {NAME_BYTES_MAX} bytes with its prefix; use a shorter one")
        return self._cut(name) + _HASHED + hashlib.sha256(key.encode()).hexdigest() + _END

    def start(self, prefix: str) -> str:
        """What the names of all keys with this prefix begin with."""
        return self._cut(self._head + (prefix if self._plain else _encoded(prefix)))

    def before(self, start: str) -> str | None:
        """A text that is less than every name that begins with `start`, and not less than those before them."""
        if not self._plain or not start:
            return start or None  # a marked name is longer than what it begins with
        last = ord(start[-1]) - 1
        return start[:-1] + ("" if 0xD800 <= last <= 0xDFFF else f"{chr(last)}\U0010fffd")

    def key(self, name: str) -> str | None:
        """The key of a name, "" for one that stands in a header, None for an object that is not ours."""
        text = name.removeprefix(self._head)
        if self._plain:
            return text
        if not text.endswith(_END):
            return None
        if len(text) >= _HASH_LENGTH and text[-_HASH_LENGTH:].startswith(_HASHED):
            return ""
        return _decoded(text[: -len(_END)])

    def _cut(self, name: str) -> str:
        room = NAME_BYTES_MAX - _HASH_LENGTH
        data = name.encode()
        if len(data) <= room:
            return name
        short = data[:room].decode(errors="ignore")
        # never inside of an escape: what is left begins every name of the key
        return re.sub(r"!(2/?)?$", "", short)


def _encoded(key: str) -> str:
    out: list[str] = []
    size = 0
    for character in key:
        if character == "/":
            out.append("/")
            size = 0
            continue
        code = _ESCAPES.get(character, character)
        out.append(code)
        size += len(code.encode())
        if size >= SEGMENT_BYTES:
            out.append(_BREAK)
            size = 1
    return "".join(out)


def _decoded(text: str) -> str | None:
    joined = text.replace(_BREAK, "")
    plain = joined.replace("!0", " ").replace("!1", "\0")
    if "!" in plain:
        return None
    key = plain.replace("\0", "!")
    return key if _encoded(key) == text else None


def labels(key: str, name_key: str | None, checksum: str, modified_at: int, options: PutOptions) -> dict[str, str]:
    """The metadata headers of an object. `invalid_argument` where S3's 2 KiB do not hold them.

    Plain labels are headers of their own, so that other programs see them; what a header cannot carry goes into one.
    """
    found = {_CHECKSUM: checksum, _MODIFIED: str(modified_at)}
    if name_key == "":
        found[_KEY] = base64.b64encode(key.encode()).decode()
    more = {}
    for label, value in options.metadata.items():
        if _PLAIN_NAME.fullmatch(label) and not label.startswith(_OURS) and _PLAIN_VALUE.fullmatch(value):
            found[label] = value
        else:
            more[label] = value
    if more:
        found[_MORE] = base64.b64encode(msgspec.json.encode(more)).decode()
    size = sum(len(label) + len(value) for label, value in found.items())
    if size > HEADERS_BYTES_MAX:
        raise InvalidArgument(
            f"metadata: of {key!r} it takes {size} bytes of headers, and S3 has {HEADERS_BYTES_MAX}; store an object "
            "instead"
        )
    return found


def info_of(key: str, size: int, etag: str, modified_at: int, headers: Mapping[str, str]) -> BlobInfo:
    """What an object's headers tell. One that others have put has an empty checksum, which is not verified."""
    given = {name.lower(): value for name, value in headers.items()}
    metadata = {name: value for name, value in given.items() if not name.startswith(_OURS) and name not in _STANDARD}
    try:
        if _MORE in given:
            metadata |= msgspec.json.decode(base64.b64decode(given[_MORE]), type=dict[str, str])
        if not key:
            key = base64.b64decode(given[_KEY]).decode()
        changed = int(given.get(_MODIFIED, modified_at))
    except (msgspec.MsgspecError, binascii.Error, ValueError, KeyError) as error:
        raise Internal(
            f"key: the headers of {key!r} are damaged ({error!r}); store it again", reason="checksum_mismatch"
        ) from error
    return BlobInfo(
        key=key,
        size=size,
        etag=etag,
        checksum=given.get(_CHECKSUM, ""),
        modified_at=changed,
        content_type=given.get("content-type", "application/octet-stream"),
        metadata=metadata,
    )


_STANDARD = frozenset(
    {"content-type", "content-encoding", "content-language", "content-disposition", "cache-control", "storage-class"}
)
