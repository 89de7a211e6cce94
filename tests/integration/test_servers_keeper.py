"""The keeper: servers side by side, ended with their owner, however it ends; failures that say why."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest

from groundplane.core.errors import GroundplaneError, InvalidArgument, NotFound, Unavailable
from groundplane.testing.servers import catalog, instance, wire
from groundplane.testing.servers.catalog import LIGHT
from groundplane.testing.servers.contract import NotReady, Place, Program, StartFailed
from groundplane.testing.servers.handles import KeeperClient
from groundplane.testing.servers.installing import plan
from groundplane.testing.servers.instance import Instance, temporary_folder
from groundplane.testing.servers.processes import alive, descendants
from groundplane.testing.servers.redis import RedisServer
from groundplane.testing.servers.settings import KitSettings
from groundplane.testing.servers.together import environment, open_all
from leaks import eventually
from pace import at_most

pytestmark = [pytest.mark.integration]


def _folder(word: str) -> Path:
    return Path(temporary_folder()) / f"groundplane-{word}-{os.getpid()}-{time.monotonic_ns() % 1_000_000}"


@pytest.fixture
def keeper() -> Iterator[KeeperClient]:
    """A keeper of this test's own."""
    client = KeeperClient(_folder("test"), owner=os.getpid())
    yield client
    client.shut()
    assert not client.folder.exists()


@pytest.fixture
def needs_redis() -> None:
    """Skips where Redis, the quickest of the servers, is not there."""
    if plan("redis").installed is None:
        pytest.skip(plan("redis").words)


@pytest.mark.req("KIT-01.3", "KIT-01.4")
@pytest.mark.slow
def test_the_light_servers_are_up_together_within_fifteen_seconds(keeper: KeeperClient) -> None:
    missing = [one for one in LIGHT if plan(one).installed is None]
    if missing:
        pytest.skip(f"not installed: groundplane servers install {' '.join(missing)}")
    started = time.monotonic()
    handles, errors = open_all(keeper, LIGHT, {})
    elapsed = time.monotonic() - started
    assert not errors
    assert list(handles) == list(LIGHT)
    assert elapsed < sum(one.ready_s for one in handles.values())  # side by side
    assert elapsed <= at_most(15)
    variables = environment(list(handles.values()))
    assert {f"GROUNDPLANE_TEST_{name.upper()}_URL" for name in LIGHT} <= set(variables)
    assert {"DATABASE_URL", "REDIS_URL", "RABBITMQ_URL", "NATS_URL", "AWS_ENDPOINT_URL"} <= set(variables)


@pytest.mark.req("KIT-03.3")
@pytest.mark.usefixtures("needs_redis")
def test_two_keepers_have_servers_ports_and_data_of_their_own(keeper: KeeperClient) -> None:
    other = KeeperClient(_folder("other"), owner=os.getpid())
    try:
        one, two, again = keeper.open("redis"), other.open("redis"), keeper.open("redis")
        assert one.port != two.port
        assert (again.pid, again.port) == (one.pid, one.port)
        private = keeper.open("redis", shared=False)
        assert private.port not in (one.port, two.port)
        wire.redis(one.port, ["SET", "a", "1"])
        assert wire.redis(two.port, ["DBSIZE"]) == wire.redis(private.port, ["DBSIZE"]) == b":0"
        other.shut()
        assert wire.redis(one.port, ["DBSIZE"]) == b":1"
    finally:
        other.shut()


@pytest.mark.usefixtures("needs_redis")
def test_many_who_ask_at_once_get_one_server_of_one_keeper(keeper: KeeperClient) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(keeper.open("redis").pid)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len({keeper.ticket("x") for _ in range(5)}) == 5


OWNER = """
import os, sys, time
from pathlib import Path
from groundplane.testing.servers.handles import KeeperClient
keeper = KeeperClient(Path(sys.argv[1]), owner=os.getpid())
for name in sys.argv[2:]:
    keeper.open(name)
print("up", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def _owner(folder: Path, *names: str) -> Iterator[subprocess.Popen[str]]:
    """Another process with a keeper and servers that run."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder), *names], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        try:
            assert owner.stdout.readline() == "up\n"
            yield owner
        finally:
            owner.kill()


