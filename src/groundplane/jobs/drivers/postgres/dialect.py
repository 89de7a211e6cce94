"""Statements that are written once for every store, as PostgreSQL takes them; and what its texts cannot hold."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from groundplane.jobs.drivers.unit import Bindings

_TABLE = re.compile(r"\b(FROM|JOIN|INTO|UPDATE)\s+(jobs|job_[a-z]+)\b")
_NAMED = re.compile(r"(?<!:):([a-z_]+)\b")
_OF_SEVERAL = re.compile(r"\b(max|min)\((?=[^()]*,)")  # SQLite's max(a, b); the aggregate has one argument
_GREATEST = {"max": "GREATEST(", "min": "LEAST("}


@functools.lru_cache(maxsize=512)
def translated(sql: str, schema: str) -> str:
    """The statement with its tables in `schema`. Nothing depends on settings of the session: PgBouncer shares it."""
    sql = _OF_SEVERAL.sub(lambda found: _GREATEST[found[1]], sql)
    sql = _NAMED.sub(r"%(\1)s", sql.replace("?", "%s"))
    return _TABLE.sub(rf"\1 {schema}.\2", sql)


def storable(bindings: Bindings) -> Bindings:
    """The bindings without NUL characters in texts."""
    values = bindings.values() if isinstance(bindings, Mapping) else bindings
    if not any(type(value) is str and "\0" in value for value in values):
        return bindings
    if isinstance(bindings, Mapping):
        return {name: text(value) for name, value in bindings.items()}
    return tuple(text(value) for value in bindings)


def text(value: Any) -> Any:
    """A value whose text can be stored."""
    return value.replace("\0", "\ufffd") if type(value) is str else value
