"""A look at NATS: who may log in, whether JetStream is there, whose streams take the plane's subjects."""

from __future__ import annotations

from collections.abc import Sequence

from groundplane.backends.nats import Address, JetStream, Link
from groundplane.bus.drivers.nats.driver import NUMBERS, check_server
from groundplane.bus.drivers.nats.naming import Naming
from groundplane.core.diagnosis import Diagnose, Diagnosis
from groundplane.core.errors import FailedPrecondition


async def diagnose(url: str, *, namespace: str, names: Sequence[str] = ()) -> Diagnosis:
    """See `core.diagnosis`. Makes no stream and no consumer; a request to itself shows that answers may be had."""
    address = Address.parse(url, field="bus", extra=NUMBERS)
    async with await Link.open(address, name=f"doctor {namespace}") as link:
        check_server(link)
        jetstream = JetStream(link)
        await jetstream.api("INFO", field="bus")
        echo = link.subscribe(link.new_inbox(), lambda message: link.publish(message.reply))
        await echo.confirmed()
        await link.request(echo.subject)
        found = await _compare(jetstream, Naming(namespace, replicas=0, inbox=address.inbox))
        return Diagnosis(server=f"NATS {link.info.version}", stored=found)


async def _compare(jetstream: JetStream, naming: Naming) -> bool:
    """Whether a stream of the plane is there. Foreign ones on its subjects are an error, as at the first append."""
    found = False
    for name in (naming.events, naming.results, naming.dead):
        config = naming.stream(name)
        for subject in config.subjects:
            for other in await jetstream.stream_names(subject=subject):
                if not other.startswith(f"bus+{naming.token}+"):
                    raise FailedPrecondition(
                        f"bus: the stream {other!r} takes {subject!r}, which is this plane's; delete it, or give the "
                        "plane another name",
                        reason="subjects_overlap",
                    )
                found = found or other == name
    return found


_: Diagnose = diagnose
