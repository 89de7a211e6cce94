"""A process of a plane: makes jobs, relays their messages into a file, sweeps. Says each accepted job on stdout."""

from __future__ import annotations

import asyncio
import os
import sys

from groundplane.core.ids import new_id
from groundplane.jobs import Jobs, NewJob
from groundplane.jobs.port import OutboxMessage


def job(job_id: str, deadline_at: int | None = None) -> NewJob:
    return NewJob(job_id=job_id, tool="t", route=["a"], arguments=None, arguments_hash="", deadline_at=deadline_at)


def message(job_id: str) -> OutboxMessage:
    return OutboxMessage(queue="a", id=job_id, payload=b"", dedup_key=f"{job_id}:0")


async def create(jobs: Jobs, count: int) -> None:
    async def some() -> None:
        for _ in range(count // 10):
            job_id = new_id()
            print("trying", job_id, flush=True)
            await jobs.create(job(job_id), [message(job_id)])
            print("accepted", job_id, flush=True)

    await asyncio.gather(*(some() for _ in range(10)))


async def relay(jobs: Jobs, path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def send(messages: list[OutboxMessage]) -> None:
        os.write(descriptor, "".join(f"{one.dedup_key}\n" for one in messages).encode())
        os.fdatasync(descriptor)

    print("ready", flush=True)
    await jobs.run_relay(send, lease_s=0.2)


async def main() -> None:
    role, place, *rest = sys.argv[1:]
    url, state = (place, ".") if "://" in place else ("embedded://", place)
    async with Jobs.open(url, state=state) as jobs:
        if role == "create":
            await create(jobs, int(rest[0]))
        elif role == "relay":
            await relay(jobs, rest[0])
        elif role == "sweep":
            print("ready", flush=True)
            await jobs.run_sweeper()
        else:
            print("opened", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
