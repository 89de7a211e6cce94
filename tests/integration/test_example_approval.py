"""`examples/approval`: a question that outlives every process of the plane, and is answered over HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from integration.dev_plane import groundplane, request, serving

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def _asked(url: str, job_id: str) -> list[dict[str, Any]]:
    """The open questions of the job, once there are some."""
    deadline = time.monotonic() + 60
    while True:
        status, job = request(f"{url}/v1/jobs/{job_id}")
        assert status == 200, job
        if job["questions"]:
            return list(job["questions"])
        assert time.monotonic() < deadline, job
        time.sleep(0.05)


@pytest.mark.fault
@pytest.mark.req("GATE-16.1", "GATE-16.2", "GATE-16.3")
def test_a_question_is_answered_after_every_process_was_killed(repository: Path, tmp_path: Path) -> None:
    source = repository / "examples" / "approval" / "app.py"
    work = tmp_path / "work"
    work.mkdir()
    for name in ("a.old", "b.old", "c.new"):
        (work / name).touch()
    plane = ("dev", source, "--port", "0", "--state", "s", "--json")
    with serving(*plane, folder=tmp_path) as first:
        status, job = request(f"{first.url}/v1/jobs", {"tool": "clean", "arguments": {"folder": str(work)}})
        assert status == 202, job
        job_id = job["job_id"]
        (question,) = _asked(first.url, job_id)
        assert (question["question_id"], question["message"]) == ("clean.0.sure", f"Delete 2 files of {work}?")
    # gateway, sidecar, runtime and ends were killed
    (work / "d.old").touch()  # what was found was found once
    with serving(*plane, folder=tmp_path) as second:
        path = f"{second.url}/v1/jobs/{job_id}"
        assert request(path)[1]["state"] == "paused"
        status, refused = request(f"{path}/questions/clean.0.sure/answer", {"content": {"value": "yes"}})
        assert (status, refused["detail"]) == (422, "content.value: 'yes' is not true or false")
        status, answered = request(f"{path}/questions/clean.0.sure/answer", {"content": {"value": True}})
        assert (status, answered["questions"]) == (200, [])
        status, done = request(f"{path}/result?wait=60", timeout_s=70)
    assert (status, done["state"]) == (200, "succeeded"), done
    assert done["result"] == {"deleted": [str(work / "a.old"), str(work / "b.old")]}
    assert sorted(one.name for one in work.iterdir()) == ["c.new", "d.old"]
    shown = groundplane("jobs", "show", job_id, "--state", "s", "--json", folder=tmp_path)
    assert shown.stdout.count('"asked"') == 1
