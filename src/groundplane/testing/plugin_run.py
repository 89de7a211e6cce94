"""What one run of pytest knows of its servers: the keeper's address, the shared ones, those that are missing."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from groundplane.core.errors import FailedPrecondition, GroundplaneError, InvalidArgument
from groundplane.testing.servers.contract import Running, ServerMissing
from groundplane.testing.servers.given import given
from groundplane.testing.servers.handles import Handle, KeeperClient
from groundplane.testing.servers.installing import find
from groundplane.testing.servers.instance import temporary_folder
from groundplane.testing.servers.namespaces import Namespaces
from groundplane.testing.servers.settings import KitSettings

if TYPE_CHECKING:
    from groundplane.testing.servers.containers import Contained

Row = list[str | float]


class Run:
    """One for each process of the run; all share the keeper whose `address` the controller made."""

    def __init__(self, address: str, settings: KitSettings) -> None:
        owner, _, folder = address.partition(":")
        self.address = address
        self.settings = settings
        self.keeper = KeeperClient(Path(folder), owner=int(owner))
        self.namespaces = Namespaces(self.keeper.ticket)
        self.shared: dict[str, Running] = {}
        self._missing: set[str] = set()
        self._containers: list[Contained] = []

    @classmethod
    def make(cls, address: str | None) -> Run:
        """With the controller's address, or as the controller. `pytest.UsageError` where a variable is wrong."""
        try:
            settings = KitSettings.load()
        except InvalidArgument as error:
            raise pytest.UsageError(str(error)) from error
        pid = os.getpid()
        return cls(address or f"{pid}:{temporary_folder()}/groundplane-kit-{pid}-{secrets.token_hex(3)}", settings)

    def share(self, name: str) -> Running:
        """The run's own server of a name: given by a URL, else started natively. Skips or fails where it is missing."""
        if name not in self.shared:
            try:
                self.shared[name] = given(name, self.settings) or self._open(name)
            except ServerMissing as error:
                self.shared[name] = self._contained(name) or self._refuse(name, error)
            except FailedPrecondition as error:
                pytest.fail(str(error), pytrace=False)
        return self.shared[name]

    def own(self, spec: str, options: dict[str, Any]) -> Handle:
        """A private server; always native, whatever URL is given."""
        try:
            return self._open(spec, options, shared=False)
        except ServerMissing as error:
            self._refuse(spec, error)

    def row(self, name: str) -> Row | None:
        """What a report says of a shared server that was asked for."""
        if name in self._missing:
            return self.missing(name)
        server = self.shared.get(name)
        return None if server is None else self.row_of(server)

    def missing(self, spec: str) -> Row:
        """What a report says of a server that is not there."""
        return [spec, "", "missing", 0.0]

    def row_of(self, server: Running) -> Row:
        """What a report says of a server."""
        return [server.name, server.version, server.origin, round(server.ready_s, 3)]

    def last_lines(self, server: Running, lines: int = 30) -> str:
        """What a server wrote last; says so where it cannot be asked any more."""
        try:
            return server.logs(lines)
        except GroundplaneError as error:
            return f"(gone: {error})"

    def limit_s(self, config: pytest.Config) -> float:
        """The time limit of a test that uses servers: the user's own one where there is one and no variable is set."""
        if "GROUNDPLANE_TEST_TIMEOUT" not in os.environ and (
            config.getoption("timeout", None) is not None or config.getini("timeout")
        ):
            return 0.0
        return self.settings.timeout_s

    def end_containers(self) -> None:
        """Each process of the run ends its own."""
        while self._containers:
            self._containers.pop().end()

    def shut(self) -> None:
        """End the keeper with all its servers; the controller's alone to call."""
        self.keeper.shut()
        if self.settings.keep and self.keeper.folder.exists():
            sys.stderr.write(f"\nservers: folders are kept in {self.keeper.folder}\n")

    def _open(self, spec: str, options: dict[str, Any] | None = None, *, shared: bool = True) -> Handle:
        find(spec)  # missing is known here, without a keeper
        server = self.keeper.open(spec, options=options, shared=shared)
        if self.settings.verbose:
            sys.stderr.write(f"\n{server!r}: ready after {server.ready_s:.1f} s, log {server.folder.parent}\n")
        return server

    def _contained(self, name: str) -> Running | None:
        """A container, as the last way."""
        from groundplane.testing.servers import containers

        if not containers.possible(name):
            return None
        found = containers.contained(name, self.settings)
        self._containers.append(found)
        return found

    def _refuse(self, name: str, error: ServerMissing) -> NoReturn:
        self._missing.add(name)
        if self.settings.requires(name):
            pytest.fail(f"{error.message} (GROUNDPLANE_REQUIRE_SERVERS names it)", pytrace=False)
        pytest.skip(error.message)
