"""The cache of installed servers: what is there, what an installation would do, doing it once."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from groundplane.core.errors import FailedPrecondition
from groundplane.testing.servers.cache import build, cache_folder, locked
from groundplane.testing.servers.catalog import chosen
from groundplane.testing.servers.contract import Installation, Report, Server, ServerMissing, Source

__all__ = ["Plan", "cache_folder", "find", "folder_of", "install", "plan"]


@dataclass(frozen=True)
class Plan:
    """What installing one server would do; `source` is None where it is there already."""

    server: Server
    installed: Installation | None
    source: Source | None
    obstacles: Sequence[str] = ()
    poorer: Installation | None = None
    """What is there and can be used, but lacks something that `source` would bring."""

    @property
    def words(self) -> str:
        """For people: what, from where, how large, how long."""
        if self.installed is not None:
            return f"{self.server.name}: {self.installed.version} is there already ({self.installed.origin})"
        if self.source is None:
            return f"{self.server.name}: cannot be installed here: {'; '.join(self.obstacles)}"
        one = self.source
        return (
            f"{self.server.name}: {self.server.title} {one.version} from {one.origin}, about {one.size_mb} MB, "
            f"{one.seconds} s: {one.command}"
        )


def folder_of(server: Server, source: Source) -> Path:
    """The folder of the cache for this server's version from this source."""
    return cache_folder() / server.name / f"{source.version}-{source.origin}"


def plan(spec: str) -> Plan:
    """What `install` would do for `NAME` or `NAME@VERSION`."""
    server, sources = chosen(spec)
    there = [(source, source.find(folder_of(server, source))) for source in sources]
    for source, found in there:
        if found is not None and (not source.lacks or "@" in spec):
            return Plan(server, found, None)
    obstacles = [(source, source.obstacle()) for source in sources]
    usable = next((source for source, obstacle in obstacles if obstacle is None), None)
    poorer = next((found for _, found in there if found is not None), None)
    return Plan(server, None, usable, [text for _, text in obstacles if text is not None], poorer)


def find(spec: str) -> Installation:
    """The installation of a server. Raises `ServerMissing` with the command that brings it."""
    one = plan(spec)
    if platform.system() != "Linux":
        variable = f"GROUNDPLANE_TEST_{one.server.name.upper()}_URL"
        raise ServerMissing(f"{spec}: native servers need Linux; name one that runs by {variable}")
    there = one.installed or one.poorer
    if there is not None:
        return there
    hint = f"`groundplane servers install {spec}`" if one.source else "; ".join(one.obstacles)
    words = f" ({one.source.command}, {one.source.size_mb} MB, {one.source.seconds} s)" if one.source else ""
    raise ServerMissing(f"{spec}: {one.server.title} is not installed here; get it: {hint}{words}")


def install(spec: str, report: Report) -> Installation:
    """Install a server and what it needs, where it is not there yet; a second call does nothing. Two at once do not
    collide: the second waits, and finds it done. Raises `InstallFailed`, or `ServerMissing` where no source can work.
    """
    one = plan(spec)
    for need in one.server.needs:
        install(need, report)
    if one.installed is not None:
        return one.installed
    source = one.source
    if source is None:
        if one.poorer is not None:
            return one.poorer
        raise ServerMissing(f"{spec}: {one.words}")
    folder = folder_of(one.server, source)
    with locked(folder):
        found = source.find(folder)
        if found is None:
            build(folder, lambda half: source.install(half, report), report)
            found = source.find(folder)
    if found is None:
        raise FailedPrecondition(f"{spec}: {source.command} ended well, but its programs are not there")
    return found
