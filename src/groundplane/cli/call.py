"""`groundplane call`: start a job over HTTP, watch it, print its result."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from cyclopts import Parameter

from groundplane.cli import state_folder
from groundplane.cli.arguments import Given, parse_arguments, typed
from groundplane.cli.asking import prompted
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_FAILURE, EXIT_OK, Output, console, on_terminal
from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.core.settings import Settings
from groundplane.telemetry import trace_names as names
from groundplane.telemetry import traces
from groundplane.telemetry.traces import tracing

if TYPE_CHECKING:
    from rich.console import Console

    from groundplane.gateway.client import Client


def call(
    tool: str,
    /,
    *arguments: Annotated[str, Parameter(help="name=value, read as the tool's schema says, or name:=JSON.")],
    url: Annotated[str | None, Parameter(help="The gateway (default: the one that runs on the state folder).")] = None,
    timeout: Annotated[float | None, Parameter(help="Seconds that the job may take.")] = None,
    detach: Annotated[bool, Parameter(negative="", help="Print the job and do not wait for it.")] = False,
    common: Common = COMMON,
) -> int:
    """Start a job of a tool, show how it goes, print its result.

    Examples:

      groundplane call pipeline value=5

      groundplane call ask question="parse a TOML file" --json

      groundplane call total numbers='[1, 2]' rounded=true

      groundplane call ingest path=/srv/code --url http://127.0.0.1:8080 --detach
    """
    settings = common.settings(client_url=url)
    work = _call(settings, tool, parse_arguments(arguments), timeout, detach, common.output)
    return asyncio.run(_traced(tool, work))


def connect(settings: Settings) -> Client:
    """A client of the gateway that the settings name, else of the one that runs on the state folder."""
    from groundplane.gateway import Client

    url = settings.client_url.reveal() if settings.client_url else state_folder.running(settings.state).url
    return Client(url, key=settings.client_key.reveal() if settings.client_key else None)


async def _traced(tool: str, work: Awaitable[int]) -> int:
    """The command as the first span of its job's trace, where OTEL_* asks for one."""
    async with tracing("groundplane-call", "call"):
        with traces.start(names.command("call"), attributes={names.TOOL: tool}):
            return await work


async def _call(
    settings: Settings, tool: str, given: Given, timeout: float | None, detach: bool, output: Output
) -> int:
    async with connect(settings) as client:
        schema = await _schema(client, tool) if given.texts else {}
        try:
            job = await client.start(tool, typed(given, schema), timeout_s=timeout)
        except asyncio.CancelledError:  # Ctrl-C
            output.note("a job may have been started; see `groundplane jobs list`")
            raise
        if detach:
            output.result(job, f"{job['job_id']}  {job['state']}")
            return EXIT_OK
        try:
            with _progress(tool, output) as shown:
                await _follow(client, job["job_id"], shown, output)
        except asyncio.CancelledError:
            output.note(f"job {job['job_id']} goes on; see `groundplane jobs watch` and `groundplane jobs cancel`")
            raise
        return _finish(await client.result(job["job_id"]), output)


async def _schema(client: Client, tool: str) -> dict[str, Any]:
    """The tool's input schema; an empty one for a tool that is not there, which starting the job then says."""
    return next((one["input_schema"] for one in await client.tools() if one["name"] == tool), {})


async def _follow(client: Client, job_id: str, shown: _Shown, output: Output) -> None:
    """Show how the job goes; at a terminal, put what it asks to the person there."""
    events = client.follow(job_id)
    answered: set[str] = set()
    async with contextlib.aclosing(events):
        async for event in events:
            shown.update(event.data)
            if event.data.get("questions") or event.data.get("kind") == "asked":
                await _ask(client, job_id, shown, output, answered)


async def _ask(client: Client, job_id: str, shown: _Shown, output: Output, answered: set[str]) -> None:
    """Each open question once. Somebody else may answer first; what is declined here is declined for good."""
    for question in (await client.get(job_id))["questions"]:
        key = question["question_id"]
        if key in answered:
            continue
        answered.add(key)
        if question["kind"] != "elicit" or not (shown.interactive and sys.stdin.isatty()):
            output.note(f"{question['message']}\nanswer it with `groundplane jobs answer {job_id} {key} …`")
            continue
        with shown.aside() as console:
            await _put(client, job_id, question, console, output)


async def _put(client: Client, job_id: str, question: dict[str, Any], console: Console, output: Output) -> None:
    """Ask until the answer fits. The prompt holds up the event loop, so that Ctrl-C ends it at once."""
    while True:
        action, content = "accept", None
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            content = prompted(question, console)
        except EOFError:
            action = "decline"
        except KeyboardInterrupt:
            output.note(f"job {job_id} waits; see `groundplane jobs answer` and `groundplane jobs cancel`")
            raise
        finally:
            signal.signal(signal.SIGINT, handler)
        try:
            await client.answer(job_id, question["question_id"], content, action=action)
        except InvalidArgument as error:
            output.error(error)
        except FailedPrecondition as error:  # somebody else answered, or the job has ended
            output.note(error.message)
            return
        else:
            return


def _finish(job: dict[str, Any], output: Output) -> int:
    from groundplane.gateway.client import job_error

    if output.json:
        output.result(job)
    elif job["state"] == "succeeded":
        output.result(job.get("result"))
    error = job_error(job)
    if error is None:
        return EXIT_OK
    output.error(error)
    return EXIT_FAILURE


class _Shown(Protocol):
    interactive: bool

    def update(self, job: dict[str, Any]) -> None: ...
    def aside(self) -> contextlib.AbstractContextManager[Console]: ...


class _Silent:
    """Piped, or JSON: no progress."""

    interactive = False

    def aside(self) -> contextlib.AbstractContextManager[Console]:
        """A place for prompts; nobody is there to be asked."""
        return contextlib.nullcontext(console())

    def update(self, job: dict[str, Any]) -> None:
        """Say nothing."""


@contextlib.contextmanager
def _progress(tool: str, output: Output) -> Iterator[_Shown]:
    if output.json or not on_terminal():
        yield _Silent()
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=console(), transient=True
    ) as bar:
        task = bar.add_task(tool, total=100.0, note="")

        class Bar:
            interactive = True

            @contextlib.contextmanager
            def aside(self) -> Iterator[Console]:
                bar.stop()
                try:
                    yield bar.console
                finally:
                    bar.start()

            def update(self, job: dict[str, Any]) -> None:
                note = " ".join(str(job[key]) for key in ("actor", "message") if job.get(key))
                bar.update(task, completed=float(job.get("progress") or 0.0), note=note[:60])

        yield Bar()
