"""`groundplane conformance`: the suite of a port, run on the driver of a URL."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from groundplane.cli import conformance_report as report
from groundplane.cli.output import EXIT_FAILURE, EXIT_OK, Output
from groundplane.core.errors import FailedPrecondition, GroundplaneError, InvalidArgument
from groundplane.core.names import did_you_mean
from groundplane.core.secrets import Url, check_url, mask_urls
from groundplane.core.settings import Settings
from groundplane.plane import diagnose, installed_schemes

URL_VARIABLE = "GROUNDPLANE_CONFORMANCE_URL"
RESULTS_VARIABLE = "GROUNDPLANE_CONFORMANCE_RESULTS"
_PORTS = ("queues", "jobs", "ledger", "blobs", "security", "kv", "bus")
_HOPELESS = frozenset({"invalid_argument", "permission_denied", "unavailable"})


def conformance(
    port: Annotated[str, Parameter(help="queues, jobs, ledger, blobs, security, kv or bus.")],
    url: Annotated[str, Parameter(help="What the driver opens; embedded:// is a folder that is thrown away.")],
    *,
    out: Annotated[Path | None, Parameter(help="Write the report into this folder: JSON, Markdown, JUnit.")] = None,
    select: Annotated[str | None, Parameter(help="Only tests whose names match, as pytest's -k.")] = None,
    json: Annotated[bool, Parameter(negative="", help="Print the report as JSON.")] = False,
) -> int:
    """Run the suite of a port on the driver of a URL; exit code 1 where a promise is broken.

    Each test has a namespace (of blobs: a prefix) of its own. What a test leaves there stays: give it a database, a
    virtual host or a bucket that nobody else uses.

    Examples:

      groundplane conformance queues embedded://

      groundplane conformance jobs postgresql://postgres@127.0.0.1/test --out reports

      groundplane conformance blobs 's3://test?endpoint=http://key:secret@127.0.0.1:9000' --select version
    """
    if port not in _PORTS:
        raise InvalidArgument(f"port: {port!r} has no suite; use {', '.join(_PORTS)}{did_you_mean(port, _PORTS)}")
    checked = check_url("url", url)
    for needed in ("pytest", "anyio"):
        if importlib.util.find_spec(needed) is None:
            raise FailedPrecondition(
                f"conformance: {needed} is not installed; pip install 'groundplane[testing]'", reason="missing_extra"
            )
    _refuse_hopeless(port, checked)
    with tempfile.TemporaryDirectory(prefix="groundplane-conformance-") as folder:
        found = _run(Path(folder), port, url, select, quiet=json)
        if out is not None:
            report.write(found, out, Path(folder) / "junit.xml")
    Output(json=json).result(report.as_json(found), report.summary(found))
    return EXIT_OK if found.passed else EXIT_FAILURE


def _refuse_hopeless(port: str, url: Url) -> None:
    """Raise once what every test would fail with: no driver, a server that is away, a wrong password."""
    known = installed_schemes()[port]
    if url.scheme not in known:
        hint = did_you_mean(url.scheme, known) or f"; there is {', '.join(sorted(known))}"
        raise InvalidArgument(f"url: no driver of {port} for {url.scheme!r}{hint}")
    try:
        asyncio.run(diagnose(msgspec.structs.replace(Settings(), **{port: url}), port))
    except GroundplaneError as error:
        if error.code in _HOPELESS or error.reason == "missing_extra":
            raise


def _run(folder: Path, port: str, url: str, select: str | None, *, quiet: bool) -> report.Report:
    source = Path(__file__).with_name("conformance_tests")
    for name in ("conftest.py", f"{port}.py"):
        target = folder / (name if name == "conftest.py" else f"test_{name}")
        target.write_text((source / f"{name}.txt").read_text())
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    results = folder / "results.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={folder / 'junit.xml'}"]
    command += ["--tb=short", *(["-k", select] if select else []), str(folder)]
    begun, began = time.time(), time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, URL_VARIABLE: url, RESULTS_VARIABLE: str(results)},
        stdout=sys.stderr if not quiet else subprocess.DEVNULL,
        check=False,
    )
    tests = report.read(results)
    if not tests:
        chosen = f" that match {select!r}" if select else ""
        raise FailedPrecondition(f"conformance: no test{chosen} ran (pytest exit code {done.returncode})")
    return report.Report(
        port=port,
        url=mask_urls(url),
        driver=url.partition("://")[0],
        begun_at=round(begun * 1000),
        seconds=round(time.monotonic() - began, 2),
        tests=tests,
    )
