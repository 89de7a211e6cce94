"""One job: how it stands, its route with the current hop, its children, its outcome, its events; what to do."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp

from groundplane.core.errors import FailedPrecondition, GroundplaneError
from groundplane.gateway.dashboard import forms, shown
from groundplane.gateway.dashboard.live import stream
from groundplane.gateway.dashboard.mount import ROOT
from groundplane.gateway.dashboard.site import Visit
from groundplane.gateway.dashboard.story import Story
from groundplane.gateway.problems import HTTPProblem, of_error
from groundplane.jobs.checks import PAGE_MAX
from groundplane.jobs.port import Job, JobState, Question
from groundplane.security.access import Action

ACTIONS = {"cancel": "cancelJob", "pause": "pauseJob", "resume": "resumeJob"}
PAGES_READ = 5
"""Pages of the log that a view reads from the beginning; of a longer log it shows the beginning and the end."""
TAIL_IDS = 1000
LIVE_EVERY_S = 0.4


async def show(visit: Visit) -> ASGIApp:
    """The page."""
    context, _ = await _context(visit, Story())
    return visit.page("job.html", **context)


async def live(visit: Visit) -> ASGIApp:
    """The page as the job goes on; over when it has ended."""
    story, job = Story(), await _job(visit)

    async def part() -> tuple[dict[str, Any], bool]:
        return await _context(visit, story)

    async def news(within_s: float) -> None:
        with visit.services.feed.subscribe(job, story.seen) as subscription:
            await subscription.batch(within_s)

    return stream(visit, "job.html", part, news, LIVE_EVERY_S)


async def control(visit: Visit) -> ASGIApp:
    """Cancel, pause or resume."""
    operation = ACTIONS.get(visit.path("action"))
    if operation is None:
        raise HTTPProblem(404, f"path: {visit.request.url.path[:200]!r} does not exist")
    job_id = visit.path("job_id")
    await visit.ask(operation, path={"job_id": job_id}, body={"reason": "from the dashboard"})
    return visit.go(f"{ROOT}/jobs/{job_id}")


async def retry(visit: Visit) -> ASGIApp:
    """Start a new job with the same tool and arguments, and look at it."""
    job = await _job(visit)
    created = await visit.ask("createJob", body={"tool": job.tool, "arguments": job.arguments})
    return visit.go(f"{ROOT}/jobs/{created['job_id']}")


async def answer(visit: Visit) -> ASGIApp:
    """Answer a question, or say that nobody will; the form again where the answer does not fit."""
    caller, question_id = visit.caller, visit.path("question_id")
    assert caller is not None, "no page is made for a stranger"
    job = await visit.services.job(caller, visit.path("job_id"), Action.ANSWER_QUESTION)
    question = next((one for one in job.questions if one.question_id == question_id), None)
    if question is None:
        raise FailedPrecondition(
            f"question_id: {question_id[:100]!r} is not open in this job; somebody may have answered it",
            reason="question_answered",
        )
    action = visit.form.get("action", "accept")
    body: dict[str, Any] = {"action": action}
    try:
        if action == "accept":
            body["content"] = forms.arguments(question.schema or {}, visit.fields)
        await visit.ask("answerQuestion", path={"job_id": job.job_id, "question_id": question_id}, body=body)
    except (GroundplaneError, HTTPProblem) as error:
        status = error.status if isinstance(error, HTTPProblem) else of_error(error).status_code
        if status != 422:
            raise
        context, _ = await _context(visit, Story(), question_id, forms.problems(error))
        return visit.page("job.html", 422, **context)
    return visit.go(f"{ROOT}/jobs/{job.job_id}")


async def _job(visit: Visit) -> Job:
    """The record, once the operation has said that this caller may see the job."""
    job_id = visit.path("job_id")
    await visit.ask("getJob", path={"job_id": job_id})
    return await visit.services.jobs.get(job_id)


async def _context(
    visit: Visit, story: Story, answered: str = "", wrong: dict[str, str] | None = None
) -> tuple[dict[str, Any], bool]:
    """`wrong` is what does not fit in the answer to the question `answered`."""
    job = await _job(visit)
    await _read(visit, job, story)
    whole = await visit.services.whole(job) if job.state is JobState.SUCCEEDED else job
    context = {
        "job": whole,
        "hops": story.hops(job),
        "children": sorted(story.children.values(), key=lambda one: one.index),
        "children_total": story.children_total,
        "events": [_line(event) for event in reversed(story.events)],
        "skipped": story.skipped,
        "repeatable": visit.services.tools.find(job.tool) is not None and visit.may(Action.CALL_TOOL, tool=job.tool),
        "controls": visit.may(Action.CONTROL_JOB, owner=job.owner),
        "answers": visit.may(Action.ANSWER_QUESTION, owner=job.owner),
        "everybody": visit.may(Action.READ_PLANE),
        "took_s": (job.finished_at - job.created_at) / 1000 if job.finished_at else None,
        "standing": _standing(job),
        "questions": [_asked(one, visit, wrong if one.question_id == answered else None) for one in job.questions],
    }
    return context, job.state.terminal


def _asked(question: Question, visit: Visit, wrong: dict[str, str] | None) -> dict[str, Any]:
    fields = forms.fields(question.schema or {}, visit.fields if wrong is not None else None)
    known = {field["name"] for field in fields}
    return {
        "id": question.question_id,
        "kind": question.kind,
        "message": question.message,
        "actor": question.actor,
        "asked_at": question.asked_at,
        "fields": fields,
        "wrong": wrong or {},
        "other": [message for name, message in (wrong or {}).items() if name not in known],
    }


async def _read(visit: Visit, job: Job, story: Story) -> None:
    jobs = visit.services.jobs
    for _ in range(PAGES_READ):
        page = await jobs.events(story.seen, job.job_id, PAGE_MAX)
        for event in page.items:
            story.add(event)
        if len(page.items) < PAGE_MAX:
            return
    story.skipped = True
    after = max(story.seen, job.last_event_id - TAIL_IDS)
    for event in (await jobs.events(after, job.job_id, PAGE_MAX)).items:
        story.add(event)


def _standing(job: Job) -> str:
    """One sentence, for those who hear the page: it changes with the step, not with every percent."""
    words = job.state.value.replace("_", " ")
    if job.state.terminal or not job.actor:
        return f"The job {job.tool} is {words}."
    if job.questions:
        words += " and waits for an answer"
    step = min(job.steps_completed + 1, job.total_steps)
    return f"The job {job.tool} is {words}, at step {step} of {job.total_steps}, {job.actor}."


_SAID_ELSEWHERE = {
    "state", "progress", "steps_completed", "total_steps", "traceback", "message", "actor", "status", "envelope_id",
    "deadline_at", "tool", "question_id", "schema", "params", "children", "total",
}  # fmt: skip
"""What a line of the log says in words, or another part of the page shows better."""


def _line(event: Any) -> dict[str, Any]:
    data = event.data
    told = " ".join(str(data[name]) for name in ("status", "actor") if data.get(name))
    rest = {name: value for name, value in data.items() if name not in _SAID_ELSEWHERE and value not in (None, "", [])}
    if event.kind == "split":
        told = f"{told} into {data.get('total') or len(data.get('children', []))}".strip()
    if event.kind == "progress":
        rest = {"attempt": data["attempt"]} if data.get("attempt", 1) != 1 else {}
    return {
        "id": event.id,
        "kind": event.kind,
        "at": event.created_at,
        "told": told,
        "progress": data.get("progress"),
        "message": str(data.get("message") or ""),
        "rest": shown.brief(shown.as_json(rest), 300) if rest else "",
    }
