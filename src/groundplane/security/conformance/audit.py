"""The audit log: appended, read, bounded."""

from __future__ import annotations

import pytest

from groundplane.core.errors import GroundplaneError
from groundplane.security.access import Action, Caller
from groundplane.security.port import AuditEntry, AuditQuery, Outcome
from groundplane.security.store import Security

ALICE = Caller(principal="alice", name="laptop", kind="key", scopes=("tools:*",), key_id="a" * 16)
BOB = Caller(principal="bob", name="ci", kind="token", scopes=("operate",))


async def told(security: Security, query: AuditQuery | None = None) -> list[tuple[str, str, str, str]]:
    """Who, what, to what, with which outcome: the newest first."""
    return [(one.caller, one.action, one.resource, one.outcome) for one in await security.list_audit(query)]


class AuditConformance:
    """What every audit log does."""

    pytestmark = pytest.mark.anyio

    @pytest.mark.req("GATE-18")
    async def test_an_entry_tells_who_did_what_to_what_with_which_outcome(self, security: Security) -> None:
        security.record(ALICE, Action.CALL_TOOL, "done", resource="tool:echo", detail="job 1")
        (entry,) = await security.list_audit()
        assert (entry.principal, entry.caller, entry.kind, entry.key_id) == ("alice", "laptop", "key", "a" * 16)
        assert (entry.action, entry.outcome, entry.resource, entry.detail) == (
            "tools.call", "done", "tool:echo", "job 1",
        )  # fmt: skip
        assert entry.entry_id > 0
        assert entry.at > 1_600_000_000_000

    @pytest.mark.req("GATE-18")
    async def test_entries_of_all_replicas_are_read_newest_first_in_pages(
        self, security: Security, replica: Security
    ) -> None:
        for n in range(3):
            security.record(ALICE, Action.CALL_TOOL, "done", resource=f"a{n}")
            await security.flush()
            replica.record(BOB, Action.CONTROL_JOB, "refused", resource=f"b{n}")
            await replica.flush()
        first = await security.list_audit(AuditQuery(limit=4))
        rest = await security.list_audit(AuditQuery(limit=4, before=first[-1].entry_id))
        assert [one.resource for one in [*first, *rest]] == ["b2", "a2", "b1", "a1", "b0", "a0"]

    @pytest.mark.req("GATE-18")
    async def test_entries_are_found_by_who_what_outcome_and_time(self, security: Security) -> None:
        security.record(ALICE, Action.CALL_TOOL, "done", resource="tool:echo")
        security.record(BOB, Action.CONTROL_JOB, "refused", resource="job:1")
        security.record(None, Action.LIST_JOBS, "refused", resource="/v1/jobs")
        await security.flush()
        newest = (await security.list_audit())[0]
        found: list[tuple[AuditQuery, int]] = [
            (AuditQuery(principal="alice"), 1),
            (AuditQuery(caller="ci"), 1),
            (AuditQuery(action="jobs.list"), 1),
            (AuditQuery(resource="job:1"), 1),
            (AuditQuery(outcome="refused"), 2),
            (AuditQuery(outcome="refused", principal="bob"), 1),
            (AuditQuery(principal="nobody"), 0),
            (AuditQuery(since=newest.at + 1), 0),
            (AuditQuery(until=newest.at + 1), 3),
            (AuditQuery(until=1), 0),
        ]
        for query, count in found:
            assert len(await security.list_audit(query)) == count, query

    @pytest.mark.req("GATE-18")
    async def test_what_strangers_are_refused_is_counted_and_cannot_fill_the_log(self, security: Security) -> None:
        for _ in range(500):
            security.record(None, Action.LIST_JOBS, "refused", resource="/v1/jobs")
        (entry,) = await security.list_audit()
        assert (entry.count, entry.caller, entry.outcome) == (500, "", "refused")

    @pytest.mark.req("GATE-18")
    async def test_what_waits_is_written_when_the_log_is_closed(self, security: Security, replica: Security) -> None:
        security.record(ALICE, Action.CALL_TOOL, "done", resource="tool:echo")
        await security.aclose()
        assert await told(replica) == [("laptop", "tools.call", "tool:echo", "done")]

    @pytest.mark.req("GATE-18")
    async def test_the_oldest_entries_go_by_number_and_by_age(self, security: Security) -> None:
        for n in range(10):
            security.record(ALICE, Action.CALL_TOOL, "done", resource=str(n))
        await security.flush()
        assert await security.driver.audit.prune(older_than_s=3600.0, keep=4) == 6
        assert [one.resource for one in await security.list_audit()] == ["9", "8", "7", "6"]
        assert await security.driver.audit.prune(older_than_s=3600.0, keep=4) == 0
        assert await security.driver.audit.prune(older_than_s=-3600.0, keep=100) == 4
        assert await security.list_audit() == []

    async def test_an_outcome_that_nobody_knows_is_not_kept(self, security: Security) -> None:
        odd: Outcome = "maybe"  # type: ignore[assignment]
        with pytest.raises(GroundplaneError):
            await security.driver.audit.append([AuditEntry(action="a", outcome=odd)])
        assert await security.list_audit() == []
