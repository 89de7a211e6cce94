"""MCP over standard input and output: what `groundplane mcp` serves to a client that started it as its child.

The SDK says nothing to a line that it cannot read, and of a key that is there twice it keeps the last value. So lines
are looked at before it gets them, and those that are no message are refused.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import anyio
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError

from groundplane.gateway.mcp.body import refusal

if TYPE_CHECKING:
    from groundplane.gateway.mcp.lane import McpLane


async def serve_stdio(lane: McpLane) -> None:
    """Serve one client until it closes our standard input. Nothing else may write to standard output meanwhile."""
    with _own_stdin() as descriptor:
        lines = _Lines(descriptor)
        async with stdio_server(cast(Any, lines)) as (read, write):
            lines.answer = write.send
            await lane.server.run(read, write, lane.server.create_initialization_options())


class _Lines:
    """The lines of standard input that are messages. The others are answered."""

    def __init__(self, descriptor: int) -> None:
        # a thread may still wait in it when everything else has ended: it must not be closed under that
        self._file = anyio.wrap_file(os.fdopen(descriptor, "rb", closefd=False))
        self.answer: Callable[[SessionMessage], Awaitable[None]] | None = None

    async def __aiter__(self) -> AsyncIterator[str]:
        async for line in self._file:
            if not line.strip():
                continue
            refused = refusal(line, "the line")
            if refused is None:
                yield line.decode()
            else:
                assert self.answer is not None
                await self.answer(SessionMessage(JSONRPCError.model_validate(refused)))


@contextmanager
def _own_stdin() -> Iterator[int]:
    """A descriptor of standard input that nobody else reads: meanwhile descriptor 0 is empty."""
    own = os.dup(0)
    try:
        empty = os.open(os.devnull, os.O_RDONLY)
        os.dup2(empty, 0)
        os.close(empty)
        yield own
    finally:
        os.dup2(own, 0)


__all__ = ["serve_stdio"]
