"""The dashboard as HTTP: headers, protection of changes, escaping, pages without JavaScript, streams of fragments."""

from __future__ import annotations

import asyncio
import html
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from groundplane.core.errors import ErrorRecord, Unavailable
from groundplane.core.lifecycle import Lifecycle
from groundplane.gateway.dashboard import assets, browser, flow, live
from groundplane.gateway.dashboard.logins import COOKIE
from groundplane.gateway.dashboard.mount import PAGES as PAGE_TABLE
from groundplane.jobs.port import Ask, OutboxMessage, Progress, Question
from groundplane.queues.port import OutgoingMessage, QueueSpec
from groundplane.security.access import Action, Verdict, decide
from served_gateway import VALUE, Gate, House, actors, double, echo, eventually, fail, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

PAGES = (
    "/",
    *(f"/dashboard/{name}" for name in ("tools", "tools/sum", "actors", "actors/sum", "dead", "services", "health")),
)
ATTACKS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    "</textarea></pre></title></style><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "<div hx-get=/x hx-trigger=load>",
    "\u202egnp.exe\u2066\u200b",
)


def token_in(text: str) -> str:
    """The token of a page's forms."""
    found = re.search(r'name="_token" value="([0-9a-f]{64})"', text)
    assert found is not None
    return found[1]


async def post(http: httpx2.AsyncClient, path: str, fields: dict[str, str], **headers: str) -> httpx2.Response:
    """A form as a browser sends it from a page of ours."""
    origin = str(http.base_url).rstrip("/")
    return await http.post(path, data=fields, headers={"origin": origin, "sec-fetch-site": "same-origin", **headers})


@pytest.mark.req("GATE-19")
async def test_every_page_has_the_policy_and_nothing_inline(tmp_path: Path) -> None:
    async with house(tmp_path, tool("sum", schema=VALUE)) as one, one.http() as http:
        for path in (*PAGES, "/dashboard/jobs/none"):
            answer = await http.get(path)
            assert answer.status_code == (404 if path.endswith("none") else 200), path
            policy = answer.headers["content-security-policy"]
            assert "unsafe" not in policy
            for part in ("default-src 'self'", "frame-ancestors 'none'", "form-action 'self'", "base-uri 'none'"):
                assert part in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "same-origin"
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"
            assert not re.search(r"<style|<script(?! src=)|\sstyle=|\son\w+=", answer.text), path


@pytest.mark.req("GATE-19")
async def test_a_change_from_anywhere_else_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path, tool("sum", schema=VALUE)) as one, one.http() as http:
        page = (await http.get("/dashboard/tools/sum")).text
        good = {"_token": token_in(page), "arg.value": "1"}
        origin = one.url

        async def refused(fields: dict[str, str], **headers: str) -> httpx2.Response:
            answer = await http.post("/dashboard/tools/sum", data=fields, headers=headers)
            assert answer.status_code in (403, 415), answer.text
            return answer

        await refused(good)  # neither header: no browser
        await refused(good, origin=origin, **{"sec-fetch-site": "cross-site"})
        await refused(good, origin=origin, **{"sec-fetch-site": "same-site"})
        await refused(good, origin=origin, **{"sec-fetch-site": "none"})
        await refused(good, origin="http://localhost:1", **{"sec-fetch-site": "same-origin"})  # the guard lets it pass
        await refused(good, origin="null")
        await refused({"arg.value": "1"}, origin=origin)
        await refused({**good, "_token": "0" * 64}, origin=origin)
        body = await http.post("/dashboard/tools/sum", json=good, headers={"origin": origin})
        assert body.status_code == 415
        async with one.http() as other:  # another visit: its cookie does not go with this token
            await other.get("/")
            assert (await post(other, "/dashboard/tools/sum", good)).status_code == 403
        assert (await http.get("/v1/jobs")).json()["jobs"] == []
        taken = await post(http, "/dashboard/tools/sum", good)
        assert taken.status_code == 303
        assert len((await http.get("/v1/jobs")).json()["jobs"]) == 1


@pytest.mark.req("GATE-19")
async def test_the_cookie_of_a_visit_is_strict_and_no_scripts_business(tmp_path: Path) -> None:
    async with house(tmp_path) as one, one.http() as http:
        cookie = (await http.get("/")).headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "secure" not in cookie
        async with one.http() as secure:
            behind = await secure.get("/", headers={"x-forwarded-proto": "https"})
        assert "secure" in behind.headers["set-cookie"].lower()
        assert "set-cookie" not in (await http.get("/")).headers  # it has one already


