"""App: what a user declares in one Python file. Decorators only: nothing is opened, started or imported here.

Every mistake that can be seen at definition time is an `InvalidArgument` that names the field and shows the value.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import msgspec

from groundplane.actors import Mode, actor_spec
from groundplane.core.durations import parse_duration
from groundplane.core.envelope import ERROR_END, HAPPY_END
from groundplane.core.errors import InvalidArgument
from groundplane.core.names import check_name, did_you_mean
from groundplane.core.retry import RetryPolicy
from groundplane.mesh.spec import (
    ACTOR_TIMEOUT_S,
    HOPS_MAX,
    PROMPT_TIMEOUT_S,
    TASK_AFTER_S,
    TOOL_TIMEOUT_S,
    ActorSpec,
    Completion,
    Offer,
    PromptSpec,
    ResourceSpec,
    TaskPolicy,
    ToolSpec,
)
from groundplane.offered import (
    OnDisconnect,
    check_texts,
    completion,
    prompt_arguments,
    prompt_spec,
    resource_spec,
    template_schema,
    tool_spec,
)
from groundplane.signatures import check_annotated, handler_address, input_schema, summary

if TYPE_CHECKING:
    from groundplane.bus.endpoints import Endpoints
    from groundplane.services.leadership import Policy, SingleActive
    from groundplane.services.leadership.policies import PolicyName

H = TypeVar("H", bound=Callable[..., Any])


class App:
    """Actors and what clients are offered under one name.

    `actors`, `tools` and `prompts` map names to their specs, `resources` URIs, `elections` what `single_active` gave,
    in the order of declaration. Decorated functions stay plain functions: call them in tests.
    """

    def __init__(self, name: str) -> None:
        self.name = check_name("name", name)
        self.actors: dict[str, ActorSpec] = {}
        self.tools: dict[str, ToolSpec] = {}
        self.prompts: dict[str, PromptSpec] = {}
        self.resources: dict[str, ResourceSpec] = {}
        self.elections: dict[str, SingleActive] = {}
        self._handlers: dict[str, Any] = {}
        self._declared_at: dict[str, str] = {}
        self._endpoints: Endpoints | None = None

    def __repr__(self) -> str:
        return f"<App {self.name} actors={list(self.actors)} tools={list(self.tools)}>"

    @property
    def offer(self) -> Offer:
        """All that clients are offered."""
        return Offer(
            tools=list(self.tools.values()),
            prompts=list(self.prompts.values()),
            resources=list(self.resources.values()),
        )

    @overload
    def actor(self, handler: H, /) -> H: ...
    @overload
    def actor(
        self,
        *,
        name: str | None = None,
        timeout: float | str = ACTOR_TIMEOUT_S,
        retry: int | RetryPolicy = 1,
        retry_timeouts: bool = False,
        concurrency: int = 1,
        join: bool = False,
        join_timeout: float | str | None = None,
        key: str | None = None,
        handler_mode: Mode = "payload",
    ) -> Callable[[H], H]: ...
    def actor(self, handler: Any = None, /, **options: Any) -> Any:  # type: ignore[misc]  # unknown options are ours to name
        """Declare a handler as an actor: a function, async function, generator, or a class that is made once in each
        worker and has `process` or `__call__`.

        `name` is the handler's own by default. `timeout` is seconds or `"30s"`. `retry` is the number of attempts in
        all, or a policy; a call past its timeout is tried again only with `retry_timeouts`. `concurrency` is calls at
        once. `join` makes it a fan-in: it gets the ordered list of a fan-out's results, after `join_timeout` those
        that arrived. `key` names the payload field by which order is kept. Returns the handler unchanged.
        """
        origin, name = _caller(), options.pop("name", None)
        if isinstance(handler, str):
            raise InvalidArgument(f"actor: {handler!r} is a text; write @app.actor(name={handler!r})")

        def declare(one: Any) -> Any:
            address = handler_address(one)
            check_annotated(one, str(options.get("handler_mode", "payload")))
            declared = self._add(one.__name__ if name is None else name, address, origin, name is not None, options)
            self._handlers[declared] = one
            return one

        return declare if handler is None else declare(handler)

    def add_actor(
        self,
        handler: str,
        *,
        name: str | None = None,
        timeout: float | str = ACTOR_TIMEOUT_S,
        retry: int | RetryPolicy = 1,
        retry_timeouts: bool = False,
        concurrency: int = 1,
        join: bool = False,
        join_timeout: float | str | None = None,
        key: str | None = None,
        handler_mode: Mode = "payload",
    ) -> str:
        """Declare the handler at `module:function` (or `module.function`), which need not know of Groundplane and is
        not imported here. Returns the actor's name: by default the last part of `handler`.
        """
        if not isinstance(handler, str):
            raise InvalidArgument(f"handler: {handler!r} is not a text; a function is declared with @app.actor")
        if not handler.replace(":", ".").replace(".", "").isidentifier():
            raise InvalidArgument(f"handler: {handler!r} is not module:function")
        module, _, function = handler.replace(":", ".").rpartition(".")
        if not module or not function:
            raise InvalidArgument(f"handler: {handler!r} names no module; write module:function")
        options = {
            "timeout": timeout, "retry": retry, "retry_timeouts": retry_timeouts, "concurrency": concurrency,
            "join": join, "join_timeout": join_timeout, "key": key, "handler_mode": handler_mode,
        }  # fmt: skip
        address = handler if ":" in handler else f"{module}:{function}"
        return self._add(function if name is None else name, address, _caller(), name is not None, options)

    def tool(
        self,
        name: str,
        *,
        route: Sequence[Callable[..., Any] | str],
        description: str = "",
        timeout: float | str = TOOL_TIMEOUT_S,
        progress: bool = True,
        on_disconnect: OnDisconnect = "detach",
        input_schema: Mapping[str, Any] | None = None,
        output_schema: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        title: str = "",
        content: bool = False,
        task: TaskPolicy = "optional",
        task_after: float | str = TASK_AFTER_S,
        annotations: Mapping[str, Any] | None = None,
        updates: Sequence[str] = (),
    ) -> ToolSpec:
        """Declare what clients may call: a route through actors, given as functions or names.

        Its arguments are those of the first actor (`input_schema` overrides). `timeout` is the job's, in seconds or
        `"30s"`. `on_disconnect` says what happens to the job when a waiting caller goes away. Without a `description`
        the first actor's docstring is used.

        For MCP: with `content` the result is content blocks (`groundplane.content`). `task` says whether a call becomes
        a task where the client takes tasks: `optional`, `required` (other clients are refused) or `never`; until
        `task_after` has passed, a job that ends or asks is answered at once. `annotations` are hints such as
        `readOnlyHint`. `updates` are URIs of resources that a job of this tool changes.
        """
        origin = _caller()
        check_name("tool", name)
        if name in self.tools:
            raise InvalidArgument(f"tool: {name!r} is declared twice, first at {self.tools[name].origin}; rename one")
        names = self._route(f"tool {name!r}", route)
        spec = tool_spec(
            name, names, self._handlers.get(names[0]), self.actors[names[0]].handler_mode,
            description=description, timeout=timeout, progress=progress, on_disconnect=on_disconnect,
            input_schema=input_schema, output_schema=output_schema, metadata=metadata, title=title, content=content,
            task=task, task_after=task_after, annotations=annotations, updates=updates, origin=origin,
        )  # fmt: skip
        self.tools[name] = spec
        return spec

    def single_active(self, name: str, *, policy: PolicyName | Policy = "balanced") -> SingleActive:
        """Declare an election: of all instances that open it (`elections`) one leads. The result decorates the async
        handlers that the leader alone serves, its `work` what runs while this instance leads.
        """
        from groundplane.services.leadership import SingleActive  # whoever elects nobody does not load it

        origin = _caller()
        if name in self.elections:
            first = self._declared_at[f"single_active {name}"]
            raise InvalidArgument(
                f"name: election {name!r} is declared twice, first at {first}; use what that returned"
            )
        election = SingleActive(name, policy)
        self.elections[name] = election
        self._declared_at[f"single_active {name}"] = origin
        return election

    def prompt(
        self,
        name: str,
        *,
        route: Sequence[Callable[..., Any] | str] = (),
        text: str | None = None,
        arguments: Mapping[str, str] | None = None,
        description: str = "",
        title: str = "",
        complete: Mapping[str, Callable[..., Any] | str | Sequence[str]] | None = None,
        timeout: float | str = PROMPT_TIMEOUT_S,
    ) -> PromptSpec:
        """Declare a prompt that clients may take: made by a route through actors, or `text` as it is.

        The last actor returns text (a message of the user) or a list of messages (`groundplane.content`). The arguments
        are the first actor's parameters, which get text; `arguments` maps names to descriptions of its own. `complete`
        maps an argument to what completes it: a list of texts, or an actor that takes `value` (and `arguments`).
        """
        origin = _caller()
        check_name("prompt", name)
        if name in self.prompts:
            raise InvalidArgument(
                f"prompt: {name!r} is declared twice, first at {self.prompts[name].origin}; rename one"
            )
        owner = f"prompt {name!r}"
        names = self._route(owner, route) if text is None else []
        first = self._handlers.get(names[0]) if names else None
        schema = input_schema(first, self.actors[names[0]].handler_mode) if first is not None else {}
        taken = prompt_arguments(owner, arguments, schema)
        spec = prompt_spec(
            name,
            names,
            text=text,
            title=title,
            description=description or (summary(first) if first is not None else ""),
            arguments=taken,
            complete=self._completions(owner, complete, [one.name for one in taken]),
            timeout_s=parse_duration("timeout", timeout),
            origin=origin,
        )
        self.prompts[name] = spec
        return spec

    def resource(
        self,
        uri: str,
        *,
        route: Sequence[Callable[..., Any] | str] = (),
        text: str | None = None,
        data: bytes | None = None,
        name: str | None = None,
        mime_type: str | None = None,
        description: str = "",
        title: str = "",
        complete: Mapping[str, Callable[..., Any] | str | Sequence[str]] | None = None,
        timeout: float | str = PROMPT_TIMEOUT_S,
    ) -> ResourceSpec:
        """Declare what clients may read at `uri`: made by a route through actors, or `text` or `data` as they are.

        The last actor returns text, bytes, or a value that is sent as JSON. A `uri` with variables (`notes://{id}`,
        `files://{+path}`) is a template: they are the first actor's arguments, as text. `complete` is that of
        `prompt`, of the variables. `name` is the URI by default.
        """
        origin = _caller()
        if uri in self.resources:
            raise InvalidArgument(
                f"uri: resource {uri!r} is declared twice, first at {self.resources[uri].origin}; take one away"
            )
        owner = f"resource {uri!r}"
        names = self._route(owner, route) if text is None and data is None else []
        first = self._handlers.get(names[0]) if names else None
        spec = resource_spec(
            uri,
            names,
            text=text,
            data=data,
            name=name,
            mime_type=mime_type,
            title=title,
            description=description or (summary(first) if first is not None else ""),
            timeout_s=parse_duration("timeout", timeout),
            origin=origin,
        )
        if first is not None and self.actors[names[0]].handler_mode == "payload":
            template_schema(owner, spec.variables, input_schema(first))
        completions = self._completions(owner, complete, spec.variables)
        self.resources[uri] = spec = msgspec.structs.replace(spec, complete=completions)
        return spec

    def rpc(self, name: str, *, concurrency: int = 64, description: str = "") -> Callable[[H], H]:
        """Declare a handler of requests to `service.method`. Its arguments come by name; a parameter `ctx` gets the
        call's context. `concurrency` is calls at once. Returns the handler unchanged.
        """
        origin = _caller()

        def declare(handler: H) -> H:
            text = description or summary(handler)
            self.endpoints.add_rpc(name, handler, concurrency=concurrency, description=text, origin=origin)
            return handler

        return declare

    def on(
        self,
        pattern: str,
        *,
        group: str | None = None,
        mode: Literal["compete", "broadcast"] = "compete",
        major: int | None = None,
        concurrency: int = 1,
        attempts: int = 5,
        timeout: float | str = 300,
        lease: float | str = 30,
        replay: bool = False,
    ) -> Callable[[H], H]:
        """Declare a handler of events: `handler(event)` for those whose `domain.type` fits the pattern, as `orders.*`.

        Once for each `group` (default: this App and the handler's name), or for each instance with `mode="broadcast"`.
        `major` takes events of that version alone; `attempts` in all, with growing delays; what an instance
        held when it died goes to the others after `lease`, or sooner. `replay` begins a new subscription with the
        events that are kept. Returns the handler unchanged.
        """
        from groundplane.bus.events import BACKOFF, SubscriptionOptions

        origin, timeout_s = _caller(), parse_duration("timeout", timeout)
        lease_s = parse_duration("lease", lease)

        def declare(handler: H) -> H:
            own = f"{self.name}-{getattr(handler, '__name__', 'handler')}".replace(".", "-").replace("_", "-")[:48]
            options = SubscriptionOptions(
                group=own if group is None else group, mode=mode, major=major, concurrency=concurrency,
                attempts_max=attempts, backoff=BACKOFF, timeout_s=timeout_s, lease_s=lease_s,
                replay=replay,
            )  # fmt: skip
            self.endpoints.add_events(pattern, handler, options, description=summary(handler), origin=origin)
            return handler

        return declare

    def command(self, name: str, *, concurrency: int = 8, description: str = "") -> Callable[[H], H]:
        """Declare the handler of the command `service.command`. Its arguments come by name; a parameter `ctx` gets the
        command's context, which takes its progress. `concurrency` is commands at once. Returns the handler unchanged.
        """
        origin = _caller()

        def declare(handler: H) -> H:
            text = description or summary(handler)
            self.endpoints.add_command(name, handler, concurrency=concurrency, description=text, origin=origin)
            return handler

        return declare

    @property
    def serves(self) -> bool:
        """Whether anything is declared for the bus, or an election: the role `services` runs that."""
        return bool(self._endpoints) or bool(self.elections)

    @property
    def endpoints(self) -> Endpoints:
        """What is declared for the bus; `bus.start` starts it."""
        if self._endpoints is None:
            from groundplane.bus.endpoints import Endpoints  # whoever declares nothing for the bus does not load it

            self._endpoints = Endpoints()
        return self._endpoints

    def asyncapi(self, *, version: str = "1.0.0") -> dict[str, Any]:
        """What is declared for the bus as a document of AsyncAPI 3.0."""
        from groundplane.bus.asyncapi import document

        return document(self.name, version, self.endpoints)

    def _completions(self, owner: str, given: Any, names: Sequence[str]) -> dict[str, Completion]:
        found: dict[str, Completion] = {}
        for argument, one in dict(given or {}).items():
            where = f"complete[{argument!r}]"
            if argument not in names:
                raise InvalidArgument(f"{where}: {owner} has no argument {argument!r}{did_you_mean(argument, names)}")
            if callable(one) or isinstance(one, str):
                actor = self._actor_of(owner, where, one)
                handler = self._handlers.get(actor)
                schema = input_schema(handler, self.actors[actor].handler_mode) if handler is not None else {}
                found[argument] = completion(where, owner, actor, schema)
            else:
                found[argument] = Completion(values=check_texts(where, one, owner))
        return found

    def _add(self, name: str, address: str, origin: str, named: bool, options: Mapping[str, Any]) -> str:
        known = ("timeout", "retry", "retry_timeouts", "concurrency", "join", "join_timeout", "key", "handler_mode")
        for option in options:
            if option not in known:
                raise InvalidArgument(f"{option}: is no option of an actor{did_you_mean(option, (*known, 'name'))}")
        try:
            check_name("name", name)
        except InvalidArgument as error:
            hint = (
                ""
                if named
                else f"; the handler's own name does not serve, so give @app.actor(name={name.strip('_')!r})"
            )
            raise InvalidArgument(f"{error.message}{hint}") from None
        if name in (HAPPY_END, ERROR_END):
            raise InvalidArgument(f"name: {name!r} is a built-in end actor; choose another name")
        if name in self.actors:
            raise InvalidArgument(
                f"name: actor {name!r} is declared twice, first at {self._declared_at[name]}; give one another name"
            )
        self.actors[name] = actor_spec(name, address, **options)
        self._declared_at[name] = origin
        return name

    def _route(self, owner: str, route: Any) -> list[str]:
        if isinstance(route, str) or not isinstance(route, Sequence) or not route:
            raise InvalidArgument(f"route: {route!r} of {owner} is not a list of at least one actor")
        if len(route) > HOPS_MAX:
            raise InvalidArgument(f"route: {len(route)} actors of {owner} are more than {HOPS_MAX} hops")
        return [self._actor_of(owner, f"route[{index}]", step) for index, step in enumerate(route)]

    def _actor_of(self, owner: str, where: str, step: Any) -> str:
        if isinstance(step, str):
            if step in self.actors:
                return step
            hint = did_you_mean(step, self.actors) or f"; declared are {', '.join(self.actors) or 'none'}"
            raise InvalidArgument(f"{where}: {step!r} of {owner} is no declared actor{hint}")
        named = [name for name, handler in self._handlers.items() if handler is step]
        if len(named) > 1:
            raise InvalidArgument(
                f"{where}: {step.__qualname__!r} of {owner} serves the actors {', '.join(named)}; name one"
            )
        if not named:
            shown = getattr(step, "__qualname__", repr(step))
            raise InvalidArgument(f"{where}: {shown!r} of {owner} is no actor; decorate it with @app.actor")
        return named[0]


def _caller() -> str:
    """File and line of the user's code, for messages."""
    frame = sys._getframe(2)
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
