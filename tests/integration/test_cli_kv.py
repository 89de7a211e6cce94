"""`groundplane kv`, as a user runs it: on the state folder, and on NATS by the plane's settings."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from groundplane.cli import program
from groundplane.kv import KV
from groundplane.testing import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: bytes
    stderr: bytes


Run = Callable[..., Done]


@pytest.fixture(params=["embedded", "nats"])
def url(request: pytest.FixtureRequest) -> str:
    return "embedded://" if request.param == "embedded" else str(request.getfixturevalue("nats_url"))


@pytest.fixture
def kv(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs a command in this process."""
    monkeypatch.setenv("GROUNDPLANE_KV_URL", url)
    monkeypatch.setenv("GROUNDPLANE_NAME", "acme")

    def run(*words: str, data: bytes = b"", json: bool = False, state: str = "state") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        capfdbinary.readouterr()
        code = program.run(["kv", *words, "--state", str(tmp_path / state), *(["--json"] if json else [])])
        return Done(code, *capfdbinary.readouterr())

    return run


def told(done: Done) -> Any:
    return json.loads(done.stderr)["error"]


@pytest.mark.req("KV-01.1", "KV-01.2", "KV-02.1")
def test_a_value_is_put_read_listed_and_deleted(kv: Run) -> None:
    first = int(kv("put", "a/theme", "dark").stdout)
    assert kv("get", "a/theme").stdout == b"dark"
    second = json.loads(kv("put", "a/theme", "-", data=b"\xff\x00", json=True).stdout)
    assert second == {"key": "a/theme", "revision": first + 1}
    assert kv("get", "a/theme").stdout == b"\xff\x00"
    kv("put", "b", "1")
    listed = json.loads(kv("list", "a/", json=True).stdout)
    assert [(one["key"], one["revision"], one["bytes"]) for one in listed["keys"]] == [("a/theme", first + 1, 2)]
    assert b"a/theme" in kv("list").stdout
    assert kv("delete", "a/theme").returncode == 0
    gone = kv("get", "a/theme", json=True)
    assert (gone.returncode, told(gone)["code"]) == (1, "not_found")


@pytest.mark.req("KV-03", "KV-04", "KV-17")
def test_conditions_are_exit_codes_with_the_revision_in_the_error(kv: Run) -> None:
    revision = int(kv("put", "lock", "me", "--create", "--ttl", "60s").stdout)
    taken = kv("put", "lock", "you", "--create", json=True)
    assert (taken.returncode, told(taken)["code"]) == (1, "already_exists")
    assert told(taken)["details"]["revision"] == revision
    stale = kv("put", "lock", "you", "--revision", str(revision + 5), json=True)
    assert (stale.returncode, told(stale)["code"]) == (1, "conflict")
    assert kv("put", "lock", "me again", "--revision", str(revision)).returncode == 0
    both = kv("put", "lock", "x", "--create", "--revision", "1")
    assert (both.returncode, b"exclude each other" in both.stderr) == (2, True)
    assert kv("put", "lock", "x", "--ttl", "0s").returncode == 2


@pytest.mark.req("KV-02.1", "KV-07.2", "KV-15.1")
async def test_what_is_put_with_a_ttl_expires_and_a_deletion_keeps_to_its_revision_and_what_it_forgets(
    kv: Run, url: str, tmp_path: Path
) -> None:
    run = partial(asyncio.to_thread, kv)
    assert (await run("put", "brief", "1", "--ttl", "1s")).returncode == 0

    async def gone() -> bool:
        return bool((await run("get", "brief")).returncode == 1)

    await eventually(gone, timeout_s=30)
    place: Any = {"namespace": "acme", "state": tmp_path / "state"}
    async with KV.open(url, history=2, **place) as store:
        for value in ("1", "2"):
            revision = int((await run("put", "a", value)).stdout)
        assert (await run("delete", "a", "--revision", str(revision + 5))).returncode == 1
        assert await store.exists("a")
        assert (await run("delete", "a", "--revision", str(revision))).returncode == 0
        assert [one.value for one in await store.history("a")] == [b"2"]
        assert (await run("delete", "a", "--purge")).returncode == 0
        assert await store.history("a") == []


@pytest.mark.req("KV-06")
def test_watching_prints_what_is_there_and_ends_after_the_count(kv: Run) -> None:
    for key, value in (("s/1", "one"), ("s/2", "two"), ("t", "other")):
        kv("put", key, value)
    found = [json.loads(line) for line in kv("watch", "s/", "--count", "2", json=True).stdout.splitlines()]
    assert [(one["kind"], one["key"], one["value"]) for one in found] == [
        ("put", "s/1", "one"),
        ("put", "s/2", "two"),
    ]
    assert kv("watch", "--key", "t", "--count", "1").stdout.split()[1:] == [b"put", b"t", b'"other"']


@pytest.mark.req("KV-06")
def test_bytes_that_are_no_text_are_told_from_text_that_looks_like_them(kv: Run) -> None:
    kv("put", "bytes", "-", data=b"\xff\x00")
    kv("put", "text", "/wA=")
    found = [json.loads(line) for line in kv("watch", "--count", "2", json=True).stdout.splitlines()]
    assert [(one["value"], one["encoding"]) for one in found] == [("/wA=", "base64"), ("/wA=", "utf-8")]
    shown = json.loads(kv("get", "bytes", json=True).stdout)
    assert (shown["value"], shown["encoding"]) == ("/wA=", "base64")
    lines = kv("watch", "--count", "2").stdout.splitlines()
    assert [line.split()[-1] for line in lines] == [b"base64:/wA=", b'"/wA="']


def test_looking_makes_no_state_folder_no_bucket_and_a_bad_key_is_a_usage_error(kv: Run, tmp_path: Path) -> None:
    bad = kv("put", "", "x", json=True)
    assert (bad.returncode, told(bad)["code"]) == (2, "invalid_argument")
    assert kv("list", "--bucket", "none", state="none").returncode == 1
    assert not (tmp_path / "none").exists()
    kv("put", "a", "1")
    looks = [["get", "a"], ["list"], ["watch", "--count", "1"], ["delete", "a"]]
    for words in looks * 2:
        looked = kv(*words, "--bucket", "typo", json=True)
        assert (looked.returncode, told(looked)["reason"]) == (1, "bucket_not_found")


def test_a_process_of_its_own_prints_the_same(tmp_path: Path) -> None:
    environment = {**os.environ, "GROUNDPLANE_KV_URL": "embedded://", "GROUNDPLANE_STATE": str(tmp_path)}
    for words, printed in ((["put", "a", "1"], b"1\n"), (["get", "a"], b"1")):
        command = [sys.executable, "-m", "groundplane.cli", "kv", *words]
        assert subprocess.run(command, env=environment, capture_output=True, timeout=50, check=True).stdout == printed
