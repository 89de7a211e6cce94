"""Any MCP client would do: this one is the official SDK over HTTP, in a process of its own.

    python client.py http://127.0.0.1:8080 ingest '{"path": "/usr/lib/python3.11"}'

Prints one JSON line for each progress notification, and one for the result.
"""

import asyncio
import json
import sys
from typing import Any

from mcp import Client


async def main(url: str, tool: str, arguments: dict[str, Any]) -> int:
    async def show(progress: float, total: float | None, message: str | None) -> None:
        print(json.dumps({"progress": progress, "total": total, "message": message}), flush=True)

    async with Client(f"{url}/mcp") as client:
        result = await client.call_tool(tool, arguments, progress_callback=show, read_timeout_seconds=300)
        text = "".join(part.text for part in result.content if part.type == "text")
        value = result.structured_content
        print(json.dumps({"error": bool(result.is_error), "text": text, "value": value}), flush=True)
        return 1 if result.is_error else 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: client.py URL TOOL ARGUMENTS-AS-JSON")
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
