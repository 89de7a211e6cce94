"""The stacks that the same tests run on: everything embedded, or RabbitMQ, PostgreSQL and S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.secrets import Url
from groundplane.core.settings import Settings
from groundplane.testing.plugin import run_of

PORTS = ("queues", "jobs", "ledger", "blobs")


@dataclass(frozen=True)
class Stack:
    """One plane's storage: the folder of sockets and ready files, and the URL of each port."""

    name: str
    state: Path
    plane: str = "default"
    urls: dict[str, str] = field(default_factory=lambda: dict.fromkeys(PORTS, "embedded://"))

    @property
    def embedded(self) -> bool:
        return self.name == "embedded"

    def settings(self, **more: Any) -> Settings:
        """The settings of a plane on it."""
        urls = {port: Url(url) for port, url in self.urls.items()}
        return Settings(name=self.plane, state=self.state, **urls, **more)

    def environment(self) -> dict[str, str]:
        """What a process of that plane is given, where it does not get the settings themselves."""
        return {f"GROUNDPLANE_{port.upper()}_URL": url for port, url in self.urls.items()}


def on_servers(state: Path, *, rabbitmq: str, postgres: str, s3: str) -> Stack:
    """The stack of real servers behind these URLs."""
    return Stack("servers", state, urls={"queues": rabbitmq, "jobs": postgres, "ledger": postgres, "blobs": s3})


@contextmanager
def own_namespaces(request: pytest.FixtureRequest, state: Path) -> Iterator[Stack]:
    """The stack of the run's servers in namespaces of its own, for fixtures that outlive a test."""
    spaces = run_of(request.config).namespaces
    with ExitStack() as held:
        urls = {
            name: held.enter_context(spaces.of(request.getfixturevalue(f"{name}_server"), lambda: False))
            for name in ("rabbitmq", "postgres", "s3")
        }
        yield on_servers(state, **urls)
