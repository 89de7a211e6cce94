"""A process that registers an instance and lives until it is killed.

service_child.py URL STATE NAMESPACE TTL_S INSTANCE_ID
"""

from __future__ import annotations

import asyncio
import sys

from groundplane.services import RegistrationSettings, Registry


async def main(url: str, state: str, namespace: str, ttl_s: float, instance_id: str) -> None:
    settings = RegistrationSettings(ttl_s=ttl_s, heartbeat_s=ttl_s / 4)
    async with (
        Registry.open(url, state=state, namespace=namespace, settings=settings, upgrade=True) as registry,
        registry.register("quotes", instance_id=instance_id, version="1.0"),
    ):
        print("registered", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    _, given_url, given_state, given_namespace, given_ttl_s, given_id = sys.argv
    asyncio.run(main(given_url, given_state, given_namespace, float(given_ttl_s), given_id))
