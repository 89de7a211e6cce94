"""What a sidecar imports, logs and serves: little, in lines, and only what it says."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.telemetry.admin import answer, serve_admin, shows
from groundplane.telemetry.health import Check, Health
from groundplane.telemetry.logs import configure, get_logger, level_from
from groundplane.telemetry.metrics import ActorMetrics, new_registry

HEAVY = {"cyclopts", "rich", "structlog", "starlette", "uvicorn", "mcp", "httpx2", "jsonschema", "yaml", "pydantic"}


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure("INFO", form="json", stream=stream)
    yield stream
    configure("INFO")


@pytest.mark.req("CORE-04.1")
@pytest.mark.parametrize("module", ["groundplane.mesh.sidecar.process", "groundplane.mesh.ends_process"])
def test_a_sidecar_and_the_ends_load_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert set(loaded.stdout.split()) & HEAVY == set()


def test_a_line_is_json_with_bound_keys_and_levels_below_are_not_written(written: io.StringIO) -> None:
    log = get_logger("sidecar", actor="a").bind(job="j")
    log.debug("hidden")
    log.warning("it_happened", error=ValueError("x"), n=1)
    (line,) = written.getvalue().splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "WARNING",
        "logger": "sidecar",
        "event": "it_happened",
        "actor": "a",
        "job": "j",
        "error": "ValueError('x')",
        "n": 1,
    }


def test_the_console_form_is_for_people(written: io.StringIO) -> None:
    configure("DEBUG", form="console", stream=written)
    get_logger("x").debug("began", n=1)
    assert written.getvalue().endswith("DEBUG   x: began n=1\n")


@pytest.mark.parametrize(
    "environ, level",
    [
        ({}, "INFO"),
        ({"ASYA_LOG_LEVEL": "DEBUG"}, "DEBUG"),
        ({"LOG_LEVEL": "ERROR", "ASYA_LOG_LEVEL": "DEBUG"}, "ERROR"),
        ({"GROUNDPLANE_LOG_LEVEL": "WARNING", "LOG_LEVEL": "ERROR"}, "WARNING"),
    ],
)
def test_the_level_comes_from_the_environment_ours_first(environ: dict[str, str], level: str) -> None:
    assert level_from(environ) == level


def test_an_unknown_level_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="log_level: 'LOUD'"):
        configure("loud")


async def _red() -> str | None:
    return "no connection"


async def _green() -> str | None:
    return None


@pytest.mark.anyio
@pytest.mark.parametrize(
    "target, checks, status, text",
    [
        ("/livez", {"a": _red}, 200, "ok"),
        ("/readyz", {"a": _green}, 200, "ok"),
        ("/readyz?verbose", {"a": _green}, 200, "a: ok"),
        ("/readyz", {"a": _green, "b": _red}, 503, "b: no connection"),
        ("/secrets", {}, 404, "try"),
    ],
)
async def test_the_admin_server_answers_what_it_should(
    target: str, checks: dict[str, Check], status: int, text: str
) -> None:
    health = Health("test")
    for name, check in checks.items():
        health.add(name, check)
    found, _, body = await answer(target, shows(new_registry()), health)
    assert (found, text in body.decode()) == (status, True)


@pytest.mark.anyio
async def test_the_admin_server_speaks_http_and_survives_nonsense() -> None:
    registry = new_registry()
    ActorMetrics(registry, "a").received.inc()

    async def ask(request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        writer.write_eof()
        data = await reader.read()
        writer.close()
        await writer.wait_closed()
        return data

    async with serve_admin("127.0.0.1", 0, registry, Health("test")) as port:
        assert await ask(b"nonsense") == b""
        assert (await ask(b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405")
        head = await ask(b"HEAD /livez HTTP/1.1\r\n\r\n")
        assert (head.startswith(b"HTTP/1.1 200"), head.endswith(b"\r\n\r\n")) == (True, True)
        metrics = await ask(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b'groundplane_actor_messages_received_total{actor="a"} 1.0' in metrics
        assert b"# TYPE groundplane_actor_processing_seconds histogram" in metrics
