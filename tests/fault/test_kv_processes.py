"""Several processes on the keys of one file: one order of writes, watches that are rung, deaths that lose nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from groundplane.kv import KV
from groundplane.kv.conformance.kit import take, told
from groundplane.kv.port import ChangeKind, Entry

pytestmark = [pytest.mark.anyio, pytest.mark.fault]

CHILD = Path(__file__).resolve().parents[1] / "kv_child.py"


@asynccontextmanager
async def child(state: Path, mode: str, count: int = 0) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), str(state), mode, str(count), stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def said(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 30)
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.req("KV-10.1", "KV-14")
async def test_processes_that_update_one_key_lose_nothing(tmp_path: Path) -> None:
    async with KV.open(state=tmp_path) as kv:
        await kv.put("sum", b"0")
        async with child(tmp_path, "add", 25) as one, child(tmp_path, "add", 25) as two:
            assert [(await said(process))["added"] for process in (one, two)] == [25, 25]
        entry = await kv.get("sum")
        assert entry is not None
        assert entry.value == b"50"


@pytest.mark.req("KV-06", "KV-16")
async def test_a_watch_of_another_process_is_rung_by_each_write(tmp_path: Path) -> None:
    async with KV.open(state=tmp_path) as kv, child(tmp_path, "watch", 20) as watcher:
        assert (await said(watcher))["ready"]
        for n in range(10):
            revision = await kv.put("w/k", str(n).encode())
            assert await said(watcher) == {"key": "w/k", "value": str(n), "revision": revision}
            await kv.delete("w/k")
            assert await said(watcher) == {"key": "w/k", "value": None, "revision": revision + 1}


@pytest.mark.req("KV-01.1", "KV-14")
async def test_what_a_killed_process_was_told_is_written_is_there(tmp_path: Path) -> None:
    async with KV.open(state=tmp_path) as kv:
        for _ in range(3):
            await kv.clear("k")
            async with child(tmp_path, "write") as writer:
                known = [await said(writer) for _ in range(30)]
                writer.kill()
                assert writer.stdout is not None
                rest = (await writer.stdout.read()).decode().splitlines()
            known += [json.loads(line) for line in rest if line.endswith("}")]
            found: dict[str, Entry] = {}
            for at in range(0, len(known), 1000):
                found |= await kv.get_many(f"k{one['number']}" for one in known[at : at + 1000])
            assert len(found) == len(known)
            for one in known:
                entry = found[f"k{one['number']}"]
                assert (entry.value, entry.revision) == (str(one["number"]).encode(), one["revision"])
            await kv.put("after", b"")  # the file is not held up by the dead


@pytest.mark.req("KV-15.1")
async def test_the_value_of_a_killed_process_expires_and_others_are_told(tmp_path: Path) -> None:
    async with KV.open(state=tmp_path, ttl=True) as kv, kv.watch("brief") as watch:
        async with child(tmp_path, "brief") as owner:
            revision = (await said(owner))["revision"]
            [put] = await take(watch, 1)
            assert (put.kind, put.revision) == (ChangeKind.PUT, revision)
            owner.kill()
        expired = await told(watch, "brief", ChangeKind.EXPIRED)
        assert expired.revision > revision
        assert not await kv.exists("brief")
