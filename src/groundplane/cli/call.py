"""`groundplane call`: start a job over HTTP, watch it, print its result."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from cyclopts import Parameter

from groundplane.cli import state_folder
from groundplane.cli.arguments import Given, parse_arguments, typed
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_FAILURE, EXIT_OK, Output, console, on_terminal
from groundplane.core.errors import DeadlineExceeded, ErrorRecord, GroundplaneError, from_record

if TYPE_CHECKING:
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
    chosen = url or state_folder.running(common.settings().state).url
    return asyncio.run(_call(chosen, tool, parse_arguments(arguments), timeout, detach, common.output))


async def _call(url: str, tool: str, given: Given, timeout: float | None, detach: bool, output: Output) -> int:
    from groundplane.gateway import Client

    async with Client(url) as client:
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
                await _follow(client, job["job_id"], shown)
        except asyncio.CancelledError:
            output.note(f"job {job['job_id']} goes on; see `groundplane jobs watch` and `groundplane jobs cancel`")
            raise
        return _finish(await client.result(job["job_id"]), output)


async def _schema(client: Client, tool: str) -> dict[str, Any]:
    """The tool's input schema; an empty one for a tool that is not there, which starting the job then says."""
    return next((one["input_schema"] for one in await client.tools() if one["name"] == tool), {})


async def _follow(client: Client, job_id: str, shown: _Shown) -> None:
    events = client.follow(job_id)
    async with contextlib.aclosing(events):
        async for event in events:
            shown.update(event.data)


def _finish(job: dict[str, Any], output: Output) -> int:
    if output.json:
        output.result(job)
    elif job["state"] == "succeeded":
        output.result(job.get("result"))
    if job["state"] == "succeeded":
        return EXIT_OK
    output.error(_failure(job))
    return EXIT_FAILURE


def _failure(job: dict[str, Any]) -> GroundplaneError:
    error = job.get("error") or {}
    if not error and job["state"] == "timed_out":
        return DeadlineExceeded(f"job: {job['job_id']!r} ran out of time", reason="deadline_exceeded")
    details = error.get("details") or {}
    reason = str(error.get("reason") or details.get("reason") or "")
    said = [str(details.get("type") or ""), str(error.get("message") or job.get("message") or "")]
    why = ": ".join(filter(None, said)) or "no reason given"
    text = f"job: {job['job_id']!r} {job['state']}{_where(details)}: {why}"
    return from_record(ErrorRecord(str(error.get("code", "internal")), text, reason, details))


def _where(details: dict[str, Any]) -> str:
    return f" in actor {details['actor']!r}" if details.get("actor") else ""


class _Shown(Protocol):
    def update(self, job: dict[str, Any]) -> None: ...


class _Silent:
    """Piped, or JSON: no progress."""

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
            def update(self, job: dict[str, Any]) -> None:
                note = " ".join(str(job[key]) for key in ("actor", "message") if job.get(key))
                bar.update(task, completed=float(job.get("progress") or 0.0), note=note[:60])

        yield Bar()
