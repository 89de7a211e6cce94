"""Migrations without a database: files, order, checksums, what is pending."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from groundplane.core.errors import FailedPrecondition, Internal, InvalidArgument
from groundplane.core.migrations import AppliedMigration, Migration, MigrationSet, checksum, pending

ONE = ("0001_create.sql", "CREATE TABLE a (x)")
TWO = ("0002_add_owner.sql", "ALTER TABLE a ADD owner")


def load(*scripts: tuple[str, str], component: str = "jobs") -> tuple[Migration, ...]:
    return MigrationSet(component=component, scripts=scripts).load()


def applied(*migrations: Migration) -> list[AppliedMigration]:
    return [
        AppliedMigration(component=m.component, version=m.version, name=m.name, checksum=m.checksum) for m in migrations
    ]


def test_scripts_are_ordered_by_their_number() -> None:
    assert [(m.version, m.name) for m in load(TWO, ONE)] == [(1, "create"), (2, "add_owner")]


def test_the_files_of_a_package_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shipped_for_a_test" / "sql"
    folder.mkdir(parents=True)
    (folder / ONE[0]).write_text(ONE[1])
    (folder / "README.txt").write_text("not a migration")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    loaded = MigrationSet(component="jobs", package="shipped_for_a_test.sql").load()
    assert [(m.name, m.sql) for m in loaded] == [("create", ONE[1])]
    sys.modules.pop("shipped_for_a_test.sql", None)
    sys.modules.pop("shipped_for_a_test", None)


@pytest.mark.parametrize(
    "scripts",
    [
        (),
        (TWO,),
        (ONE, ("0003_gap.sql", "")),
        (ONE, ("0001_twice.sql", "")),
        (("1_short.sql", ""),),
        (("0001.sql", ""),),
    ],
    ids=["none", "no first", "gap", "double", "short number", "no name"],
)
def test_wrongly_numbered_files_are_our_fault_and_named(scripts: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(Internal, match="jobs"):
        load(*scripts)


def test_a_component_must_be_an_identifier() -> None:
    with pytest.raises(InvalidArgument, match="component: 'no spaces'"):
        load(ONE, component="no spaces")


def test_line_ends_do_not_change_a_checksum_and_text_does() -> None:
    assert checksum("a\r\nb\n") == checksum("a\nb")
    assert checksum("a\nb") != checksum("a\nc")


@pytest.mark.req("CORE-06.1")
def test_what_was_not_applied_is_pending_in_order() -> None:
    one, two = load(ONE, TWO)
    assert pending((one, two), []) == (one, two)
    assert pending((one, two), applied(one)) == (two,)
    assert pending((one, two), applied(one, two)) == ()
    assert pending((one, two), applied(*load(ONE, TWO, component="other"))) == (one, two)


@pytest.mark.req("CORE-06.1")
def test_newer_data_and_changed_files_are_refused() -> None:
    one, two = load(ONE, TWO)
    with pytest.raises(FailedPrecondition, match="version 2, this Groundplane knows 1") as caught:
        pending((one,), applied(one, two))
    assert (caught.value.reason, caught.value.details["found"]) == ("schema_newer", 2)
    (edited,) = load((ONE[0], "CREATE TABLE a (y)"))
    with pytest.raises(FailedPrecondition, match="0001_create of 'jobs'") as caught:
        pending((edited,), applied(one))
    assert caught.value.reason == "schema_changed"
