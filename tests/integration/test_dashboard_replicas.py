"""The dashboard on PostgreSQL and RabbitMQ: three gateways behind nginx, one browser, any request at any gateway."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from dashboard_plane import WAIT_MS, chromium, tab
from groundplane.testing.toolchains import Toolchain
from replicas import COUNT, Replicas, replicas
from stacks import own_namespaces

pytestmark = [
    pytest.mark.integration,
    pytest.mark.chromium,
    pytest.mark.slow,
    pytest.mark.leaks("the browser keeps connections to the proxy of the module"),
]
expect.set_options(timeout=WAIT_MS)
APP = Path(__file__).resolve().parent.parent / "apps" / "dashboard_app.py"


@pytest.fixture(scope="module")
def three(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("dashboard")
    with (
        own_namespaces(request, folder / "state") as stack,
        replicas(folder / "plane", APP, stack, keys=True) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def shown(chromium_toolchain: Toolchain) -> Iterator[Browser]:
    with chromium(chromium_toolchain.path) as browser:
        yield browser


def start(page: Page, tool: str, **arguments: str) -> str:
    """Start a job with the tool's form; the path of its page."""
    page.goto(f"/dashboard/tools/{tool}")
    for name, value in arguments.items():
        page.get_by_label(name).fill(value)
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/dashboard/jobs/*")
    return page.url.partition("//")[2].partition("/")[2]


@pytest.mark.req("GATE-14.1", "GATE-11", "GATE-16.1", "GATE-18.2")
def test_an_operator_works_through_a_proxy_with_whichever_gateway_answers(
    three: Replicas, shown: Browser, tmp_path: Path
) -> None:
    with tab(shown, three.url) as one:
        page = one.page
        page.goto("/")
        page.get_by_label("API key").fill(three.key)
        page.get_by_role("button", name="Sign in").click()
        for number in range(COUNT):  # cookies do not know ports: the login of one gateway is good at all of them
            page.goto(three.direct(number))
            expect(page.get_by_role("button", name="Sign out")).to_be_visible()

        job = start(page, "read", folder=str(tmp_path))
        page.goto("/")
        row = page.locator(f"#job-{job.rpartition('/')[2]}")
        expect(row).to_contain_text("page 1 of 2")
        (tmp_path / "page-1").touch()
        expect(row).to_contain_text("page 2 of 2")  # live in the list
        row.get_by_role("link", name="read").click()
        standing = page.locator("#job-standing")
        expect(standing).to_contain_text("page 2 of 2")
        expect(page.locator("#link-state")).to_have_text("Live")
        (tmp_path / "page-2").touch()
        expect(standing.locator(".state")).to_have_text("succeeded")  # live on the page
        expect(page.locator("#job-result pre")).to_contain_text('"pages": 2')

        start(page, "decide", name="Ann")
        expect(page.get_by_role("heading", name="decide asks")).to_be_visible()
        page.get_by_label("road").select_option("south")
        page.get_by_role("button", name="Answer").click()
        expect(page.locator("#job-result pre")).to_contain_text("Ann by the south road")

        start(page, "decide", name="Bob")
        expect(standing.locator(".state")).to_have_text("paused")
        page.get_by_role("button", name="Cancel").click()
        expect(standing.locator(".state")).to_have_text("cancelled")
        assert one.dialogs == ["Cancel this job? It cannot be resumed."]

        start(page, "fragile", folder=str(tmp_path))
        expect(page.locator("#job-error")).to_contain_text("what it needs is not there")
        page.goto("/dashboard/dead")
        page.locator("table.dead tbody a.name").click()
        expect(page.get_by_label("Stack", exact=True)).to_contain_text("FileNotFoundError")
        (tmp_path / "needed").touch()
        page.get_by_role("button", name="Put it back").click()
        expect(page.get_by_role("status")).to_contain_text("is in its queue again")
        page.goto("/?tool=fragile")
        page.get_by_role("link", name="fragile").click()
        expect(page.locator("#job-events")).to_contain_text("redriven")
        page.get_by_role("button", name="Sign out").click()
        expect(page).to_have_url(re.compile("/dashboard/login"))
    assert (tmp_path / "done").exists()
