"""`groundplane keys` and `groundplane audit`, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from groundplane.security import LOCAL, Action, Security
from groundplane.security.keys import key_id_of

pytestmark = pytest.mark.anyio


def groundplane(folder: Path, *words: str) -> tuple[int, Any, str]:
    command = [sys.executable, "-m", "groundplane.cli", *words, "--json", "--state", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


@pytest.mark.req("GATE-18.1")
async def test_a_key_is_made_listed_and_revoked_and_its_secret_is_shown_once(tmp_path: Path) -> None:
    code, made, _ = groundplane(tmp_path, "keys", "create", "ci", "--scope", "tools:build.*", "--expires", "90d")
    assert code == 0
    key_id = key_id_of(made["key"])
    assert (made["key_id"], made["principal"], made["scopes"]) == (key_id, "ci", ["tools:build.*"])
    async with Security.open(state=tmp_path) as security:
        caller = await security.verify(made["key"])
        assert caller is not None
        assert caller.scopes == ("tools:build.*",)
    code, listed, _ = groundplane(tmp_path, "keys", "list")
    assert [(one["key_id"], one["state"]) for one in listed["keys"]] == [(key_id, "live")]
    assert made["key"].split("_", 2)[2] not in json.dumps(listed)
    code, revoked, _ = groundplane(tmp_path, "keys", "revoke", str(key_id))
    assert (code, revoked["state"]) == (0, "revoked")
    async with Security.open(state=tmp_path) as security:
        assert await security.verify(made["key"]) is None


async def test_who_holds_a_key_that_leaked_revokes_it_without_looking_up_its_id(tmp_path: Path) -> None:
    _, made, _ = groundplane(tmp_path, "keys", "create", "ci", "--scope", "read")
    code, revoked, _ = groundplane(tmp_path, "keys", "revoke", made["key"])
    assert (code, revoked["key_id"], revoked["state"]) == (0, made["key_id"], "revoked")


@pytest.mark.req("GATE-18.1")
async def test_a_scope_that_nobody_knows_is_refused_with_a_hint_and_no_key_is_made(tmp_path: Path) -> None:
    code, _, said = groundplane(tmp_path, "keys", "create", "ci", "--scope", "raed")
    assert code == 2
    assert "did you mean 'read'" in said
    async with Security.open(state=tmp_path) as security:
        assert await security.list_keys() == []


@pytest.mark.req("GATE-18.3")
async def test_the_audit_log_is_listed_with_filters(tmp_path: Path) -> None:
    async with Security.open(state=tmp_path) as security:
        security.record(LOCAL, Action.CALL_TOOL, "done", resource="tool:echo")
        security.record(None, Action.LIST_JOBS, "refused", resource="/v1/jobs")
    code, found, _ = groundplane(tmp_path, "audit", "list", "--outcome", "refused", "--since", "1h")
    assert code == 0
    assert [(one["action"], one["resource"], one["outcome"]) for one in found["entries"]] == [
        ("jobs.list", "/v1/jobs", "refused")
    ]


@pytest.mark.req("GATE-18.3")
async def test_every_command_that_changes_keys_is_in_the_audit_log_and_the_secret_is_not(tmp_path: Path) -> None:
    _, made, _ = groundplane(tmp_path, "keys", "create", "ci", "--scope", "read", "--principal", "team-a")
    again, _, _ = groundplane(tmp_path, "keys", "create", "ci", "--scope", "read")
    groundplane(tmp_path, "keys", "revoke", made["key_id"])
    pasted, _, _ = groundplane(tmp_path, "keys", "revoke", f"{made['key']}x")
    assert 0 not in (again, pasted)
    _, found, _ = groundplane(tmp_path, "audit", "list", "--action", "keys.change")
    assert [(one["resource"], one["outcome"], one["detail"]) for one in reversed(found["entries"])] == [
        ("key:ci", "done", f"created {made['key_id']} of 'team-a': read"),
        ("key:ci", "failed", "already_exists"),
        (f"key:{made['key_id']}", "done", "revoked 'ci' of 'team-a'"),
        ("key:unknown", "failed", "key_not_found"),
    ]
    assert {one["kind"] for one in found["entries"]} == {"local"}
    assert all(one["caller"].startswith("cli:") for one in found["entries"])
    assert made["key"].split("_", 2)[2] not in json.dumps(found)
