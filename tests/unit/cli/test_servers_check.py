"""How `groundplane doctor` judges what a look at a server told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from groundplane.cli.finding import of_error
from groundplane.cli.servers_check import _clock, _told, examine_servers
from groundplane.core.diagnosis import Diagnosis, Stopwatch
from groundplane.core.errors import FailedPrecondition, Unavailable
from groundplane.core.secrets import check_url
from groundplane.core.settings import Settings


@pytest.mark.parametrize(
    "ahead_ms, error_ms, said",
    [
        (5000, 2, "5.0 s ahead of"),
        (-5000, 2, "5.0 s behind"),
        (900, 2, ""),
        (1400, 501, ""),
        (1600, 501, "1.6 s ahead"),
    ],
)
def test_clocks_are_compared_as_far_as_can_be_told(ahead_ms: int, error_ms: int, said: str) -> None:
    found = _clock("jobs", Diagnosis(server="PostgreSQL 18", clock_ahead_ms=ahead_ms, clock_error_ms=error_ms))
    assert [said in one.message for one in found] == ([True] if said else [])


def test_a_time_that_was_cut_off_to_seconds_is_known_to_half_a_second() -> None:
    import time

    ahead_ms, error_ms = Stopwatch().ahead(int(time.time()) * 1000, 1000)
    assert abs(ahead_ms) <= error_ms
    assert 500 <= error_ms < 600


def test_what_a_message_advises_is_the_remedy_else_what_its_reason_does() -> None:
    advised = of_error("jobs", Unavailable("database: 'x' is away; look at the server"))
    assert (advised.message, advised.remedy) == ("database: 'x' is away", "Look at the server.")
    asked = of_error("jobs", Unavailable("jobs: option 'pool_mx' is not known; did you mean 'pool_max'?"))
    assert asked.remedy == "Did you mean 'pool_max'?"
    known = of_error("jobs", FailedPrecondition("database: 'x' is old", reason="schema_old"))
    assert (known.message, known.remedy) == ("database: 'x' is old", "Run `groundplane db upgrade`.")
    plain = of_error("jobs", Unavailable("database: 'x' is away"))
    assert (plain.reason, plain.remedy) == ("unavailable", "See the message.")


def test_a_password_in_a_message_is_masked() -> None:
    found = of_error(
        "queues", Unavailable("queues: amqp://guest:canary@host/ is away; start amqp://guest:canary@host/")
    )
    assert "canary" not in found.message + found.remedy


@pytest.mark.anyio
async def test_embedded_storage_has_no_servers_to_look_at(tmp_path: Path) -> None:
    assert await examine_servers(Settings(state=tmp_path), ["double"]) == []


def test_only_stores_with_a_schema_are_made_by_the_upgrade() -> None:
    empty = Diagnosis(server="a server", stored=False)
    assert "groundplane db upgrade" in _told("jobs", empty, "postgresql://h/d")
    assert _told("blobs", empty, "s3://b") == "a server at s3://b; nothing of this plane is there yet"


@pytest.mark.anyio
@pytest.mark.parametrize("package", ["boto3", "obstore"])
async def test_a_package_of_the_blobs_that_is_missing_is_a_finding_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    blobs = check_url("blobs", "s3://bucket?endpoint=http://key:secret@127.0.0.1:1")
    (found,) = await examine_servers(Settings(state=tmp_path, blobs=blobs), ())
    assert (found.severity, found.reason) == ("error", "missing_extra")
    assert found.remedy == "pip install 'groundplane[s3]'"
