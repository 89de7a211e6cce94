"""Logging in with a key: `.creds` files (a JWT and a seed) and NKey seeds. The seed is read anew at each login.

Source: NATS ADR-14 (JWT library), nkeys: a seed is base32 of two prefix bytes, 32 bytes and a CRC-16. Signing needs
the package `cryptography` (extra `nats`).
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from groundplane.core.errors import FailedPrecondition

_SECTION = re.compile(r"-{3,}BEGIN [^-]+-{3,}\s*([A-Za-z0-9_\-.=]+)\s*-{3,}END [^-]+-{3,}")
_SEED_PREFIX = 18 << 3
_USER_PREFIX = 20 << 3


def login_with_creds(path: str, nonce: str) -> dict[str, str]:
    """What CONNECT says for a `.creds` file. Reads the file."""
    found = _SECTION.findall(_text(path))
    if len(found) != 2:
        raise FailedPrecondition(f"creds: {path!r} does not hold a JWT and a seed; write it with `nsc generate creds`")
    jwt, seed = found
    return {"jwt": jwt, "sig": _sign(path, seed, nonce)}


def login_with_nkey(path: str, nonce: str) -> dict[str, str]:
    """What CONNECT says for a file with the seed of a user (`SU…`). Reads the file."""
    seed = _text(path).strip()
    return {"nkey": public_key(_raw_seed(path, seed)), "sig": _sign(path, seed, nonce)}


def public_key(raw_seed: bytes) -> str:
    """The user's public key (`U…`) of 32 bytes of seed."""
    raw = bytes([_USER_PREFIX]) + _key(raw_seed).public_key().public_bytes_raw()
    return base64.b32encode(raw + _checksum(raw)).decode().rstrip("=")


def _text(path: str) -> str:
    try:
        return Path(path).expanduser().read_text()
    except OSError as error:
        raise FailedPrecondition(f"creds: {path!r} cannot be read ({error.strerror}); mend the path") from error


def _sign(path: str, seed: str, nonce: str) -> str:
    if not nonce:
        raise FailedPrecondition("creds: the server does not ask for a key; it has no operator and no nkeys configured")
    return base64.urlsafe_b64encode(_key(_raw_seed(path, seed)).sign(nonce.encode())).decode().rstrip("=")


def _raw_seed(path: str, seed: str) -> bytes:
    try:
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
    except (ValueError, binascii.Error):
        raw = b""
    kind = (raw[0] & 7) << 5 | raw[1] >> 3 if len(raw) == 36 else 0
    if raw[:1] and raw[0] & 0xF8 == _SEED_PREFIX and kind == _USER_PREFIX and raw[34:] == _checksum(raw[:34]):
        return raw[2:34]
    raise FailedPrecondition(f"creds: {path!r} has no seed of a user (SU…) in it; write it with `nsc generate creds`")


def _checksum(data: bytes) -> bytes:
    return binascii.crc_hqx(data, 0).to_bytes(2, "little")


def _key(raw_seed: bytes):  # type: ignore[no-untyped-def]
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise FailedPrecondition(
            "nats: cryptography is not installed, and keys cannot sign without it; install groundplane[nats]",
            reason="missing_extra",
        ) from error
    return Ed25519PrivateKey.from_private_bytes(raw_seed)
