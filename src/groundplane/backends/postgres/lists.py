"""Lists as arrays, quickly: psycopg dumps them item by item in Python, a tenth of what accepting a job costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.abc import AdaptContext, DumperKey
from psycopg.adapt import AdaptersMap, PyFormat
from psycopg.types.array import BaseListDumper, ListDumper

_BYTEA_ARRAY_OID = 1001


class Lists(ListDumper):
    """Lists of texts and of bytes (and None) go a short way; all others that of psycopg."""

    def get_key(self, obj: list[Any], format: PyFormat) -> DumperKey:  # noqa: A002 (psycopg's name)
        """See psycopg."""
        return _quick(obj) or super().get_key(obj, format)

    def upgrade(self, obj: list[Any], format: PyFormat) -> BaseListDumper:  # noqa: A002 (psycopg's name)
        """See psycopg."""
        quick = _quick(obj)
        return quick(self.cls, self._tx) if quick else super().upgrade(obj, format)


class _Texts(BaseListDumper):
    """Of no type of its own, like a text: the statement casts it."""

    def __init__(self, cls: type, context: AdaptContext | None = None) -> None:
        super().__init__(cls, context)
        encoding = self.connection.info.encoding if self.connection else "utf-8"
        self._encoding = "utf-8" if encoding == "ascii" else encoding

    def dump(self, obj: Sequence[str | None]) -> bytes:
        """See psycopg."""
        items = ["NULL" if one is None else '"' + one.replace("\\", "\\\\").replace('"', '\\"') + '"' for one in obj]
        array = "{" + ",".join(items) + "}"
        if "\0" in array:
            raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
        return array.encode(self._encoding)


class _Octets(BaseListDumper):
    oid = _BYTEA_ARRAY_OID

    def dump(self, obj: Sequence[bytes | None]) -> bytes:
        """See psycopg."""
        items = ["NULL" if one is None else '"\\\\x' + one.hex() + '"' for one in obj]
        return ("{" + ",".join(items) + "}").encode()


class Context:
    """What connections take their adapters from: psycopg's, with these lists."""

    def __init__(self) -> None:
        self.adapters = AdaptersMap(psycopg.adapters)
        self.adapters.register_dumper(list, Lists)
        self.connection: psycopg.AsyncConnection[Any] | None = None


_QUICK: dict[type, type[BaseListDumper]] = {str: _Texts, bytes: _Octets}


def _quick(items: list[Any]) -> type[BaseListDumper] | None:
    kinds = set(map(type, items))
    kinds.discard(type(None))
    return _QUICK.get(kinds.pop()) if len(kinds) == 1 else None


__all__ = ["Context", "Lists"]
