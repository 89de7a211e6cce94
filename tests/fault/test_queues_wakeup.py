"""An idle consumer in another process is woken by a ring, not by a poll, and costs next to nothing meanwhile."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from pathlib import Path

import pytest

from groundplane.queues import OutgoingMessage, Queues, QueueSpec
from pace import at_most
from queue_processes import child

pytestmark = [pytest.mark.anyio, pytest.mark.fault]


def _cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_an_idle_consumer_of_another_process_is_rung_by_a_send(tmp_path: Path) -> None:
    count = 41
    async with Queues.open(state=tmp_path, namespace="n") as queues:
        await queues.declare(QueueSpec(name="q"))
        async with child("echo_times", tmp_path, "n", "q", count) as consumer:
            assert await consumer.read() == "ready"
            took_s = []
            for number in range(count):
                await queues.send(OutgoingMessage(queue="q", id=str(number), payload=b""))
                sent = time.monotonic()
                took_s.append(await consumer.read() - sent)
    # the poll that stands behind the ring would take 125 ms in the median
    assert statistics.median(took_s) < at_most(0.03)


async def test_an_idle_consumer_costs_next_to_nothing(tmp_path: Path) -> None:
    async with Queues.open(state=tmp_path, namespace="n") as queues:
        await queues.declare(QueueSpec(name="q"))
        async with child("echo_times", tmp_path, "n", "q", 1) as consumer:
            assert await consumer.read() == "ready"
            before, start = _cpu_s(consumer.process.pid), time.monotonic()
            await asyncio.sleep(2)
            share = (_cpu_s(consumer.process.pid) - before) / (time.monotonic() - start)
    assert share < 0.05
