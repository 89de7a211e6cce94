"""The rules that every test of this repository runs under."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import inspect
import math
import os
import signal
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import HealthCheck, settings

import leaks
from stacks import Stack, on_servers

# an example of Hypothesis that takes long tells of the machine, not of the product
settings.register_profile("untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_REPOSITORY = Path(__file__).resolve().parent.parent
_LEAKS_ALLOWED = pytest.StashKey[bool]()
_RUN = pytest.StashKey[str]()
_UNKNOWN_REQUIREMENTS = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio alone: the product uses it directly."""
    return "asyncio"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return _REPOSITORY


@pytest.fixture(params=["embedded", pytest.param("servers", marks=[pytest.mark.integration])])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Stack:
    """Where the plane of the test keeps what it stores: first embedded, then on servers that all tests share."""
    state = tmp_path / "state"
    if request.param == "embedded":
        return Stack("embedded", state)
    urls = {name: request.getfixturevalue(f"{name}_url") for name in ("rabbitmq", "postgres", "s3")}
    return on_servers(state, **urls)


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves threads, descriptors or child processes (requirement CORE-03)."""
    if request.node.get_closest_marker("leaks"):
        yield
        return
    before = leaks.Snapshot()
    yield
    if request.node.stash.get(_LEAKS_ALLOWED, False):
        return
    left = before.leaked()
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def leaves_no_task_behind(request: pytest.FixtureRequest, leaves_nothing_behind: None) -> None:
    """Fails an asynchronous test that leaves tasks in its loop; runs before the loop itself is closed."""
    asynchronous = "anyio_backend" in request.fixturenames and request.node.get_closest_marker("anyio")
    if asynchronous and not request.node.get_closest_marker("leaks"):
        request.getfixturevalue("_tasks_of_the_loop")


@pytest.fixture
async def _tasks_of_the_loop(anyio_backend: str, request: pytest.FixtureRequest) -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = await leaks.leaked_tasks(before)
    if left and not request.node.stash.get(_LEAKS_ALLOWED, False):
        pytest.fail("the test left tasks behind:\n  " + "\n  ".join(left), pytrace=False)


def _limit_s(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0] if marker else item.config.getini("timeout")) or math.inf


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """An asynchronous test that takes too long is cancelled, so that its fixtures can close what they opened.

    The signal of pytest-timeout, which comes later, leaves the test running in its loop, and its fixtures wait for
    ever behind it. What hangs even then is ended with its process: xdist names the test and starts another worker.
    """
    _end_process_after(_limit_s(item) + 60, item)
    if math.isfinite(_limit_s(item)) and isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.obj = _within(_limit_s(item) * 0.75, item.obj)
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    _end_process_after(_limit_s(item), item)  # a failure has ended the guard of the call
    yield
    faulthandler.cancel_dump_traceback_later()


def _end_process_after(seconds: float, item: pytest.Item) -> None:
    if math.isfinite(seconds):
        faulthandler.dump_traceback_later(seconds, file=item.config.stash[fault_handler_stderr_fd_key], exit=True)


def _within(seconds: float, test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """`test` with a limit in real seconds, whatever the test makes of the clock of its loop."""

    @functools.wraps(test)
    async def bounded(*args: object, **kwargs: object) -> None:
        loop, until = asyncio.get_running_loop(), time.monotonic() + seconds
        async with asyncio.timeout(None) as limit:

            def look() -> None:
                nonlocal looking
                left_s = until - time.monotonic()
                if left_s > 0:
                    looking = loop.call_later(left_s, look)
                else:
                    limit.reschedule(loop.time())

            looking = loop.call_soon(look)
            try:
                await test(*args, **kwargs)
            finally:
                looking.cancel()

    return bounded


class _FailuresAtOnce:
    """Prints a failure when it happens: a run that is cut short has then told what it saw."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            terminal = self._config.get_terminal_writer()
            terminal.line(f"\n{report.nodeid} failed ({report.when}):\n{report.longreprtext[-3000:]}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed or was skipped half-way is not accused of leaking as well."""
    report = yield
    if report.when in ("setup", "call") and not report.passed:
        item.stash[_LEAKS_ALLOWED] = True
    return report


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a run in the background; children would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # workers of xdist inherit the mark of the process that started them
        config.stash[_RUN] = leaks.mark_run()
        config.pluginmanager.register(_FailuresAtOnce(config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that names a requirement which does not exist stops the run."""
    known = known_requirements(_REPOSITORY / "docs" / "requirements.toml")
    unknown: list[str] = []
    for item in items:
        for mark in item.iter_markers("req"):
            found = [f"{item.nodeid}: {name!r}" for name in mark.args or ("",) if name not in known]
            item.stash[_UNKNOWN_REQUIREMENTS] = item.stash.get(_UNKNOWN_REQUIREMENTS, []) + found
            unknown += found
    if unknown and not hasattr(config, "workerinput"):  # an xdist worker cannot refuse: its tests fail one by one
        listed = "\n  ".join(unknown)
        raise pytest.UsageError(f"unknown requirement ids (docs/requirements.toml lists them):\n  {listed}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    unknown = item.stash.get(_UNKNOWN_REQUIREMENTS, [])
    if unknown:
        pytest.fail(f"unknown requirement id: {unknown} (docs/requirements.toml lists them)", pytrace=False)


def known_requirements(source: Path) -> frozenset[str]:
    """The ids of all requirements and of their clauses."""
    listed = tomllib.loads(source.read_text(encoding="utf-8"))
    clauses = (f"{name}.{n}" for name, one in listed.items() for n in range(1, len(one["clauses"]) + 1))
    return frozenset((*listed, *clauses))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Processes that outlived the whole run (orphaned grandchildren too) are named, ended, and fail it."""
    token = session.config.stash.get(_RUN, None)
    if token is None or leaks.eventually(lambda: not leaks.processes_of_run(token), leaks.GRACE_S):
        return
    for pid, line in leaks.processes_of_run(token).items():
        print(f"\nprocess {pid} outlived the run: {line}", file=sys.__stderr__)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
