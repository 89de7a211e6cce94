"""An actor whose NATS takes an event and does not say so: the envelope is handed out again, nothing is told twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fault.server_lab import Backstage
from groundplane.backends.nats import Address, JetStream, Link
from groundplane.core.codec import decode
from groundplane.testing import unique
from integration import dev_plane

pytestmark = [pytest.mark.fault, pytest.mark.integration, pytest.mark.nats, pytest.mark.slow]

APP = """
import time
from pathlib import Path

from groundplane import App, Context, Fault

app = App("shop")


def note(file: str, line: object) -> None:
    with Path(file).open("a") as lines:
        lines.write(f"{line}\\n")


@app.actor
def tell(count: int, ctx: Context) -> int:
    for number in range(count):
        if number == 1 and not Path("struck").exists():
            Path("strike").touch()
            while not Path("struck").exists():
                time.sleep(0.01)
        try:
            ctx.publish("stock.told", {"number": number})
        except Fault as error:
            note("refused.txt", f"{number} {error.code}")
            raise
    return ctx.attempt


app.tool("tell", route=[tell], description="For tests.", timeout=120)
"""


async def stored(url: str, namespace: str) -> list[int]:
    """The numbers of all events that are in the stream."""
    async with await Link.open(Address.parse(url, field="bus"), name="test") as link:
        found, jetstream, stream = [], JetStream(link), f"bus+{namespace}+events"
        message = await jetstream.get_next(stream, ">")
        while message is not None:
            found.append(int(decode(message.payload)["payload"]["number"]))
            message = await jetstream.get_next(stream, ">", message.seq + 1)
    return found


@pytest.mark.req("BUS-09", "BUS-06")
def test_events_whose_acknowledgement_was_lost_under_an_actor_are_stored_once_and_cost_no_attempt(
    nats_backstage: Backstage, tmp_path: Path
) -> None:
    refused, name = tmp_path / "refused.txt", unique("tell")
    (tmp_path / "app.py").write_text(APP)
    options = ("dev", "app:app", "--port", "0", "--name", name, "--state", tmp_path / "state", "--json")
    url = f"{nats_backstage.url}?request_timeout=1.2&ping_interval=10&reconnect_wait_max=0.2"
    with dev_plane.serving(*options, folder=tmp_path, ready=False, GROUNDPLANE_BUS_URL=url) as running:
        gateway = str(running.event("ready", 120.0)["url"])
        status, job = dev_plane.request(f"{gateway}/v1/jobs", {"tool": "tell", "arguments": {"count": 4}})
        assert status == 202, job
        dev_plane.eventually((tmp_path / "strike").exists, "the actor does not begin", 60)
        nats_backstage.proxy.half_open("to_client")
        (tmp_path / "struck").touch()
        # a slow server may have had the first event refused as well
        dev_plane.eventually(lambda: refused.exists() and "1 " in refused.read_text(), "the actor is told nothing", 60)
        assert asyncio.run(stored(nats_backstage.server.url, name)) == [0, 1]
        nats_backstage.proxy.restore()
        address = f"{gateway}/v1/jobs/{job['job_id']}/result?wait=50"
        status, job = dev_plane.request(address, timeout_s=60)
        assert (status, job["state"], job["result"]) == (200, "succeeded", 1), job
        assert running.stop(timeout_s=60.0) == 0
    assert asyncio.run(stored(nats_backstage.server.url, name)) == [0, 1, 2, 3]
