"""Names of streams and subjects, and back. No input or output.

A bucket's name is `<namespace>__<bucket>`, with `_` written `_u` and `.` written `_d`, so that no two pairs meet.

A key keeps `A-Z a-z 0-9 - _`; `/` stays, and is followed by a `.` when more comes; `.` stays where it stands between
two characters, not after `/` or `.`; every other byte of its UTF-8 form is `=XX`. So both `.` and `/` begin a token,
and a prefix that ends in one is a filter which the server applies.
"""

from __future__ import annotations

import re

from groundplane.core.errors import InvalidArgument

STREAM_CHARS_MAX = 255
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_ESCAPE = re.compile(r"(?:=[0-9A-F]{2})+")


def bucket_token(namespace: str, bucket: str) -> str:
    """The name of a bucket on the server. `invalid_argument` where both are too long together."""
    token = "__".join(name.replace("_", "_u").replace(".", "_d") for name in (namespace, bucket))
    if len(token) + 3 > STREAM_CHARS_MAX:
        raise InvalidArgument(f"bucket: {bucket!r} and namespace {namespace!r} are too long together; shorten one")
    return token


def encoded(key: str, *, more: bool = False) -> str:
    """The tokens of a key. With `more` those that it has at the beginning of a longer key."""
    out: list[str] = []
    begun = False  # whether the present token has a character
    for at, char in enumerate(key):
        last = at + 1 == len(key) and not more
        if char in _PLAIN:
            out.append(char)
        elif char == "/":
            out.append("/" if last else "/.")
        elif char == "." and begun and not last:
            out.append(".")
        else:
            out.append("".join(f"={byte:02X}" for byte in char.encode()))
        begun = not out[-1].endswith(".")
    return "".join(out)


def decoded(tokens: str) -> str | None:
    """The key; None for what is not written as ours, by another client."""
    text = tokens.replace("/.", "/")
    try:
        key = _ESCAPE.sub(lambda match: bytes.fromhex(match[0].replace("=", "")).decode(), text)
    except UnicodeDecodeError:
        return None
    return key if encoded(key) == tokens else None


def filters(prefix: str) -> list[str]:
    """What the tokens of all keys with a prefix match; some others may match too."""
    tokens = encoded(prefix, more=True)
    whole = tokens[: tokens.rfind(".") + 1]
    if whole == tokens and prefix:
        return [f"{whole}>", encoded(prefix)]
    return [f"{whole}>"]
