"""The demo: makes a library of Python code answerable, kills what it runs on half-way, and shows that nothing was lost.

    make demo                               the standard library of this Python
    groundplane demo --path ~/my/project    a folder of your own

No server, no key: one state folder in a temporary place, one command that supervises everything.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from groundplane import Client

HERE = Path(__file__).resolve().parent
QUESTIONS = ["parse a TOML file", "find the median of numbers", "make a temporary directory"]
ENOUGH = 100  # packages: with so many there is time to kill something half-way
AS_JSON = False
console = Console(highlight=False)


class DemoFailed(Exception):
    """What was promised did not happen."""


async def main(path: Path, questions: list[str]) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="groundplane-demo-") as folder:
        state = Path(folder) / "state"
        os.environ["LIBRARY_GUIDE_INDEX"] = str(Path(folder) / "index.db")
        title("1", "One command starts everything: a gateway, three actors, no server")
        async with plane(state) as (url, pid):
            await ingest(url, pid, path)
            await mend_and_redrive(url, state, Path(folder) / "project")
            await ask(url, questions)
            await ask_badly(url)
    title("✓", f"Done in {time.monotonic() - began:.0f} s; nothing is left running, nothing is left on disk")
    what_next(path)


@contextlib.asynccontextmanager
async def plane(state: Path) -> AsyncIterator[tuple[str, int]]:
    """`groundplane dev`, as a user would start it."""
    argv = [*GROUNDPLANE, "dev", "app:app", "--port", "0", "--state", str(state), "--json"]
    command("groundplane dev app:app")
    log = state.with_name("dev.log")
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(*argv, cwd=HERE, stdout=asyncio.subprocess.PIPE, stderr=stderr)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        if not line:
            raise DemoFailed(f"`groundplane dev` ended before it was ready:\n{log.read_text()[-2000:]}")
        ready = json.loads(line)
        say(f"ready after {ready['seconds']:.1f} s on {ready['url']} (pid {ready['pid']})")
        drain = asyncio.create_task(show_restarts(process.stdout))
        yield ready["url"], ready["pid"]
        drain.cancel()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def ingest(url: str, pid: int, path: Path) -> None:
    """The main job, watched live, with two kills half-way; then the proof."""
    title("2", f"An MCP client (the official SDK, its own process) calls `ingest` on {path}")
    expected, skip = await asyncio.to_thread(plain_walk, path)
    if not expected["packages"]:
        raise DemoFailed(f"{str(path)!r} holds no Python files")
    if skip:
        say(f"  left out, because Python cannot parse them: {escape(', '.join(skip))}")
    client = asyncio.create_task(call_over_mcp(url, "ingest", {"path": str(path), "skip": skip}, live=True))
    async with Client(url) as gateway:
        job_id = await job_of(gateway, "ingest")
        say(f"job {job_id}: durable before the client heard of it")
        alive = await kill_and_watch(gateway, job_id, pid)
    answer = await client
    if alive and expected["packages"] >= ENOUGH:
        raise DemoFailed(f"the job was over before the {alive[0]} could be killed")
    if alive:
        say(f"  {expected['packages']} packages: done before the {alive[0]} could be killed; a larger folder shows it")
    result = answer["value"]["result"] if "result" in (answer["value"] or {}) else answer["value"]
    prove(expected, result)


async def kill_and_watch(gateway: Client, job_id: str, pid: int) -> list[str]:
    """Follow the job; half-way kill a worker, then a sidecar, each in the middle of an envelope, and see attempt 2.
    Returns which of them there was no time for.
    """
    targets = ["worker", "sidecar"]
    holding: dict[str, int] = {}  # envelope → worker, for those that `parse` is at
    killed: set[int] = set()
    again: set[tuple[str, int]] = set()
    patience = 0  # so many envelopes may be completed before a kill counts as one that hit nothing
    async for event in gateway.follow(job_id):
        data = event.data
        envelope, attempt, message = data.get("envelope_id"), data.get("attempt", 1), data.get("message") or ""
        if envelope is None or data.get("actor") != "parse":
            continue
        if attempt > 1 and (envelope, attempt) not in again:
            again.add((envelope, attempt))
            if patience:
                say(f"  [green]envelope {envelope} is at attempt {attempt}[/]: its {targets.pop(0)} was killed")
                patience = 0
        if data.get("status") == "completed" or attempt > 1:
            holding.pop(envelope, None)
            if patience == 1:
                say(f"  that {targets[0]} was between two envelopes; another one, then")
            patience = max(0, patience - 1)
        elif " in worker " in message and int(message.rpartition(" ")[2]) not in killed:
            holding[envelope] = int(message.rpartition(" ")[2])
        if targets and holding and not patience and data.get("progress", 0) > 40:
            worker = next(reversed(holding.values()))
            number = worker if targets[0] == "worker" else sidecar_of("parse", pid)
            if kill(number):
                killed.add(number)
                patience = 20
                which = "a worker" if targets[0] == "worker" else "the sidecar"
                say(f"  [red]kill -9 {number}[/]: {which} of `parse`")
            holding.clear()
    return targets


def sidecar_of(actor: str, dev: int) -> int:
    """The pid of an actor's sidecar below `groundplane dev`, from the process table."""
    for child in children(dev):
        argv = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        if b"groundplane.mesh.sidecar" in argv and any(actor.encode() in part for part in argv):
            return child
    raise DemoFailed(f"no sidecar of {actor!r} runs below pid {dev}")


