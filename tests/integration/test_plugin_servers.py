"""The pytest plugin, seen from outside: runs of pytest in a process of their own, on small suites of a user."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

from groundplane.jobs import JobQuery
from groundplane.plane import Plane
from groundplane.queues import QueueSpec
from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import Running
from groundplane.testing.servers.installing import plan
from groundplane.testing.servers.instance import Instance, temporary_folder
from groundplane.testing.servers.namespaces import Namespaces
from groundplane.testing.servers.processes import alive
from leaks import eventually

pytestmark = [pytest.mark.integration]


@pytest.fixture
def needs_redis() -> None:
    """Skips where Redis, the quickest of the servers, is not there."""
    if plan("redis").installed is None:
        pytest.skip(plan("redis").words)


_ENTRY_POINTS = {one.value for one in importlib.metadata.entry_points(group="pytest11")}
PLUGIN = [] if "groundplane.testing.plugin" in _ENTRY_POINTS else ["-p", "groundplane.testing.plugin"]


class Suite:
    """A user's project with one file of tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pid = 0

    def start(self, source: str, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """pytest on this source, running."""
        (self.folder / "test_user.py").write_text(textwrap.dedent(source))
        (self.folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers -W error\n")
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("GROUNDPLANE_REQ", "PYTEST_"))
        }
        plain = {name: value for name, value in kept.items() if name != "CI" and not name.endswith("_URL")}
        command = [sys.executable, "-m", "pytest", *PLUGIN, "-q", "-rs", "-p", "no:cacheprovider", *words]
        return subprocess.Popen(
            command, cwd=self.folder, env={**plain, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip

    def run(self, source: str, *words: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Its exit code and what it printed."""
        with self.start(source, *words, env=env) as process:
            output, _ = process.communicate(timeout=100)
            self.pid = process.pid
        return process.returncode, output


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


def _table(output: str) -> dict[str, list[str]]:
    """The rows of the table at the end, by server."""
    lines = output.partition("= servers =")[2].splitlines()[2:]
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    return {row[0]: row[1:] for row in rows if len(row) == 6}


# Shared servers, namespaces ------------------------------------------------------------------------------------------

SHARED = """
    import os, time, pytest
    from pathlib import Path
    from groundplane.testing.servers import wire
    from urllib.parse import urlsplit

    @pytest.mark.parametrize("n", range(8))
    def test_one(redis_server, redis_url, n):
        parts = urlsplit(redis_url)
        number = parts.path.lstrip("/")
        assert wire.redis(parts.port, ["SELECT", number], ["DBSIZE"]) == b":0"
        wire.redis(parts.port, ["SELECT", number], ["SET", "a", str(n)])
        with open("seen", "a") as seen:
            seen.write(f"{redis_server.pid} {redis_server.port} {redis_url} {redis_server.folder}\\n")
"""


@pytest.mark.req("KIT-03.1", "KIT-03.2", "KIT-04.2", "KIT-02.2")
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.usefixtures("needs_redis")
def test_a_run_shares_a_server_among_all_workers_and_ends_it(suite: Suite, workers: int) -> None:
    code, output = suite.run(SHARED, *(["-n", str(workers)] if workers else []))
    assert code == 0, output
    seen = [line.split() for line in (suite.folder / "seen").read_text().splitlines()]
    assert len(seen) == 8
    assert len({row[0] for row in seen}) == 1  # one process for all
    assert len({row[2] for row in seen}) == 8  # a namespace for each
    assert not alive(int(seen[0][0]))
    assert not Path(seen[0][3]).exists()
    version, origin, ran, skipped, ready = _table(output)["redis"]
    assert version.startswith("7.")
    assert (origin, ran, skipped) == ("debian", "8", "0")
    assert ready.endswith(" s")


@pytest.mark.req("KIT-03.3")
@pytest.mark.usefixtures("needs_redis")
def test_two_suites_side_by_side_do_not_meet(tmp_path: Path) -> None:
    suites = [Suite(tmp_path / word) for word in ("one", "two")]
    for one in suites:
        one.folder.mkdir()
    running = [one.start(SHARED) for one in suites]
    for process in running:
        with process:
            output, _ = process.communicate(timeout=100)
            assert process.returncode == 0, output
    ports = {(one.folder / "seen").read_text().split()[1] for one in suites}
    assert len(ports) == 2


@pytest.mark.req("KIT-01.5", "KIT-03.3")
@pytest.mark.fault
@pytest.mark.usefixtures("needs_redis")
def test_a_run_that_is_killed_takes_its_servers_along(suite: Suite) -> None:
    with suite.start(SHARED + "\n        time.sleep(600)\n") as process:
        seen = suite.folder / "seen"
        assert eventually(lambda: seen.exists() and seen.read_text().endswith("\n"), 30)
        pid, _, _, folder = seen.read_text().split()
        assert alive(int(pid))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)
    assert eventually(lambda: not alive(int(pid)) and not Path(folder).parents[1].exists(), 30)


RESET = """
    import time, pytest

    took = []

    @pytest.fixture
    def reset(request):
        started = time.perf_counter()
        request.getfixturevalue(URL)
        made = time.perf_counter() - started
        yield
        with open("took", "a") as out:
            out.write(f"{made:.4f}\\n")

    @pytest.mark.parametrize("n", range(8))
    def test_one(SERVER, reset, n):
        pass
"""


@pytest.mark.req("KIT-03.1")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["postgres", "redis", "rabbitmq", "s3", "nats"])
def test_a_namespace_is_made_in_fifty_milliseconds(suite: Suite, name: str) -> None:
    if plan(name).installed is None:
        pytest.skip(plan(name).words)
    source = RESET.replace("URL", f'"{name}_url"').replace("SERVER", f"{name}_server")
    code, output = suite.run(source)
    assert code == 0, output
    took = [float(line) for line in (suite.folder / "took").read_text().split()]
    assert min(took) <= 0.05, took  # of eight: a disk may stall


@pytest.mark.req("KIT-11.1")
@pytest.mark.parametrize("name", ["postgres", "redis", "rabbitmq", "s3", "etcd"])
def test_what_a_test_leaves_is_gone_for_the_next_and_nothing_else_is(name: str, request: pytest.FixtureRequest) -> None:
    """By the API of namespaces, so that one server serves both halves."""
    from groundplane.testing.plugin import run_of

    server = request.getfixturevalue(f"{name}_server")
    spaces = run_of(request.config).namespaces
    if name == "etcd":
        from groundplane.testing.servers.namespaces import etcd_prefix

        with etcd_prefix(server, "kitnext", lambda: True) as outside:
            _etcd_put(server.port, f"{outside}a")
        with etcd_prefix(server, "kit", lambda: False) as prefix:
            _etcd_put(server.port, f"{prefix}a")
            assert _etcd_count(server.port, prefix) == 1
        assert _etcd_count(server.port, prefix) == 0
        assert _etcd_count(server.port, outside) == 1
        return
    with spaces.of(server, lambda: False) as outer:
        WRITE[name](outer)
        with spaces.of(server, lambda: False) as url:
            assert url != outer
            assert READ[name](url) == 0
            WRITE[name](url)
            assert READ[name](url) == 1
        with spaces.of(server, lambda: False) as later:
            assert READ[name](later) == 0
            if name == "postgres":
                assert later == url  # the emptied one again
        assert READ[name](outer) == 1


@pytest.mark.req("KIT-11.1")
@pytest.mark.s3
def test_a_bucket_is_deleted_with_its_objects_on_versitygw_too(own_server: Callable[..., Running]) -> None:
    server = own_server("s3@versitygw")
    spaces = Namespaces(lambda _: 1)
    with spaces.of(server, lambda: False) as url:
        for number in range(3):
            _bucket(url).put_object(Key=f"a/{number} ü", Body=b"1")  # type: ignore[attr-defined]
        assert len(list(server.data.glob("gp-*"))) == 1
    assert list(server.data.glob("gp-*")) == []


def _etcd_put(port: int, key: str) -> None:
    import base64
    import json

    body = {"key": base64.b64encode(key.encode()).decode(), "value": "YQ=="}
    assert wire.http("POST", port, "/v3/kv/put", body=json.dumps(body).encode())[0] == 200


def _etcd_count(port: int, prefix: str) -> int:
    import base64
    import json

    ends = (prefix, prefix[:-1] + "0")
    first, last = (base64.b64encode(end.encode()).decode() for end in ends)
    body = json.dumps({"key": first, "range_end": last, "count_only": True}).encode()
    return int(json.loads(wire.http("POST", port, "/v3/kv/range", body=body)[1]).get("count", 0))


def _pg_write(url: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.words (word text)")
        connection.execute("CREATE SCHEMA other CREATE TABLE words (word text)")
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector" if _has_vector(connection) else "SELECT 1")
        connection.execute("CREATE TYPE public.mood AS ENUM ('good')")
        connection.execute("SELECT lo_create(0)")


def _has_vector(connection: object) -> bool:
    found = connection.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'")  # type: ignore[attr-defined]
    return bool(found.fetchone()[0])


def _pg_read(url: str) -> int:
    import psycopg

    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'other') "
            "+ 10 * (SELECT count(*) FROM pg_extension WHERE extname NOT IN ('plpgsql', 'vector')) "
            "+ 10 * (SELECT count(*) FROM pg_class WHERE relname = 'words' AND relnamespace <> 'public'::regnamespace "
            "        AND relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname = 'other')) "
        ).fetchone()
        tables = connection.execute("SELECT to_regclass('public.words') IS NOT NULL").fetchone()
        assert row is not None
        assert tables is not None
        assert bool(tables[0]) == bool(row[0])
        return int(row[0])


def _redis(url: str, *words: str) -> bytes:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return wire.redis(parts.port or 0, ["SELECT", parts.path.lstrip("/")], list(words))


def _rabbit(url: str, passive: bool) -> int:
    import pika

    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        try:
            channel.queue_declare("words", durable=True, passive=passive)
        except pika.exceptions.ChannelClosedByBroker:
            return 0
        return 1


def _bucket(url: str) -> object:
    from urllib.parse import parse_qs, urlsplit

    import boto3

    endpoint = urlsplit(parse_qs(urlsplit(url).query)["endpoint"][0])
    session = boto3.session.Session(endpoint.username, endpoint.password, region_name="us-east-1")
    address = f"http://{endpoint.hostname}:{endpoint.port}"
    return session.resource("s3", endpoint_url=address).Bucket(urlsplit(url).netloc)


WRITE = {
    "postgres": _pg_write,
    "redis": lambda url: _redis(url, "SET", "a", "1"),
    "rabbitmq": lambda url: _rabbit(url, False),
    "s3": lambda url: _bucket(url).put_object(Key="a/b", Body=b"1"),  # type: ignore[attr-defined]
}
READ = {
    "postgres": _pg_read,
    "redis": lambda url: int(_redis(url, "DBSIZE")[1:]),
    "rabbitmq": lambda url: _rabbit(url, True),
    "s3": lambda url: len(list(_bucket(url).objects.all())),  # type: ignore[attr-defined]
}


# Planes --------------------------------------------------------------------------------------------------------------


async def _works(plane: Plane) -> None:
    assert set((await plane.check()).values()) == {None}
    await plane.queues.declare(QueueSpec(name="words"))
    assert [queue.name for queue in await plane.queues.queues()] == ["words"]
    await plane.blobs.put("a", b"1")
    assert await plane.blobs.get("a") == b"1"
    assert (await plane.jobs.list_jobs(JobQuery())).items == []


@pytest.mark.anyio
@pytest.mark.req("KIT-03.1")
async def test_an_embedded_plane_is_a_fixture(plane: Plane) -> None:
    await _works(plane)


@pytest.mark.anyio
@pytest.mark.req("KIT-03.1")
@pytest.mark.parametrize("again", [1, 2])
async def test_a_plane_on_servers_is_a_fixture_and_new_for_each_test(server_plane: Plane, again: int) -> None:
    await _works(server_plane)


# Missing, required, given --------------------------------------------------------------------------------------------

MISSING = """
    def test_one(nats_server):
        pass

    def test_two(nats_url):
        pass

    def test_three():
        pass

    def test_four(own_server):
        own_server("nats")
"""


def _nowhere(tmp_path: Path) -> dict[str, str]:
    """An environment in which NATS is not installed."""
    return {"GROUNDPLANE_SERVERS_DIR": str(tmp_path / "empty"), "PATH": "/usr/bin:/bin"}


@pytest.mark.req("KIT-04.1", "KIT-04.2")
def test_a_missing_server_skips_its_tests_with_the_way_to_get_it(suite: Suite, tmp_path: Path) -> None:
    code, output = suite.run(MISSING, env=_nowhere(tmp_path))
    assert code == 0, output
    assert "1 passed, 3 skipped" in output
    assert "nats: NATS is not installed here; get it:" in output
    assert _table(output)["nats"] == ["-", "missing", "0", "3", "-"]
    assert not list(Path(temporary_folder()).glob(f"groundplane-kit-{suite.pid}-*"))


@pytest.mark.req("KIT-04.2")
@pytest.mark.parametrize(("names", "fails"), [("all", True), ("redis,nats", True), ("redis", False)])
def test_a_missing_server_that_is_required_fails_its_tests(
    suite: Suite, tmp_path: Path, names: str, fails: bool
) -> None:
    code, output = suite.run(MISSING, env={**_nowhere(tmp_path), "GROUNDPLANE_REQUIRE_SERVERS": names})
    assert code == int(fails), output
    assert ("1 failed, 1 passed, 2 errors" if fails else "1 passed, 3 skipped") in output


GIVEN = """
    import pytest
    from groundplane.core.errors import Unsupported

    def test_one(redis_server, redis_url):
        assert redis_server.origin == "url"
        with pytest.raises(Unsupported):
            redis_server.kill()
        from urllib.parse import urlsplit
        from groundplane.testing.servers import wire
        parts = urlsplit(redis_url)
        wire.redis(parts.port, ["SELECT", parts.path[1:]], ["SET", "mine", "1"])
"""


@pytest.mark.req("KIT-02.1", "KIT-02.2", "KIT-11.1", "KIT-11.2")
@pytest.mark.usefixtures("needs_redis")
def test_a_server_given_by_its_url_is_used_and_what_others_wrote_is_left_alone(suite: Suite) -> None:
    with Instance.open("redis") as server:
        for number in ("0", "1"):
            wire.redis(server.port, ["SELECT", number], ["SET", "theirs", "1"])
        code, output = suite.run(GIVEN, env={"GROUNDPLANE_TEST_REDIS_URL": server.url})
        assert code == 0, output
        assert _table(output)["redis"] == ["-", "url", "1", "0", "-"]
        counts = [wire.redis(server.port, ["SELECT", number], ["DBSIZE"]) for number in ("0", "1", "2")]
        assert counts == [b":1", b":1", b":0"]
    code, output = suite.run(GIVEN, env={"GROUNDPLANE_TEST_REDIS_URL": "redis://cache.example:6379/0"})
    assert code == 1
    assert "GROUNDPLANE_TEST_ALLOW_REMOTE=1" in output


FAKE_DOCKER = """
    class errors:
        class DockerException(Exception): pass

    def from_env(timeout):
        import os
        if os.environ.get("NO_DAEMON"):
            raise errors.DockerException("no daemon")
        class Client:
            def ping(self): return True
            def close(self): pass
        return Client()
"""
FAKE_CONTAINER = """
    from groundplane.testing.servers.instance import Instance

    class DockerContainer:
        "Runs Redis natively and says what a container would."
        def __init__(self, image): self.image = image
        def with_exposed_ports(self, *ports): self.exposed = ports
        def with_command(self, command): self.command = command
        def start(self):
            import os
            os.environ["PATH"] = os.environ["REAL_PATH"]
            self.opened = Instance.open("redis")
            self.server = self.opened.__enter__()
        def get_exposed_port(self, port):
            assert port in self.exposed
            return self.server.port
        def get_logs(self): return self.server.logs().encode(), b""
        def stop(self):
            self.opened.__exit__(None, None, None)
            with open("stopped", "w") as out:
                out.write(self.image)
"""


@pytest.mark.req("KIT-02.1", "KIT-02.2")
@pytest.mark.usefixtures("needs_redis")
@pytest.mark.parametrize("daemon", [True, False])
def test_a_container_is_the_last_way_and_only_where_a_daemon_answers(suite: Suite, daemon: bool) -> None:
    """The wiring alone: no Docker daemon is asked here."""
    package = suite.folder / "testcontainers" / "core"
    package.mkdir(parents=True)
    for path, source in ((suite.folder / "docker.py", FAKE_DOCKER), (package / "container.py", FAKE_CONTAINER)):
        path.write_text(textwrap.dedent(source))
    libraries = os.pathsep.join((str(suite.folder), os.environ.get("PYTHONPATH", "")))
    env = {"PYTHONPATH": libraries, "PATH": "/nowhere", "REAL_PATH": os.environ["PATH"]}
    source = """
        from groundplane.testing.servers import sources
        sources._program = lambda path, found=sources._program: (
            None if __import__("os").environ["PATH"] == "/nowhere" else found(path))

        def test_one(redis_server, redis_url):
            from groundplane.testing.servers import wire
            assert redis_server.origin == "container"
            assert wire.redis(redis_server.port, ["PING"]) == b"+PONG"
    """
    code, output = suite.run(source, env=env if daemon else {**env, "NO_DAEMON": "1"})
    assert code == 0, output
    if daemon:
        assert _table(output)["redis"][:4] == ["7.2", "container", "1", "0"]
        assert (suite.folder / "stopped").read_text() == "redis:7.2"
    else:
        assert _table(output)["redis"][:4] == ["-", "missing", "0", "1"]


# Own servers, failures, limits ---------------------------------------------------------------------------------------

OWN = """
    from pathlib import Path
    import pytest
    from groundplane.testing.servers import wire

    def test_own(own_server, redis_server):
        mine = own_server("redis", append=True)
        assert mine.port != redis_server.port
        mine.kill()
        assert mine.pid == 0
        assert redis_server.pid
        mine.start()

    def test_failing(redis_url):
        from urllib.parse import urlsplit
        parts = urlsplit(redis_url)
        wire.redis(parts.port, ["SELECT", parts.path[1:]], ["SET", "left", "1"])
        Path("kept").write_text(parts.path[1:])
        raise RuntimeError("on purpose")

    def test_after(redis_server):
        number = Path("kept").read_text()
        assert wire.redis(redis_server.port, ["SELECT", number], ["DBSIZE"]) == b":1"

    class TestClass:
        pids = set()

        @pytest.fixture
        def mine(self, own_server_of_class):
            if not self.pids:
                type(self).server = own_server_of_class("redis")
            self.pids.add(self.server.pid)

        def test_a(self, mine):
            pass

        def test_b(self, mine):
            assert len(self.pids) == 1
"""


@pytest.mark.req("KIT-03.4", "KIT-03.1")
@pytest.mark.usefixtures("needs_redis")
def test_the_namespace_of_a_failed_test_is_kept_and_its_server_s_lines_are_shown(suite: Suite) -> None:
    code, output = suite.run(OWN, "--junitxml", "junit.xml")
    assert code == 1
    assert "4 passed" in output
    assert "1 failed" in output
    assert "last lines of redis" in output
    assert "Ready to accept connections" in output
    assert _table(output)["redis"][2:4] == ["3", "0"]
    properties = ElementTree.parse(suite.folder / "junit.xml").iter("property")
    assert any("redis" in str(one.get("value")) for one in properties)


@pytest.mark.req("KIT-03.6", "KIT-13.1")
def test_tests_carry_the_marker_of_each_server_that_they_use(suite: Suite) -> None:
    source = """
        import pytest

        def test_r(redis_url): pass
        def test_n(nats_server): pass
        def test_k(kubernetes_server): pass
        @pytest.mark.llm
        @pytest.mark.openai
        @pytest.mark.anthropic
        @pytest.mark.docker
        @pytest.mark.integration
        @pytest.mark.slow
        @pytest.mark.fault
        def test_m(): pass
    """
    for marker, name in (("redis", "test_r"), ("nats", "test_n"), ("k8s", "test_k"), ("llm", "test_m")):
        code, output = suite.run(source, "--collect-only", "-m", marker)
        assert code == 0, output
        assert re.findall(r"::(test_\w)", output) == [name]


@pytest.mark.req("KIT-03.5", "KIT-10.1")
@pytest.mark.usefixtures("needs_redis")
def test_a_test_that_uses_a_server_has_a_time_limit_and_others_have_not(suite: Suite) -> None:
    source = """
        import time
        def test_slow_without(): time.sleep(1)
        def test_slow_with(redis_server): time.sleep(300)
    """
    started = time.monotonic()
    code, output = suite.run(source, env={"GROUNDPLANE_TEST_TIMEOUT": "0.5"})
    assert code == 1, output
    assert "1 failed, 1 passed" in output
    assert "Timeout" in output
    assert time.monotonic() - started < 90


@pytest.mark.req("KIT-10.1")
@pytest.mark.usefixtures("needs_redis")
def test_verbose_says_what_is_started_and_keep_says_where_it_stayed(suite: Suite) -> None:
    source = "def test_one(redis_server): pass"
    code, output = suite.run(source, "-s", env={"GROUNDPLANE_TEST_VERBOSE": "1", "GROUNDPLANE_TEST_KEEP": "1"})
    assert code == 0, output
    assert re.search(r"<redis 7\S* \(debian\) pid \d+, port \d+>: ready after \d+\.\d s", output)
    kept = re.search(r"folders are kept in (\S+)", output)
    assert kept is not None
    assert (Path(kept[1]) / "redis" / "output.log").exists()
    subprocess.run(["rm", "-rf", kept[1]], check=True)


def test_a_variable_that_is_wrong_stops_the_run_with_its_name(suite: Suite) -> None:
    code, output = suite.run("def test_one(redis_server): pass", env={"GROUNDPLANE_TEST_STARTUP_TIMEOUT": "soon"})
    assert code != 0
    assert "GROUNDPLANE_TEST_STARTUP_TIMEOUT: 'soon'" in output


def test_a_suite_without_servers_starts_nothing_and_prints_no_table(suite: Suite) -> None:
    source = """
        import sys
        def test_one():
            assert "groundplane.testing.servers.handles" not in sys.modules
            assert "groundplane.core.errors" not in sys.modules
    """
    code, output = suite.run(source)
    assert code == 0, output
    assert "servers" not in output
