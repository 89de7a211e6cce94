"""Questions over HTTP and by the client: listed, checked, answered once."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.errors import FailedPrecondition, InvalidArgument, NotFound
from groundplane.gateway.client import Client
from groundplane.jobs.port import Ask, OutboxMessage, Question
from served_gateway import House, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

FORM = {
    "type": "object",
    "properties": {
        "sure": {"type": "boolean"},
        "mail": {"type": "string", "format": "email"},
        "day": {"type": "string", "format": "date"},
        "at": {"type": "string", "format": "date-time"},
        "link": {"type": "string", "format": "uri"},
        "size": {"type": "string", "enum": ["s", "m"], "default": "m"},
        "count": {"type": "integer", "minimum": 1},
    },
    "required": ["sure"],
}


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, tool("stuck")) as opened:
        yield opened


async def _asking(one: House, client: Client, **fields: Any) -> str:
    """A job that waits for an answer to `q`, as its sidecar leaves it behind."""
    job_id: str = (await client.start("stuck"))["job_id"]
    await _ask(one, job_id, **fields)
    return job_id


async def _ask(one: House, job_id: str, **fields: Any) -> None:
    question = Question(**{"question_id": "q", "schema": FORM, "message": "Sure?", "envelope_id": job_id, **fields})
    message = OutboxMessage(queue="stuck", id=job_id, payload=b"", dedup_key="again")
    await one.jobs.apply(Ask(job_id=job_id, questions=[question], message=message))


@pytest.mark.req("GATE-16.1")
async def test_a_question_is_seen_and_answered_over_http_and_the_job_goes_on(one: House) -> None:
    async with Client(one.url) as client, one.http() as http:
        job_id = await _asking(one, client)
        job = (await http.get(f"/v1/jobs/{job_id}")).json()
        (question,) = job["questions"]
        assert (job["state"], question["message"], question["schema"]) == ("paused", "Sure?", FORM)
        assert (await http.get("/v1/jobs")).json()["jobs"][0]["questions"] == []
        path = f"/v1/jobs/{job_id}/questions"
        assert (await http.get(path)).json() == {"questions": [question]}
        resumed = await http.post(f"/v1/jobs/{job_id}/resume")
        assert (resumed.status_code, resumed.json()["reason"]) == (409, "question_open")
        answered = await http.post(f"{path}/q/answer", json={"content": {"sure": True, "mail": None}})
        assert (answered.status_code, answered.json()["state"], answered.json()["questions"]) == (200, "pending", [])
        (question,) = (await http.get(path)).json()["questions"]
        assert (question["state"], question["action"]) == ("answered", "accept")
        assert question["content"] == {"sure": True, "size": "m"}
        again = await http.post(f"{path}/q/answer", json={"content": {"sure": True}})
        assert again.status_code == 200
        other = await http.post(f"{path}/q/answer", json={"action": "decline"})
        assert (other.status_code, other.json()["reason"]) == (409, "question_answered")


@pytest.mark.req("GATE-16.2")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "content.sure: is missing"),
        ({}, "content.sure: is missing"),
        ("yes", "content: 'yes' is not an object"),
        ({"sure": "yes"}, "content.sure: 'yes' is not true or false"),
        ({"sure": None}, "content.sure: None is not true or false"),
        ({"sure": True, "shure": 1}, "content.shure: 1 is unknown to question 'q'"),
        ({"sure": True, "size": "l"}, "content.size: 'l' is not one of 's', 'm'"),
        ({"sure": True, "count": 0}, "content.count: 0 is less than"),
        ({"sure": True, "count": 1.5}, "content.count: 1.5 is not an integer"),
        ({"sure": True, "mail": "nobody"}, "content.mail: 'nobody' is no email"),
        ({"sure": True, "day": "2026-13-01"}, "content.day: '2026-13-01' is no date"),
        ({"sure": True, "at": "2026-01-01T10:00:00"}, "content.at: '2026-01-01T10:00:00' is no date-time"),
        ({"sure": True, "link": "example.org"}, "content.link: 'example.org' is no uri"),
    ],
)
async def test_an_answer_that_does_not_fit_is_refused_with_the_field_and_changes_nothing(
    one: House, content: Any, message: str
) -> None:
    async with Client(one.url) as client:
        job_id = await _asking(one, client)
        with pytest.raises(InvalidArgument) as caught:
            await client.answer(job_id, "q", content)
        assert caught.value.message.startswith(message)
        assert [question["state"] for question in await client.questions(job_id)] == ["open"]
        good = {"sure": False, "mail": "a@b.c", "day": "2026-12-01", "at": "2026-01-01T10:00:00Z", "link": "a:b"}
        assert (await client.answer(job_id, "q", good))["state"] == "pending"


@pytest.mark.req("GATE-16.1")
async def test_who_follows_a_job_is_told_what_it_asks(one: House) -> None:
    async with Client(one.url) as client:
        job_id = await _asking(one, client)
        told: dict[str, Any] = {}
        async with aclosing(client.follow(job_id)) as events:
            async for event in events:
                told[event.data.get("kind", "")] = event.data
                if "question_id" in event.data:
                    break
    assert (told["asked"]["question_id"], told["asked"]["question_kind"]) == ("q", "elicit")
    assert told["asked"]["message"] == "Sure?"
    assert told["paused"]["deadline_at"] == told[""]["deadline_at"]


@pytest.mark.req("GATE-16.1")
async def test_a_call_that_nobody_watches_says_how_its_question_is_answered(one: House) -> None:
    command = [sys.executable, "-m", "groundplane.cli", "call", "stuck", "--url", one.url]
    calling = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)
    assert calling.stderr is not None
    try:
        async with asyncio.timeout(60), Client(one.url) as client:
            while one.gateway.registry.get_sample_value("groundplane_gateway_streams_open") != 1.0:
                await asyncio.sleep(0.02)
            (job,) = (await client.list_jobs())["jobs"]
            await _ask(one, job["job_id"])  # it follows already: it learns of the question by the event alone
            assert await calling.stderr.readline() == b"Sure?\n"
            assert f"`groundplane jobs answer {job['job_id']} q" in (await calling.stderr.readline()).decode()
            await client.cancel(job["job_id"])
            assert await calling.wait() == 1
    finally:
        if calling.returncode is None:
            calling.kill()
            await calling.wait()


@pytest.mark.req("GATE-16.1", "GATE-16.2")
async def test_the_client_declines_and_is_told_what_cannot_be_answered(one: House) -> None:
    async with Client(one.url) as client:
        job_id = await _asking(one, client)
        with pytest.raises(InvalidArgument, match=r"^content: 'decline' has none"):
            await client.answer(job_id, "q", {"sure": True}, action="decline")
        with pytest.raises(InvalidArgument, match=r"^body\.action: "):
            await client.answer(job_id, "q", action="perhaps")
        for job, key, reason in ((job_id, "other", "question_not_found"), ("nobody", "q", "job_not_found")):
            with pytest.raises(NotFound) as missing:
                await client.answer(job, key, {})
            assert missing.value.reason == reason
        await client.answer(job_id, "q", action="decline")
        (question,) = await client.questions(job_id)
        assert (question["action"], question["content"]) == ("decline", None)
        ended = await _asking(one, client)
        await client.cancel(ended)
        with pytest.raises(FailedPrecondition) as refused:
            await client.answer(ended, "q", {"sure": True})
        assert refused.value.reason == "job_terminal"
        assert [question["state"] for question in await client.questions(ended)] == ["closed"]


@pytest.mark.req("GATE-16.2")
async def test_the_answers_of_clients_are_checked_by_their_kind(one: House) -> None:
    async with Client(one.url) as client:
        sample = await _asking(one, client, kind="sample", schema=None)
        with pytest.raises(InvalidArgument, match=r"^content\.model: is missing"):
            await client.answer(sample, "q", {"role": "assistant", "content": {"type": "text", "text": "x"}})
        told = {"role": "assistant", "content": {"type": "text", "text": "x"}, "model": "m", "_meta": {}}
        assert (await client.answer(sample, "q", told))["state"] == "pending"
        roots = await _asking(one, client, kind="roots", schema=None)
        with pytest.raises(InvalidArgument, match=r"^content\.roots\[0\]\.uri: is missing"):
            await client.answer(roots, "q", {"roots": [{}]})
        assert (await client.answer(roots, "q", {"roots": [{"uri": "file:///x"}]}))["state"] == "pending"


@pytest.mark.req("GATE-16.2")
async def test_a_form_with_one_field_takes_the_value_alone(one: House) -> None:
    form = {"type": "object", "properties": {"value": {"type": "integer"}}, "required": ["value"]}
    async with Client(one.url) as client:
        job_id = await _asking(one, client, schema=form)
        with pytest.raises(InvalidArgument, match=r"^content\.value: 'x' is not an integer"):
            await client.answer(job_id, "q", "x")
        await client.answer(job_id, "q", 7)
        assert [question["content"] for question in await client.questions(job_id)] == [{"value": 7}]
