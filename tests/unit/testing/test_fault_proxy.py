"""The fault proxy: each fault on real sockets, from synchronous and asynchronous code, and what is left after it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from groundplane.core.errors import Closed, InvalidArgument
from groundplane.testing.concurrency import eventually, wait_until
from groundplane.testing.faults import Proxy, Relay
from pace import at_most

pytestmark = pytest.mark.req("KIT-06.1")

_LINGER_RESET = struct.pack("ii", 1, 0)


class Echo:
    """A server that sends back what it gets, notes how each connection ended, and can push."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.sockets: list[socket.socket] = []
        self.ends: list[str] = []
        self.received = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.append(one)
            thread = threading.Thread(target=self._serve, args=(one,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, one: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                self.received += len(data)
                one.sendall(data)
            self.ends.append("end")
            one.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.ends.append(type(error).__name__)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for one in self.sockets:
            one.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy.to("127.0.0.1", echo.port) as opened:
        yield opened


@contextlib.contextmanager
def connected(proxy: Proxy, timeout_s: float = 10.0) -> Iterator[socket.socket]:
    with socket.create_connection((proxy.host, proxy.port), timeout=timeout_s) as client:
        yield client


def ask(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return receive(client, len(data))


def receive(client: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (piece := client.recv(size - len(found))):
        found += piece
    return found


def is_quiet(client: socket.socket, seconds: float = 0.15) -> bool:
    """Nothing comes, and it is not closed either."""
    before = client.gettimeout()
    client.settimeout(seconds)
    try:
        return client.recv(1) is None
    except TimeoutError:
        return True
    finally:
        client.settimeout(before)


def test_without_faults_every_byte_goes_both_ways_and_ends_are_passed_on(proxy: Proxy, echo: Echo) -> None:
    sent = bytes(range(256)) * 4096
    with connected(proxy) as client:
        writer = threading.Thread(target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR)))
        writer.start()
        assert receive(client, len(sent) + 1) == sent
        writer.join()
    wait_until(lambda: proxy.traffic().open == 0)
    assert echo.ends == ["end"]
    traffic = proxy.traffic()
    assert (traffic.accepted, traffic.cut, traffic.swallowed_bytes) == (1, 0, 0)
    assert (traffic.to_server_bytes, traffic.to_client_bytes) == (len(sent), len(sent))


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_latency_holds_each_piece_back_for_its_time_and_restore_lets_it_go(proxy: Proxy, direction: str) -> None:
    with connected(proxy) as client:
        ask(client, b"warm")
        proxy.latency(0.2, direction=direction)  # type: ignore[arg-type]
        start = time.monotonic()
        assert ask(client, b"slow") == b"slow"
        assert 0.2 <= time.monotonic() - start < at_most(2)
        proxy.latency(600)
        client.sendall(b"late")
        assert is_quiet(client)
        proxy.restore()
        assert receive(client, 4) == b"late"


def test_latency_does_not_take_throughput_away_and_jitter_keeps_the_order(proxy: Proxy) -> None:
    proxy.latency(0.1, jitter_s=0.1)
    sent = b"".join(struct.pack("!I", n) for n in range(50_000))
    with connected(proxy) as client:
        writer = threading.Thread(target=client.sendall, args=(sent,))
        start = time.monotonic()
        writer.start()
        assert receive(client, len(sent)) == sent
        writer.join()
    assert time.monotonic() - start < 5


def test_throttle_holds_all_connections_together_to_a_rate(proxy: Proxy) -> None:
    proxy.throttle(100_000, direction="to_client")
    with connected(proxy) as one, connected(proxy) as other:
        start = time.monotonic()
        for client in (one, other):
            client.sendall(bytes(20_000))
        for client in (one, other):
            assert len(receive(client, 20_000)) == 20_000
        assert 0.35 <= time.monotonic() - start < 4


def test_a_throttle_that_is_lifted_lets_the_rest_through_at_once(proxy: Proxy) -> None:
    proxy.throttle(10)
    with connected(proxy) as client:
        client.sendall(bytes(50_000))
        assert len(receive(client, 1)) == 1
        proxy.restore()
        assert len(receive(client, 49_999)) == 49_999


def test_cut_resets_both_sides_of_what_is_open_and_leaves_new_connections_alone(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as client:
        ask(client, b"x")
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    wait_until(lambda: echo.ends == ["ConnectionResetError"])
    with connected(proxy) as client:
        assert ask(client, b"again") == b"again"
    assert proxy.traffic().cut == 1


def test_new_connections_can_be_cut_while_old_ones_live(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as old:
        ask(old, b"x")
        proxy.cut(existing=False, new=True)
        with pytest.raises(ConnectionResetError), connected(proxy) as client:
            client.recv(1)
        assert ask(old, b"y") == b"y"
        proxy.restore()
        with connected(proxy) as client:
            assert ask(client, b"z") == b"z"
    assert len(echo.sockets) == 2


def test_half_open_swallows_bytes_and_ends_and_the_connection_stays_until_restore_resets_it(
    proxy: Proxy, echo: Echo
) -> None:
    with connected(proxy) as client, connected(proxy) as idle:
        ask(client, b"x")
        ask(idle, b"x")
        proxy.half_open()
        client.sendall(b"gone")
        client.shutdown(socket.SHUT_WR)
        assert is_quiet(client)
        wait_until(lambda: proxy.traffic().swallowed_bytes == 4)
        assert (echo.received, echo.ends) == (2, [])
        proxy.restore()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        wait_until(lambda: echo.ends == ["ConnectionResetError"])
        assert ask(idle, b"nothing of mine was lost") == b"nothing of mine was lost"


def test_half_open_in_one_direction_lets_the_other_through(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as client:
        ask(client, b"x")
        proxy.half_open("to_client")
        client.sendall(b"heard, not answered")
        wait_until(lambda: echo.received == 20)
        assert is_quiet(client)


def test_a_client_that_resets_while_half_open_is_not_noticed_by_the_server(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as client:
        ask(client, b"x")
        proxy.half_open("to_server")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    with connected(proxy) as later:
        later.sendall(b"a connection that never gets there")
        wait_until(lambda: proxy.traffic().swallowed_bytes == 34)
        assert (len(echo.sockets), echo.ends) == (1, [])
    proxy.restore()
    wait_until(lambda: echo.ends == ["ConnectionResetError"])


def test_a_connection_that_never_reached_the_server_is_reset_by_restore(proxy: Proxy, echo: Echo) -> None:
    proxy.half_open("to_server")
    with connected(proxy) as client:
        wait_until(lambda: proxy.traffic().open == 1)
        proxy.restore()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert echo.sockets == []


def test_a_reset_of_one_side_reaches_the_other(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as client:
        ask(client, b"x")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    wait_until(lambda: echo.ends == ["ConnectionResetError"])


def test_a_stall_holds_bytes_back_and_loses_none(proxy: Proxy) -> None:
    with connected(proxy) as client:
        proxy.stall("to_client")
        client.sendall(b"held")
        assert is_quiet(client)
        proxy.restore()
        assert receive(client, 4) == b"held"


def test_drop_after_cuts_each_connection_at_its_byte(proxy: Proxy, echo: Echo) -> None:
    proxy.drop_after(1000, direction="to_server")
    for _ in range(2):
        with connected(proxy) as client:
            client.sendall(bytes(5000))
            with pytest.raises(ConnectionResetError):
                receive(client, 5000)
    assert proxy.traffic().to_server_bytes == 2000
    proxy.restore()
    with connected(proxy) as client:
        assert ask(client, bytes(5000)) == bytes(5000)


def test_drop_after_counts_an_open_connection_from_now_on_and_hits_as_many_as_are_asked_for(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert len(ask(client, bytes(500))) == 500
        proxy.drop_after(100, direction="to_client", times=1)
        assert len(ask(client, bytes(100))) == 100
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with connected(proxy) as client:
        assert ask(client, bytes(5000)) == bytes(5000)


def test_drop_after_can_swallow_instead(proxy: Proxy, echo: Echo) -> None:
    proxy.drop_after(10, direction="to_server", then="swallow")
    with connected(proxy) as client:
        client.sendall(bytes(30))
        assert receive(client, 10) == bytes(10)
        assert is_quiet(client)
        assert (echo.received, echo.ends) == (10, [])
        wait_until(lambda: proxy.traffic().swallowed_bytes == 20)


def test_while_accepting_is_paused_connections_are_made_and_not_answered(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as old:
        ask(old, b"x")
        proxy.pause_accept()
        with connected(proxy) as client:
            client.sendall(b"anybody?")
            assert is_quiet(client)
            assert ask(old, b"y") == b"y"
            assert len(echo.sockets) == 1
            proxy.restore()
            assert receive(client, 8) == b"anybody?"


def test_a_port_that_refuses_stays_ours_and_listens_again(proxy: Proxy) -> None:
    port = proxy.port
    with connected(proxy) as old:
        ask(old, b"x")
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError), connected(proxy):
            pass
        assert ask(old, b"y") == b"y"
        proxy.down()
        with pytest.raises(ConnectionResetError):
            old.recv(1)
    with socket.socket() as thief, pytest.raises(OSError):
        thief.bind((proxy.host, port))
    proxy.restore()
    with connected(proxy) as client:
        assert ask(client, b"z") == b"z"
    assert proxy.port == port


def test_a_server_that_is_away_resets_and_the_proxy_can_be_pointed_elsewhere(proxy: Proxy, echo: Echo) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        proxy.retarget("127.0.0.1", nobody.getsockname()[1])
        with pytest.raises(ConnectionResetError), connected(proxy) as client:
            client.recv(1)
    proxy.retarget("127.0.0.1", echo.port)
    with connected(proxy) as client:
        assert ask(client, b"x") == b"x"


@pytest.mark.parametrize("fault", ["none", "latency", "throttle", "half_open", "stall", "pause_accept", "flood"])
def test_closing_takes_less_than_a_second_whatever_is_under_way(echo: Echo, fault: str) -> None:
    with Proxy.to("127.0.0.1", echo.port) as proxy, connected(proxy) as client:
        ask(client, b"x")
        if fault == "latency":
            proxy.latency(600)
        elif fault == "throttle":
            proxy.throttle(1)
        elif fault == "flood":
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(bytes(65536))
        elif fault != "none":
            getattr(proxy, fault)()
        if fault != "flood":
            client.sendall(b"y" * 1000)
        start = time.monotonic()
        proxy.close()
        assert time.monotonic() - start < at_most(1)
        proxy.close()
        with pytest.raises(Closed):
            proxy.traffic()


def test_a_url_leads_through_the_proxy_with_all_else_as_it_was(proxy: Proxy) -> None:
    here = f"127.0.0.1:{proxy.port}"
    assert proxy.through("amqp://me:p%40ss@host:5672/v%2F?x=1") == f"amqp://me:p%40ss@{here}/v%2F?x=1"
    assert proxy.through("http://host/path") == f"http://{here}/path"


def test_faults_that_make_no_sense_are_refused(proxy: Proxy) -> None:
    with pytest.raises(InvalidArgument, match=r"^latency_s: -1"):
        proxy.latency(-1)
    with pytest.raises(InvalidArgument, match=r"^bytes_per_s: 0"):
        proxy.throttle(0)
    with pytest.raises(InvalidArgument, match=r"^direction: 'sideways'"):
        proxy.stall("sideways")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"^host: "), Proxy.to("no such host", 1):
        pass


@pytest.fixture(params=["thread", "loop"])
async def any_proxy(request: pytest.FixtureRequest, echo: Echo) -> AsyncIterator[Proxy | Relay]:
    if request.param == "thread":
        async with Proxy.to("127.0.0.1", echo.port) as proxy:
            yield proxy
    else:
        async with Relay.open("127.0.0.1", echo.port) as relay:
            yield relay


@pytest.mark.anyio
async def test_asynchronous_code_uses_it_from_its_own_loop_or_a_thread(any_proxy: Proxy | Relay) -> None:
    reader, writer = await asyncio.open_connection(any_proxy.host, any_proxy.port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    any_proxy.half_open()
    writer.write(b"lost")
    await eventually(lambda: any_proxy.traffic().swallowed_bytes == 4)
    any_proxy.restore()
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    writer.close()
    with pytest.raises(ConnectionResetError):
        await writer.wait_closed()
