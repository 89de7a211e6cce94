"""One object in one file: its bytes first, then its info, so that both are replaced by one rename.

Layout: content | info as JSON | length of the info, 8 bytes big endian | 8 bytes magic.
"""

from __future__ import annotations

import os

import msgspec

from groundplane.blobs.port import BlobInfo
from groundplane.core.errors import Internal

_MAGIC = b"GPBLOB1\n"
_TAIL = 16
_INFO_BYTES_MAX = 65_536
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(BlobInfo)


def trailer(info: BlobInfo) -> bytes:
    """What follows the content."""
    text = _encoder.encode(info)
    return text + len(text).to_bytes(8, "big") + _MAGIC


def read_info(descriptor: int, path: str) -> BlobInfo:
    """The info at the end of an open object; `internal` (`checksum_mismatch`) where the file is not whole."""
    end = os.fstat(descriptor).st_size
    guess = os.pread(descriptor, 1024, max(0, end - 1024))
    length = int.from_bytes(guess[-_TAIL:-8], "big") if guess[-8:] == _MAGIC and len(guess) >= _TAIL else -1
    if not 0 < length <= min(_INFO_BYTES_MAX, end - _TAIL):
        raise _damaged(path, "it has no trailer")
    text = guess[-_TAIL - length : -_TAIL]
    if length + _TAIL > len(guess):
        text = os.pread(descriptor, length, end - _TAIL - length)
    try:
        info = _decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise _damaged(path, str(error)) from error
    if info.size != end - _TAIL - length:
        raise _damaged(path, f"it has {end - _TAIL - length} bytes, not {info.size}")
    return info


def _damaged(path: str, why: str) -> Internal:
    return Internal(
        f"object: the file {path!r} is damaged ({why}); restore it from a backup", reason="checksum_mismatch"
    )
