"""`python -m benchmarks.bare_accepts POSTGRES`: a web application that writes a job's plain rows, and no more.

No checks of arguments, no deadlines, no idempotency, nobody who relays or runs what was accepted. Prints its port.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import AsyncIterator

import psycopg
import uvicorn
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.jobs_postgres import PAYLOAD, PLAIN_STATEMENT, PLAIN_TABLES, POOL
from groundplane.core.ids import new_id


def main(url: str) -> None:
    """Serve until SIGTERM."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(PLAIN_TABLES)
    pool = AsyncConnectionPool(url, min_size=POOL, max_size=POOL, open=False, kwargs={"autocommit": True})

    async def accept(request: Request) -> JSONResponse:
        await request.json()
        job_id = new_id()
        async with pool.connection() as taken:
            await taken.execute(PLAIN_STATEMENT, (job_id, PAYLOAD, job_id, PAYLOAD))
        return JSONResponse({"job_id": job_id}, status_code=202)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with pool:
            yield

    listener = socket.socket(proto=socket.IPPROTO_TCP)  # asyncio turns Nagle off for sockets that say so
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # who connects before the application has started waits
    print(listener.getsockname()[1], flush=True)
    application = Starlette(routes=[Route("/v1/jobs", accept, methods=["POST"])], lifespan=lifespan)
    config = uvicorn.Config(application, http="h11", log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1])
