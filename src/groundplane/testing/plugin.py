"""The pytest plugin (entry point `pytest11`): real servers as fixtures, shared by a run, a namespace for each test.

Nothing is started, and almost nothing imported, before a fixture asks. One keeper process belongs to the run: the
workers of pytest-xdist share its servers, two runs side by side have their own, and it ends them when the run ends,
however.

Fixtures: `<name>_server` (shared; never put faults on it), `<name>_url` (a namespace of this test's own), `own_server`
(a private one for faults), `own_nats_cluster`, `unique_name`. See docs/howto/servers.md.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from groundplane.testing.plugin_table import PROPERTY, Table
from groundplane.testing.servers.names import MODULES

if TYPE_CHECKING:
    from groundplane.testing.plugin_run import Run
    from groundplane.testing.servers.contract import Running
    from groundplane.testing.servers.nats_cluster import NatsCluster
    from groundplane.testing.servers.smtp import Mailbox

pytest_plugins = ("groundplane.testing.toolchain_fixtures", "groundplane.testing.plugin_planes")
_MARKERS = {
    "integration": "two features together, or real processes",
    "slow": "more than five seconds",
    "fault": "kills, pauses, cuts or starves something",
    "k8s": "needs the API server of Kubernetes",
    "llm": "asks a real language model",
    "openai": "asks a model of OpenAI; needs OPENAI_API_KEY",
    "anthropic": "asks a model of Anthropic; needs ANTHROPIC_API_KEY",
    "docker": "needs a Docker daemon",
}
_RUN = pytest.StashKey["Run"]()
_FAILED = pytest.StashKey[bool]()
_OWN = pytest.StashKey["list[Running]"]()


# The run --------------------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    for name, words in _MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {words}")
    for name in MODULES:
        config.addinivalue_line("markers", f"{name}: uses the server {name}; set by its fixtures")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(), "groundplane-table")
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(_ForWorkers(), "groundplane-workers")


class _ForWorkers:
    """Tells the workers of pytest-xdist which keeper is the run's."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["groundplane_keeper"] = run_of(node.config).address


def run_of(config: pytest.Config) -> Run:
    """What this run of pytest knows of its servers; made when it is first asked for."""
    found = config.stash.get(_RUN, None)
    if found is None:
        from groundplane.testing.plugin_run import Run

        found = config.stash[_RUN] = Run.make(getattr(config, "workerinput", {}).get("groundplane_keeper"))
    return found


def pytest_sessionfinish(session: pytest.Session) -> None:
    run = session.config.stash.get(_RUN, None)
    if run is None:
        return
    run.end_containers()
    if not hasattr(session.config, "workerinput"):
        run.shut()


# Tests ----------------------------------------------------------------------------------------------------------------


def servers_of(item: pytest.Item) -> list[str]:
    """The names of the servers whose fixtures a test asks for."""
    asked = set(getattr(item, "fixturenames", ()))
    return [name for name in MODULES if asked & {f"{name}_server", f"{name}_url"}]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests get the marker of each server that they use, and a time limit where pytest-timeout is installed."""
    limit: float | None = None
    for item in items:
        names = servers_of(item)
        for name in names:
            item.add_marker(name)
        if "kubernetes" in names:
            item.add_marker("k8s")
        uses = names or "own_server" in getattr(item, "fixturenames", ())
        if uses and config.pluginmanager.hasplugin("timeout"):
            limit = run_of(config).limit_s(config) if limit is None else limit
            if limit and item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(limit, func_only=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A report says which servers the test used; that of a failure, what they wrote last."""
    run = item.config.stash.get(_RUN, None)
    if run is not None:
        _note_servers(run, item)
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        if run is not None and report.when == "call":
            shared = [run.shared[name] for name in servers_of(item) if name in run.shared]
            for server in (*shared, *item.stash.get(_OWN, [])):
                report.sections.append((f"last lines of {server.name}", run.last_lines(server)))
    return report