@pytest.mark.req("GATE-19")
async def test_markup_in_data_is_shown_and_never_part_of_a_page(tmp_path: Path) -> None:
    """Every place that shows data: arguments, results, messages, errors, stacks, payloads, names, what was typed."""

    async def noisy(payload: Any, report: Any) -> Any:
        await report(50.0, payload["text"])
        return {"said": payload["text"], payload["text"]: 1}

    async def failing(payload: Any, report: Any) -> Any:
        raise ValueError(payload["text"])

    tools = [tool("noisy", description=ATTACKS[0]), tool("bad"), tool("typed", schema=VALUE)]
    async with house(tmp_path, *tools) as one, actors(one, {"noisy": noisy, "bad": failing}), one.http() as http:
        paths = ["/", "/dashboard/tools", "/dashboard/dead"]
        for attack in ATTACKS:
            for name in ("noisy", "bad"):
                created = await http.post("/v1/jobs", json={"tool": name, "arguments": {"text": attack}})
                job_id = created.json()["job_id"]
                await http.get(f"/v1/jobs/{job_id}/result", params={"wait": 20})
                paths.append(f"/dashboard/jobs/{job_id}")
            letter = await _buried(one, attack)
            paths.append(f"/dashboard/dead/{letter}")
            paths += [f"/?tool={_quoted(attack)}", f"/?cursor={_quoted(attack)}", f"/?state={_quoted(attack)}"]
            paths += [f"/?id={_quoted(attack)}", f"/dashboard/dead?queue={_quoted(attack)}"]
            paths += [f"/?owner={_quoted(attack)}", f"/dashboard/dead?purged={_quoted(attack)}"]
            paths += [f"/dashboard/dead/{letter}/purge", f"/dashboard/dead/purge?queue={_quoted(attack)}"]
            paths += [f"/dashboard/dead?redriven={_quoted(attack)}", f"/dashboard/jobs/{_quoted(attack)}"]
        answers = [(path, await http.get(path)) for path in paths]
        kinds = {answer.headers["content-type"] for _, answer in answers}
        assert kinds <= {"text/html; charset=utf-8", "application/problem+json"}  # a slash in an id is no page's path
        pages = [(path, one.text) for path, one in answers if one.headers["content-type"].startswith("text/html")]
        token = token_in(pages[0][1])
        for attack in ATTACKS:
            typed = {"_token": token, "arg.value": attack, "mode": "", "arguments": attack}
            pages.append((attack, (await post(http, "/dashboard/tools/typed", typed)).text))
    assert len(pages) > 100
    for path, text in pages:
        _check_inert(path, text)
    whole = "".join(text for _, text in pages)
    assert whole.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 8
    assert "\\u202egnp.exe\\u2066\\u200b" in whole


def _check_inert(path: str, text: str) -> None:
    for bad in ("<script>alert", "<img src=x", "<svg onload", "onerror=alert(1)>", "' onmouseover='", "<div hx-get"):
        assert bad not in text, (path, bad)
    assert not re.search(r'(?:href|src|action)="javascript:', text), path
    seen = re.sub(r'value="[^"]*"', "", text)  # what a form sends back is what was typed
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", seen), path


async def _buried(one: House, attack: str) -> str:
    from groundplane.core.envelope import Envelope

    await one.queues.declare(QueueSpec(name="buried"))
    envelope = Envelope.new(["buried"], {"text": attack, attack: [attack]})
    message = OutgoingMessage(queue="buried", payload=envelope.to_bytes(), id=envelope.id, headers={"x": attack})
    await one.queues.send(message)
    error = ErrorRecord(code="internal", message=attack, reason=attack[:50], type=attack[:50], traceback=attack)
    async with one.queues.consume("buried", max_in_flight=1) as consumer:
        (delivery,) = await consumer.receive(1, 20.0)
        await consumer.reject(delivery, attack[:50], error)
    found = (await one.queues.list_dead("buried", limit=1000)).items
    return next(letter.id for letter in found if letter.message_id == envelope.id)


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


@pytest.mark.req("GATE-19")
async def test_very_long_and_broken_text_makes_a_bounded_page(tmp_path: Path) -> None:
    async with house(tmp_path, tool("echo")) as one, actors(one, {"echo": echo}), one.http() as http:
        for value in ("x" * 900_000, "\x00\x1b[31m\x7f", "a\u0301" * 50_000):
            created = await http.post("/v1/jobs", json={"tool": "echo", "arguments": {"text": value}})
            job_id = created.json()["job_id"]
            await http.get(f"/v1/jobs/{job_id}/result", params={"wait": 20})
            answer = await http.get(f"/dashboard/jobs/{job_id}")
            assert answer.status_code == 200
            assert len(answer.content) < 700_000
            assert b"\x00" not in answer.content
        assert len((await http.get("/")).content) < 60_000


