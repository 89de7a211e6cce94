"""What `groundplane call` says of a job that did not succeed."""

from __future__ import annotations

import json

import pytest

from groundplane.cli.call import _finish
from groundplane.cli.output import EXIT_FAILURE, Output


@pytest.mark.req("CORE-05.1")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            {"code": "internal", "message": "", "details": {"type": "KeyboardInterrupt", "actor": "a"}},
            "error [internal] job: 'j' failed in actor 'a': KeyboardInterrupt",
        ),
        (
            {"code": "internal", "message": "3", "details": {"type": "SystemExit", "actor": "a"}},
            "error [internal] job: 'j' failed in actor 'a': SystemExit: 3",
        ),
        ({"code": "unavailable", "message": "worker: gone"}, "error [unavailable] job: 'j' failed: worker: gone"),
        (None, "error [internal] job: 'j' failed: no reason given"),
    ],
)
def test_a_failure_names_the_actor_and_the_type_also_where_the_exception_has_no_text(
    capsys: pytest.CaptureFixture[str], error: dict[str, object] | None, said: str
) -> None:
    assert _finish({"job_id": "j", "state": "failed", "error": error}, Output()) == EXIT_FAILURE
    captured = capsys.readouterr()
    assert captured.err.strip() == said
    assert captured.out == ""


@pytest.mark.req("CORE-05.1")
def test_a_failed_job_is_printed_as_json_beside_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    job = {"job_id": "j", "state": "timed_out", "error": None}
    assert _finish(job, Output(json=True)) == EXIT_FAILURE
    captured = capsys.readouterr()
    assert json.loads(captured.out) == job
    assert json.loads(captured.err)["error"]["code"] == "deadline_exceeded"


def test_a_result_is_printed_on_one_line_where_it_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    for result, printed in [
        (25, "25\n"),
        ({"total": 3, "top": [["cat", 2], ["dog", 1]]}, '{"total": 3, "top": [["cat", 2], ["dog", 1]]}\n'),
        (["x" * 60, "y" * 60], f'[\n  "{"x" * 60}",\n  "{"y" * 60}"\n]\n'),
    ]:
        assert _finish({"job_id": "j", "state": "succeeded", "result": result}, Output()) == 0
        assert capsys.readouterr().out == printed
