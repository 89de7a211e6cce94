"""What an API key looks like: `gp_<id>_<secret>`. The id is public and finds the key; the secret has 256 bits.

At rest there is the SHA-256 of the whole key: it needs no salt and no slow hash, because nobody guesses 256 bits.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets

from groundplane.core.secrets import Secret

KEY_CHARS_MAX = 128
_KEY = re.compile(r"gp_(?P<id>[a-z2-7]{16})_[A-Za-z0-9_-]{43}")


def new_key() -> tuple[str, Secret]:
    """An id and the whole key, from the system's random source."""
    key_id = base64.b32encode(secrets.token_bytes(10)).decode().lower()
    return key_id, Secret(f"gp_{key_id}_{secrets.token_urlsafe(32)}")


def key_id_of(text: str) -> str | None:
    """The id in a key; None for what cannot be one."""
    found = _KEY.fullmatch(text) if len(text) <= KEY_CHARS_MAX else None
    return found["id"] if found is not None else None


def digest_of(text: str) -> bytes:
    """The SHA-256 of a key, or of a session's id."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