@pytest.mark.req("GATE-14.1")
async def test_what_is_served_under_the_hash_of_its_content_is_kept_for_good(tmp_path: Path) -> None:
    async with house(tmp_path) as one, one.http() as http:
        page = (await http.get("/")).text
        found = re.findall(r'(?:src|href)="(/dashboard/static/[^"#]+)', page)
        assert {path.rpartition("/")[2] for path in found} >= {"dashboard.css", "dashboard.js", "htmx-4.0.1.min.js"}
        for path in set(found):
            answer = await http.get(path)
            assert answer.status_code == 200, path
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert "set-cookie" not in answer.headers
            other = path.replace(path.split("/")[3], "0" * 16)
            assert (await http.get(other)).status_code == 404
        assert (await http.get("/dashboard/static/x/..%2f..%2fsite.py")).status_code == 404


def test_what_is_vendored_is_what_the_notice_says() -> None:
    folder = Path(assets.__file__).parent / "static" / "vendor"
    notice = (folder / "NOTICE").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^(\S+)\s+sha256:([0-9a-f]{64})$", notice, re.MULTILINE))
    from hashlib import sha256

    there = {file.name: sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.name != "NOTICE"}
    assert listed == there


@pytest.mark.req("GATE-14.1")
async def test_a_job_is_started_paused_resumed_cancelled_and_repeated_by_plain_forms(tmp_path: Path) -> None:
    gate = Gate()
    async with house(tmp_path, tool("slow", schema=VALUE)) as one, actors(one, {"slow": gate}), one.http() as http:
        token = token_in((await http.get("/dashboard/tools/slow")).text)
        started = await post(http, "/dashboard/tools/slow", {"_token": token, "arg.value": "3", "arg.mode": "deep"})
        assert started.status_code == 303
        path = started.headers["location"]
        job_id = path.rpartition("/")[2]
        await asyncio.wait_for(gate.reached.wait(), 30)
        page = (await http.get(path)).text
        for words in ("running", "here now", "&#34;mode&#34;: &#34;deep&#34;", "Pause", "Cancel"):
            assert words in page
        assert ">Retry<" not in page  # while it runs, that would be a second job
        for action, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
            answer = await post(http, f"{path}/{action}", {"_token": token})
            assert (answer.status_code, answer.headers["location"]) == (303, path)
            assert (await http.get(f"/v1/jobs/{job_id}")).json()["state"] == state
        again = await post(http, f"{path}/cancel", {"_token": token})
        assert again.status_code == 409
        assert "has ended" in again.text
        repeated = await post(http, f"{path}/retry", {"_token": token})
        fresh = repeated.headers["location"].rpartition("/")[2]
        assert fresh != job_id
        assert (await one.jobs.get(fresh)).arguments == {"value": 3, "mode": "deep"}
        assert (await post(http, f"{path}/explode", {"_token": token})).status_code == 404


@pytest.mark.req("GATE-14.1")
async def test_a_form_that_is_wrong_comes_back_with_what_was_typed_and_why(tmp_path: Path) -> None:
    async with house(tmp_path, tool("sum", schema=VALUE)) as one, one.http() as http:
        token = token_in((await http.get("/dashboard/tools/sum")).text)
        answer = await post(http, "/dashboard/tools/sum", {"_token": token, "arg.value": "many", "arg.mode": "fast"})
        assert answer.status_code == 422
        assert 'value="many"' in answer.text
        assert "is not an integer" in html.unescape(answer.text)
        assert 'aria-invalid="true"' in answer.text
        whole = await post(http, "/dashboard/tools/sum", {"_token": token, "mode": "json", "arguments": '{"value": }'})
        assert (whole.status_code, "is not JSON" in whole.text) == (422, True)
        fine = await post(http, "/dashboard/tools/sum", {"_token": token, "mode": "json", "arguments": '{"value": 4}'})
        assert fine.status_code == 303


@pytest.mark.req("GATE-14.1")
async def test_a_dead_letter_is_edited_and_put_back(tmp_path: Path) -> None:
    async with house(tmp_path) as one, one.http() as http:
        dead_id = await _buried(one, "a payload")
        page = (await http.get(f"/dashboard/dead/{dead_id}")).text
        typed = html.unescape(re.search(r"<textarea[^>]*>(.*?)</textarea>", page, re.DOTALL)[1])  # type: ignore[index]
        assert json.loads(typed) == {"text": "a payload", "a payload": ["a payload"]}
        fields = {"_token": token_in(page), "payload": "{"}
        wrong = await post(http, f"/dashboard/dead/{dead_id}/redrive", fields)
        assert (wrong.status_code, "is not JSON" in wrong.text) == (422, True)
        fields["payload"] = '{"text": "edited"}'
        done = await post(http, f"/dashboard/dead/{dead_id}/redrive", fields)
        assert done.status_code == 303
        async with one.queues.consume("buried", max_in_flight=1) as consumer:
            (delivery,) = await consumer.receive(1, 20.0)
            from groundplane.core.envelope import Envelope

            assert Envelope.from_bytes(delivery.payload).payload == {"text": "edited"}
            assert delivery.attempt == 1
            await consumer.ack(delivery)
        gone = await post(http, f"/dashboard/dead/{dead_id}/redrive", fields)
        assert gone.status_code == 404


