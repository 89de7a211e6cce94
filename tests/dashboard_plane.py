"""A plane in a thread of its own, so that a browser that blocks this one can look at it; and the browser.

The gateway, its ports and the actors are those of `served_gateway`; Chromium is Debian's, driven by playwright.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from groundplane.core.envelope import Envelope, Route
from groundplane.core.errors import ErrorRecord
from groundplane.mesh.spec import ToolSpec
from groundplane.queues.port import OutgoingMessage, QueueSpec
from served_gateway import Handler, House, actors, house

T = TypeVar("T")
WAIT_MS = 30_000
ARGUMENTS = [
    "--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-extensions",
]  # fmt: skip


class Plane:
    """A served gateway in another thread."""

    def __init__(self, one: House, loop: asyncio.AbstractEventLoop) -> None:
        self.house = one
        self.url = one.url
        self._loop = loop

    def run(self, work: Callable[[House], Awaitable[T]], timeout_s: float = 60.0) -> T:
        """Do something there, and wait for it."""

        async def there() -> T:
            return await work(self.house)

        return asyncio.run_coroutine_threadsafe(there(), self._loop).result(timeout_s)

    def start(self, tool: str, **arguments: Any) -> str:
        """Start a job."""

        async def begin(one: House) -> str:
            async with one.http() as http:
                answer = await http.post("/v1/jobs", json={"tool": tool, "arguments": arguments})
                assert answer.status_code == 202, answer.text
                return str(answer.json()["job_id"])

        return self.run(begin)

    def ended(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended."""

        async def wait(one: House) -> dict[str, Any]:
            async with one.http() as http:
                answer = await http.get(f"/v1/jobs/{job_id}/result", params={"wait": 30})
                assert answer.status_code == 200, answer.text
                return dict(answer.json())

        return self.run(wait)

    def bury(self, queue: str, payload: Any, reason: str, error: ErrorRecord | None = None) -> str:
        """Let a message of `queue`, which nobody consumes, become a dead letter; its id."""

        async def dead(one: House) -> str:
            await one.queues.declare(QueueSpec(name=queue))
            envelope = Envelope.new([queue], payload)
            envelope = Envelope(id=envelope.id, route=Route([queue]), payload=payload, created_at=envelope.created_at)
            await one.queues.send(OutgoingMessage(queue=queue, payload=envelope.to_bytes(), id=envelope.id))
            async with one.queues.consume(queue, max_in_flight=1) as consumer:
                (delivery,) = await consumer.receive(1, 20.0)
                await consumer.reject(delivery, reason, error)
            page = await one.queues.list_dead(queue, limit=1000)
            return next(letter.id for letter in page.items if letter.message_id == envelope.id)

        return self.run(dead)


@contextmanager
def plane(
    state: Path, *tools: ToolSpec, handlers: Mapping[str, Handler] | None = None, **settings: Any
) -> Iterator[Plane]:
    """Serve while open. `handlers` consume their queues."""
    ready: Future[Plane] = Future()
    stop: Future[asyncio.Event] = Future()

    async def serve() -> None:
        leave = asyncio.Event()
        stop.set_result(leave)
        async with house(state, *tools, **settings) as one, actors(one, handlers or {}):
            ready.set_result(Plane(one, asyncio.get_running_loop()))
            await leave.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise

    thread = threading.Thread(target=run, name="plane")
    thread.start()
    try:
        found = ready.result(60)
        yield found
        found._loop.call_soon_threadsafe(stop.result(1).set)
    finally:
        if ready.done() and ready.exception() is None and thread.is_alive():
            ready.result()._loop.call_soon_threadsafe(stop.result(1).set)
        thread.join(30)


@contextmanager
def chromium(path: Path) -> Iterator[Browser]:
    """The browser, while open."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(path), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page of a browser that tells of everything it complained about: errors, warnings of scripts, breaches of the
    content security policy.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        page.on("dialog", self._dialog)
        self.dialogs: list[str] = []

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.accept()


@contextmanager
def tab(browser: Browser, url: str, *, allowed: tuple[str, ...] = (), **options: Any) -> Iterator[Tab]:
    """A tab of a visit of its own; fails when it complained of anything that has none of the words `allowed`."""
    context = browser.new_context(base_url=url, **options)
    try:
        one = Tab(context.new_page())
        yield one
        complaints = [text for text in one.complaints if not any(words in text for words in allowed)]
        assert complaints == []
    finally:
        context.close()