def _of(folder: Path) -> tuple[int, list[int]]:
    """The guard of a keeper and everything below it."""
    guard = int((folder / "guard.pid").read_text())
    return guard, descendants([guard])


@pytest.mark.req("KIT-01.5")
@pytest.mark.fault
@pytest.mark.parametrize(
    ("victim", "names"),
    [("owner", ["redis", "postgres"]), ("keeper", ["redis", "postgres"]), ("guard", ["redis", "postgres"]),
     ("owner", ["rabbitmq"]), ("keeper", ["rabbitmq"])],
)  # fmt: skip
def test_everything_ends_when_the_owner_the_keeper_or_its_guard_is_killed(victim: str, names: list[str]) -> None:
    missing = [one for one in names if plan(one).installed is None]
    if missing:
        pytest.skip(f"not installed: groundplane servers install {' '.join(missing)}")
    folder = _folder("owned")
    with _owner(folder, *names) as owner:
        guard, tree = _of(folder)
        keeper = next(int(pid) for pid in Path(f"/proc/{guard}/task/{guard}/children").read_text().split())
        assert len(tree) > 3
        os.kill({"owner": owner.pid, "keeper": keeper, "guard": guard}[victim], signal.SIGKILL)
        assert eventually(lambda: not [pid for pid in tree if alive(pid)], 30), [pid for pid in tree if alive(pid)]
        if victim != "guard":  # who would remove it is gone then
            assert eventually(lambda: not folder.exists(), 30)
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.usefixtures("needs_redis")
def test_asking_for_what_is_not_there_is_an_error_with_a_name(keeper: KeeperClient) -> None:
    keeper.start()
    with pytest.raises(NotFound, match="'redis' is not running here; running: none"):
        keeper.ask("describe", key="redis")
    with pytest.raises(InvalidArgument, match="'dance' is not something that the keeper does"):
        keeper.ask("dance")
    with pytest.raises(InvalidArgument, match=r"option: 'speed' is not one of redis; it has data, append, config"):
        keeper.open("redis", options={"speed": 9})
    with pytest.raises(InvalidArgument, match="'postgress'"):
        keeper.open("postgress")
    server = keeper.open("redis")
    with pytest.raises(InvalidArgument, match="verb: 'dance'"):
        keeper.ask("call", key="redis", verb="dance")
    assert server.end() == 0
    with pytest.raises(NotFound):
        server.kill()
    assert server.end() == 0


@pytest.mark.usefixtures("needs_redis")
def test_a_shared_server_that_crashed_is_started_again_when_it_is_asked_for(keeper: KeeperClient) -> None:
    first = keeper.open("redis")
    pid = first.pid
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: first.pid == 0, 20)
    again = keeper.open("redis")
    assert again.pid not in (0, pid)
    assert again.port == first.port


@pytest.mark.fault
@pytest.mark.skipif(plan("rabbitmq").installed is None, reason="needs RabbitMQ: groundplane servers install rabbitmq")
def test_what_a_crashed_server_has_left_does_not_answer_in_its_place(keeper: KeeperClient) -> None:
    server = keeper.open("rabbitmq")
    first = descendants([server.pid])
    os.kill(server.pid, signal.SIGKILL)  # the script; the node that it has started goes on
    assert eventually(lambda: server.pid == 0, 20)
    assert any(alive(pid) for pid in first)
    keeper.open("rabbitmq")
    assert not any(alive(pid) for pid in first)
    assert server.pid != 0


@pytest.mark.req("KIT-01.1")
@pytest.mark.usefixtures("needs_redis")
def test_a_port_is_pinned_by_the_name_of_the_server(keeper: KeeperClient) -> None:
    probe = instance.Ports()
    port = probe.take()
    probe.release()
    handles, errors = open_all(keeper, ["redis"], {"redis": port})
    assert not errors
    assert handles["redis"].port == port
    other = KeeperClient(_folder("other"), owner=os.getpid())
    try:
        _, errors = open_all(other, ["redis"], {"redis": port})
        assert f"port: {port} is taken" in str(errors["redis"])
        with pytest.raises(InvalidArgument, match="'nats' is not among the servers redis"):
            open_all(other, ["redis"], {"nats": 1234})
    finally:
        other.shut()


