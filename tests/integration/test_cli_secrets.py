"""Canary secrets, planted wherever a user may put one, are found nowhere that anybody looks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import urllib.request
from pathlib import Path

import pytest

import leaks
from groundplane.core.envelope import Envelope
from groundplane.core.settings import Settings
from groundplane.mesh.start import JOB_TOKEN
from groundplane.plane import Plane
from integration.dev_plane import groundplane, request, run_job, serving

pytestmark = [pytest.mark.integration, pytest.mark.req("CORE-09")]

CANARY = "c4n4ryS3cr3t"
SECRETS = {
    "DATABASE_URL": f"postgresql://me:{CANARY}1@db/x",
    "RABBITMQ_URL": f"amqp://me:{CANARY}2@mq/?password={CANARY}3",
    "NATS_URL": f"nats://me:{CANARY}4@n",
    "REDIS_URL": f"redis://:{CANARY}5@r/2",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}6",
    "OPENAI_API_KEY": f"{CANARY}7",
    # the plane itself is embedded: what is customary is of others
    **{f"GROUNDPLANE_{port}_URL": "embedded://" for port in ("QUEUES", "JOBS", "LEDGER")},
}
APP = """
from groundplane import App

app = App("acme")


@app.actor
def fails(value: int) -> int:
    raise ValueError(f"no luck with {value}")


@app.actor
def dies(value: int) -> int:
    import os
    os._exit(7)


app.tool("fails", route=[fails])
app.tool("dies", route=[dies], timeout=20)
"""


@pytest.mark.slow
@pytest.mark.req("CORE-09.1", "CORE-09.2")
def test_a_whole_plane_tells_no_secret(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / ".env").write_text(f"STRIPE_KEY={CANARY}8\n")
    told: dict[str, str] = {}
    arguments = ("dev", "app:app", "--port", "0", "--state", "s", "--env-file", ".env", "--json")
    with serving(*arguments, folder=tmp_path, **SECRETS) as plane:
        job = run_job(plane.url, "fails", {"value": 1})
        assert job["state"] == "failed"
        told["job"] = repr(job)
        os.kill(plane.children()["sidecar fails"], signal.SIGSEGV)
        plane.event("restarted")
        run_job(plane.url, "dies", {"value": 1}, wait_s=40)
        tokens = asyncio.run(_tokens(tmp_path / "s"))
        assert len(tokens) >= 1
        told["command lines"] = repr([leaks.command_line(pid) for pid in leaks.children(plane.process.pid)])
        for path in ("/v1/jobs", f"/v1/jobs/{job['job_id']}", "/v1/dead", "/openapi.json"):
            told[path] = repr(request(plane.url + path)[1])
        told["events"] = _stream(f"{plane.url}/v1/jobs/{job['job_id']}/events")
        told.update(_commands(tmp_path, job["job_id"]))
        plane.stop()
        told["log"] = plane.log.read_text()
    for file in (tmp_path / "s" / "run").iterdir():
        told[str(file)] = file.read_bytes().decode(errors="replace") if file.is_file() else ""
    assert len("".join(told.values())) > 5000
    found = {where: word for where, text in told.items() for word in (CANARY, *tokens) if word in text}
    assert found == {}
    stored = {file: file.read_bytes() for file in (tmp_path / "s").rglob("*") if file.is_file()}
    assert any(tokens[0].encode() in data for data in stored.values())  # what was stored is seen
    assert [str(file) for file, data in stored.items() if CANARY.encode() in data] == []


_REFUSED = f"mysql://me:{CANARY}@h/x"
_URLS = [
    _REFUSED, f"embedded://?token={CANARY}", f"embedded://me:{CANARY}@x/y", f"s3://me:{CANARY}@[bad", f"{CANARY}",
    f"nonsense:{CANARY}@h", f"://{CANARY}",
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "url"),
    [
        *((["config", "show", "--json"], url) for url in _URLS),
        *((words, _REFUSED) for words in (["doctor"], ["jobs", "list"], ["db", "upgrade"], ["dev", "app:app"])),
    ],
)
def test_a_url_that_is_refused_is_refused_without_its_secret(tmp_path: Path, words: list[str], url: str) -> None:
    run = groundplane(*words, folder=tmp_path, GROUNDPLANE_JOBS_URL=url)
    (tmp_path / "groundplane.toml").write_text(f"[plane]\njobs = '{url}'\n")
    from_file = groundplane(*words, folder=tmp_path)
    for one in (run, from_file):
        assert one.returncode == 2, one.stderr
        assert "jobs" in one.stderr.lower()
        assert CANARY not in one.stdout + one.stderr


def _commands(folder: Path, job_id: str) -> dict[str, str]:
    told = {}
    dead = groundplane("dead", "list", "--state", "s", folder=folder, **SECRETS)
    letters = [line.split()[0] for line in dead.stdout.splitlines()[1:]]
    for words in (
        ["config", "show"], ["config", "show", "--json"], ["doctor"], ["jobs", "show", job_id],
        ["jobs", "watch", job_id], ["dead", "list"], ["dead", "list", "--json"],
        *(["dead", "show", letter] for letter in letters),
    ):  # fmt: skip
        run = groundplane(*words, "--state", "s", folder=folder, **SECRETS)
        told[" ".join(words)] = run.stdout + run.stderr
    assert any(words.startswith("dead show") for words in told)
    return told


async def _tokens(state: Path) -> list[str]:
    """The tokens of the jobs, read from where they have to be: the envelopes."""
    async with Plane.open(Settings(state=state), ports=("queues",)) as plane:
        letters = (await plane.queues.list_dead()).items
        return [Envelope.from_bytes(one.payload).headers[JOB_TOKEN] for one in letters]


def _stream(url: str) -> str:
    with contextlib.closing(urllib.request.urlopen(url, timeout=20)) as stream:
        return str(stream.read().decode())
