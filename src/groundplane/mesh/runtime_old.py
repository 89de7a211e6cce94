"""A runtime of protocol 0: one connection for each message, JSON both ways, the whole message in, an array out.

It has no cancel, no progress and no kill: a call past its timeout is given up by closing its connection.
"""

from __future__ import annotations

import asyncio
from typing import Any

from groundplane.core import codec
from groundplane.core.errors import GroundplaneError, InvalidArgument
from groundplane.mesh.routing import Failure, Outcome, Output, Result
from groundplane.mesh.runtime_link import route_of


class OldRuntime:
    """Calls over protocol 0. May be called concurrently: each call has its connection."""

    def __init__(self, socket: str, frame_max: int) -> None:
        self._socket = socket
        self._frame_max = frame_max
        self.reachable = False

    async def probe(self) -> None:
        """See that something listens. Raises `OSError`."""
        _, writer = await asyncio.open_unix_connection(self._socket)
        writer.close()
        self.reachable = True

    async def call(self, envelope: dict[str, Any], timeout_s: float | None) -> Outcome:
        """One message, one connection."""
        try:
            async with asyncio.timeout(timeout_s):
                body = await self._exchange(codec.encode(envelope, "json"))
        except TimeoutError:
            text = f"timeout: the handler ran longer than {timeout_s:g} s"
            return Failure(reason="timeout_error", message=text, type="TimeoutError", details={"timeout_s": timeout_s})
        except InvalidArgument as error:
            return Failure(reason=error.reason or "msg_parsing_error", message=error.message, retryable=False)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.reachable = not isinstance(error, FileNotFoundError | ConnectionRefusedError)
            return Failure(reason="connection_error", message=f"runtime: {error}", type=type(error).__name__)
        self.reachable = True
        try:
            return outcome_of(codec.decode(body))
        except GroundplaneError as error:
            return Failure(reason="connection_error", message=f"runtime: {error.message}", type="ProtocolError")

    async def _exchange(self, body: bytes) -> bytes:
        if len(body) > self._frame_max:
            raise InvalidArgument(
                f"message: {len(body)} bytes are over the frame limit of {self._frame_max}; protocol 0 has no more",
                reason="payload_too_large",
            )
        reader, writer = await asyncio.open_unix_connection(self._socket)
        try:
            writer.write(len(body).to_bytes(4, "big") + body)
            await writer.drain()
            length = int.from_bytes(await reader.readexactly(4), "big")
            if length > self._frame_max:
                raise InvalidArgument(f"frame: {length} bytes are over the limit", reason="payload_too_large")
            return await reader.readexactly(length)
        finally:
            writer.close()


def outcome_of(answer: Any) -> Outcome:
    """What the array of a runtime of protocol 0 means."""
    if not isinstance(answer, list) or not all(isinstance(one, dict) for one in answer):
        raise InvalidArgument(f"answer: {str(answer)[:200]!r} is no array of objects")
    if len(answer) == 1 and "error" in answer[0] and "payload" not in answer[0]:
        details = answer[0].get("details")
        details = details if isinstance(details, dict) else {"message": str(details or "")}
        kind = str(details.get("type") or "")
        return Failure(
            reason=str(answer[0]["error"]),
            message=str(details.get("message") or answer[0]["error"]),
            type=kind,
            types=[kind] if kind else [],
            traceback=str(details.get("traceback") or ""),
        )
    outputs = []
    for one in answer:
        route = route_of(one.get("route"))
        if isinstance(route, Failure):
            return route
        headers = one.get("headers")
        outputs.append(Output(one.get("payload"), route, headers if isinstance(headers, dict) else None))
    return Result(outputs, fanout=len(outputs) > 1)