@pytest.mark.req("GATE-14.1")
async def test_dead_letters_are_deleted_after_a_page_that_asks(tmp_path: Path) -> None:
    async with house(tmp_path) as one, one.http() as http:
        first, *_ = [await _buried(one, f"letter {n}") for n in range(4)]
        asking = await http.get(f"/dashboard/dead/{first}/purge")
        assert (asking.status_code, "Delete this dead letter?" in asking.text) == (200, True)
        assert (await one.queues.depth("buried")).dead == 4  # looking deletes nothing
        token = {"_token": token_in(asking.text)}
        done = await post(http, f"/dashboard/dead/{first}/purge", token)
        assert (done.status_code, done.headers["location"]) == (303, "/dashboard/dead?purged=1")
        assert (await post(http, f"/dashboard/dead/{first}/purge", token)).status_code == 404
        asking = await http.get("/dashboard/dead/purge?queue=buried")
        assert "Delete 3 dead letters of buried?" in asking.text
        late = await _buried(one, "late")
        for count in ("", "-1", "1e3", "all"):
            refused = await post(http, "/dashboard/dead/purge", {**token, "queue": "buried", "count": count})
            assert refused.status_code == 422
        done = await post(http, "/dashboard/dead/purge", {**token, "queue": "buried", "count": "3"})
        assert done.headers["location"] == "/dashboard/dead?purged=3"
        assert [letter.id for letter in (await one.queues.list_dead()).items] == [late]  # nobody was asked about it
        assert (await http.get("/dashboard/dead/purge")).status_code == 400
        assert (await http.get("/dashboard/dead/purge?queue=none")).status_code == 404


@pytest.mark.req("GATE-14.1")
async def test_a_reader_is_offered_no_change_of_a_dead_letter(tmp_path: Path) -> None:
    async with house(tmp_path, auth="keys") as one, one.http() as http:
        letter = await _buried(one, "x")
        await _signed_in(http, await _key(one, "reader", "read"))
        for path in ("/dashboard/dead?queue=buried", f"/dashboard/dead/{letter}"):
            page = (await http.get(path)).text
            assert "buried" in page
            assert not re.search("Delete|Put it back|<textarea", page), path


@pytest.mark.req("GATE-14.1", "GATE-08.3")
async def test_jobs_are_filtered_by_owner_by_whoever_sees_everybodys(tmp_path: Path) -> None:
    async with house(tmp_path, tool("echo"), auth="keys") as one, one.http() as http:
        ids = {}
        for name in ("ann", "bob"):
            headers = {"authorization": f"Bearer {await _key(one, name, 'tools:*', *(['read'] * (name == 'ann')))}"}
            made = await http.post("/v1/jobs", json={"tool": "echo", "arguments": {}}, headers=headers)
            ids[name] = made.json()["job_id"]
            async with one.http() as browsing:
                await _signed_in(browsing, headers["authorization"].removeprefix("Bearer "))
                seen = {path: (await browsing.get(path)).text for path in ("/", "/?owner=ann", "/?owner=bob")}
            if name == "ann":
                assert 'href="/?owner=ann">Mine</a>' in seen["/"]
                assert _listed(seen["/?owner=ann"]) == [ids["ann"]]
                assert "No job matches" in seen["/?owner=bob"]
        assert [_listed(seen[path]) for path in seen] == [[ids["bob"]], [], [ids["bob"]]]
        assert "Mine" not in seen["/"]  # all that bob sees is his


@pytest.mark.req("GATE-14.1")
async def test_a_letter_that_is_no_envelope_is_shown_and_put_back_as_it_is(tmp_path: Path) -> None:
    async with house(tmp_path) as one, one.http() as http:
        await one.queues.declare(QueueSpec(name="raw"))
        await one.queues.send(OutgoingMessage(queue="raw", payload=b"\xff\x00 no envelope", id="m-1"))
        async with one.queues.consume("raw", max_in_flight=1) as consumer:
            (delivery,) = await consumer.receive(1, 20.0)
            await consumer.reject(delivery, "msg_parsing_error")
        (letter,) = (await one.queues.list_dead("raw")).items
        page = (await http.get(f"/dashboard/dead/{letter.id}")).text
        assert "no envelope; its bytes are put back" in page
        done = await post(http, f"/dashboard/dead/{letter.id}/redrive", {"_token": token_in(page)})
        assert done.status_code == 303
        async with one.queues.consume("raw", max_in_flight=1) as consumer:
            (delivery,) = await consumer.receive(1, 20.0)
            assert delivery.payload == b"\xff\x00 no envelope"


