"""The dashboard in Debian's Chromium: what people see, hear and reach by keyboard, live and without scripts."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from dashboard_plane import WAIT_MS, Plane, chromium, plane, tab
from groundplane.core.errors import ErrorRecord
from groundplane.core.ids import new_id
from groundplane.services import Definition, Instance, Status, records
from groundplane.services.leadership.election import Record, encoded
from groundplane.testing.toolchains import Toolchain
from leaks import eventually
from pace import at_most
from served_gateway import VALUE, Gate, House, double, fail, tool

pytestmark = [
    pytest.mark.integration,
    pytest.mark.chromium,
    pytest.mark.leaks("the browser keeps connections to the gateway of the module"),
]
expect.set_options(timeout=WAIT_MS)

ATTACK = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
ATTACK_ID = "d" * 64
HUGE = 100_000


@pytest.fixture(scope="module")
def shown(chromium_toolchain: Toolchain) -> Iterator[Browser]:
    with chromium(chromium_toolchain.path) as browser:
        yield browser


class Stage:
    """What the busy plane's handlers wait for, and the plane."""

    def __init__(self) -> None:
        self.step = asyncio.Event()
        self.plane: Plane

    async def slow(self, payload: Any, report: Any) -> Any:
        await report(32.5, f"page 1 of 4 of {payload.get('text', '')}")
        await self.step.wait()
        await report(77.5, "page 3 of 4")
        await asyncio.sleep(0.3)
        return {"pages": 4, "text": payload.get("text")}