# Failures of a start -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("needs_redis")
def test_a_server_that_ends_at_once_shows_its_last_lines(keeper: KeeperClient) -> None:
    with pytest.raises(StartFailed, match=r"(?s)redis 7.*ended with 1 before it was ready.*maxmemory"):
        keeper.open("redis", options={"config": {"maxmemory": "a lot"}})
    assert keeper.list() == []


class _Deaf(RedisServer):
    """Runs, and never says that it is ready; counts how often it was asked."""

    asked: ClassVar[list[float]] = []

    def check(self, place: Place) -> None:
        self.asked.append(time.monotonic())
        raise NotReady("still asleep")


class _Late(RedisServer):
    """Its port is taken by somebody else between the look and the bind, once."""

    thief: socket.socket | None = None

    def launch(self, place: Place) -> Sequence[Program]:
        if self.thief is None:
            type(self).thief = socket.create_server(("127.0.0.1", place.port))
        return super().launch(place)


def _with(monkeypatch: pytest.MonkeyPatch, server: RedisServer) -> None:
    monkeypatch.setattr(instance, "chosen", lambda spec: (server, server.sources()))


@pytest.mark.req("KIT-03.5", "KIT-10.1", "KIT-10.2")
@pytest.mark.usefixtures("needs_redis")
def test_the_start_up_limit_ends_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, _Deaf())
    _Deaf.asked.clear()
    monkeypatch.setenv("GROUNDPLANE_TEST_STARTUP_TIMEOUT", "1.5")
    started = time.monotonic()
    with pytest.raises(StartFailed, match=r"(?s)not ready within 1.5 s \(still asleep\).*Ready to accept"):
        with Instance.open("redis"):
            pass
    assert 1.5 <= time.monotonic() - started < at_most(6)
    first = _Deaf.asked[0]
    for before, after in pairwise(_Deaf.asked[:-1]):  # the last one ends with the limit
        assert after - before > 0.099 * (before - first), "pauses grow"
    assert instance._PAUSE_MAX_S == 5.0


@pytest.mark.usefixtures("needs_redis")
def test_a_port_that_somebody_took_meanwhile_is_exchanged_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, _Late())
    _Late.thief = None
    try:
        with Instance.open("redis") as server:
            assert wire.redis(server.port, ["PING"]) == b"+PONG"
            assert _Late.thief is not None
            assert server.port != _Late.thief.getsockname()[1]
    finally:
        if _Late.thief is not None:
            _Late.thief.close()


@pytest.mark.req("KIT-10.1")
@pytest.mark.usefixtures("needs_redis")
def test_folders_stay_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDPLANE_TEST_KEEP", "1")
    client = KeeperClient(_folder("kept"), owner=os.getpid())
    try:
        server = client.open("redis", options={"append": True})
        wire.redis(server.port, ["SET", "a", "1"])
        pid = server.pid
        client.shut()
        assert not alive(pid)
        assert list(server.data.rglob("*.aof"))
        assert "Ready to accept" in (client.folder / "redis" / "output.log").read_text()
    finally:
        client.shut()
        subprocess.run(["rm", "-rf", str(client.folder)], check=True)


def test_a_keeper_that_nobody_started_has_nothing_and_ends_without_a_word() -> None:
    client = KeeperClient(_folder("never"), owner=os.getpid())
    assert not client.running
    assert client.list() == []
    client.shut()
    with pytest.raises(Unavailable, match="does not answer"):
        client.ask("list")
    assert not client.folder.exists()


def test_a_keeper_whose_owner_is_gone_already_ends_by_itself() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    client = KeeperClient(_folder("orphan"), owner=gone.pid)
    with contextlib.suppress(GroundplaneError):  # it may end before we ask, or after
        client.start()
    assert eventually(lambda: not client.folder.exists(), 30)


def test_the_light_ones_are_those_that_say_so() -> None:
    assert [name for name in catalog.MODULES if catalog.server(name).light] == list(LIGHT)
    assert KitSettings().startup_timeout_s == 120
