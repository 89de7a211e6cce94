"""Several servers at once: started side by side, in one keeper."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from groundplane.core.errors import GroundplaneError, InvalidArgument, PermissionDenied
from groundplane.testing.servers.catalog import chosen
from groundplane.testing.servers.handles import Handle, KeeperClient
from groundplane.testing.servers.instance import temporary_folder


def users_keeper() -> KeeperClient:
    """The keeper of `groundplane servers up`: one for each user of the machine, without an owner, until `down`."""
    folder = Path(temporary_folder()) / f"groundplane-servers-{os.getuid()}"
    if folder.exists() and folder.stat().st_uid != os.getuid():
        raise PermissionDenied(f"servers: {str(folder)!r} belongs to somebody else; remove it, or set TMPDIR")
    return KeeperClient(folder, owner=None)


def open_all(
    keeper: KeeperClient,
    specs: Sequence[str],
    ports: Mapping[str, int],
    *,
    each: Callable[[Handle], None] = lambda _: None,
) -> tuple[dict[str, Handle], dict[str, GroundplaneError]]:
    """Start these servers side by side; those that answer, in the order asked for, and what went wrong with others.
    `ports` pins the client's port by the server's name. `each` is called as soon as one answers.
    """
    wanted = {spec: _pinned(spec, ports) for spec in dict.fromkeys(specs)}
    unknown = set(ports) - {spec.partition("@")[0] for spec in wanted}
    if unknown:
        raise InvalidArgument(f"port: {sorted(unknown)[0]!r} is not among the servers {', '.join(wanted)}")
    keeper.start()
    up: dict[str, Handle] = {}
    errors: dict[str, GroundplaneError] = {}
    with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
        started = {pool.submit(keeper.open, spec, ports=pinned): spec for spec, pinned in wanted.items()}
        for future in as_completed(started):
            try:
                up[started[future]] = future.result()
            except GroundplaneError as error:
                errors[started[future]] = error
            else:
                each(up[started[future]])
    return {spec: up[spec] for spec in wanted if spec in up}, errors


def environment(handles: Sequence[Handle]) -> dict[str, str]:
    """The variables of all of them; the first one that names a variable has it."""
    found: dict[str, str] = {}
    for one in handles:
        for name, value in one.urls.items():
            found.setdefault(name, value)
    return found


def _pinned(spec: str, ports: Mapping[str, int]) -> dict[str, int]:
    server, _ = chosen(spec)
    return {server.ports[0]: ports[server.name]} if server.name in ports else {}
