"""The prompts and resources that clients may take, and how their arguments are completed: what an App declared, ready
to be answered by jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from groundplane.core.errors import NotFound
from groundplane.core.names import did_you_mean
from groundplane.gateway.tools import Tool
from groundplane.mesh.spec import Completion, PromptSpec, ResourceSpec, ToolSpec

_URI_SHOWN_MAX = 200


class Prompt:
    """A prompt, and the work that makes it (None: its text is there)."""

    __slots__ = ("completions", "spec", "work")

    def __init__(self, spec: PromptSpec) -> None:
        self.spec = spec
        self.work = _work(f"prompt:{spec.name}", spec.route, spec.timeout_s, _schema(spec))
        self.completions = Completions(f"prompt:{spec.name}", spec.complete, spec.timeout_s)


class Resource:
    """A resource or template, and the work that reads it (None: its text or data is there)."""

    __slots__ = ("completions", "spec", "work")

    def __init__(self, spec: ResourceSpec) -> None:
        self.spec = spec
        schema = {"type": "object", "properties": {name: {"type": "string"} for name in spec.variables}}
        self.work = _work(f"resource:{spec.name}", spec.route, spec.timeout_s, schema)
        self.completions = Completions(f"resource:{spec.name}", spec.complete, spec.timeout_s)


class Completions:
    """How the arguments of one prompt or template are completed."""

    def __init__(self, owner: str, specs: Mapping[str, Completion], timeout_s: float) -> None:
        self.specs = specs
        self._works = {
            name: _work(f"complete:{owner}", [one.actor], timeout_s, {"type": "object"})
            for name, one in specs.items()
            if one.actor is not None
        }

    def work(self, argument: str) -> Tool | None:
        """The work that completes the argument; None where no actor does."""
        return self._works.get(argument)


class Catalogue:
    """Prompts by name, resources and templates by URI. Unchanging."""

    def __init__(self, prompts: Iterable[PromptSpec] = (), resources: Iterable[ResourceSpec] = ()) -> None:
        self._prompts = {spec.name: Prompt(spec) for spec in prompts}
        self._resources = {spec.uri: Resource(spec) for spec in resources}

    def __repr__(self) -> str:
        return f"<Catalogue {len(self._prompts)} prompts, {len(self._resources)} resources>"

    @property
    def prompts(self) -> Iterator[Prompt]:
        """All prompts, in the order of declaration."""
        return iter(self._prompts.values())

    @property
    def resources(self) -> Iterator[Resource]:
        """All resources that are no template."""
        return (one for one in self._resources.values() if not one.spec.variables)

    @property
    def templates(self) -> Iterator[Resource]:
        """All templates."""
        return (one for one in self._resources.values() if one.spec.variables)

    def prompt(self, name: str) -> Prompt:
        """The prompt. Raises `NotFound` with the nearest name."""
        found = self._prompts.get(name)
        if found is None:
            raise NotFound(f"prompt: {name[:200]!r} does not exist{did_you_mean(name, self._prompts)}")
        return found

    def resource(self, uri: str) -> Resource:
        """The resource or template that was declared with this very URI. Raises `NotFound` with the nearest."""
        found = self._resources.get(uri)
        if found is None:
            near = did_you_mean(uri[:_URI_SHOWN_MAX], self._resources)
            raise NotFound(f"uri: {uri[:_URI_SHOWN_MAX]!r} is no resource{near}")
        return found

    def actors(self) -> set[str]:
        """Every actor that answers something."""
        owners: list[Prompt | Resource] = [*self._prompts.values(), *self._resources.values()]
        named = {actor for owner in owners for actor in owner.spec.route}
        completing = {one.actor for owner in owners for one in owner.spec.complete.values() if one.actor is not None}
        return named | completing


def _work(name: str, route: list[str], timeout_s: float, schema: dict[str, Any]) -> Tool | None:
    """What makes an answer, as a tool that is not listed; its jobs bear its name."""
    if not route:
        return None
    return Tool(ToolSpec(name=name, route=route, input_schema=schema, timeout_s=timeout_s, on_disconnect="cancel"))


def _schema(spec: PromptSpec) -> dict[str, Any]:
    properties = {one.name: {"type": "string", "description": one.description} for one in spec.arguments}
    required = [one.name for one in spec.arguments if one.required]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


__all__ = ["Catalogue", "Completions", "Prompt", "Resource"]