@pytest.fixture(scope="module")
def busy(shown: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Jobs that ran, one that runs until it is told, dead letters with markup in them."""
    stage, stuck = Stage(), Gate()
    tools = [
        tool("sum", "double", "double", schema=VALUE, description="Doubles twice."),
        tool("read", "slow", "double_text", description="Reads a site."),
        tool("wait", "stuck"),
        tool("broken"),
    ]
    handlers = {"double": double, "slow": stage.slow, "double_text": _same, "stuck": stuck, "broken": fail}
    state = tmp_path_factory.mktemp("busy")
    with plane(state, *tools, handlers=handlers) as one:
        stage.plane = one
        for n in range(3):
            one.ended(one.start("sum", value=n))
        one.ended(one.start("broken", text=ATTACK))
        error = ErrorRecord(code="internal", message=ATTACK, type="ValueError", traceback=f"Traceback\n{ATTACK}")
        one.bury("letters", {"text": ATTACK}, "max_retries_exhausted", error)
        one.run(_register)
        yield stage


async def _register(one: House) -> None:
    """Instances of every status, a service without any, and two elections: one led, one left."""
    statuses = zip(Status, ("a", "b", "c", ATTACK_ID), strict=True)
    for status, name in statuses:
        instance = Instance(
            service_name="quotes",
            instance_id=name,
            version="1.4.0",
            status=status,
            last_heartbeat="2026-01-02T03:04:05Z",
            sticky_active_group="feed",
            sticky_active_status="ACTIVE" if name == "a" else "STANDBY",
        )
        await one.registry.kv.put(records.instance_key("quotes", name), records.encode(instance))
    await one.registry.definitions.create(Definition(service_name="orders", owner="team-b"))
    led = Record(member="host-7", incarnation="x", attempt=1, lease_ms=3_600_000, since_ms=1_700_000_000_000)
    await one.registry.kv.put("leader/feed", encoded(led))
    await one.registry.kv.put("leader/left", encoded(msgspec.structs.replace(led, released=True)))


async def _same(payload: Any, report: Any) -> Any:
    return payload


def job_page(stage: Stage, tool_name: str, **arguments: Any) -> str:
    return f"/dashboard/jobs/{stage.plane.start(tool_name, **arguments)}"


@pytest.mark.req("GATE-14.1")
def test_a_job_is_followed_live_from_its_first_hop_to_its_result(busy: Stage, shown: Browser) -> None:
    busy.plane.run(_clear(busy))
    path = job_page(busy, "read", text="here")
    with tab(shown, busy.plane.url) as one:
        page = one.page
        page.goto(path)
        page.evaluate("window.kept = document.querySelector('h1')")
        current = page.locator("[aria-current=step]")
        expect(current).to_contain_text("slow")
        expect(page.locator("#job-standing")).to_contain_text("page 1 of 4 of here")
        expect(page.locator("#link-state")).to_have_text("Live")
        said = page.get_by_role("status").filter(has_text="at step 1 of 2, slow")
        expect(said).to_have_count(1)
        busy.plane.run(_step(busy))
        expect(page.locator("#job-standing .state")).to_have_text("succeeded")
        expect(page.get_by_role("progressbar").first).to_have_attribute("value", "100")
        expect(page.locator("#job-result pre")).to_contain_text('"pages": 4')
        expect(page.locator(".hop.is-done")).to_have_count(2)
        expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
        assert page.evaluate("window.kept === document.querySelector('h1')")  # the page was changed, not replaced


def _step(stage: Stage) -> Any:
    async def go(_: House) -> None:
        stage.step.set()

    return go


def _clear(stage: Stage) -> Any:
    async def go(_: House) -> None:
        stage.step.clear()

    return go


@pytest.mark.req("GATE-14.1")
def test_the_list_shows_new_jobs_and_progress_without_a_reload(busy: Stage, shown: Browser) -> None:
    busy.plane.run(_clear(busy))
    with tab(shown, busy.plane.url) as one:
        page = one.page
        page.goto("/?tool=read")
        expect(page.locator("#link-state")).to_have_text("Live")
        before = page.locator("table.jobs tbody tr").count()
        job_id = busy.plane.start("read", text="listed")
        row = page.locator(f"#job-{job_id}")
        expect(row).to_contain_text("running")
        expect(row).to_contain_text("page 1 of 4 of listed")
        assert page.locator("table.jobs tbody tr").count() == before + 1
        busy.plane.run(_step(busy))
        expect(row).to_contain_text("succeeded")
        expect(row.get_by_role("progressbar")).to_have_attribute("value", "100")


@pytest.mark.req("GATE-14.1", "GATE-14.2")
def test_a_tool_is_called_with_the_keyboard_alone(busy: Stage, shown: Browser) -> None:
    with tab(shown, busy.plane.url) as one:
        page = one.page
        page.goto("/dashboard/tools/sum")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.name") == "arg.value":
                break
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        page.keyboard.type("21")
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowDown")  # the choice: fast is there, deep is next
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Start the job")).to_be_focused()
        page.keyboard.press("Enter")
        page.wait_for_url("**/dashboard/jobs/*")
        expect(page.locator("#job-result pre")).to_contain_text("84")
        expect(page.locator("#job-arguments pre")).to_contain_text('"deep"')


@pytest.mark.req("GATE-14.1", "GATE-14.2")
def test_a_job_is_cancelled_with_the_keyboard_after_a_question(busy: Stage, shown: Browser) -> None:
    with tab(shown, busy.plane.url) as one:
        page = one.page
        page.goto(job_page(busy, "wait", text="x"))
        expect(page.locator("[aria-current=step]")).to_contain_text("stuck")
        page.get_by_role("button", name="Pause").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#job-standing .state")).to_have_text("paused")
        page.get_by_role("button", name="Resume").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#job-standing .state")).to_have_text("running")
        page.get_by_role("button", name="Cancel").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#job-standing .state")).to_have_text("cancelled")
        assert one.dialogs == ["Cancel this job? It cannot be resumed."]


@pytest.mark.req("GATE-14.1")
def test_everything_is_read_and_changed_without_scripts(busy: Stage, shown: Browser) -> None:
    with tab(shown, busy.plane.url, java_script_enabled=False) as one:
        page = one.page
        page.goto("/")
        page.get_by_role("checkbox", name="failed").check()
        page.get_by_role("button", name="Filter").click()
        expect(page.locator("table.jobs tbody tr")).to_have_count(1)
        page.get_by_role("link", name="broken").click()
        expect(page.locator("#job-error")).to_contain_text("the handler is not amused")
        page.get_by_role("link", name="Actors", exact=True).click()
        expect(page.get_by_role("row", name=re.compile("^letters"))).to_be_visible()
        page.get_by_role("link", name="letters", exact=True).click()
        page.get_by_text("As a table").first.click()
        expect(page.get_by_role("columnheader", name="Done, a second")).to_be_visible()
        page.get_by_role("link", name="Tools", exact=True).click()
        page.get_by_role("link", name="sum").click()
        page.get_by_label("value").fill("5")
        page.get_by_role("button", name="Start the job").click()
        expect(page).to_have_url(re.compile("/dashboard/jobs/"))
        expect(page.get_by_role("heading", name="sum", level=1)).to_be_visible()
        page.get_by_role("button", name="Dark").click()
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")


@pytest.mark.req("GATE-19")
def test_markup_in_payloads_is_shown_and_not_run(busy: Stage, shown: Browser) -> None:
    busy.plane.run(_clear(busy))
    path = job_page(busy, "read", text=ATTACK)
    with tab(shown, busy.plane.url) as one:
        page = one.page
        page.goto(path)
        expect(page.locator("#job-standing")).to_contain_text("<script>")
        busy.plane.run(_step(busy))  # what the stream brings is shown as well
        expect(page.locator("#job-result pre")).to_contain_text("<script>document.title='owned'</script>")
        page.goto("/dashboard/dead?queue=letters")
        page.locator("table.dead tbody a.name").first.click()
        expect(page.get_by_label("Stack", exact=True)).to_contain_text(ATTACK)
        expect(page.get_by_label("Payload, as JSON")).to_have_value(re.compile("onerror"))
        assert page.locator("img[src=x]").count() == 0
        for where in ("/", path, page.url):
            page.goto(where)
            assert "owned" not in page.title()


@pytest.mark.req("GATE-19")
def test_the_policy_stops_a_script_that_got_into_a_page(busy: Stage, shown: Browser) -> None:
    """Were something not escaped after all: the browser itself does not run it, and says so."""
    with tab(shown, busy.plane.url, allowed=("Content Security Policy", "404")) as one:
        one.page.goto("/")
        one.page.evaluate(
            "() => { const s = document.createElement('script'); s.textContent = 'document.title=\"owned\"';"
            " document.body.append(s); const d = document.createElement('div');"
            " d.innerHTML = '<img src=x onerror=\"document.title=1\">'; document.body.append(d); }"
        )
        tried = "performance.getEntriesByName(new URL('x', location).href).length > 0"
        # asked again and again from outside: `wait_for_function` evaluates in the page, where the policy forbids it
        assert eventually(lambda: bool(one.page.evaluate(tried)), WAIT_MS / 1000)
        assert "Jobs" in one.page.title()
        assert any("script-src" in text for text in one.complaints)


@pytest.mark.req("GATE-14.1")
def test_a_dead_letter_is_put_back_from_the_browser(busy: Stage, shown: Browser) -> None:
    busy.plane.bury("moved", {"text": "before"}, "max_retries_exhausted")
    with tab(shown, busy.plane.url) as one:
        page = one.page
        page.goto("/dashboard/dead?queue=moved")
        page.locator("table.dead tbody a.name").click()
        page.get_by_label("Payload, as JSON").fill('{"text": "after"}')
        page.get_by_role("button", name="Put it back").click()
        expect(page.get_by_role("status")).to_contain_text("is in its queue again")

    async def depth(house: House) -> Any:
        return await house.queues.depth("moved")

    found = busy.plane.run(depth)
    assert (found.ready, found.dead) == (1, 0)


@pytest.mark.req("GATE-14.1")
def test_new_dead_letters_show_by_themselves_and_are_deleted_without_scripts(busy: Stage, shown: Browser) -> None:
    busy.plane.bury("lost", {"text": "first"}, "processing_error")
    with tab(shown, busy.plane.url) as one, tab(shown, busy.plane.url, java_script_enabled=False) as plain:
        page = one.page
        page.goto("/dashboard/dead?queue=lost")
        expect(page.locator("#link-state")).to_have_text("Live")
        expect(page.locator("table.dead tbody tr")).to_have_count(1)
        busy.plane.bury("lost", {"text": "second"}, "timeout")
        expect(page.locator("table.dead tbody tr")).to_have_count(2)
        expect(page.get_by_role("link", name="lost 2")).to_be_visible()
        busy.plane.bury("lost", {"text": "third"}, "timeout")
        other = plain.page
        other.goto("/dashboard/dead?queue=lost")
        other.locator("table.dead tbody a.name").first.click()
        other.get_by_role("link", name="Delete…").click()
        other.get_by_role("button", name="Delete for good").click()
        expect(other.get_by_role("status")).to_have_text("Deleted: 1.")
        other.goto("/dashboard/dead?queue=lost")
        other.get_by_role("link", name="Delete all of lost…").click()
        expect(other.get_by_role("heading", level=1)).to_have_text("Delete 2 dead letters of lost?")
        other.get_by_role("button", name="Delete for good").click()
        expect(other.get_by_role("status")).to_have_text("Deleted: 2.")
        expect(page.get_by_role("heading", name="No dead letters of lost")).to_be_visible()  # in the first tab, live


@pytest.mark.req("GATE-14.1")
def test_charts_are_drawn_and_grow(busy: Stage, shown: Browser) -> None:
    for n in range(5):
        busy.plane.ended(busy.plane.start("sum", value=n))
    with tab(shown, busy.plane.url) as one:
        page = one.page
        page.goto("/dashboard/actors/double")
        expect(page.locator(".plot canvas")).to_have_count(3)
        before = page.locator("#chart-rate .plot").get_attribute("data-series")
        assert before is not None
        expect(page.locator("#chart-rate .plot")).not_to_have_attribute("data-series", before)
        expect(page.locator(".plot canvas")).to_have_count(3)
        drawn = page.locator("#chart-rate canvas").evaluate(
            "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size"
        )
        assert drawn > 3  # the background, the grid, its words, and a line


AXE_PAGES = ("/", "/?state=paused", "/dashboard/tools", "/dashboard/tools/sum", "/dashboard/actors",
             "/dashboard/actors/double", "/dashboard/dead",
             "/dashboard/dead?queue=letters", "/dashboard/dead/purge?queue=letters", "/dashboard/services",
             "/dashboard/health", "/dashboard/jobs/none")  # fmt: skip


@pytest.mark.req("GATE-14.2", "GATE-14.3")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_page(busy: Stage, shown: Browser, theme: str) -> None:
    busy.plane.run(_clear(busy))
    running = job_page(busy, "read", text="axe")
    failed = _of_state(busy, "failed")
    letter = f"/dashboard/dead/{_letter(busy)}"
    with tab(shown, busy.plane.url, color_scheme=theme, allowed=("404",)) as one:
        for path in (*AXE_PAGES, running, failed, letter):
            one.page.goto(path)
            assert serious(one.page) == [], path
        background = one.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    busy.plane.run(_step(busy))
    assert (background == "rgb(15, 18, 19)") == (theme == "dark")


def serious(page: Page) -> list[tuple[str, ...]]:
    """What axe-core finds on the page that keeps people from using it."""
    return [
        (each["id"], node["html"][:160], node["failureSummary"][:300])
        for each in Axe().run(page).response["violations"]
        for node in each["nodes"]
        if each["impact"] in ("serious", "critical")
    ]


def _of_state(stage: Stage, state: str) -> str:
    async def find(one: House) -> str:
        async with one.http() as http:
            found = (await http.get("/v1/jobs", params={"state": state})).json()["jobs"]
            return f"/dashboard/jobs/{found[0]['job_id']}"

    return stage.plane.run(find)


def _letter(stage: Stage) -> str:
    async def find(one: House) -> str:
        return (await one.queues.list_dead("letters")).items[0].id

    return stage.plane.run(find)


@pytest.mark.req("GATE-14.1", "GATE-19")
def test_one_signs_in_with_a_key_and_out_and_a_revoked_key_ends_what_is_open(shown: Browser, tmp_path: Path) -> None:
    with (
        plane(tmp_path, tool("sum", schema=VALUE), auth="keys") as one,
        tab(shown, one.url, allowed=("401",)) as opened,
    ):
        page = opened.page
        made = one.run(lambda house: house.security.create_key("Ann", ["operate", "tools:*"]))
        page.goto("/dashboard/actors")
        expect(page).to_have_url(re.compile("/dashboard/login"))
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type("gp_wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("This key opens nothing: it is mistyped, revoked or expired.")
        page.get_by_label("API key").fill(made.secret.reveal())
        page.get_by_role("button", name="Sign in").click()
        expect(page).to_have_url(re.compile("/dashboard/actors$"))  # where one wanted to go
        expect(page.get_by_text("Ann")).to_be_visible()
        assert page.evaluate("document.cookie") == ""
        page.goto("/dashboard/tools/sum")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.go_back()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()  # no page is kept for the way back
        page.goto("/?state=failed")
        page.get_by_label("API key").fill(made.secret.reveal())
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("#link-state")).to_have_text("Live")
        one.run(lambda house: house.security.revoke_key(made.key.key_id))
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()  # without a click
        page.get_by_label("API key").fill(made.secret.reveal())
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("revoked")


@pytest.mark.req("GATE-14.2", "GATE-14.3", "GATE-14.4")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_where_one_signs_in(shown: Browser, tmp_path: Path, theme: str) -> None:
    window = {"width": 360, "height": 640}
    with plane(tmp_path, auth="keys") as one, tab(
        shown, one.url, color_scheme=theme, viewport=window, allowed=("401",)
    ) as opened:  # fmt: skip
        opened.page.goto("/")
        assert serious(opened.page) == []
        opened.page.get_by_label("API key").fill("gp_wrong")
        opened.page.get_by_role("button", name="Sign in").click()
        expect(opened.page.get_by_role("alert")).to_be_visible()
        assert serious(opened.page) == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= window["width"]


@pytest.mark.req("GATE-14.3")
def test_the_choice_of_a_theme_wins_over_the_systems_and_stays(busy: Stage, shown: Browser) -> None:
    with tab(shown, busy.plane.url, color_scheme="dark") as one:
        page = one.page
        page.goto("/dashboard/health")
        colour = "getComputedStyle(document.documentElement).backgroundColor"
        assert page.evaluate(colour) == "rgb(15, 18, 19)"
        page.get_by_role("button", name="Light").click()
        expect(page.locator("html")).to_have_attribute("data-theme", "light")
        assert page.evaluate(colour) == "rgb(247, 247, 245)"
        page.goto("/")
        assert page.evaluate(colour) == "rgb(247, 247, 245)"
        expect(page.get_by_role("button", name="Light")).to_have_attribute("aria-pressed", "true")


@pytest.mark.req("GATE-14.4")
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_page_is_wider_than_its_window(busy: Stage, shown: Browser, width: int) -> None:
    with tab(shown, busy.plane.url, viewport={"width": width, "height": 800}, allowed=("404",)) as one:
        for path in (*AXE_PAGES, _of_state(busy, "failed"), f"/dashboard/dead/{_letter(busy)}"):
            one.page.goto(path)
            assert one.page.evaluate("document.documentElement.scrollWidth") <= width, path


@pytest.mark.req("GATE-14.4")
def test_an_empty_plane_says_what_to_do(shown: Browser, tmp_path: Path) -> None:
    with plane(tmp_path) as empty, tab(shown, empty.url) as one:
        for path, words in (
            ("/", "No jobs yet"),
            ("/dashboard/tools", "No tools"),
            ("/dashboard/dead", "No dead letters"),
            ("/dashboard/services", "No services yet"),
            ("/dashboard/health", "checks are fine"),
        ):
            one.page.goto(path)
            expect(one.page.get_by_role("main")).to_contain_text(words)


@pytest.mark.req("GATE-14.4")
def test_a_failing_plane_is_red_with_the_reason_and_the_page_says_when_it_is_cut_off(
    shown: Browser, tmp_path: Path
) -> None:
    with plane(tmp_path) as failing, tab(shown, failing.url) as one:
        page = one.page
        page.goto("/dashboard/health")
        expect(page.get_by_role("main")).to_contain_text("checks are fine")
        failing.run(lambda house: house.jobs.aclose())
        expect(page.get_by_role("main")).to_contain_text("Not ready")  # live, without a reload
        expect(page.get_by_role("row", name=re.compile("^jobs"))).to_contain_text("closed")
        one.complaints.clear()


@pytest.mark.req("GATE-14.4")
def test_a_hundred_thousand_jobs_are_as_fast_as_fifty(shown: Browser, tmp_path: Path) -> None:
    with plane(tmp_path, tool("filled")) as huge, tab(shown, huge.url) as one:
        huge.run(_fill, 120.0)
        page = one.page
        for path in ("/", "/?state=succeeded", "/?state=failed&tool=filled", "/?state=paused"):
            page.goto(path)  # once to warm
            took = []
            for _ in range(3):
                began = time.monotonic()
                page.goto(path, wait_until="domcontentloaded")
                took.append(time.monotonic() - began)
            assert min(took) < at_most(2.0), path
        page.goto("/")
        expect(page.locator("table.jobs tbody tr")).to_have_count(50)
        for _ in range(3):
            page.get_by_role("link", name="Older").click()
            expect(page.get_by_role("link", name="Newest")).to_be_visible()
        expect(page.locator("table.jobs tbody tr")).to_have_count(50)
        assert page.evaluate("document.documentElement.outerHTML.length") < 120_000


async def _fill(one: House) -> None:
    """Ended jobs, straight into the store's table: one statement for all."""
    (job,) = [await _created(one)]
    native = one.jobs.driver.native  # type: ignore[attr-defined]
    rows = [(new_id(), "failed" if n % 997 == 0 else "succeeded") for n in range(HUGE)]
    error = msgspec.msgpack.encode(ErrorRecord(code="internal", message="one of many"))

    def write(tx: Any) -> None:
        tx.executemany(_INSERT, [(one, job) for one, _ in rows])
        tx.executemany(_FAIL, [(error, one) for one, state in rows if state == "failed"])
        tx.execute(_SUCCEED, (job,))

    await native.write(write)


_HERE = "namespace = (SELECT id FROM job_namespaces) AND job_id"
_INSERT = f"""INSERT INTO jobs (namespace, job_id, tool, owner, arguments_hash, total_steps, route, arguments,
    created_at, updated_at)
  SELECT namespace, ?1, tool, owner, arguments_hash, total_steps, route, arguments, created_at, updated_at
  FROM jobs WHERE {_HERE} = ?2"""
_FAIL = f"UPDATE jobs SET state = 'failed', progress = 50, error = ?1, finished_at = updated_at WHERE {_HERE} = ?2"
_SUCCEED = """UPDATE jobs SET state = 'succeeded', progress = 100, result = x'c0', finished_at = updated_at
  WHERE state = 'pending' AND job_id <> ?1"""


async def _created(one: House) -> str:
    async with one.http() as http:
        answer = await http.post("/v1/jobs", json={"tool": "filled", "arguments": {}})
        return str(answer.json()["job_id"])
