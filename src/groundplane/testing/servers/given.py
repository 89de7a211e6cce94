"""Servers that are there already: given by a URL in the environment, used and never touched outside a namespace."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from groundplane.core.errors import FailedPrecondition, InvalidArgument, Unsupported
from groundplane.core.secrets import mask_urls
from groundplane.testing.servers.catalog import server
from groundplane.testing.servers.contract import Running
from groundplane.testing.servers.settings import KitSettings


class Given:
    """A `Running` without a process: faults are refused, ends are somebody else's."""

    version = ""
    origin = "url"
    pid = 0
    folder = data = Path("/nonexistent")
    ready_s = 0.0

    def __init__(self, name: str, variable: str, url: str) -> None:
        self.name, self.variable, self.url = name, variable, url

    def __repr__(self) -> str:
        return f"<{self.name} given by {self.variable}: {mask_urls(self.url)}>"

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    @property
    def ports(self) -> Mapping[str, int]:
        return {"client": self.port}

    @property
    def urls(self) -> Mapping[str, str]:
        return {f"GROUNDPLANE_TEST_{self.name.upper()}_URL": self.url, self.variable: self.url}

    @property
    def env(self) -> Mapping[str, str]:
        return {**os.environ, **self.urls}

    def kill(self) -> None:
        self._refuse("killed")

    def pause(self) -> None:
        self._refuse("paused")

    def resume(self) -> None:
        self._refuse("resumed")

    def stop(self) -> None:
        self._refuse("stopped")

    def start(self) -> None:
        self._refuse("started")

    def restart(self) -> None:
        self._refuse("restarted")

    def logs(self, lines: int = 50) -> str:
        return ""

    def memory_bytes(self) -> int:
        return 0

    def _refuse(self, verb: str) -> NoReturn:
        raise Unsupported(f"{self.name}: is given by {self.variable} and is not {verb} by the kit; use own_server")


def given(name: str, settings: KitSettings, environ: Mapping[str, str] | None = None) -> Given | None:
    """The server of GROUNDPLANE_TEST_<NAME>_URL, or in continuous integration (CI is set) of its customary variable.
    `failed_precondition` where it is not on loopback and that was not allowed.
    """
    variables = os.environ if environ is None else environ
    names = [f"GROUNDPLANE_TEST_{name.upper()}_URL"]
    if variables.get("CI"):
        names += server(name).customary
    found = next((one for one in names if variables.get(one)), None)
    if found is None:
        return None
    url = variables[found]
    if not settings.allow_remote and not on_loopback(url):
        raise FailedPrecondition(
            f"{found}: {mask_urls(url)!r} is not on loopback; tests create and delete there: "
            "set GROUNDPLANE_TEST_ALLOW_REMOTE=1 if that is meant"
        )
    return Given(name, found, url)


def on_loopback(url: str) -> bool:
    """Whether every host of the URL is this machine by its number or its name `localhost`; names are not looked up."""
    try:
        network = urlsplit(url if "://" in url else f"//{url}").netloc.rpartition("@")[2]
    except ValueError as error:
        raise InvalidArgument(f"url: {mask_urls(url)!r} is not a URL: {error}") from error
    return all(_local(urlsplit(f"//{host}").hostname or "") for host in network.split(","))


def _local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_: Callable[..., Running] = Given
