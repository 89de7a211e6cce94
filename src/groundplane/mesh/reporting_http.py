"""Reports to a gateway over HTTP, for sidecars that do not reach the job store.

`POST /jobs/{id}/heartbeat` and `/final` with the job's token from the envelope, `GET /jobs/{id}/active` for
cancellations. What these calls cannot say stays unsaid: splits and joins of a fan-out, parked envelopes of a paused job
(it runs on), notes. So a fan-out needs the job store, or a route that ends with its own report. A handler that asks is
refused: its questions need the job store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from groundplane.core.errors import GroundplaneError, InvalidArgument, Unavailable, Unsupported
from groundplane.core.retry import RetryPolicy
from groundplane.core.secrets import mask_url
from groundplane.jobs.port import Change, Finish, JobState, Outcome, Progress, Question, Standing, Watch
from groundplane.mesh.batching import Batcher
from groundplane.mesh.reporting import Reporter
from groundplane.queues.port import Carried

TIMEOUT_S = 10.0
BATCH_MAX = 64
ANSWER_BYTES_MAX = 64 * 1024 * 1024
TOKEN_HEADER = "X-Groundplane-Job-Token"
_RETRY = RetryPolicy(attempts=5, base_s=0.1, cap_s=2.0)
_STATUSES = {10.0: "picked_up", 100.0: "completed"}


class HttpReporter:
    """Reports to the gateway at `url`. Each call is repeated a few times while the gateway does not answer."""

    def __init__(self, url: str, *, lost: Callable[[int], None] | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidArgument(f"gateway_url: {mask_url(url)!r} is no http:// or https:// address")
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._lost = lost
        self._batches: Batcher[tuple[Sequence[Change], str], list[Outcome]] = Batcher(self._flush, batch_max=BATCH_MAX)

    async def apply(self, changes: Sequence[Change], token: str = "") -> list[Outcome]:
        """See the protocol."""
        return await self._batches.submit((changes, token)) if changes else []

    def post(self, changes: Sequence[Change], token: str = "") -> None:
        """See the protocol."""
        if changes:
            self._batches.submit((changes, token)).add_done_callback(self._posted)

    async def begin(self, changes: Sequence[Change], token: str = "") -> tuple[Standing | None, list[Change]]:
        """See the protocol: the answer to a report tells the state, and no deadline."""
        state = (await self.apply(changes, token))[0].state
        return (Standing(state) if state is not None else None), []

    async def carried(self, changes: Sequence[Change], *, of_live: bool = True) -> Carried | None:
        """See the protocol."""
        return None

    async def state(self, job_id: str, token: str = "") -> JobState | None:
        """See the protocol."""
        status, body = await self._request("GET", f"/jobs/{quote(job_id, safe='')}/active", None, token)
        return _state(status, body)

    async def questions(self, job_id: str, ids: Sequence[str]) -> list[Question]:
        """See the protocol: a gateway is told, not asked."""
        raise Unsupported("ask: this sidecar reports to a gateway, which takes no questions; give it --jobs")

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[Watch]:
        """See the protocol: a gateway does not call back."""
        yield _Timer()

    async def aclose(self) -> None:
        """See the protocol."""
        await self._batches.aclose()

    async def _flush(self, items: list[tuple[Sequence[Change], str]]) -> list[list[Outcome] | Exception]:
        """Those of one job one after another, those of different jobs at once."""
        found: list[list[Outcome] | Exception] = [[] for _ in items]
        by_job: dict[str, list[int]] = {}
        for index, (changes, _) in enumerate(items):
            by_job.setdefault(changes[0].job_id, []).append(index)

        async def one_job(indexes: list[int]) -> None:
            for index in indexes:
                changes, token = items[index]
                try:
                    found[index] = [await self._tell(change, token) for change in changes]
                except GroundplaneError as error:
                    found[index] = error

        await asyncio.gather(*map(one_job, by_job.values()))
        return found

    async def _tell(self, change: Change, token: str) -> Outcome:
        said = as_call(change)
        if said is None:
            return Outcome(applied=False, state=None, detail="unsupported")
        path, body = said
        status, answer = await self._request("POST", f"/jobs/{quote(change.job_id, safe='')}/{path}", body, token)
        return Outcome(applied=status < 300, state=_state(status, answer), detail="" if status < 300 else str(status))

    async def _request(self, method: str, path: str, body: Any, token: str) -> tuple[int, Any]:
        failure: Exception | None = None
        for attempt in range(1, _RETRY.attempts + 1):
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    status, answer = await self._once(method, path, body, token)
                if status < 500 and status != 429:
                    return status, answer
                failure = Unavailable(f"gateway: answered {status} to {method} {path}")
            except (OSError, TimeoutError, EOFError, ValueError) as error:
                failure = error
            if attempt < _RETRY.attempts:
                await asyncio.sleep(_RETRY.delay_s(attempt))
        raise Unavailable(f"gateway: {self._host}:{self._port} did not take {method} {path}: {failure!r}") from failure

    async def _once(self, method: str, path: str, body: Any, token: str) -> tuple[int, Any]:
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=True if self._tls else None)
        try:
            data = b"" if body is None else msgspec.json.encode(body)
            lines = [
                f"{method} {self._prefix}{path} HTTP/1.1",
                f"Host: {self._host}:{self._port}",
                "Connection: close",
                "Accept: application/json",
                f"Content-Length: {len(data)}",
                *(["Content-Type: application/json"] if body is not None else []),
                *([f"{TOKEN_HEADER}: {token}"] if token.isprintable() and token else []),
            ]
            writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            return await _answer(head, reader)
        finally:
            writer.close()

    def _posted(self, future: asyncio.Future[list[Outcome]]) -> None:
        if not future.cancelled() and future.exception() is not None and self._lost is not None:
            self._lost(1)


class _Timer:
    """A watch that is never rung."""

    async def wait(self, timeout_s: float | None = None) -> bool:
        """False after that time."""
        assert timeout_s is not None
        await asyncio.sleep(timeout_s)
        return False


def as_call(change: Change) -> tuple[str, dict[str, Any]] | None:
    """Path and body of the callback that says this; None where there is none."""
    if isinstance(change, Progress):
        status = _STATUSES.get(change.weight, "processing")
        body: dict[str, Any] = {"status": status, "actor": change.actor, "hop": change.hop}
        body.update({"envelope_id": change.envelope_id, "message": change.message})
        if status == "processing" and change.weight != 50.0:
            body["progress"] = min(100.0, max(0.0, (change.weight - 10.0) / 0.9))
        return "heartbeat", body
    if isinstance(change, Finish) and not change.holds:
        if change.error is None:
            return "final", {"status": "succeeded", "result": change.result, "envelope_id": change.envelope_id}
        error = msgspec.to_builtins(change.error)
        return "final", {"status": "failed", "error": error, "envelope_id": change.envelope_id}
    return None


async def _answer(head: bytes, reader: asyncio.StreamReader) -> tuple[int, Any]:
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split()[1])
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if fields.get("transfer-encoding", "").lower() == "chunked":
        data = await _chunks(reader)
    elif "content-length" in fields:
        size = int(fields["content-length"])
        if size > ANSWER_BYTES_MAX:
            raise ValueError(f"answer of {size} bytes")
        data = await reader.readexactly(size)
    else:
        data = await reader.read(ANSWER_BYTES_MAX)
    try:
        return status, msgspec.json.decode(data)
    except msgspec.MsgspecError:
        return status, None


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    total = 0
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        total += size
        if total > ANSWER_BYTES_MAX:
            raise ValueError(f"answer of more than {ANSWER_BYTES_MAX} bytes")
        parts.append((await reader.readexactly(size + 2))[:-2])
        if size == 0:
            return b"".join(parts)


def _state(status: int, body: Any) -> JobState | None:
    """The job's state in an answer; one that is gone without saying how counts as cancelled."""
    found = body if isinstance(body, dict) else {}
    details = found.get("details")
    for place in (found, details if isinstance(details, dict) else {}):
        try:
            return JobState(str(place.get("state")))
        except ValueError:
            continue
    return JobState.CANCELLED if status == 410 else None


_: type[Reporter] = HttpReporter
