"""The topology as a file of definitions, in the format that RabbitMQ loads when it starts (`load_definitions`)."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from typing import Any

from groundplane.backends.amqp import Address
from groundplane.queues.drivers.rabbitmq.names import Names

_HASHING = "rabbit_password_hashing_sha256"


def definitions(address: Address, names: Names, queues: Iterable[str], *, with_user: bool) -> dict[str, Any]:
    """Virtual host, exchange, queues and bindings; with the URL's user, its password hashed, where that is asked for.

    An empty broker that loads a file of definitions makes no user of its own.
    """
    vhost = address.vhost
    declared = [*names.of_namespace()]
    for queue in queues:
        declared += names.of_queue(queue)
    exchange = {"type": "direct", "durable": True, "auto_delete": False, "internal": False, "arguments": {}}
    found: dict[str, Any] = {
        "vhosts": [{"name": vhost}],
        "exchanges": [{"name": names.exchange, "vhost": vhost, **exchange}],
        "queues": [
            {"name": one.name, "vhost": vhost, "durable": True, "auto_delete": False, "arguments": one.arguments}
            for one in declared
        ],
        "bindings": [
            {
                "source": names.exchange,
                "vhost": vhost,
                "destination": one.name,
                "destination_type": "queue",
                "routing_key": one.name,
                "arguments": {},
            }
            for one in declared
        ],
    }
    if with_user:
        found["users"] = [_user(address)]
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        found["permissions"] = [{"user": address.user, "vhost": vhost, **everything}]
    return found


def _user(address: Address) -> dict[str, Any]:
    """Source of the hash: RabbitMQ's documentation, "Passwords": salt and SHA-256 of salt and password."""
    salt = os.urandom(4)
    digest = hashlib.sha256(salt + address.password.reveal().encode()).digest()
    hashed = base64.b64encode(salt + digest).decode()
    return {"name": address.user, "password_hash": hashed, "hashing_algorithm": _HASHING, "tags": []}
