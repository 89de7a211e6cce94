"""Statements that are written once, as PostgreSQL takes them."""

from __future__ import annotations

import pytest

from groundplane.jobs.drivers.postgres.dialect import storable, translated


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("SELECT a FROM jobs WHERE b = ? AND c = ?", "SELECT a FROM mine.jobs WHERE b = %s AND c = %s"),
        ("UPDATE jobs SET a = :now WHERE b = :seq", "UPDATE mine.jobs SET a = %(now)s WHERE b = %(seq)s"),
        ("INSERT INTO job_events (a) VALUES (?)", "INSERT INTO mine.job_events (a) VALUES (%s)"),
        ("FROM below CROSS JOIN job_branches AS one", "FROM below CROSS JOIN mine.job_branches AS one"),
        ("max(0, :now - paused_at)", "GREATEST(0, %(now)s - paused_at)"),
        (
            "max(progress, min(:most, coalesce((SELECT max(progress) FROM job_branches), 0)))",
            "GREATEST(progress, LEAST(%(most)s, coalesce((SELECT max(progress) FROM mine.job_branches), 0)))",
        ),
        (
            "SELECT max(id) FROM job_events WHERE job = jobs.seq",
            "SELECT max(id) FROM mine.job_events WHERE job = jobs.seq",
        ),
    ],
)
def test_a_statement_is_translated(written: str, sent: str) -> None:
    assert translated(written, "mine") == sent


def test_only_texts_with_nul_are_changed() -> None:
    bindings = (1, "a", b"\0", None)
    assert storable(bindings) is bindings
    assert storable((1, "a\0", b"\0")) == (1, "a\ufffd", b"\0")
    assert storable({"a": "\0", "b": 2}) == {"a": "\ufffd", "b": 2}