@pytest.mark.req("GATE-14.1")
async def test_filters_and_pages_are_plain_links(tmp_path: Path) -> None:
    tools = [tool("good"), tool("bad")]
    async with house(tmp_path, *tools) as one, actors(one, {"good": double, "bad": fail}), one.http() as http:
        ids = []
        for n in range(60):
            name = "bad" if n % 10 == 0 else "good"
            created = await http.post("/v1/jobs", json={"tool": name, "arguments": {"value": n}})
            ids.append(created.json()["job_id"])
        for job_id in ids:
            await http.get(f"/v1/jobs/{job_id}/result", params={"wait": 30})
        first = (await http.get("/")).text
        assert _listed(first) == ids[:9:-1]
        older = html.unescape(re.search(r'href="([^"]+)" rel="next"', first)[1])  # type: ignore[index]
        second = (await http.get(older)).text
        assert _listed(second) == ids[9::-1]
        assert 'rel="next"' not in second
        failed = (await http.get("/", params={"state": "failed", "tool": "bad"})).text
        assert _listed(failed) == ids[::10][::-1]
        assert "the handler is not amused" in failed
        assert "No job matches" in (await http.get("/", params={"state": "paused"})).text
        found = await http.get("/", params={"id": ids[0]})
        assert (found.status_code, found.headers["location"]) == (303, f"/dashboard/jobs/{ids[0]}")
        assert (await http.get("/", params={"state": "nonsense"})).status_code == 400


def _listed(page: str) -> list[str]:
    return re.findall(r'<tr id="job-([^"]+)"', page)


@pytest.mark.req("GATE-14.1")
async def test_the_theme_is_kept_and_the_way_back_never_leads_away(tmp_path: Path) -> None:
    async with house(tmp_path) as one, one.http() as http:
        token = token_in((await http.get("/")).text)
        for back, where in (("/dashboard/health", "/dashboard/health"), ("//evil.example", "/"), ("/\\evil", "/"),
                            ("https://evil.example", "/"), ("/x\r\nset-cookie: a=b", "/")):  # fmt: skip
            answer = await post(http, "/dashboard/theme", {"_token": token, "theme": "dark", "back": back})
            assert (answer.status_code, answer.headers["location"]) == (303, where)
        assert 'data-theme="dark"' in (await http.get("/")).text
        refused = await post(http, "/dashboard/theme", {"_token": token, "theme": "<pink>", "back": "/"})
        assert refused.status_code == 422


@pytest.mark.req("GATE-14.1")
async def test_a_stream_of_fragments_follows_a_job_to_its_end(tmp_path: Path) -> None:
    gate = Gate()
    async with house(tmp_path, tool("slow")) as one, actors(one, {"slow": gate}), one.http() as http:
        job_id = (await http.post("/v1/jobs", json={"tool": "slow", "arguments": {"a": 1}})).json()["job_id"]
        frames: list[str] = []
        async with http.stream("GET", f"/dashboard/jobs/{job_id}/live") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            async with asyncio.timeout(30):
                async for frame in _frames(stream):
                    frames.append(frame)
                    if "here now" in frame:
                        gate.opened.set()
        assert frames[-1] == "event: over\ndata: over"
        assert "succeeded" in frames[-2]
        assert all(frame.startswith("retry: 1000\ndata: ") for frame in frames[:-1])
        assert len(frames) == len(set(frames))


@pytest.mark.req("GATE-14.1")
async def test_streams_of_pages_end_with_a_retry_hint_on_a_drain(tmp_path: Path) -> None:
    async with house(tmp_path, retry_ms=700) as one, one.http() as http:
        last: dict[str, str] = {}

        async def read(path: str, opened: asyncio.Event) -> None:
            async with http.stream("GET", path) as stream:
                async for frame in _frames(stream):
                    opened.set()
                    last[path] = frame

        paths = ("/dashboard/jobs/live?", "/dashboard/dead/live", "/dashboard/actors/live", "/dashboard/health/live")
        opened = [asyncio.Event() for _ in paths]
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for path, event in zip(paths, opened, strict=True):
                group.create_task(read(path, event))
            for event in opened:
                await event.wait()
            one.stop.set()
        assert set(last.values()) == {"retry: 700\nevent: drain\ndata: the gateway shuts down"}
        assert set(last) == set(paths)


async def _frames(stream: httpx2.Response) -> Any:
    buffer = ""
    async for chunk in stream.aiter_text():
        buffer += chunk
        while "\n\n" in buffer:
            frame, _, buffer = buffer.partition("\n\n")
            if not frame.startswith(":"):
                yield frame


@pytest.mark.req("GATE-14.1")
async def test_an_idle_list_sends_nothing_and_a_change_is_sent_within_seconds(tmp_path: Path) -> None:
    async with house(tmp_path, tool("echo"), keepalive_s=0.5) as one, one.http() as http:
        async with http.stream("GET", "/dashboard/jobs/live?") as stream:
            frames = _frames(stream)
            async with asyncio.timeout(30):
                first = await anext(frames)
                assert "No jobs yet" in first
                await http.post("/v1/jobs", json={"tool": "echo", "arguments": {}})
                assert "echo" in await anext(frames)
            await frames.aclose()


