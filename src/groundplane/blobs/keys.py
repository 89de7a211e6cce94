"""Keys of objects: what may be one, and the reversible form of a key on a file system. No input or output.

A key is 1 to 255 printable Unicode characters: segments divided by `/`, none of them empty, `.` or `..`.

On disk a segment is a file or folder name made of `a-z 0-9 . _ -` and space; every other byte of its UTF-8 form (upper
case too, for file systems that ignore case) is `%xx`. Names longer than 60 bytes of UTF-8 continue in folders, so that
no name is longer than 181 characters. An object's file ends in `@`, a continuation's folder in `+`: neither byte is
ever in an encoded name, so an object `a` and a folder `a` live side by side.
"""

from __future__ import annotations

import functools

from groundplane.core.errors import InvalidArgument

KEY_CHARS_MAX = 255
PIECE_BYTES_MAX = 60
OBJECT, MORE = "@", "+"

_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789._- ")
_NAMES = [chr(byte) if byte in _SAFE else f"%{byte:02x}" for byte in range(256)]


def check_key(key: object) -> str:
    """`key` when it is one; else `invalid_argument`, with reason `path_escape` where it would leave its folder."""
    if not isinstance(key, str) or not 1 <= len(key) <= KEY_CHARS_MAX:
        raise InvalidArgument(f"key: {key!r} must be a string of 1 to {KEY_CHARS_MAX} characters")
    if any(segment in ("", ".", "..") for segment in key.split("/")):
        raise InvalidArgument(
            f"key: {key!r} has a segment that is empty, '.' or '..'; write segments with one '/' between them",
            reason="path_escape",
        )
    return check_characters("key", key)


def check_prefix(prefix: object) -> str:
    """`prefix` when keys can begin with it; the empty one is that of all keys."""
    if not isinstance(prefix, str) or len(prefix) > KEY_CHARS_MAX:
        raise InvalidArgument(f"prefix: {prefix!r} must be a string of at most {KEY_CHARS_MAX} characters")
    return check_characters("prefix", prefix)


def check_characters(field: str, text: str) -> str:
    """`text` when every character is printable (a lone surrogate, a NUL, a line end are not)."""
    if not text.isprintable():
        odd = next(character for character in text if not character.isprintable())
        raise InvalidArgument(f"{field}: {text!r} has the character {odd!r}, which is not printable; leave it out")
    return text


def path_of(key: str) -> list[str]:
    """The names that lead to the object's file, the file's last."""
    *folders, last = (_pieces(segment) for segment in key.split("/"))
    names = [name for pieces in folders for name in (*(one + MORE for one in pieces[:-1]), pieces[-1])]
    return [*names, *(one + MORE for one in last[:-1]), last[-1] + OBJECT]


def decoded(name: str) -> tuple[bytes, str] | None:
    """A name's bytes and its ending (`@`, `+`, or nothing for a segment's folder); None for a name that is not ours."""
    ending = name[-1] if name[-1] in (OBJECT, MORE) else ""
    text = name.removesuffix(ending)
    data = _unescaped(text)
    return None if not data or _escaped(data) != text else (data, ending)


@functools.lru_cache(maxsize=4096)
def _pieces(segment: str) -> tuple[str, ...]:
    data = segment.encode()
    return tuple(_escaped(data[at : at + PIECE_BYTES_MAX]) for at in range(0, len(data), PIECE_BYTES_MAX))


def _escaped(data: bytes) -> str:
    # a piece of a long segment may be "." or "..", which no file system stores
    return "%2e" * len(data) if data in (b".", b"..") else "".join(_NAMES[byte] for byte in data)


def _unescaped(text: str) -> bytes:
    first, *rest = text.split("%")
    try:
        return first.encode("ascii") + b"".join(bytes([int(one[:2], 16)]) + one[2:].encode("ascii") for one in rest)
    except ValueError:
        return b""
