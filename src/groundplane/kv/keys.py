"""Keys and buckets: what may be one. No input or output."""

from __future__ import annotations

from groundplane.core.errors import InvalidArgument

KEY_CHARS_MAX = 255


def check_key(key: object, field: str = "key") -> str:
    """`key` when it is 1 to 255 printable Unicode characters; else `invalid_argument`."""
    if not isinstance(key, str) or not 1 <= len(key) <= KEY_CHARS_MAX:
        raise InvalidArgument(f"{field}: {_shown(key)} must be a string of 1 to {KEY_CHARS_MAX} characters")
    return _check_characters(field, key)


def check_prefix(prefix: object) -> str:
    """`prefix` when keys can begin with it; the empty one is that of all keys."""
    if not isinstance(prefix, str) or len(prefix) > KEY_CHARS_MAX:
        raise InvalidArgument(f"prefix: {_shown(prefix)} must be a string of at most {KEY_CHARS_MAX} characters")
    return _check_characters("prefix", prefix)


def _check_characters(field: str, text: str) -> str:
    if not text.isprintable():  # surrogates are not printable either: what is left has a UTF-8 form
        bad = next(one for one in text if not one.isprintable())
        raise InvalidArgument(f"{field}: {text!r} has {bad!r}, which is not printable; leave it out")
    return text


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
