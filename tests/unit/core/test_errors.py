"""Errors: one type, twelve codes, reasons of one table, whole across processes."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import msgspec
import pytest

from groundplane.core import errors
from groundplane.core.errors import CODES, ErrorRecord, GroundplaneError, InvalidArgument, Unavailable, from_record
from groundplane.core.reasons import REASONS

pytestmark = pytest.mark.req("CORE-02")


def test_there_are_twelve_codes_and_a_class_for_each() -> None:
    assert len(CODES) == 12
    classes = {cls.code: cls for cls in vars(errors).values() if isinstance(cls, type) and hasattr(cls, "code")}
    assert set(classes) >= set(CODES)


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(ValueError, match="'oops'"):
        GroundplaneError("oops", "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("code", CODES)
def test_only_unavailable_and_resource_exhausted_are_retried_by_default(code: errors.Code) -> None:
    assert GroundplaneError(code, "x").retryable is (code in ("unavailable", "resource_exhausted"))


def test_retryable_is_a_fact_of_the_error_not_of_its_code() -> None:
    assert Unavailable("x").retryable
    assert not Unavailable("x", retryable=False).retryable
    assert not Unavailable("x", reason="attempts_exhausted").retryable
    assert Unavailable("x", reason="attempts_exhausted", retryable=True).retryable


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_has_a_code_a_meaning_and_a_remedy(reason: str) -> None:
    row = REASONS[reason]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", reason)
    assert row.code in CODES
    assert row.meaning.endswith(".")
    assert row.remedy.strip()
    assert GroundplaneError(row.code, "x", reason=reason).retryable is row.retryable  # type: ignore[arg-type]


def test_every_reason_that_the_source_raises_stands_in_the_table(repository: Path) -> None:
    raised: dict[str, str] = {}
    for file in (repository / "src" / "groundplane").rglob("*.py"):
        for found in re.finditer(r"raise [A-Z]\w+\((?:[^()]|\([^()]*\))*?reason=\"(\w+)\"", file.read_text()):
            raised.setdefault(found[1], file.name)
    assert len(raised) > 10
    unknown = {reason: file for reason, file in raised.items() if reason not in REASONS}
    assert unknown == {}


def test_an_error_crosses_processes_whole() -> None:
    sent = InvalidArgument("value: 'x' is no number", reason="msg_parsing_error", details={"field": "value"})
    wire = msgspec.json.encode(sent.to_record())
    back = from_record(msgspec.json.decode(wire, type=ErrorRecord))
    assert type(back) is InvalidArgument
    assert (back.message, back.reason, back.details) == (sent.message, sent.reason, sent.details)
    assert back.retryable is sent.retryable


def test_a_code_of_a_newer_peer_becomes_internal_and_keeps_its_word() -> None:
    back = from_record(ErrorRecord("too_tired", "zzz", retryable=True))
    assert (back.code, back.details["code"], back.retryable) == ("internal", "too_tired", True)


def test_an_error_survives_pickling_with_all_its_attributes() -> None:
    back = pickle.loads(pickle.dumps(Unavailable("x: gone", reason="connection_error", details={"a": 1})))
    assert type(back) is Unavailable
    assert (back.message, back.reason, back.details, back.retryable) == ("x: gone", "connection_error", {"a": 1}, True)


def test_the_text_shows_message_code_and_reason() -> None:
    assert str(Unavailable("x: gone")) == "x: gone [unavailable]"
    assert str(Unavailable("x: gone", reason="forked")) == "x: gone [unavailable: forked]"
