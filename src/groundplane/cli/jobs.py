"""`groundplane jobs`: look at jobs and steer them, on the state folder itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter

from groundplane.cli import state_folder
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_FAILURE, EXIT_OK, Output, on_terminal
from groundplane.core.clock import SYSTEM_CLOCK, iso_z
from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.jobs import Job, JobEvent, JobQuery, Jobs, JobState
from groundplane.jobs.port import AnswerAction, Question
from groundplane.plane import Plane

State = Literal["pending", "running", "paused", "succeeded", "failed", "cancelled", "timed_out"]
_COLUMNS = ("job_id", "tool", "state", "progress", "actor", "age", "message")


def list_(
    *,
    state_is: Annotated[
        list[State] | None, Parameter(negative="", help="Only jobs in these states; may be repeated.")
    ] = None,
    tool: Annotated[str | None, Parameter(help="Only jobs of this tool.")] = None,
    owner: Annotated[str | None, Parameter(help="Only jobs of this principal.")] = None,
    limit: Annotated[int, Parameter(help="At most so many, 1 to 1000.")] = 50,
    cursor: Annotated[str | None, Parameter(help="Go on where the page before ended.")] = None,
    common: Common = COMMON,
) -> int:
    """List jobs, newest first.

    Examples:

      groundplane jobs list --state-is running --state-is paused

      groundplane jobs list --tool pipeline --limit 10 --json
    """

    async def work(jobs: Jobs, output: Output) -> int:
        states = [JobState(one) for one in state_is or []]
        query = JobQuery(states=states, tool=tool, owner=owner, cursor=cursor, limit=limit)
        page = await jobs.list_jobs(query)
        rows = [job_row(job) for job in page.items]
        now = SYSTEM_CLOCK.now_ms()
        for row, job in zip(rows, page.items, strict=True):
            row["age"] = _age(now - job.created_at)
        output.table(rows, _COLUMNS, empty="no jobs", value={"jobs": rows, "cursor": page.cursor})
        if page.cursor is not None:
            output.note(f"more: --cursor {page.cursor}")
        return EXIT_OK

    return _run(common, work)


def show(job_id: str, /, *, common: Common = COMMON) -> int:
    """Show one job with its arguments, result or error, its questions, and its events.

    Examples:

      groundplane jobs show 0190f3c2-7e1a-7c7b-8a53-3f6b8d0c1a2e
    """

    async def work(jobs: Jobs, output: Output) -> int:
        from groundplane.gateway.shapes import question_json

        job = await jobs.get(job_id)
        events = await jobs.events(0, job_id)
        row = {**job_row(job), "arguments": job.arguments, "route": job.route}
        row["questions"] = [question_json(one) for one in await jobs.questions(job_id)]
        row["events"] = [_event_row(event) for event in events.items]
        output.result(row)
        return EXIT_OK

    return _run(common, work)


def cancel(job_id: str, /, *, reason: str = "", common: Common = COMMON) -> int:
    """Cancel a job: what runs is told, what waits is never started.

    Examples:

      groundplane jobs cancel JOB_ID --reason "asked for twice"
    """
    return _control(common, job_id, lambda jobs: jobs.cancel(job_id, reason), "cancelled")


def pause(job_id: str, /, *, reason: str = "", common: Common = COMMON) -> int:
    """Pause a job: its deadline stands still, and its next hop waits.

    Examples:

      groundplane jobs pause JOB_ID
    """
    return _control(common, job_id, lambda jobs: jobs.pause(job_id, reason), "paused")


def resume(job_id: str, /, *, reason: str = "", common: Common = COMMON) -> int:
    """Let a paused job go on.

    Examples:

      groundplane jobs resume JOB_ID
    """
    return _control(common, job_id, lambda jobs: jobs.resume(job_id, reason), "resumed")


def answer(
    job_id: str,
    /,
    *words: Annotated[str, Parameter(help="The question's id (not needed where one is open), and the answer.")],
    action: Annotated[AnswerAction, Parameter(help="accept, or decline or cancel without an answer.")] = "accept",
    common: Common = COMMON,
) -> int:
    """Answer what a job asks; with its last answer it goes on. An answer never changes.

    Examples:

      groundplane jobs answer JOB_ID yes

      groundplane jobs answer JOB_ID approve.0.sure colour=red count=3

      groundplane jobs answer JOB_ID --action decline
    """

    async def work(jobs: Jobs, output: Output) -> int:
        from groundplane.cli.asking import from_words
        from groundplane.gateway.answers import checked_answer
        from groundplane.gateway.shapes import question_json

        question, rest = _question(job_id, await jobs.questions(job_id), words)
        content = from_words(rest, question_json(question)) if rest else None
        checked = checked_answer(question, content, action)
        job = await jobs.answer(job_id, question.question_id, checked, action=action)
        output.result(job_row(job), f"answered: {question.question_id} ({job.state.value})")
        return EXIT_OK

    return _run(common, work)


def _question(job_id: str, asked: list[Question], words: tuple[str, ...]) -> tuple[Question, tuple[str, ...]]:
    """The question that is meant: the one that the first word names, else the one that is open; and the other words."""
    named = next((one for one in asked if words and one.question_id == words[0]), None)
    if named is not None:
        return named, words[1:]
    if len(words) > 1 and "=" not in words[0]:
        known = ", ".join(one.question_id for one in asked) or "none"
        raise NotFound(
            f"question_id: job {job_id!r} has no question {words[0]!r}; it has asked {known}. "
            "Quote an answer of several words",
            reason="question_not_found",
        )
    waiting = [one for one in asked if one.state == "open"]
    if len(waiting) == 1:
        return waiting[0], words
    if not waiting:
        raise NotFound(f"job_id: {job_id!r} has no open question; look at `groundplane jobs show`")
    ids = ", ".join(one.question_id for one in waiting)
    raise InvalidArgument(f"question_id: job {job_id!r} has {len(waiting)} open questions; name one of {ids}")


def watch(job_id: str, /, *, common: Common = COMMON) -> int:
    """Follow a job live until it ends; exit code 1 when it does not succeed.

    Examples:

      groundplane jobs watch JOB_ID --json
    """

    async def work(jobs: Jobs, output: Output) -> int:
        async for event in jobs.follow(job_id):
            row = _event_row(event)
            output.result(row, f"{row['time']}  {event.kind:<10} {_words(event)}")
        job = await jobs.get(job_id)
        if not output.json and on_terminal():
            output.note(f"{job.state.value}: {job_id}")
        return EXIT_OK if job.state is JobState.SUCCEEDED else EXIT_FAILURE

    return _run(common, work)


def job_row(job: Job) -> dict[str, Any]:
    """The job in the field names of the HTTP interface."""
    error = job.error
    return {
        "job_id": job.job_id,
        "tool": job.tool,
        "state": job.state.value,
        "progress": job.progress,
        "message": job.message,
        "actor": job.actor,
        "steps_completed": job.steps_completed,
        "total_steps": job.total_steps,
        "result": job.result,
        "error": None if error is None else {"code": error.code, "message": error.message, "details": error.details},
        "created_at": iso_z(job.created_at),
        "updated_at": iso_z(job.updated_at),
        "finished_at": None if job.finished_at is None else iso_z(job.finished_at),
        "deadline_at": None if job.deadline_at is None else iso_z(job.deadline_at),
        "questions": [one.question_id for one in job.questions],
    }


@asynccontextmanager
async def opened(common: Common, *ports: str) -> AsyncIterator[Plane]:
    """The plane of an existing state folder; looking never makes one."""
    settings = common.settings()
    if settings.queues.scheme == "embedded":
        state_folder.existing(settings.state)
    async with Plane.open(settings, ports=ports) as plane:
        yield plane


def _run(common: Common, work: Callable[[Jobs, Output], Awaitable[int]]) -> int:
    async def inside() -> int:
        async with opened(common, "jobs") as plane:
            return await work(plane.jobs, common.output)

    return asyncio.run(inside())


def _control(common: Common, job_id: str, call: Callable[[Jobs], Awaitable[Job]], done: str) -> int:
    if not job_id.strip():
        raise InvalidArgument(f"job_id: {job_id!r} is empty; take one from `groundplane jobs list`")

    async def work(jobs: Jobs, output: Output) -> int:
        job = await call(jobs)
        output.result(job_row(job), f"{done}: {job.job_id} ({job.state.value})")
        return EXIT_OK

    return _run(common, work)


def _event_row(event: JobEvent) -> dict[str, Any]:
    return {"id": event.id, "time": iso_z(event.created_at), "kind": event.kind, "data": event.data}


def _words(event: JobEvent) -> str:
    data = event.data
    shown = [str(data[key]) for key in ("state", "actor", "message") if data.get(key)]
    if "progress" in data:
        shown.insert(0, f"{data['progress']:>5.1f} %" if isinstance(data["progress"], int | float) else "")
    return "  ".join(one for one in shown if one)


def _age(milliseconds: int) -> str:
    seconds = max(0, milliseconds // 1000)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


STATES = get_args(State)
