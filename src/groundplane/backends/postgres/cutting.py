"""Cutting a connection off under whoever waits for it.

A frozen server still acknowledges what it is sent, so keepalives and timeouts of TCP see nothing, and it answers no
request to cancel: psycopg would wait for that for ten seconds. To shut the socket down fails the wait at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from groundplane.backends.postgres.transaction import Connection


class CutOff(Exception):
    """A call that was cut off at its deadline."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@asynccontextmanager
async def bounded(connection: Connection, seconds: float) -> AsyncIterator[None]:
    """Cut the connection off after so long: then `CutOff` is raised from what that made of the call."""
    loop = asyncio.get_running_loop()
    cut = False

    def cut_off() -> None:
        nonlocal cut
        cut = True
        shut_down(connection)

    timer = loop.call_later(seconds, cut_off)
    try:
        yield
    except psycopg.Error as error:
        if cut:
            raise CutOff(seconds) from error
        raise
    finally:
        timer.cancel()


def shut_down(connection: Connection) -> None:
    """End the connection under whoever waits for it."""
    with contextlib.suppress(OSError, psycopg.Error):
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as own:
            own.shutdown(socket.SHUT_RDWR)
