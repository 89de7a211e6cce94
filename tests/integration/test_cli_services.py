"""`groundplane services`: on the registry itself, as text and as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from groundplane.services import Definition, Instance, Registry
from groundplane.testing import unique
from services_lab import STORES, Place, place_of

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.req("SVC-06")]


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return place_of(request, tmp_path, unique("cli"))


@pytest.fixture
async def registry(place: Place) -> AsyncIterator[Registry]:
    async with place.registry() as opened:
        yield opened


def command(place: Place, *words: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "groundplane.cli",
        "services",
        *words,
        "--state",
        str(place.state),
        "--name",
        place.namespace,
    ]


async def run(place: Place, *words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command(place, *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(place),
    )
    out, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


def environment(place: Place) -> dict[str, str]:

    return {**os.environ, "GROUNDPLANE_KV_URL": place.url, "NO_COLOR": "1"}


async def as_json(place: Place, *words: str) -> Any:
    code, out, error = await run(place, *words, "--json")
    assert code == 0, error
    return json.loads(out)


async def test_services_are_listed_with_how_they_are(registry: Registry, place: Place) -> None:
    await registry.definitions.create(Definition(service_name="missing", owner="team-a"))
    async with registry.register("quotes", version="1.4.0"), registry.register("quotes", version="1.5.0"):
        code, out, _ = await run(place, "list")
        assert code == 0
        heads, missing, quotes = (line.split() for line in out.splitlines())
        assert heads == ["SERVICE", "NAME", "HEALTH", "INSTANCES", "HEALTHY", "VERSIONS", "OWNER"]
        assert (missing, quotes) == (
            ["missing", "absent", "0", "0", "team-a"],
            ["quotes", "healthy", "2", "2", "1.4.0", "1.5.0", "-"],
        )
        found = await as_json(place, "list")
    assert [(one["serviceName"], one["health"]) for one in found["details"]] == [
        ("missing", "absent"),
        ("quotes", "healthy"),
    ]
    assert (found["services"], found["instances"]) == (2, 2)


async def test_one_service_is_shown_with_its_instances(registry: Registry, place: Place) -> None:
    await registry.definitions.create(Definition(service_name="quotes", description="prices of stocks"))
    async with registry.register("quotes", instance_id="a", metadata={"zone": "eu"}) as registration:
        await registration.set_sticky_active("pricing", "ACTIVE")
        code, out, _ = await run(place, "show", "quotes")
        assert code == 0
        assert out.splitlines()[0] == "quotes: healthy, 1 of 1 healthy, prices of stocks"
        assert "pricing ACTIVE" in out
        assert '{"zone":"eu"}' in out
        found = await as_json(place, "show", "quotes")
    assert (found["definition"]["description"], found["health"]["healthy"]) == ("prices of stocks", 1)
    assert [(one["instanceId"], one["stickyActiveGroup"]) for one in found["instances"]] == [("a", "pricing")]


async def test_what_is_not_there_is_an_error(registry: Registry, place: Place) -> None:
    code, _, error = await run(place, "show", "nobody")
    assert (code, "service_not_found" in error) == (1, True)
    code, _, error = await run(place, "show", "a.b")
    assert (code, "service: 'a.b' is not a name" in error) == (2, True)
    code, out, error = await run(place, "list")
    assert (code, out, error.strip()) == (0, "", "no services")


async def test_changes_are_told_as_they_come(registry: Registry, place: Place) -> None:
    async with registry.register("quotes", instance_id="a"):
        process = await asyncio.create_subprocess_exec(
            *command(place, "watch", "quotes", "--count", "4", "--json"),
            stdout=asyncio.subprocess.PIPE,
            env=environment(place),
        )
        assert process.stdout is not None
        lines = []
        async with asyncio.timeout(60):
            while len(lines) < 2:
                lines.append(json.loads(await process.stdout.readline()))
            async with registry.register("orders"), registry.register("quotes", instance_id="b"):
                lines.append(json.loads(await process.stdout.readline()))
            lines.append(json.loads(await process.stdout.readline()))
            assert await process.wait() == 0
    assert [(one["kind"], one.get("instanceId")) for one in lines] == [
        ("present", "a"), ("synced", None), ("present", "b"), ("gone", "b"),
    ]  # fmt: skip
    assert msgspec.convert(lines[0]["instance"], Instance).healthy


async def test_a_state_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    place = Place(url="embedded://", state=tmp_path / "nowhere", namespace="x")
    code, _, error = await run(place, "list")
    assert code == 1, error
    assert not place.state.exists()
