"""What an App declares for the bus: methods of services, subscriptions, handlers of commands; and how they are started.

async with Bus.open(url, name=app.name) as bus, start(bus, app.endpoints):
    …
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec

from groundplane.bus.client import Bus
from groundplane.bus.commands import CONCURRENCY as COMMANDS_AT_ONCE
from groundplane.bus.events import SubscriptionOptions, check_options
from groundplane.bus.handlers import Bound, Handler, check_event_handler
from groundplane.bus.sending import check_count
from groundplane.bus.serving import CONCURRENCY as CALLS_AT_ONCE
from groundplane.bus.subjects import check_pattern, check_service, check_token, two_parts
from groundplane.core.errors import InvalidArgument


class RpcEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A method of a service. `concurrency` is that of the instance: the largest of its methods counts."""

    service: str
    method: str
    handler: Handler
    bound: Bound
    description: str = ""
    concurrency: int = CALLS_AT_ONCE
    origin: str = ""


class EventEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A handler of events. Without a `group` in the options' place, that of the App."""

    pattern: str
    handler: Handler
    options: SubscriptionOptions
    description: str = ""
    origin: str = ""


class CommandEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A handler of a command. `concurrency` is that of the service: the largest of its commands counts."""

    service: str
    command: str
    handler: Handler
    bound: Bound
    description: str = ""
    concurrency: int = COMMANDS_AT_ONCE
    origin: str = ""


class Endpoints(msgspec.Struct, kw_only=True):
    """All that an App declares for the bus, in the order of declaration."""

    rpc: list[RpcEndpoint] = []
    events: list[EventEndpoint] = []
    commands: list[CommandEndpoint] = []

    def __bool__(self) -> bool:
        return bool(self.rpc or self.events or self.commands)

    def add_rpc(self, name: str, handler: Handler, *, concurrency: int, description: str, origin: str) -> None:
        """Declare `service.method`; `invalid_argument` where it is none, or is there already."""
        service, method = two_parts("rpc", name, "service.method, such as quotes.get")
        check_token("service", service)
        check_token("method", method)
        for one in self.rpc:
            if (one.service, one.method) == (service, method):
                raise _twice("rpc", name, one.origin)
        self.rpc.append(
            RpcEndpoint(
                service=service, method=method, handler=handler, bound=Bound("handler", handler),
                concurrency=check_count("concurrency", concurrency, 1, 10_000), description=description, origin=origin,
            )
        )  # fmt: skip

    def add_events(
        self, pattern: str, handler: Handler, options: SubscriptionOptions, *, description: str, origin: str
    ) -> None:
        """Declare a handler of `domain.type`; `invalid_argument` where a group has one for the pattern already."""
        check_pattern("pattern", pattern)
        check_pattern("pattern", f"events.{pattern}")
        check_options(options)
        check_event_handler(handler)
        for one in self.events:
            if (one.pattern, one.options.group) == (pattern, options.group):
                raise _twice("on", pattern, one.origin, "; give one another group")
        self.events.append(
            EventEndpoint(pattern=pattern, handler=handler, options=options, description=description, origin=origin)
        )

    def add_command(self, name: str, handler: Handler, *, concurrency: int, description: str, origin: str) -> None:
        """Declare `service.command`; `invalid_argument` where it is none, or is there already."""
        service, command = two_parts("command", name, "service.command, such as reports.render")
        check_service("service", service)
        check_token("command", command)
        for one in self.commands:
            if (one.service, one.command) == (service, command):
                raise _twice("command", name, one.origin)
        self.commands.append(
            CommandEndpoint(
                service=service, command=command, handler=handler, bound=Bound("handler", handler),
                concurrency=check_count("concurrency", concurrency, 1, 10_000), description=description, origin=origin,
            )
        )  # fmt: skip


@asynccontextmanager
async def start(bus: Bus, endpoints: Endpoints, *, instance: str | None = None) -> AsyncIterator[None]:
    """Serve, subscribe and handle all of it, until the block is left. All or nothing: what fails to start is raised."""
    async with AsyncExitStack() as stack:
        for service in dict.fromkeys(one.service for one in endpoints.rpc):
            methods = [one for one in endpoints.rpc if one.service == service]
            most = max(one.concurrency for one in methods)
            handlers = {one.method: one.handler for one in methods}
            await stack.enter_async_context(bus.serve(service, handlers, instance=instance, concurrency=most))
        for service in dict.fromkeys(one.service for one in endpoints.commands):
            commands = [one for one in endpoints.commands if one.service == service]
            most = max(one.concurrency for one in commands)
            known = {one.command: one.handler for one in commands}
            await stack.enter_async_context(bus.handle(service, known, concurrency=most))
        for event in endpoints.events:
            await stack.enter_async_context(_subscribed(bus, event))
        yield


def _subscribed(bus: Bus, endpoint: EventEndpoint) -> Any:
    options = {name: getattr(endpoint.options, name) for name in endpoint.options.__struct_fields__}
    return bus.subscribe(endpoint.pattern, endpoint.handler, **options)


def _twice(field: str, name: str, origin: str, hint: str = "; rename one") -> InvalidArgument:
    return InvalidArgument(f"{field}: {name!r} is declared twice, first at {origin}{hint}")
