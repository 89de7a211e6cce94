"""The state folder as the command line sees it: who runs on it, and where its gateway listens."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from groundplane.core.errors import FailedPrecondition, NotFound, PermissionDenied

_LOCK = "dev.lock"
_RUNNING = "gateway.json"


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway of a state folder, as it wrote itself down. `plane` is the page of the whole plane, where one is."""

    pid: int
    url: str
    admin: str = ""
    plane: str = ""


def make(state: Path) -> Path:
    """The folder and its `run/`, made for the owner alone. Raises `permission_denied` (reason `read_only`)."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        (state / "run").mkdir(mode=0o700, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FailedPrecondition(f"state: {str(state)!r} is no folder; choose another --state") from error
    except OSError as error:
        raise PermissionDenied(
            f"state: {str(state)!r} cannot be written ({error.strerror}); mend its permissions, "
            "or choose another --state",
            reason="read_only",
        ) from error
    return state


@contextlib.contextmanager
def held(state: Path) -> Iterator[None]:
    """Hold the folder for one `dev`. The lock goes with the process, however that ends.

    Raises `failed_precondition` with the pid of the other.
    """
    make(state)
    path = state / "run" / _LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise FailedPrecondition(
                f"state: {str(state)!r} is in use by `groundplane dev` with pid {pid}; stop it, "
                "or choose another --state",
                details={"pid": pid, "state": str(state)},
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder(state: Path) -> int | None:
    """The pid of the `dev` that runs on the folder, if one does."""
    try:
        descriptor = os.open(state / "run" / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdecimal() else None
    else:
        return None
    finally:
        os.close(descriptor)


def write_running(state: Path, running: Running) -> None:
    """Write down where the gateway listens, at once."""
    path = state / "run" / _RUNNING
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode(running))
    fresh.replace(path)


def forget_running(state: Path, pid: int) -> None:
    """Take the note away, if it is this process's."""
    with contextlib.suppress(NotFound, OSError):
        if running(state).pid == pid:
            (state / "run" / _RUNNING).unlink()


def running(state: Path) -> Running:
    """Where the gateway of the folder listens. Raises `not_found` when none runs."""
    path = state / "run" / _RUNNING
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Running)
    except (OSError, msgspec.MsgspecError):
        found = None
    if found is None or not Path(f"/proc/{found.pid}").exists():
        raise NotFound(
            f"state: no gateway runs on {str(state)!r}; start `groundplane dev`, or give --url or --state",
            details={"state": str(state)},
        )
    return found


def existing(state: Path) -> Path:
    """The folder, when it holds a plane. Raises `not_found`: looking never makes one."""
    if not state.is_dir():
        raise NotFound(
            f"state: {str(state)!r} is no state folder; run this where `groundplane dev` ran, or give --state",
            details={"state": str(state)},
        )
    return state
