"""MCP over standard input and output: what `groundplane mcp` serves to a client that started it as its child."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcp.server.stdio import stdio_server

if TYPE_CHECKING:
    from groundplane.gateway.mcp import McpLane


async def serve_stdio(lane: McpLane) -> None:
    """Serve one client until it closes our standard input. Nothing else may write to standard output meanwhile."""
    async with stdio_server() as (read, write):
        await lane.server.run(read, write, lane.server.create_initialization_options())


__all__ = ["serve_stdio"]
