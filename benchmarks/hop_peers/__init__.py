"""Peers of the durable hop on RabbitMQ, each a program: `python -m benchmarks.hop_peers.NAME URL COUNT ROUNDS`.

A hop consumes a message from one quorum queue, publishes one to another, confirmed, and acknowledges the first. Each
program fills the first queue with COUNT messages of 300 bytes, makes COUNT hops, and prints `{"rates": [hops a second
of each round]}` as its last line. Queues are quorum queues and publishes are confirmed in all of them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

BODY = b"x" * 300
PAYLOAD = BODY.decode()
HEADERS: dict[str, Any] = {f"h{number}": "value" for number in range(5)}
QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}
_PEER = sys.orig_argv[sys.orig_argv.index("-m") + 1].rpartition(".")[2]
FIRST, SECOND = f"{_PEER}-first", f"{_PEER}-second"
WINDOW = 200


@dataclass(frozen=True)
class Work:
    """What a peer is asked to do."""

    url: str
    count: int
    rounds: int


def asked() -> Work:
    """The command line."""
    _, url, count, rounds = sys.argv
    return Work(url, int(count), int(rounds))


def tell(rates: list[float]) -> None:
    """The last line, also where a framework has taken standard output for its log."""
    print(json.dumps({"rates": rates}), file=sys.__stdout__, flush=True)
