"""Whole planes as fixtures: `plane` on the embedded storage, `server_plane` on RabbitMQ, PostgreSQL and S3.

Both are opened `groundplane.plane.Plane`s of the test's own: a new state folder, and namespaces in the run's servers.
They are asynchronous (anyio's pytest plugin runs them) and import the product when they are asked for. Part of
`groundplane.testing.plugin`. `plane_settings` and `server_plane_settings` are their settings, for other processes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from groundplane.core.settings import Settings
    from groundplane.plane import Plane


@pytest.fixture
def plane_settings(tmp_path: Path) -> Settings:
    """Settings of an embedded plane in a new folder."""
    return _settings(state=tmp_path / "plane")


@pytest.fixture
def server_plane_settings(tmp_path: Path, rabbitmq_url: str, postgres_url: str, s3_url: str) -> Settings:
    """Settings of a plane on real servers: queues, jobs, ledger and blobs of the test's own."""
    state = tmp_path / "server-plane"
    return _settings(state=state, queues=rabbitmq_url, jobs=postgres_url, ledger=postgres_url, blobs=s3_url)


@pytest.fixture
async def plane(anyio_backend: Any, plane_settings: Settings) -> AsyncIterator[Plane]:
    """An opened plane that needs no server."""
    async with _opened(plane_settings) as opened:
        yield opened


@pytest.fixture
async def server_plane(anyio_backend: Any, server_plane_settings: Settings) -> AsyncIterator[Plane]:
    """An opened plane on RabbitMQ, PostgreSQL and S3."""
    async with _opened(server_plane_settings) as opened:
        yield opened


def _settings(**given: Any) -> Settings:
    from groundplane.core.settings import load
    from groundplane.plane import installed_schemes

    settings = load(given, environ={}, schemes=installed_schemes()).settings
    settings.state.mkdir(parents=True, exist_ok=True)
    return settings


def _opened(settings: Settings) -> Any:
    from groundplane.plane import Plane

    return Plane.open(settings, upgrade=True)