@pytest.mark.req("GATE-14.1")
async def test_a_list_that_is_looked_at_outlives_a_store_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, tool("echo")) as one, one.http() as http:
        async with http.stream("GET", "/dashboard/jobs/live?") as stream:
            frames = _frames(stream)
            async with asyncio.timeout(30):
                assert "No jobs yet" in await anext(frames)
                asked = asyncio.Event()

                async def away(*given: Any, **more: Any) -> Any:
                    asked.set()
                    raise Unavailable("jobs: does not answer")

                with monkeypatch.context() as patch:
                    patch.setattr(one.jobs, "events", away)
                    await asked.wait()
                    await asyncio.sleep(0)
                await http.post("/v1/jobs", json={"tool": "echo", "arguments": {}})
                assert "echo" in await anext(frames)
            await frames.aclose()


async def test_what_a_page_waits_for_ends_with_its_stream() -> None:
    waits = asyncio.Event()

    async def news(within_s: float) -> None:
        waits.set()
        await asyncio.sleep(within_s)

    visit: Any = SimpleNamespace(services=SimpleNamespace(settings=SimpleNamespace(keepalive_s=60.0)))
    before, stream = asyncio.all_tasks(), live._Stream(visit, "jobs.html", news, news, 0.0)  # type: ignore[arg-type]
    pausing = asyncio.create_task(stream._pause())
    await waits.wait()
    pausing.cancel()
    await asyncio.wait([pausing])
    assert pausing.cancelled()
    assert asyncio.all_tasks() == before


@pytest.mark.req("GATE-14.1")
async def test_health_says_why_and_other_pages_say_so_while_the_store_is_away(tmp_path: Path) -> None:
    async with house(tmp_path) as one, one.http() as http:
        assert "checks are fine" in (await http.get("/dashboard/health")).text
        await one.jobs.aclose()

        async def red() -> httpx2.Response | None:  # what was found is kept for a quarter of a second
            found = await http.get("/dashboard/health")
            return found if "Not ready" in found.text else None

        page = await eventually(red)
        assert page.status_code == 200
        assert "closed" in page.text
        jobs = await http.get("/")
        assert (jobs.status_code, "retry-after" in jobs.headers) == (503, True)
        assert "text/html" in jobs.headers["content-type"]
        assert re.search(r'href="/dashboard/health">\s*What is wrong', jobs.text)


@pytest.mark.req("GATE-14.1")
async def test_pages_that_are_opened_at_the_same_moment_share_one_reader_of_the_log(tmp_path: Path) -> None:
    async with house(tmp_path, tool("sum")) as one, one.http() as http:
        await http.post("/v1/jobs", json={"tool": "sum", "arguments": {"value": 1}})
        answers = await asyncio.gather(*[http.get(f"/dashboard/{page}") for page in ("actors", "dead") * 8])
        assert {answer.status_code for answer in answers} == {200}
        assert sum("dashboard:flow" in task.get_name() for task in asyncio.all_tasks()) == 1


@pytest.mark.req("GATE-14.1")
async def test_a_reader_of_the_log_that_begins_again_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "TICK_S", 0.01)
    async with house(tmp_path, tool("sum")) as one, one.http() as http:
        job_id = (await http.post("/v1/jobs", json={"tool": "sum", "arguments": {"value": 1}})).json()["job_id"]
        said = {"job_id": job_id, "envelope_id": job_id, "hop": 0, "hops": 1, "actor": "sum"}
        await one.jobs.apply(Progress(**said, weight=10, status="received"))
        lifecycle = Lifecycle("test")
        reader = flow.Flow(one.jobs, one.queues, lifecycle)
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(flow, "IDLE_S", 0.0)
                await reader.wanted()
            assert sum(point.received for point in reader.track("sum").points.values()) == 1
            assert reader._task is not None
            async with asyncio.timeout(20):
                await asyncio.wait([reader._task])
        await lifecycle.aclose()


@pytest.mark.req("GATE-14.1")
async def test_actors_show_depth_rates_and_failures_of_the_log(tmp_path: Path) -> None:
    async with house(tmp_path, tool("sum")) as one, one.http() as http:
        for n in range(3):
            await http.post("/v1/jobs", json={"tool": "sum", "arguments": {"value": n}})

        async def waiting() -> bool:
            return (await one.queues.depth("sum")).ready == 3

        await eventually(waiting)
        page = (await http.get("/dashboard/actors")).text
        row = re.search(r'<tr id="actor-sum".*?</tr>', page, re.DOTALL)
        assert row is not None
        assert re.search(r'<td class="num"><span class="">3</span>', row[0])
        assert (await http.get("/dashboard/actors/nobody")).status_code == 404
        chart = (await http.get("/dashboard/actors/sum")).text
        data = json.loads(html.unescape(re.search(r'data-series="([^"]+)"', chart)[1]))  # type: ignore[index]
        assert len({len(column) for column in data}) == 1