def children(pid: int) -> Iterator[int]:
    """The children of a process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def prove(expected: dict[str, int], result: dict[str, Any]) -> None:
    """Counts against the plain walk, and no place in the index twice."""
    import catalogue

    rows, places = catalogue.count()
    say("")
    say("  proof                      the mesh   a plain loop")
    for name in ("packages", "files", "symbols"):
        say(f"  {name:<24} {result[name]:>10,} {expected[name]:>14,}")
    say(f"  rows in the index        {rows:>10,}   of them different places: {places:,}")
    if any(result[name] != expected[name] for name in expected) or rows != places or rows != expected["symbols"]:
        raise DemoFailed(f"the counts differ: {result} against {expected}, {rows} rows, {places} places")
    say("  [green]nothing lost, nothing indexed twice[/]")


def plain_walk(root: Path) -> tuple[dict[str, int], list[str]]:
    """The same work in one process without Groundplane; and the files that no parser can read."""
    import app

    symbols, unreadable = 0, []
    for file in [file for files in app.modules_of(root).values() for file in files]:
        try:
            symbols += len(app.read_module(root, file))
        except (SyntaxError, ValueError, RecursionError, OSError):
            unreadable.append(file)
    packages = app.modules_of(root, unreadable)
    counts = {"packages": len(packages), "files": sum(map(len, packages.values())), "symbols": symbols}
    return counts, unreadable


async def mend_and_redrive(url: str, state: Path, project: Path) -> None:
    """A module with a syntax error becomes a dead letter; mended and redriven, the waiting job completes."""
    title("3", "A module that cannot be parsed: a dead letter with its reason, mended and redriven")
    project.mkdir()  # noqa: ASYNC240 - a demo has nothing else to do meanwhile
    (project / "good.py").write_text('def greet(name):\n    """Say hello to somebody."""\n')
    broken = project / "broken.py"
    broken.write_text("def answer(:\n    return 42\n")
    async with Client(url) as gateway:
        job = await gateway.start("ingest", {"path": str(project)})
        letter = await first_dead_letter(state)
        say(f"  dead letter {letter['id']} of `{letter['queue']}`: {letter['reason']}: {letter['error']['message']}")
        say(f"  the job waits at its fan-in: {(await gateway.get(job['job_id']))['state']}")
        broken.write_text('def answer():\n    """The answer to everything."""\n    return 42\n')
        command(f"groundplane dead redrive {letter['id']}")
        await groundplane("dead", "redrive", letter["id"], "--state", str(state), "--json")
        done = await gateway.result(job["job_id"], timeout_s=60)
        if done["state"] != "succeeded" or done["result"]["files"] != 2:
            raise DemoFailed(f"the job did not heal: {done}")
        say(f"  [green]{done['state']}[/]: {done['result']}")


async def first_dead_letter(state: Path) -> dict[str, Any]:
    """The first dead letter, as `groundplane dead list` shows it, as soon as there is one."""
    command("groundplane dead list")
    async with asyncio.timeout(30):
        while True:
            listed = await groundplane("dead", "list", "--state", str(state), "--json")
            for letter in listed["dead"]:
                return dict(letter)


async def ask(url: str, questions: list[str]) -> None:
    """Questions, answered with file and line."""
    title("4", "The client asks")
    for question in questions:
        answer = await call_over_mcp(url, "ask", {"question": question, "limit": 3})
        say(f"  [bold]{escape(question)}[/]" + ("" if answer["value"]["result"] else ": no place is like that"))
        for place in answer["value"]["result"]:
            signature = place["signature"] if len(place["signature"]) < 40 else place["signature"][:37] + "…)"
            say(f"    [cyan]{escape(place['name'] + signature)}[/]  {escape(place['file'])}:{place['line']}")


async def ask_badly(url: str) -> None:
    """A wrong call gets an error that helps."""
    title("5", "A wrong call gets an error that helps")
    answer = await call_over_mcp(url, "ask", {"qestion": "parse a TOML file"})
    if not answer["error"]:
        raise DemoFailed(f"a wrong call succeeded: {answer}")
    say(f"  [yellow]{escape(answer['text'])}[/]")


async def call_over_mcp(url: str, tool: str, arguments: dict[str, Any], *, live: bool = False) -> dict[str, Any]:
    """One call by client.py in a process of its own; its last line is the answer."""
    argv = [sys.executable, str(HERE / "client.py"), url, tool, json.dumps(arguments)]
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    answer: dict[str, Any] = {}
    shown = -10.0
    async for line in process.stdout:
        answer = json.loads(line)
        if live and "progress" in answer and answer["progress"] >= shown + 10:
            shown = answer["progress"]
            say(f"  {shown:5.1f} %  {answer['message'] or ''}".rstrip())
    await process.wait()
    if "error" not in answer:
        raise DemoFailed(f"client.py ended with {process.returncode} and no answer")
    if answer["error"] and live:
        raise DemoFailed(answer["text"])
    return answer


async def job_of(gateway: Client, tool: str) -> str:
    """The id of the newest job of a tool, as soon as there is one."""
    async with asyncio.timeout(30):
        while True:
            page = await gateway.list_jobs(tool=tool, limit=1)
            for job in page["jobs"]:
                return str(job["job_id"])


async def groundplane(*arguments: str) -> Any:
    """What a `groundplane … --json` command printed."""
    process = await asyncio.create_subprocess_exec(*GROUNDPLANE, *arguments, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    if process.returncode:
        raise DemoFailed(f"groundplane {' '.join(arguments)} ended with {process.returncode}")
    return json.loads(printed)


async def show_restarts(lines: asyncio.StreamReader) -> None:
    """What `dev` says of processes that ended and serve again."""
    async for line in lines:
        event = json.loads(line)
        if event.get("event") == "restarted":
            say(f"  [green]{event['message']}[/]")


def kill(pid: int) -> bool:
    """SIGKILL; False when the process was gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def what_next(path: Path) -> None:
    """The end of the demo."""
    if shutil.which("groundplane") is None:
        command(f"source {os.path.relpath(Path(sys.prefix) / 'bin' / 'activate')}")
    command(f"cd {os.path.relpath(HERE)} && groundplane dev app:app".removeprefix("cd . && "))
    command(f"groundplane call ingest path={path}")
    command('groundplane call ask question="open a zip archive"')
    say("  Any MCP client can do the same at the URL that `dev` prints, with /mcp behind it.")


def title(number: str, text: str) -> None:
    show("step", text, f"\n[bold blue]{number}[/]  [bold]{escape(text)}[/]")


def command(text: str) -> None:
    show("command", text, f"[dim]  $ {escape(text)}[/]")


def say(markup: str) -> None:
    show("line", Text.from_markup(markup).plain.strip(), markup)


def show(kind: str, text: str, markup: str) -> None:
    """One line for people, or one for programs."""
    if AS_JSON:
        print(json.dumps({"event": kind, "text": text}), flush=True)
    else:
        console.print(markup, soft_wrap=True)


GROUNDPLANE = [sys.executable, "-m", "groundplane.cli"]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--path", type=Path, default=Path(sysconfig.get_path("stdlib")), help="the folder to read")
    parser.add_argument("questions", nargs="*", default=QUESTIONS, help="what to ask (default: three questions)")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    options = parser.parse_args()
    AS_JSON = options.json
    folder = options.path.expanduser().resolve()
    if not folder.is_dir():
        sys.exit(f"--path: {str(options.path)!r} is no folder; name one that holds Python files")
    sys.path.insert(0, str(HERE))
    try:
        asyncio.run(main(folder, options.questions))
    except DemoFailed as failure:
        sys.exit(f"the demo failed: {failure}")
