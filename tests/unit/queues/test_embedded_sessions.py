"""Sessions: alive files, who is dead, who is not, and what is tidied up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from groundplane.core.errors import FailedPrecondition
from groundplane.queues import Ack, OutgoingMessage, Queues, QueueSpec
from groundplane.queues.drivers.embedded import EmbeddedQueues
from groundplane.queues.drivers.embedded.sessions import AliveFile, owner_has_ended, reclaim

pytestmark = pytest.mark.anyio


async def _sessions(driver: EmbeddedQueues) -> list[tuple[int, str]]:
    return await driver.native.read(lambda tx: tx.execute("SELECT id, file FROM queue_sessions"))


async def _with_one_message(driver: EmbeddedQueues) -> Queues:
    queues = Queues(driver)
    await queues.declare(QueueSpec(name="q"))
    await queues.send(OutgoingMessage(queue="q", id="m", payload=b""))
    return queues


def test_an_alive_file_tells_whether_its_owner_lives(tmp_path: Path) -> None:
    file = AliveFile(tmp_path / "consumers")
    path = tmp_path / "consumers" / file.name
    assert not owner_has_ended(path)
    assert path.read_text() == f"{os.getpid()}\n"
    file.close()
    assert not path.exists()
    path.write_text("of a process that is gone")
    assert owner_has_ended(path)
    assert not owner_has_ended(tmp_path / "no-such-file")


async def test_a_clean_close_leaves_no_session_no_claim_and_no_file(tmp_path: Path) -> None:
    async with EmbeddedQueues.open(state=tmp_path) as watcher:
        async with EmbeddedQueues.open(state=tmp_path) as driver:
            queues = await _with_one_message(driver)
            assert await _sessions(watcher) == []
            async with queues.consume("q") as consumer:
                await consumer.receive(1, 5)
                assert len(await _sessions(watcher)) == 1
                assert len(list((tmp_path / "run" / "consumers").iterdir())) == 1
        assert await _sessions(watcher) == []
        assert await watcher.native.read(lambda tx: tx.execute("SELECT * FROM queue_claims")) == []
        assert list((tmp_path / "run" / "consumers").iterdir()) == []


async def test_files_of_the_dead_without_a_session_are_tidied_up(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "consumers"
    folder.mkdir(parents=True)
    (folder / "0123456789abcdef.alive").write_text("1\n")
    other = AliveFile(folder)
    async with EmbeddedQueues.open(state=tmp_path) as driver:
        queues = await _with_one_message(driver)
        async with queues.consume("q"):
            assert {path.name for path in folder.iterdir()} == {other.name, driver._session._file.name}  # type: ignore[union-attr]
    other.close()


async def test_a_session_whose_file_was_removed_is_not_dead_while_its_heart_beats(tmp_path: Path) -> None:
    async with EmbeddedQueues.open(state=tmp_path) as first, EmbeddedQueues.open(state=tmp_path) as second:
        queues = await _with_one_message(first)
        async with queues.consume("q", max_in_flight=1) as consumer:
            (held,) = await consumer.receive(1, 5)
            for path in (tmp_path / "run" / "consumers").iterdir():
                path.unlink()
            async with Queues(second).consume("q", max_in_flight=1) as other:
                await second._session.sweep(0.0)
                assert await other.receive(1, 0) == []
                await second._session.sweep(31.0)
                await second._session.sweep(31.0)
                (again,) = await other.receive(1, 0)
                assert again.attempt == 2
                with pytest.raises(FailedPrecondition) as caught:
                    await consumer.settle([Ack(held)], [OutgoingMessage(queue="q", id="late", payload=b"")])
                assert caught.value.reason == "delivery_lost"
                await other.ack(again)
        assert (await queues.depth("q")).total == 0


async def test_a_consumer_taken_for_dead_says_so_and_goes_on_under_a_new_session(tmp_path: Path) -> None:
    async with EmbeddedQueues.open(state=tmp_path) as driver:
        queues = await _with_one_message(driver)
        async with queues.consume("q", max_in_flight=1) as consumer:
            (held,) = await consumer.receive(1, 5)
            old = driver._session.id
            assert await driver.native.write(lambda tx: reclaim(tx, old, 0)) == 1
            assert await driver.native.write(lambda tx: reclaim(tx, old, 0)) == 0
            await driver._session._beat()
            assert driver._session.id != old
            assert driver._session.taken_for_dead == 1
            (again,) = await consumer.receive(1, 5)
            assert (again.id, again.attempt) == (held.id, 2)
            with pytest.raises(FailedPrecondition) as caught:
                await consumer.ack(held)
            assert caught.value.reason == "delivery_lost"
            await consumer.ack(again)