def test_the_token_belongs_to_the_visit_and_the_key() -> None:
    one = browser.token_of(b"k" * 32, "visit-a")
    assert one != browser.token_of(b"k" * 32, "visit-b")
    assert one != browser.token_of(b"l" * 32, "visit-a")


@pytest.mark.req("GATE-14.1", "GATE-16.1", "GATE-16.2")
async def test_a_question_is_answered_by_a_form_made_from_its_schema(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"sure": {"type": "boolean", "title": "Really?"}, "count": {"type": "integer", "minimum": 1}},
        "required": ["sure"],
    }
    async with house(tmp_path, tool("ask")) as one, one.http() as http:
        job_id = (await http.post("/v1/jobs", json={"tool": "ask", "arguments": {}})).json()["job_id"]
        question = Question(question_id="q1", message=ATTACKS[0], schema=schema, actor="ask", envelope_id=job_id)
        parked = OutboxMessage(queue="ask", id=job_id, payload=b"parked", dedup_key="parked")
        (asked,) = await one.jobs.apply(Ask(job_id=job_id, questions=[question], message=parked))
        assert asked.applied
        page = (await http.get(f"/dashboard/jobs/{job_id}")).text
        assert "ask asks" in page
        assert "waits for an answer" in page
        assert "Resume" not in page  # it goes on with the answer
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "Really?" in page
        where = f"/dashboard/jobs/{job_id}/questions/q1"
        fields = {"_token": token_in(page), "arg.sure": "true", "arg.count": "0"}
        wrong = await post(http, where, fields)
        assert wrong.status_code == 422
        assert 'value="0"' in wrong.text
        assert 'aria-invalid="true"' in wrong.text
        done = await post(http, where, {**fields, "arg.count": "2"})
        assert done.status_code == 303
        (answered,) = await one.jobs.questions(job_id)
        assert (answered.action, answered.content) == ("accept", {"sure": True, "count": 2})
        again = await post(http, where, fields)
        assert again.status_code == 409


async def _key(one: House, name: str, *scopes: str) -> str:
    return str((await one.security.create_key(name, list(scopes))).secret.reveal())


async def _signed_in(http: httpx2.AsyncClient, key: str) -> httpx2.Response:
    token = token_in((await http.get("/dashboard/login")).text)
    return await post(http, "/dashboard/login", {"_token": token, "key": key, "back": "/dashboard/tools"})


@pytest.mark.req("GATE-19")
async def test_a_key_opens_a_session_that_ends_with_it_and_no_other_route_takes(tmp_path: Path) -> None:
    async with house(tmp_path, tool("sum", schema=VALUE), auth="keys") as one, one.http() as http:
        stranger = await http.get("/dashboard/tools")
        assert (stranger.status_code, stranger.headers["location"]) == (
            303,
            "/dashboard/login?back=%2Fdashboard%2Ftools",
        )
        assert (await http.get("/dashboard/jobs/live")).status_code == 401  # the page that follows goes to the login
        late = await post(http, "/dashboard/tools/sum", {}, referer=f"{one.url}/dashboard/tools/sum")
        assert (late.status_code, late.headers["location"]) == (303, "/dashboard/login?back=%2Fdashboard%2Ftools%2Fsum")
        lured = await post(http, "/dashboard/tools/sum", {}, referer="https://evil.example/dashboard/tools/sum")
        assert lured.headers["location"] == "/dashboard/login?back=%2F"
        key = await _key(one, "ann", "tools:*")
        wrong = await _signed_in(http, key[:-1] + ("A" if key[-1] != "A" else "B"))
        assert (wrong.status_code, "opens nothing" in wrong.text) == (401, True)
        before = token_in(wrong.text)
        opened = await _signed_in(http, key)
        assert (opened.status_code, opened.headers["location"]) == (303, "/dashboard/tools")
        cookie = next(one for one in opened.headers.get_list("set-cookie") if one.startswith("groundplane_login"))
        assert {"httponly", "samesite=strict"} <= {part.strip().lower() for part in cookie.split(";")}
        page = await http.get("/dashboard/tools/sum")
        assert (page.status_code, "Sign out" in page.text, key in page.text) == (200, True, False)
        assert (await http.get("/v1/jobs")).status_code == 401  # the cookie is for pages alone
        stale = await post(http, "/dashboard/tools/sum", {"_token": before, "arg.value": "1"})
        assert stale.status_code == 403  # tokens from before the login are not good after it
        fields = {"_token": token_in(page.text), "arg.value": "1"}
        started = await post(http, "/dashboard/tools/sum", fields)
        assert started.status_code == 303
        assert (await one.jobs.get(started.headers["location"].rpartition("/")[2])).owner == "ann"
        login = {"cookie": f"{COOKIE}={http.cookies[COOKIE]}"}
        out = await post(http, "/dashboard/logout", {"_token": token_in(page.text)})
        assert out.status_code == 303
        for kept in ({}, login):  # the cookie is gone, and good for nothing to who has kept it
            assert (await http.get("/dashboard/tools", headers=kept)).status_code == 303
        await _signed_in(http, key)
        (found,) = await one.security.list_keys()
        await one.security.revoke_key(found.key_id)

        async def refused() -> bool:
            return (await http.get("/dashboard/tools")).status_code == 303

        await eventually(refused, 20.0)  # what is known of a key is kept for five seconds


