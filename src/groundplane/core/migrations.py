"""Numbered, checksummed schema changes, apart from any dialect: loading them and deciding which are to be applied.

A component ships a folder of files `0001_create.sql`, `0002_add_owner.sql`, … without gaps. A released file never
changes again: its checksum is stored beside the data and compared at every open. How a migration is run is the
matter of a backend; what must be run is decided here, without any input or output.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import re
from collections.abc import Iterable, Sequence

import msgspec

from groundplane.core.errors import FailedPrecondition, Internal, InvalidArgument

_FILE = re.compile(r"(\d{4})_([a-z0-9][a-z0-9_]*)\.sql\Z")
_COMPONENT = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """One file: version from 1 upwards, the name after the number, the text, and the SHA-256 of the text in hex."""

    component: str
    version: int
    name: str
    sql: str
    checksum: str


class AppliedMigration(msgspec.Struct, frozen=True, kw_only=True):
    """What the data says was applied to it."""

    component: str
    version: int
    name: str
    checksum: str


class MigrationSet(msgspec.Struct, frozen=True, kw_only=True):
    """The migrations of one component: the files of `package`, or `scripts` as pairs of file name and text."""

    component: str
    package: str = ""
    scripts: tuple[tuple[str, str], ...] = ()

    def load(self) -> tuple[Migration, ...]:
        """All migrations in order. `invalid_argument` for a bad component name, `internal` for files that are
        missing, misnamed or not numbered 1, 2, 3, …"""
        return _load(self)


def pending(migrations: Sequence[Migration], applied: Iterable[AppliedMigration]) -> tuple[Migration, ...]:
    """The migrations of one component that are still to be applied, in order.

    `failed_precondition` with reason `schema_newer` where the data has a version that is not shipped, and with
    `schema_changed` where an applied migration differs from the shipped one.
    """
    component = migrations[0].component if migrations else ""
    latest = migrations[-1].version if migrations else 0
    done = {one.version: one for one in applied if one.component == component}
    newest = max(done, default=0)
    if newest > latest:
        raise FailedPrecondition(
            f"component: {component!r} has schema version {newest}, this Groundplane knows {latest} at most; "
            "upgrade Groundplane, or use the version that wrote the data",
            reason="schema_newer",
            details={"component": component, "found": newest, "supported": latest},
        )
    for one in migrations:
        before = done.get(one.version)
        if before is not None and before.checksum != one.checksum:
            raise FailedPrecondition(
                f"component: migration {one.version:04d}_{one.name} of {component!r} was applied with checksum "
                f"{before.checksum[:12]!r}, the shipped file has {one.checksum[:12]!r}; restore the released file, "
                "and put the change into a new migration",
                reason="schema_changed",
                details={"component": component, "version": one.version},
            )
    return tuple(one for one in migrations if one.version not in done)


def checksum(sql: str) -> str:
    """SHA-256 in hex of a migration's text, alike for Windows and Unix line ends."""
    return hashlib.sha256(sql.replace("\r\n", "\n").strip().encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def _load(source: MigrationSet) -> tuple[Migration, ...]:
    if not _COMPONENT.match(source.component):
        raise InvalidArgument(
            f"component: {source.component!r} is not a lower-case identifier of at most 63 characters"
        )
    loaded = sorted(
        (_migration(source.component, name, text) for name, text in source.scripts or _files(source.package)),
        key=lambda one: one.version,
    )
    if [one.version for one in loaded] != list(range(1, len(loaded) + 1)) or not loaded:
        found = ", ".join(f"{one.version:04d}_{one.name}" for one in loaded) or "none"
        raise Internal(f"package: the migrations of {source.component!r} must be numbered 0001, 0002, …; found {found}")
    return tuple(loaded)


def _files(package: str) -> list[tuple[str, str]]:
    if not package:
        return []
    folder = importlib.resources.files(package)
    return [(f.name, f.read_text(encoding="utf-8")) for f in folder.iterdir() if f.name.endswith(".sql")]


def _migration(component: str, file_name: str, text: str) -> Migration:
    match = _FILE.match(file_name)
    if match is None:
        raise Internal(f"package: {file_name!r} of {component!r} is not named like 0001_words_of_the_change.sql")
    return Migration(component=component, version=int(match[1]), name=match[2], sql=text, checksum=checksum(text))
