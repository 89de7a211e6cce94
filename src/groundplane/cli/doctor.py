"""`groundplane doctor`: what is wrong with this machine's plane, and what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import platform
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from cyclopts import Parameter

from groundplane.cli import state_folder
from groundplane.cli.address import check_address
from groundplane.cli.finding import Finding, of_error
from groundplane.cli.limits_check import examine_limits
from groundplane.cli.loading import describe_apart
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_FAILURE, EXIT_OK, Output, colourful
from groundplane.cli.servers_check import examine_servers
from groundplane.cli.version import versions
from groundplane.core.clock import SYSTEM_CLOCK, iso_z
from groundplane.core.errors import GroundplaneError, NotFound
from groundplane.core.settings import Settings
from groundplane.plane import PORTS, Plane, has_keys

DISK_FREE_BYTES_MIN = 64 * 1024 * 1024
CLOCK_TOLERANCE_MS = 1000
_PROBE_BYTES = 256 * 1024
_JOBS_LOOKED_AT = 100
_CONNECT_TIMEOUT_S = 2.0


def doctor(
    *,
    host: Annotated[str | None, Parameter(help="Address that the gateway is to have.")] = None,
    port: Annotated[int | None, Parameter(help="Port that the gateway is to have.")] = None,
    app: Annotated[str | None, Parameter(help="Look at the queues of this app as well.")] = None,
    common: Common = COMMON,
) -> int:
    """Check versions, permissions, disk, servers, data, limits, port and clock; exit code 1 when something is wrong.

    Examples:

      groundplane doctor

      groundplane doctor --app app:app --state /var/lib/groundplane --json
    """
    settings = common.settings(host=host, port=port)
    names = sorted(describe_apart(app).actors) if app is not None else []
    findings = asyncio.run(examine(settings, names))
    bad = any(one.severity == "error" for one in findings)
    _report(common.output, findings, bad)
    return EXIT_FAILURE if bad else EXIT_OK


async def examine(settings: Settings, queues: Sequence[str] = ()) -> list[Finding]:
    """Every check in turn. What cannot be checked because of an earlier finding is left out."""
    found = [_versions(), *_extras(settings), _folder(settings.state), _disk(settings.state)]
    usable = all(one.severity != "error" for one in found)
    found += await examine_servers(settings, queues)
    for check in (_data, _clock):
        if usable and _embedded(settings):
            found += await check(settings)
    found += [*examine_limits(settings), _port(settings), *_gateway(settings)]
    return found


def _versions() -> Finding:
    found = versions()
    shown = ", ".join(f"{name} {version}" for name, version in found.items())
    return Finding(check="versions", severity="ok", message=f"{shown} on {platform.system()} {platform.release()}")


def _extras(settings: Settings) -> list[Finding]:
    found = []
    if settings.alerts_smtp is not None and find_spec("aiosmtplib") is None:
        text = "alerts.smtp is set, and aiosmtplib is not installed: no mail will be sent"
        remedy = "Install groundplane[alerts]."
        found.append(Finding(check="extras", severity="error", message=text, reason="missing_extra", remedy=remedy))
    missing = [name for name in ("mcp", "starlette", "uvicorn") if versions()[name] == "not installed"]
    if not missing:
        return found
    text = f"{', '.join(missing)} not installed: dev, run --role gateway, mcp and call do not work"
    remedy = "Install groundplane[gateway]."
    return [*found, Finding(check="extras", severity="warning", message=text, reason="missing_extra", remedy=remedy)]


def _folder(state: Path) -> Finding:
    """Whether the folder, or the one that it would be made in, can be written; and that only its owner can read it."""
    present = _present(state)
    if not present.is_dir():
        return Finding(
            check="state", severity="error", reason="read_only", message=f"{str(present)!r} is no folder",
            remedy="Choose another --state, or move the file away.",
        )  # fmt: skip
    try:
        with tempfile.TemporaryFile(dir=present):
            pass
    except OSError as error:
        if error.errno != errno.ENOSPC:  # a full disk is the next check's
            return Finding(
                check="state", severity="error", reason="read_only",
                message=f"{str(present)!r} cannot be written: {error.strerror}",
                remedy="Mend its permissions or its mount, or choose another --state.",
            )  # fmt: skip
    mode = stat.S_IMODE(present.stat().st_mode)
    if state.is_dir() and mode & 0o077:
        return Finding(
            check="state", severity="warning", reason="permissions",
            message=f"{str(state)!r} can be read by others (mode {mode:o})", remedy=f"chmod 700 {state}",
        )  # fmt: skip
    return Finding(check="state", severity="ok", message=f"{state} can be written")


def _disk(state: Path) -> Finding:
    present = _present(state)
    free = shutil.disk_usage(present).free
    shown = f"{free / 2**20:,.0f} MiB free where {str(present)!r} lies"
    if free < _PROBE_BYTES or not _can_grow(present):
        return Finding(
            check="disk", severity="error", reason="disk_full", message=f"the disk is full: {shown}",
            remedy="Free space, or move the state folder; nothing that was acknowledged is lost.",
        )  # fmt: skip
    if free < DISK_FREE_BYTES_MIN:
        return Finding(
            check="disk", severity="warning", reason="disk_full", message=shown, remedy="Free space soon."
        )  # fmt: skip
    return Finding(check="disk", severity="ok", message=shown)


async def _data(settings: Settings) -> list[Finding]:
    """Each store opened as a role would open it. Data that is not there yet is made by `dev` or `db upgrade`."""
    if not (settings.state / "plane.db").exists():
        return [Finding(check="data", severity="ok", message=f"nothing is stored in {settings.state} yet")]
    found: dict[str, Finding] = {}
    for store in _embedded(settings):
        try:
            async with Plane.open(settings, ports=(store,)) as plane:
                error = (await plane.check())[store]
        except GroundplaneError as raised:
            error = raised
        if error is not None:
            key = error.reason or error.message  # one broken file is one finding, however many stores are in it
            found.setdefault(key, of_error("data", error))
    opened = ", ".join(_embedded(settings))
    return list(found.values()) or [Finding(check="data", severity="ok", message=f"these open: {opened}")]


def _embedded(settings: Settings) -> list[str]:
    """The stores in the state folder."""
    ports = [port for port in PORTS if port != "kv" or has_keys(settings)]
    return [port for port in ports if getattr(settings, port).scheme == "embedded"]


async def _clock(settings: Settings) -> list[Finding]:
    """Whether the clock is behind what was stored: deadlines, delays and retention would be wrong."""
    if settings.jobs.scheme != "embedded":
        return []  # the servers' clocks are compared
    if not (settings.state / "plane.db").exists():
        return [Finding(check="clock", severity="ok", message="nothing is stored to compare the clock with")]
    from groundplane.jobs import JobQuery

    newest = 0
    try:
        async with Plane.open(settings, ports=("jobs",)) as plane:
            page = await plane.jobs.list_jobs(JobQuery(limit=_JOBS_LOOKED_AT))
            newest = max((job.updated_at for job in page.items), default=0)
            for job in page.items[:1]:
                events = await plane.jobs.events(max(0, job.last_event_id - 1), job.job_id)
                newest = max([newest, *(event.created_at for event in events.items)])
    except GroundplaneError:
        return []  # the check of the data has said why
    now = SYSTEM_CLOCK.now_ms()
    if newest > now + CLOCK_TOLERANCE_MS:
        return [Finding(
            check="clock", severity="error", reason="clock_behind",
            message=f"the clock says {iso_z(now)}, but something was stored at {iso_z(newest)}",
            remedy="Set the clock (NTP); until then deadlines come late.",
        )]  # fmt: skip
    return [Finding(check="clock", severity="ok", message=f"{iso_z(now)}, not behind what is stored")]


def _port(settings: Settings) -> Finding:
    with contextlib.suppress(NotFound):
        own = urlsplit(state_folder.running(settings.state).url)
        if own.port == settings.port:
            return Finding(check="port", severity="ok", message=f"port {settings.port} is this plane's own")
    try:
        check_address(settings)
    except GroundplaneError as error:
        what, _, remedy = error.message.replace(": ", " ", 1).partition("; ")
        return Finding(
            check="port", severity="error", reason=error.reason or "port_taken", message=what,
            remedy=f"{remedy.capitalize()}.",
        )  # fmt: skip
    free = f"port {settings.port} on {settings.host} is free" if settings.port else "a free port is taken at the start"
    return Finding(check="port", severity="ok", message=free)


def _gateway(settings: Settings) -> list[Finding]:
    """A gateway that says it runs is asked whether it is there."""
    try:
        running = state_folder.running(settings.state)
    except NotFound:
        return []
    place = urlsplit(running.url)
    try:
        socket.create_connection((place.hostname or "", place.port or 80), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return [Finding(
            check="gateway", severity="error", reason="unreachable",
            message=f"pid {running.pid} says it listens on {running.url}, which does not answer: {error}",
            remedy=f"Look at the log of process {running.pid}; stop and start it.",
        )]  # fmt: skip
    return [Finding(check="gateway", severity="ok", message=f"{running.url}, pid {running.pid}")]


def _present(state: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    place = state.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def _can_grow(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(os.urandom(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    return True


def _report(output: Output, findings: list[Finding], bad: bool) -> None:
    if output.json:
        output.result({"ok": not bad, "findings": findings})
        return
    colours = {"ok": "32", "warning": "33", "error": "31"}
    lines = []
    for one in findings:
        mark = f"{one.severity:<7}"
        if colourful(sys.stdout):
            mark = f"\x1b[{colours[one.severity]}m{mark}\x1b[0m"
        lines.append(f"{mark} {one.check:<9} {one.message}")
        if one.remedy:
            lines.append(f"{'':<18}→ {one.remedy}")
    output.result(None, "\n".join(lines))
