"""`groundplane queues definitions`: an empty broker loads the file, and the queues are there."""

from __future__ import annotations

import asyncio
import json
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from groundplane.core.errors import InvalidArgument, PermissionDenied, Unsupported
from groundplane.queues import Ack, OutgoingMessage, Queues, QueueSpec
from groundplane.testing.servers.contract import Running
from integration.dev_plane import PIPELINE, groundplane

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


@pytest.mark.req("QUEUE-14.2")
async def test_an_empty_broker_loads_the_file_and_serves_without_declaring(
    tmp_path: Path, own_server: Callable[..., Running]
) -> None:
    (tmp_path / "app.py").write_text(PIPELINE)
    file = tmp_path / "definitions.json"
    url = "amqp://guest:guest@127.0.0.1/acme?exchange=work"
    made = groundplane(
        *("queues", "definitions", "--app", "app:app", "--with-user", "--out", str(file), "--name", "acme"),
        folder=tmp_path,
        GROUNDPLANE_QUEUES_URL=url,
    )
    assert made.returncode == 0, made.stderr
    loaded = json.loads(file.read_text())
    assert set(loaded["users"][0]) == {"name", "password_hash", "hashing_algorithm", "tags"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    loaded["users"][0]["tags"] = ["administrator"]  # the kit asks the management API whether the broker is ready
    with tempfile.TemporaryDirectory() as folder:  # the broker has an account of its own, which must read it
        Path(folder).chmod(0o755)  # noqa: ASYNC240
        shared = Path(folder) / "definitions.json"
        shared.write_text(json.dumps(loaded))
        server = await asyncio.to_thread(own_server, "rabbitmq", config={"load_definitions": str(shared)})
    there = url.replace("127.0.0.1", f"127.0.0.1:{server.port}")
    async with Queues.open(there, namespace="acme") as queues:
        await queues.send(OutgoingMessage(queue="double", id="1", payload=b"x", delay_s=0.05))
        assert (await queues.depth("double")).total == 1
        async with queues.consume("double") as consumer:
            (one,) = await consumer.receive(1, 5)
            await consumer.reject(one, "bad")
        (letter,) = (await queues.list_dead("double")).items
        await queues.redrive(letter.id)
        async with queues.consume("double") as consumer:
            (one,) = await consumer.receive(1, 5)
            await consumer.settle([Ack(one)], [OutgoingMessage(queue="happy-end", id="2", payload=b"")])
        assert (await queues.depth("happy-end")).ready == 1
        await queues.declare(QueueSpec(name="double", attempts_max=9))
        assert [spec.name for spec in await queues.queues()] == ["double"]
    wrong = there.replace("guest@", "wrong@")
    with pytest.raises(PermissionDenied):
        async with Queues.open(wrong, namespace="acme"):
            pytest.fail("let in")


@pytest.mark.req("QUEUE-14.1", "QUEUE-14.2")
async def test_the_file_names_what_is_declared_and_everything_in_it_is_durable(rabbitmq_url: str) -> None:
    url = f"{rabbitmq_url}?guard=0"
    async with Queues.open(url, namespace="plane") as queues:
        await queues.declare(QueueSpec(name="a"), QueueSpec(name="b"))
        names = [spec.name for spec in await queues.queues()]
    found = Queues.definitions(url, namespace="plane", queues=names)
    assert json.loads(json.dumps(found)) == found
    by_name = {one["name"]: one["arguments"] for one in found["queues"]}
    expected = {f"plane:{q}{kind}" for q in "ab" for kind in ("", ":delayed", ":dead")}
    assert set(by_name) == expected | {"plane::registry", "plane::returns"}
    assert {by_name[name]["x-queue-type"] for name in expected} == {"quorum"}
    assert all(one["durable"] and not one["auto_delete"] for one in (*found["queues"], *found["exchanges"]))
    assert {(one["routing_key"], one["destination"]) for one in found["bindings"]} == {(n, n) for n in by_name}
    assert "users" not in found


@pytest.mark.req("QUEUE-14.2")
def test_queues_without_a_broker_have_no_definitions(tmp_path: Path) -> None:
    with pytest.raises(Unsupported):
        Queues.definitions("embedded://", queues=["a"])
    with pytest.raises(InvalidArgument, match=r"^queue: "):
        Queues.definitions("amqp://h/", queues=["a:b"])
    run = groundplane("queues", "definitions", folder=tmp_path)
    assert run.returncode == 2
    assert "GROUNDPLANE_QUEUES_URL" in run.stderr
