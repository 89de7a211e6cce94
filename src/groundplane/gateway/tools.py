"""The tools that clients may call: from the App and from `routes.yaml`, replaced as a whole on reload."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.core.names import check_name, did_you_mean
from groundplane.gateway.parameters import ArgumentCheck
from groundplane.gateway.routes_yaml import load_tools
from groundplane.mesh.spec import ToolSpec


class Tool:
    """One tool, ready to be called: its spec and its compiled argument check."""

    __slots__ = ("_check", "_promise", "spec")

    def __init__(self, spec: ToolSpec) -> None:
        if not spec.route:
            raise InvalidArgument(f"route: [] of tool {spec.name!r} is empty; name at least one actor")
        if spec.timeout_s <= 0:
            raise InvalidArgument(f"timeout: {spec.timeout_s!r} of tool {spec.name!r} is not positive seconds")
        self.spec = spec
        owner = f"tool {spec.name!r}"
        self._check = ArgumentCheck(owner, spec.input_schema)
        self._promise: ArgumentCheck | None = None
        if spec.output_schema is not None:
            if spec.content:
                raise InvalidArgument(
                    f"output_schema: of {owner} is for structured results, and content=True makes blocks; drop one"
                )
            self._promise = ArgumentCheck(owner, spec.output_schema, root="structuredContent", named="output_schema")

    def __repr__(self) -> str:
        return f"<Tool {self.spec.name} -> {' -> '.join(self.spec.route)} ({self.spec.origin})>"

    def arguments(self, given: Any) -> dict[str, Any]:
        """`given` with defaults filled in. Raises `InvalidArgument` naming the field and showing the value."""
        return self._check(given)

    def check_result(self, structured: dict[str, Any]) -> None:
        """Raise `InvalidArgument` that names the field where a structured result breaks the tool's `output_schema`."""
        if self._promise is not None:
            self._promise.conforms(structured)


class Reloaded(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload changed, by tool name."""

    added: list[str]
    removed: list[str]
    changed: list[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


class ToolTable:
    """All tools by name. Reading is lock-free: a reload builds a new table and puts it in place at once, or raises and
    leaves the old one as it was. Files are read on construction and on `reload`, never in between.
    """

    def __init__(self, specs: Iterable[ToolSpec] = (), *, files: Sequence[Path | str] = ()) -> None:
        self._specs = list(specs)
        self._files = [Path(file) for file in files]
        self._listeners: list[Callable[[Reloaded], None]] = []
        self._tools = self._read()

    def __repr__(self) -> str:
        return f"<ToolTable {len(self._tools)} tools, {len(self._files)} files>"

    def __len__(self) -> int:
        return len(self._tools)

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def get(self, name: str) -> Tool:
        """The tool. Raises `NotFound` (reason `tool_not_found`) with the nearest name."""
        tool = self._tools.get(name)
        if tool is None:
            near = did_you_mean(name, self._tools)
            raise NotFound(f"tool: {name[:200]!r} does not exist{near}", reason="tool_not_found")
        return tool

    def find(self, name: str) -> Tool | None:
        """The tool, or None."""
        return self._tools.get(name)

    def actors(self) -> set[str]:
        """Every actor that a route names."""
        return {actor for tool in self._tools.values() for actor in tool.spec.route}

    def on_change(self, listener: Callable[[Reloaded], None]) -> Callable[[], None]:
        """Call `listener` after a reload that changed something; the result takes it off again."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def reload(self) -> Reloaded:
        """Read the files again. Raises `InvalidArgument` and keeps the present tools where they have problems."""
        fresh = self._read()
        old, self._tools = self._tools, fresh
        outcome = Reloaded(
            added=sorted(fresh.keys() - old.keys()),
            removed=sorted(old.keys() - fresh.keys()),
            changed=sorted(n for n in fresh.keys() & old.keys() if not _same(fresh[n].spec, old[n].spec)),
        )
        if outcome:
            for listener in list(self._listeners):
                listener(outcome)
        return outcome

    def _read(self) -> dict[str, Tool]:
        tools: dict[str, Tool] = {}
        for spec in [*self._specs, *(spec for file in self._files for spec in load_tools(file))]:
            check_name("tool", spec.name)
            if (first := tools.get(spec.name)) is not None:
                raise InvalidArgument(
                    f"tool: {spec.name!r} of {spec.origin} is there already, from {first.spec.origin}; names are unique"
                )
            tools[spec.name] = Tool(spec)
        return tools


def _same(one: ToolSpec, other: ToolSpec) -> bool:
    """Equal but for the line they stand on."""
    return msgspec.structs.replace(one, origin="") == msgspec.structs.replace(other, origin="")