def _note_servers(run: Run, item: pytest.Item) -> None:
    known = {value[0] for name, value in item.user_properties if name == PROPERTY and isinstance(value, list)}
    for name in servers_of(item):
        if name not in known and (row := run.row(name)) is not None:
            item.user_properties.append((PROPERTY, row))


# Fixtures -------------------------------------------------------------------------------------------------------------


def _server(name: str) -> Any:
    def fixture(request: pytest.FixtureRequest) -> Running:
        return run_of(request.config).share(name)

    fixture.__doc__ = f"The run's own {name}, started when it is first asked for. Shared: put no faults on it."
    return pytest.fixture(scope="session", name=f"{name}_server")(fixture)


def _url(name: str) -> Any:
    def fixture(request: pytest.FixtureRequest) -> Iterator[str]:
        server: Running = request.getfixturevalue(f"{name}_server")
        run = run_of(request.config)
        with run.namespaces.of(server, lambda: request.node.stash.get(_FAILED, False)) as url:
            yield url

    fixture.__doc__ = f"The URL of a namespace of this test's own in the run's {name}; kept when the test fails."
    return pytest.fixture(name=f"{name}_url")(fixture)


for _name in MODULES:
    globals()[f"{_name}_server"] = _server(_name)
    globals()[f"{_name}_url"] = _url(_name)


@pytest.fixture
def etcd_prefix(request: pytest.FixtureRequest, etcd_server: Running, unique_name: str) -> Iterator[str]:
    """A prefix of keys of this test's own in the run's etcd."""
    from groundplane.testing.servers.namespaces import etcd_prefix as namespace

    with namespace(etcd_server, unique_name, lambda: request.node.stash.get(_FAILED, False)) as prefix:
        yield prefix


@pytest.fixture
def mailbox(smtp_server: Running, unique_name: str) -> Mailbox:
    """A mail domain of this test's own: lists, filters and clears what the run's SMTP server accepted for it."""
    from groundplane.testing.servers.smtp import Mailbox

    return Mailbox(smtp_server, f"{unique_name}.test")


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> str:
    """A word that no other test has: for queues, topics, collections, users."""
    return run_of(request.config).namespaces.word()


def _own(scope: str) -> Callable[[pytest.FixtureRequest], Iterator[Callable[..., Running]]]:
    def fixture(request: pytest.FixtureRequest) -> Iterator[Callable[..., Running]]:
        run = run_of(request.config)
        opened: list[Any] = []

        def own_server(spec: str, **options: Any) -> Running:
            told = request.node.user_properties if scope == "function" else []  # reports are those of tests
            try:
                server = run.own(spec, options)
            except (pytest.skip.Exception, pytest.fail.Exception):
                told.append((PROPERTY, run.missing(spec)))
                raise
            opened.append(server)
            request.node.stash.setdefault(_OWN, []).append(server)
            told.append((PROPERTY, run.row_of(server)))
            return server

        yield own_server
        for server in reversed(opened):
            server.end()

    fixture.__doc__ = f"""Start a private server that may be killed, paused and restarted: `own_server("redis",
    append=True)`. It is ended with the {scope}."""
    return fixture


own_server = pytest.fixture(name="own_server")(_own("function"))
own_server_of_class = pytest.fixture(name="own_server_of_class", scope="class")(_own("class"))
own_server_of_module = pytest.fixture(name="own_server_of_module", scope="module")(_own("module"))


def _cluster(scope: str, own: str) -> Any:
    def fixture(request: pytest.FixtureRequest) -> Iterator[NatsCluster]:
        from groundplane.testing.servers.nats_cluster import NatsCluster

        with NatsCluster.open(request.getfixturevalue(own)) as cluster:
            yield cluster

    fixture.__doc__ = f"Three NATS servers that are one cluster; any may be killed or frozen. Ended with the {scope}."
    return fixture


own_nats_cluster = pytest.fixture(name="own_nats_cluster")(_cluster("function", "own_server"))
own_nats_cluster_of_module = pytest.fixture(name="own_nats_cluster_of_module", scope="module")(
    _cluster("module", "own_server_of_module")
)