@pytest.mark.req("GATE-19")
async def test_a_token_is_good_for_the_login_that_it_was_made_for_alone(tmp_path: Path) -> None:
    """Cookies are shared with other ports of the machine, so that a page there may plant a visit of its own."""
    async with house(tmp_path, tool("sum", schema=VALUE), auth="keys") as one, one.http() as http:
        async with one.http() as stranger:
            planted = token_in((await stranger.get("/dashboard/login")).text)
            visit = stranger.cookies[browser.VISIT_COOKIE]
        await _signed_in(http, await _key(one, "ann", "tools:*"))
        del http.cookies[browser.VISIT_COOKIE]
        fields = {"arg.value": "1"}
        with_a_planted_visit = {"cookie": f"{browser.VISIT_COOKIE}={visit}; {COOKIE}={http.cookies[COOKIE]}"}
        refused = await post(http, "/dashboard/tools/sum", {**fields, "_token": planted}, **with_a_planted_visit)
        assert refused.status_code == 403
        without_a_visit = await post(http, "/dashboard/tools/sum", {**fields, "_token": planted})
        assert without_a_visit.status_code == 403
        assert (await one.jobs.list_jobs()).items == []
        del http.cookies[browser.VISIT_COOKIE]  # a browser that was started anew has the login alone
        token = token_in((await http.get("/dashboard/tools/sum")).text)
        assert (await post(http, "/dashboard/tools/sum", {**fields, "_token": token})).status_code == 303


@pytest.mark.req("GATE-19")
async def test_every_page_is_decided_about_for_every_kind_of_caller(tmp_path: Path) -> None:
    """The matrix is made from the table of pages: a page without an action cannot be written down."""
    scopes = {"caller": ("tools:sum",), "reader": ("read",), "operator": ("operate", "tools:*")}
    async with house(tmp_path, tool("sum", schema=VALUE), auth="keys") as one, one.http() as other:
        others = await _key(one, "other", "tools:sum")
        created = await other.post(
            "/v1/jobs", json={"tool": "sum", "arguments": {"value": 1}}, headers={"authorization": f"Bearer {others}"}
        )
        job_id, dead_id = created.json()["job_id"], await _buried(one, "x")
        parts = {"job_id": job_id, "dead_id": dead_id, "actor": "sum", "tool": "sum", "question_id": "q",
                 "action": "pause", "digest": "0" * 16, "name": "x"}  # fmt: skip
        for kind, granted in scopes.items():
            key = await _key(one, kind, *granted)
            async with one.http() as http:
                await _signed_in(http, key)
                token = token_in((await http.get("/dashboard/tools")).text)
                caller = await one.security.verify(key)
                for page in PAGE_TABLE:
                    path = page.path.format(**parts)
                    if page.path.endswith(("/live", "/login", "/logout")) or "static" in page.path:
                        continue
                    get = page.method == "GET"
                    answer = await (http.get(path) if get else post(http, path, {"_token": token, "theme": "auto"}))
                    about = {"owner": "other"} if page.action in OF_A_JOB else {}
                    about |= {"tool": "sum"} if page.action is Action.CALL_TOOL else {}
                    verdict = decide(caller, page.action, **about).verdict
                    if verdict is Verdict.ALLOWED:
                        assert answer.status_code not in (401, 403), (kind, page)
                    else:
                        wanted = 404 if verdict is Verdict.HIDDEN else 403
                        hidden = page.handler == "job_page.retry"  # asks for the job first
                        assert answer.status_code == (404 if hidden and kind == "caller" else wanted), (kind, page)
        async with one.http() as http:
            for page in PAGE_TABLE:
                if page.method == "GET" and not page.path.endswith("/live") and page.action is not Action.DESCRIBE:
                    assert (await http.get(page.path.format(**parts))).status_code == 303, page
                elif page.path.endswith("/live"):
                    answer = await http.get(page.path.format(**parts))
                    assert answer.status_code in (303, 401), page


OF_A_JOB = (Action.READ_JOB, Action.CONTROL_JOB, Action.ANSWER_QUESTION)
