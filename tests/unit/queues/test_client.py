"""The façade by itself: what it repeats, what it does not, how it finds drivers, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable, Unsupported
from groundplane.core.retry import RetryPolicy
from groundplane.queues import Ack, Capability, OutgoingMessage, Queues, QueueSpec
from groundplane.queues.drivers.embedded import EmbeddedQueues
from groundplane.queues.port import QueueDriver

pytestmark = pytest.mark.anyio

QUICK = RetryPolicy(attempts=3, base_s=0.0)


class Faulty:
    """The embedded driver, failing calls by a plan before they reach it."""

    def __init__(self, driver: EmbeddedQueues, failures: Sequence[Exception]) -> None:
        self._driver = driver
        self.failures = list(failures)
        self.calls = 0
        self.capabilities = driver.capabilities
        self.dead_letters = driver.dead_letters

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        await self._driver.send(messages)

    async def declare(self, specs: Sequence[QueueSpec]) -> None:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        await self._driver.declare(specs)


@asynccontextmanager
async def _faulty(state: Path, *failures: Exception) -> AsyncIterator[tuple[Queues, Faulty]]:
    async with EmbeddedQueues.open(state=state) as driver:
        await driver.declare([QueueSpec(name="q")])
        faulty = Faulty(driver, failures)
        as_driver: QueueDriver = faulty  # type: ignore[assignment]
        yield Queues(as_driver, retry=QUICK), faulty


def _message(**fields: Any) -> OutgoingMessage:
    return OutgoingMessage(**{"queue": "q", "id": "m", "payload": b"", **fields})


async def test_a_retryable_failure_is_tried_again(tmp_path: Path) -> None:
    async with _faulty(tmp_path, Unavailable("busy"), ResourceExhausted("full", reason="disk_full")) as (
        queues,
        faulty,
    ):
        await queues.send(_message())
        assert (faulty.calls, queues.statistics().retries, queues.statistics().failed) == (3, 2, 0)
        assert (await queues.depth("q")).ready == 1


async def test_tries_are_bounded_and_the_last_error_is_raised(tmp_path: Path) -> None:
    async with _faulty(tmp_path, *(Unavailable(f"busy {n}") for n in range(9))) as (queues, faulty):
        with pytest.raises(Unavailable, match="busy 2"):
            await queues.declare(QueueSpec(name="x"))
        assert (faulty.calls, queues.statistics().failed) == (3, 1)


@pytest.mark.parametrize("error", [FailedPrecondition("no"), ResourceExhausted("x", reason="queue_full")])
async def test_what_cannot_get_better_soon_is_raised_at_once(tmp_path: Path, error: Exception) -> None:
    async with _faulty(tmp_path, error) as (queues, faulty):
        with pytest.raises(type(error)):
            await queues.send(_message())
        assert faulty.calls == 1


async def test_without_atomicity_only_messages_with_a_key_are_sent_again(tmp_path: Path) -> None:
    async with _faulty(tmp_path, Unavailable("lost the answer"), Unavailable("again")) as (queues, faulty):
        faulty.capabilities = Capability.DEDUP
        with pytest.raises(Unavailable):
            await queues.send(_message(dedup_key="k"), _message())
        assert faulty.calls == 1
        await queues.send(_message(dedup_key="k"))
        assert faulty.calls == 3


@pytest.mark.req("QUEUE-04.1")
async def test_a_capability_that_is_not_declared_is_refused(tmp_path: Path) -> None:
    async with _faulty(tmp_path) as (queues, faulty):
        faulty.capabilities = Capability.NONE
        with pytest.raises(Unsupported, match=r"^lease_s: "):
            async with queues.consume("q", lease_s=1):
                pytest.fail("it was accepted")
        await queues.send(_message())
        async with queues.consume("q") as consumer:
            held = await consumer.receive(1, 5)
            with pytest.raises(Unsupported):
                await consumer.extend(held, 1)
            with pytest.raises(Unsupported, match=r"^carry: "):
                await consumer.settle([Ack(held[0])], (), [lambda _: None])
            assert (await queues.depth("q")).in_flight == 1


async def test_an_unknown_scheme_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="did you mean 'embedded'"):
        async with Queues.open("embeded://", state=tmp_path):
            pytest.fail("it was opened")


@pytest.mark.parametrize("url", ["embedded://host/x", "embedded:///x?y=1"])
async def test_an_embedded_url_has_neither_host_nor_parameters(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^queues: "):
        async with Queues.open(url, state=tmp_path):
            pytest.fail("it was opened")


async def test_the_folder_of_the_url_is_used_and_its_escapes_are_read(tmp_path: Path) -> None:
    async with Queues.open(f"embedded://{tmp_path}/a%20b") as queues:
        await queues.declare(QueueSpec(name="q"))
    assert (tmp_path / "a b" / "plane.db").exists()


async def test_a_bad_namespace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"^namespace: "):
        async with Queues.open(state=tmp_path, namespace="a b"):
            pytest.fail("it was opened")


async def test_settling_nothing_with_sends_is_a_send(tmp_path: Path) -> None:
    async with _faulty(tmp_path) as (queues, faulty), queues.consume("q") as consumer:
        await consumer.settle([], [_message()])
        assert faulty.calls == 1
        (held,) = await consumer.receive(1, 5)
        await consumer.settle([Ack(held)])


async def test_objects_tell_their_state(tmp_path: Path) -> None:
    async with EmbeddedQueues.open(state=tmp_path, namespace="n") as driver:
        queues = Queues(driver)
        await queues.declare(QueueSpec(name="q"))
        async with queues.consume("q", max_in_flight=9) as consumer:
            assert "0 of 9 in flight" in repr(consumer)
            assert "1 consumers" in repr(queues)
        assert "closed" in repr(consumer)
    await queues.aclose()
    assert "closed" in repr(queues)


@pytest.mark.req("CORE-04.1")
def test_importing_the_queues_loads_no_database() -> None:
    code = "import sys, groundplane.queues; print([m for m in ('apsw', 'sqlite3', 'starlette') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
