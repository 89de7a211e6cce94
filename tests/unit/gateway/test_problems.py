"""Errors become problem documents and errors again."""

from __future__ import annotations

import json

import pytest

from groundplane.core.errors import CODES, ErrorRecord, from_record
from groundplane.core.reasons import REASONS
from groundplane.gateway.problems import of_error
from groundplane.gateway.statuses import STATUS_OF_CODE, STATUS_OF_REASON, to_error

pytestmark = pytest.mark.req("GATE-04.2")


def test_every_code_has_a_status() -> None:
    assert set(STATUS_OF_CODE) == set(CODES)
    assert set(STATUS_OF_REASON) <= set(REASONS)


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        ("invalid_argument", "", 422),
        ("invalid_argument", "msg_parsing_error", 400),
        ("invalid_argument", "payload_too_large", 413),
        ("not_found", "job_not_found", 404),
        ("conflict", "idempotency_mismatch", 409),
        ("failed_precondition", "job_terminal", 409),
        ("permission_denied", "", 403),
        ("resource_exhausted", "queue_full", 429),
        ("resource_exhausted", "disk_full", 503),
        ("unavailable", "database_busy", 503),
        ("closed", "", 503),
    ],
)
def test_an_error_crosses_http_and_comes_back_the_same(code: str, reason: str, status: int) -> None:
    error = from_record(ErrorRecord(code, "field: 'x' is wrong", reason, {"field": "field"}))
    response = of_error(error)
    assert (response.status_code, response.media_type) == (status, "application/problem+json")
    assert ("retry-after" in response.headers) == (status in (429, 503))
    back = to_error(status, json.loads(bytes(response.body)))
    assert (type(back), back.message, back.reason) == (type(error), error.message, reason)
    assert back.details == {"field": "field", "status": status}
    assert back.retryable == (status in (429, 503))


def test_an_internal_error_tells_nothing_of_itself() -> None:
    response = of_error(from_record(ErrorRecord("internal", "the password is hunter2", details={"path": "/secret"})))
    assert response.status_code == 500
    assert b"hunter2" not in bytes(response.body)
    assert b"secret" not in bytes(response.body)


@pytest.mark.parametrize("document", [None, [], {}, {"code": 7, "details": []}, {"code": "of a newer gateway"}])
def test_what_is_no_problem_document_is_still_an_error_by_its_status(document: object) -> None:
    error = to_error(503, document)
    assert error.details["status"] == 503
    assert error.retryable
