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


class Bound:
    """The deadline of one call."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self.seconds = seconds
        self.cut = False
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._begin = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._cut_off)

    def allow(self, seconds: float) -> None:
        """That much longer."""
        if seconds and not self.cut:
            self.seconds += seconds
            self._timer.cancel()
            self._timer = self._loop.call_at(self._begin + self.seconds, self._cut_off)

    def end(self) -> None:
        """The call is over."""
        self._timer.cancel()

    def _cut_off(self) -> None:
        self.cut = True
        shut_down(self._connection)


@asynccontextmanager
async def bounded(connection: Connection, seconds: float) -> AsyncIterator[Bound]:
    """Cut the connection off after so long: then `CutOff` is raised from what that made of the call. Where the last
    answer had come, that counts; the connection is useless all the same, and closed.
    """
    bound = Bound(connection, seconds)
    try:
        yield bound
    except psycopg.Error as error:
        if bound.cut:
            raise CutOff(bound.seconds) from error
        raise
    finally:
        bound.end()
        if bound.cut:
            connection.pgconn.finish()


def shut_down(connection: Connection) -> None:
    """End the connection under whoever waits for it."""
    with contextlib.suppress(OSError, psycopg.Error):
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as own:
            own.shutdown(socket.SHUT_RDWR)
