"""The command line as a user meets it: help, exit codes, JSON, errors that say what to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.envelope import Envelope
from groundplane.core.settings import Settings
from groundplane.jobs import Jobs, NewJob
from groundplane.jobs.port import Ask, OutboxMessage, Question
from groundplane.plane import Plane
from groundplane.queues import OutgoingMessage, QueueSpec
from integration.dev_plane import PIPELINE, environment, groundplane, request, serving

pytestmark = pytest.mark.integration

_LOADED = "import sys; from groundplane.cli import main; main({argv!r}); print(*sorted(sys.modules), file=sys.stderr)"
COMMANDS = [
    "dev", "run", "call", "mcp", "doctor", "demo", "bench", "completion", "jobs list", "jobs show", "jobs cancel",
    "jobs pause", "jobs resume", "jobs answer", "jobs watch", "dead list", "dead show", "dead redrive", "dead purge",
    "queues definitions", "config show", "db upgrade", "db check",
]  # fmt: skip


@pytest.mark.req("CORE-05.1")
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help_with_an_example(tmp_path: Path, command: str) -> None:
    run = groundplane(*command.split(), "--help", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "Examples:" in run.stdout
    assert f"groundplane {command}".strip() in run.stdout.partition("Examples:")[2]
    assert "\x1b[" not in run.stdout


@pytest.mark.req("CORE-05.4")
def test_the_version_names_what_it_stands_on(tmp_path: Path) -> None:
    plain = groundplane("--version", folder=tmp_path).stdout
    found = json.loads(groundplane("--version", "--json", folder=tmp_path).stdout)
    for name in ("groundplane", "python", "sqlite", "mcp"):
        assert found[name][0].isdigit()
        assert found[name] in plain


@pytest.mark.req("CORE-04.1")
@pytest.mark.parametrize("argv", [["--version"], ["config", "show"], ["jobs", "list"], ["db", "check"]])
def test_a_light_command_loads_no_gateway(tmp_path: Path, argv: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _LOADED.format(argv=argv)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    loaded = {name.split(".")[0] for name in run.stderr.split()}
    assert "groundplane" in loaded
    assert loaded.isdisjoint({"mcp", "starlette", "uvicorn", "httpx2", "pydantic", "jsonschema"})
    if argv == ["--version"]:
        assert loaded.isdisjoint({"cyclopts", "rich", "apsw", "msgspec"})


@pytest.mark.req("CORE-05.1")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("foo", "'foo' does not exist"),
        ("job list", "did you mean 'jobs'"),
        ("jobs lisst", "did you mean 'list'"),
        ("jobs list --limit many", "many"),
        ("jobs list --stat x", "--stat"),
        ("jobs show", "JOB"),
        ("jobs list --state-is sleeping", "sleeping"),
        ("dev", "APP"),
        ("dev app:", "'app:'"),
        ("dev app:app --port 99999", "99999"),
        ("dev app:app --port x", "x"),
        ("run app:app --role king", "king"),
        ("call t value", "'value' is neither"),
        ("call t a=1 a=2", "a: is given twice"),
        ("call t a:={", "is no JSON"),
        ("call t a=1 --url ftp://h", "url: 'ftp://h' is not an http"),
        ("call t a=1 --url nonsense", "url: 'nonsense'"),
        ("call t a:=1 --timeout nan", "timeout: nan"),
        ("health --url nonsense", "url: 'nonsense' is not an http"),
        ("completion cmd", "cmd"),
        ("dead redrive", "dead_id"),
        ("dead list q", "'q' is more than this command takes\n  See `groundplane dead list --help`"),
        ("dead purge --queue q", "--yes"),
        ("dead purge x --limit 3", "limit"),
    ],
)
def test_a_wrong_command_line_exits_with_two_and_says_what_is_wrong(tmp_path: Path, words: str, said: str) -> None:
    extra = ["--url", "http://127.0.0.1:1"] if words.startswith("call") and "--url" not in words else []
    run = groundplane(*words.split(), *extra, folder=tmp_path)
    assert run.returncode == 2, run.stderr
    assert said in run.stderr
    assert run.stdout == ""
    assert "Traceback" not in run.stderr


@pytest.mark.req("CORE-05.1")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("jobs list --state none", "not_found"),
        ("dead list --state none", "not_found"),
        ("call t --state none", "not_found"),
        ("call t --url http://127.0.0.1:1", "unavailable"),
        ("dev nothing_here:app --port 0", "not_found"),
    ],
)
def test_a_failure_exits_with_one_and_tells_its_code_for_people_and_as_json(
    tmp_path: Path, words: str, code: str
) -> None:
    plain, as_json = (groundplane(*words.split(), *more, folder=tmp_path) for more in ([], ["--json"]))
    assert (plain.returncode, as_json.returncode) == (1, 1)
    assert f"[{code}" in plain.stderr
    error = json.loads(as_json.stderr.splitlines()[-1])["error"]
    assert error["code"] == code
    assert error["message"]
    assert plain.stdout == as_json.stdout == ""
    assert not (tmp_path / "none").exists()


@pytest.mark.req("CORE-05.3")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_knows_the_commands_and_is_valid(tmp_path: Path, shell: str) -> None:
    script = groundplane("completion", shell, folder=tmp_path).stdout
    for word in ("doctor", "redrive", "resume"):
        assert word in script
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.req("CORE-01.3")
def test_config_show_names_the_origin_of_each_value(tmp_path: Path) -> None:
    (tmp_path / "groundplane.toml").write_text("[plane]\nname = 'acme'\n")
    run = groundplane("config", "show", "--json", "--state", "s", folder=tmp_path, GROUNDPLANE_PORT="9")
    found = json.loads(run.stdout)["settings"]
    assert found["plane.name"] == {"value": "acme", "origin": "groundplane.toml:2"}
    assert found["plane.state"]["origin"] == "flag --state"
    assert found["gateway.port"] == {"value": 9, "origin": "environment GROUNDPLANE_PORT"}
    assert found["gateway.host"]["origin"] == "default"


@pytest.mark.req("CORE-05.2")
def test_colour_and_progress_are_for_terminals_and_not_where_they_are_unwanted(tmp_path: Path) -> None:
    assert "\x1b[" in _on_a_terminal(tmp_path, "jobs", "list", "--state", "none")
    assert "\x1b[" not in _on_a_terminal(tmp_path, "jobs", "list", "--state", "none", NO_COLOR="1")
    assert "\x1b[" not in groundplane("jobs", "list", "--state", "none", folder=tmp_path).stderr


@pytest.mark.req("CORE-05.1")
@pytest.mark.parametrize("words", [["config", "show"], ["kv", "get", "a"], ["kv", "watch"]], ids=" ".join)
def test_an_output_that_takes_no_more_is_one_error(tmp_path: Path, words: list[str]) -> None:
    if "kv" in words:
        groundplane("kv", "put", "a", "1", folder=tmp_path)
    with Path("/dev/full").open("wb") as full:
        run = subprocess.run(
            [sys.executable, "-m", "groundplane.cli", *words],
            cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.startswith("error [failed_precondition] output: cannot be written: No space left")
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.req("CORE-05.1")
def test_a_call_that_is_interrupted_says_that_the_job_goes_on(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        PIPELINE.replace("return value * 2", "__import__('time').sleep(60)").replace("timeout=30", "timeout=300")
    )
    with serving("dev", "app:app", "--port", "0", "--state", "s", "--json", folder=tmp_path) as plane:
        terminal, side = pty.openpty()
        call = subprocess.Popen(
            [sys.executable, "-m", "groundplane.cli", "call", "pipeline", "value=1", "--state", "s"],
            cwd=tmp_path, env=environment(TERM="xterm"), stdout=subprocess.PIPE, stderr=side, text=True,
        )  # fmt: skip
        os.close(side)
        with open(terminal, "rb", buffering=0) as shown:
            said = b""
            while b"pipeline" not in said:  # its progress: the job is being followed
                said += shown.read(1000)
            call.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # the other side is closed
                while more := shown.read(1000):  # or the terminal is full, and nobody ends
                    said += more
            printed, _ = call.communicate(timeout=20)
        (job,) = request(f"{plane.url}/v1/jobs")[1]["jobs"]
    assert job["state"] in ("pending", "running")
    assert (call.returncode, printed) == (130, "")
    assert f"job {job['job_id']} goes on" in said.decode()


@pytest.mark.slow
@pytest.mark.req("CORE-05.2")
def test_a_call_shows_progress_on_a_terminal_and_nothing_but_the_result_when_piped(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PIPELINE)
    with serving("dev", "app:app", "--port", "0", "--state", "s", "--json", folder=tmp_path):
        shown = _on_a_terminal(tmp_path, "call", "pipeline", "value:=10", "--state", "s")
        assert "pipeline" in shown
        assert "25" in shown
        piped = groundplane("call", "pipeline", "value=10", "--state", "s", folder=tmp_path)
        assert (piped.stdout, piped.stderr, piped.returncode) == ("25\n", "", 0)
        as_json = json.loads(
            groundplane("call", "pipeline", "value:=1", "--state", "s", "--json", folder=tmp_path).stdout
        )
        assert (as_json["state"], as_json["result"]) == ("succeeded", 7)
        wrong = groundplane("call", "pipeline", "valu:=1", "--state", "s", folder=tmp_path)
        assert wrong.returncode == 2
        assert "did you mean 'value'" in wrong.stderr
        ill_typed = groundplane("call", "pipeline", "value=ten", "--state", "s", folder=tmp_path)
        assert ill_typed.returncode == 2
        assert "'ten' is not an integer" in ill_typed.stderr
        listed = json.loads(groundplane("jobs", "list", "--state", "s", "--json", folder=tmp_path).stdout)["jobs"]
        assert [job["result"] for job in listed] == [None] * 3  # a listing carries no results
        watched = groundplane("jobs", "watch", listed[0]["job_id"], "--state", "s", "--json", folder=tmp_path)
        assert watched.returncode == 0
        assert len(watched.stdout.splitlines()) >= 3
        found = json.loads(
            groundplane("jobs", "show", listed[0]["job_id"], "--state", "s", "--json", folder=tmp_path).stdout
        )
        assert (found["result"], found["arguments"]) == (7, {"value": 1})


@pytest.mark.req("JOB-07", "QUEUE-08")
def test_jobs_and_dead_letters_are_steered_without_a_server(tmp_path: Path) -> None:
    state = tmp_path / "s"
    assert groundplane("db", "upgrade", "--state", state, folder=tmp_path).returncode == 0
    asyncio.run(_seed(state))

    def run(*words: str) -> Any:
        done = groundplane(*words, "--state", state, "--json", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert run("jobs", "pause", "j1")["state"] == "paused"
    assert run("jobs", "resume", "j1")["state"] in ("pending", "running")
    assert run("jobs", "cancel", "j1", "--reason", "enough")["state"] == "cancelled"
    again = groundplane("jobs", "pause", "j1", "--state", state, folder=tmp_path)
    assert (again.returncode, "job_terminal" in again.stderr) == (1, True)
    dead = run("dead", "list", "--queue", "a")["dead"]
    assert [(one["message_id"], one["reason"]) for one in dead] == [("m0", "processing_error")] * 1 + [
        ("m1", "processing_error"), ("m2", "processing_error")
    ]  # fmt: skip
    assert run("dead", "show", dead[0]["id"])["message"]["payload"] == {"n": 0}
    (tmp_path / "new.json").write_text('{"n": 70}')
    assert run("dead", "redrive", dead[0]["id"], "--payload", str(tmp_path / "new.json")) == {"redriven": 1}
    assert run("dead", "purge", dead[1]["id"]) == {"purged": 1}
    assert run("dead", "redrive", "--queue", "a") == {"redriven": 1}
    assert run("dead", "list")["dead"] == []
    assert asyncio.run(_received(state)) == [{"n": 70}, {"n": 2}]


@pytest.mark.req("GATE-16.1", "GATE-16.2")
def test_questions_are_answered_without_a_server(tmp_path: Path) -> None:
    state = tmp_path / "s"
    assert groundplane("db", "upgrade", "--state", state, folder=tmp_path).returncode == 0
    asyncio.run(_seed(state))

    async def ask(*questions: Question) -> None:
        async with Jobs.open(state=state) as jobs:
            message = OutboxMessage(queue="a", id="j1", payload=b"", dedup_key="k")
            await jobs.apply(Ask(job_id="j1", questions=list(questions), message=message))

    def run(*words: str, code: int = 0) -> Any:
        done = groundplane("jobs", *words, "--state", state, "--json", folder=tmp_path)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout if code == 0 else done.stderr.splitlines()[-1])

    one = {"type": "object", "properties": {"value": {"type": "boolean"}}, "required": ["value"]}
    many = {"type": "object", "properties": {"count": {"type": "integer"}, "mail": {"type": "string"}}}
    forms = (("a.0", one), ("a.1", many))
    asyncio.run(ask(*[Question(question_id=key, schema=form, envelope_id="j1") for key, form in forms]))
    shown = run("show", "j1")
    assert (shown["state"], [question["question_id"] for question in shown["questions"]]) == ("paused", ["a.0", "a.1"])
    assert "name one of a.0, a.1" in run("answer", "j1", "yes", code=2)["error"]["message"]
    unknown = run("answer", "j1", "a.9", "yes", code=1)["error"]
    assert (unknown["reason"], "'a.9'; it has asked a.0, a.1" in unknown["message"]) == ("question_not_found", True)
    assert run("answer", "j1", "a.1", "count=3", "mail=x")["state"] == "paused"
    assert "content.value: 'perhaps' is not" in run("answer", "j1", "perhaps", code=2)["error"]["message"]
    assert run("answer", "j1", "yes")["state"] in ("pending", "running")
    questions = run("show", "j1")["questions"]
    assert [question["content"] for question in questions] == [{"value": True}, {"count": 3, "mail": "x"}]
    assert run("answer", "j1", "a.0", "no", code=1)["error"]["reason"] == "question_answered"
    assert "has no open question" in run("answer", "j1", "no", code=1)["error"]["message"]
    asyncio.run(ask(Question(question_id="a.2", schema=one, envelope_id="j1")))
    run("answer", "j1", "--action", "decline")
    assert run("show", "j1")["questions"][-1]["action"] == "decline"


@pytest.mark.req("CORE-06.2")
@pytest.mark.parametrize(
    "role", [("run", "app:app", "--role", "gateway", "--port", "0"), ("run", "app:app", "--role", "actors")]
)
def test_a_role_refuses_a_newer_schema_by_name_and_an_older_one_with_the_command(
    tmp_path: Path, role: tuple[str, ...]
) -> None:
    (tmp_path / "app.py").write_text(PIPELINE)
    assert groundplane("db", "upgrade", "--state", "s", folder=tmp_path).returncode == 0
    database = tmp_path / "s" / "plane.db"
    _execute(database, "INSERT INTO groundplane_schema VALUES ('jobs', 99, 'later', 'x', 0)")
    newer = groundplane(*role, "--state", "s", folder=tmp_path)
    assert (newer.returncode, "schema_newer" in newer.stderr, "99" in newer.stderr) == (1, True, True)
    check = groundplane("db", "check", "--state", "s", "--json", folder=tmp_path)
    assert check.returncode == 1
    assert {row["store"]: row["reason"] for row in json.loads(check.stdout)}["jobs"] == "schema_newer"
    _execute(
        database, "UPDATE groundplane_schema SET version = 0, name = 'before' WHERE component = 'jobs' AND version = 1"
    )
    _execute(database, "DELETE FROM groundplane_schema WHERE component = 'jobs' AND version > 1")
    older = groundplane(*role, "--state", "s", folder=tmp_path)
    assert (older.returncode, "schema_old" in older.stderr) == (1, True)
    assert "groundplane db upgrade" in older.stderr


def _execute(database: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(database)) as opened:
        opened.execute(sql)
        opened.commit()


async def _seed(state: Path) -> None:
    async with Plane.open(Settings(state=state)) as plane:
        await plane.jobs.create(NewJob(job_id="j1", tool="t", route=["a"], arguments={}, arguments_hash="h"))
        await plane.queues.declare(QueueSpec(name="a"))
        for n in range(3):
            envelope = Envelope.new(["a"], {"n": n}, envelope_id=f"m{n}")
            await plane.queues.send(OutgoingMessage(queue="a", id=f"m{n}", payload=envelope.to_bytes()))
            async with plane.queues.consume("a", max_in_flight=1) as consumer:
                (delivery,) = await consumer.receive(1, 5)
                await consumer.reject(delivery, "processing_error")


async def _received(state: Path) -> list[Any]:
    async with Plane.open(Settings(state=state), ports=("queues",)) as plane:
        async with plane.queues.consume("a", max_in_flight=9) as consumer:
            return [Envelope.from_bytes(one.payload).payload for one in await consumer.receive(9, 5)]


def _on_a_terminal(folder: Path, *words: str, **extra: str) -> str:
    """What the command writes to a terminal."""
    master, slave = pty.openpty()
    env = {**environment(**extra), "TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-m", "groundplane.cli", *words], cwd=folder, env=env, stdin=slave, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        seen = b""
        with contextlib.suppress(OSError):  # the terminal is gone when the process is
            while data := os.read(master, 65536):
                seen += data
        process.wait(30)
    os.close(master)
    return seen.decode()
