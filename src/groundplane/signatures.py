"""What a handler's signature says: whether it can be an actor, and the arguments of a tool that begins with it.

Which parameter gets what is decided by `groundplane.mesh.runtime`; here the same is read without calling anything.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from groundplane.core.errors import InvalidArgument

_GOOGLE = re.compile(r"^\s*(?:Args|Arguments|Parameters):\s*$", re.MULTILINE)
_GOOGLE_ITEM = re.compile(r"^(?P<indent>\s+)\*{0,2}(?P<name>\w+)\s*(?:\([^)]*\))?:\s*(?P<text>.*)$")
_SPHINX_ITEM = re.compile(r"^\s*:param\s+(?:[^:]*\s)?(?P<name>\w+):\s*(?P<text>.*)$", re.MULTILINE)


class Argument(NamedTuple):
    """A parameter that takes data: its annotation, resolved where that can be done, and its default."""

    name: str
    annotation: Any
    default: Any
    variadic: bool


def handler_address(handler: Any) -> str:
    """`module:qualname` of a function or class that another process can import; else `InvalidArgument`."""
    name, module = getattr(handler, "__qualname__", None), getattr(handler, "__module__", None)
    if not callable(handler) or not isinstance(name, str) or not isinstance(module, str):
        raise InvalidArgument(f"handler: {handler!r} is no function and no class; decorate a function of a module")
    if "<lambda>" in name:
        raise InvalidArgument(f"handler: {name!r} of {module!r} has no name to import it by; use a def")
    if "<locals>" in name:
        raise InvalidArgument(
            f"handler: {name!r} is defined inside a function; other processes import it by name, so move it to the "
            f"top of module {module!r}"
        )
    if inspect.ismethod(handler):
        raise InvalidArgument(f"handler: {name!r} is a bound method; decorate the class, which is made in each worker")
    if inspect.isclass(handler) and not _method(handler):
        raise InvalidArgument(f"handler: class {name!r} has neither a method 'process' nor '__call__'")
    return f"{_importable(module, handler)}:{name}"


def check_annotated(handler: Any, mode: str) -> None:
    """`InvalidArgument` for a parameter without annotation: nothing could be checked or described. The handler of a
    whole message (`handler_mode="message"`) needs none.
    """
    if mode != "payload":
        return
    for parameter in _parameters(handler):
        bare = parameter.annotation is inspect.Parameter.empty
        if bare and parameter.name != "ctx" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InvalidArgument(
                f"handler: parameter {parameter.name!r} of {handler.__qualname__!r} has no annotation; write "
                f"{parameter.name}: int (or Any), so that payloads are checked and described"
            )


def input_schema(handler: Any, mode: str = "payload") -> dict[str, Any]:
    """The JSON Schema (2020-12) of the arguments: annotations, defaults, descriptions from the docstring.

    The context and the envelope are no arguments. A handler that takes the whole envelope or message accepts any.
    """
    arguments = _arguments(handler) if mode == "payload" else None
    if arguments is None:
        return {"type": "object"}
    named = [one for one in arguments if not one.variadic]
    schemas, definitions = _components(handler, named)
    described = _descriptions(handler)
    properties: dict[str, Any] = {}
    for one, schema in zip(named, schemas, strict=True):
        extra = {"description": described[one.name]} if one.name in described and "description" not in schema else {}
        if one.default is not inspect.Parameter.empty:
            extra["default"] = _plain_default(handler, one)
        properties[one.name] = {**schema, **extra}
    result: dict[str, Any] = {"type": "object", "properties": properties}
    required = [one.name for one in named if one.default is inspect.Parameter.empty]
    if required:
        result["required"] = required
    result["additionalProperties"] = any(one.variadic for one in arguments)
    if definitions:
        result["$defs"] = definitions
    return result


def summary(handler: Any) -> str:
    """The first paragraph of the handler's docstring, on one line."""
    return " ".join((inspect.getdoc(handler) or "").split("\n\n", 1)[0].split())


def _arguments(handler: Any) -> list[Argument] | None:
    """The parameters that take data; None where the handler takes the whole envelope."""
    hints = _hints(_function(handler))
    found: list[Argument] = []
    for parameter in _parameters(handler):
        annotation = hints.get(parameter.name, parameter.annotation)
        marker = _marker(annotation)
        if marker == "envelope":
            return None
        if marker == "context" or (annotation is inspect.Parameter.empty and parameter.name == "ctx"):
            continue
        if parameter.kind is not parameter.VAR_POSITIONAL:
            variadic = parameter.kind is parameter.VAR_KEYWORD
            found.append(Argument(parameter.name, annotation, parameter.default, variadic))
    return found


def _components(handler: Any, named: list[Argument]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    schemas: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for one in named:
        if hasattr(one.annotation, "model_json_schema"):  # a pydantic model describes itself
            schema = dict(one.annotation.model_json_schema(ref_template="#/$defs/{model}"))
            defined = schema.pop("$defs", {})
        else:
            try:
                (schema,), defined = msgspec.json.schema_components([one.annotation], ref_template="#/$defs/{name}")
            except (TypeError, ValueError, NotImplementedError) as error:
                raise InvalidArgument(
                    f"route: parameter {one.name!r} of {handler.__qualname__!r} is annotated {one.annotation!r}, which "
                    f"JSON cannot carry ({error}); use plain types, dataclasses, TypedDicts, msgspec or pydantic models"
                ) from error
        schemas.append(dict(schema))
        definitions.update(defined)
    return schemas, definitions


def _plain_default(handler: Any, one: Argument) -> Any:
    try:
        return msgspec.to_builtins(one.default, str_keys=True)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"route: the default {one.default!r} of {one.name!r} in {handler.__qualname__!r} is no plain data; "
            "use null, numbers, text, lists or maps"
        ) from error


def _function(handler: Any) -> Any:
    function: Any = _method(handler) if inspect.isclass(handler) else handler
    return inspect.unwrap(function)


def _method(cls: type) -> Callable[..., Any] | None:
    for name in ("process", "__call__"):
        method = getattr(cls, name, None)
        if name in vars(cls) or (name == "process" and callable(method)):
            return typing.cast("Callable[..., Any]", method)
    return next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)


def _parameters(handler: Any) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(_function(handler)).parameters.values())
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"handler: {handler!r} shows no signature; wrap it in a def") from error
    return parameters[1:] if inspect.isclass(handler) else parameters


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise InvalidArgument(
            f"handler: an annotation of {function.__qualname__!r} names {error.name!r}, which its module does not "
            "have at run time; import it there, not under TYPE_CHECKING"
        ) from error
    except TypeError as error:
        raise InvalidArgument(f"handler: an annotation of {function.__qualname__!r} is none: {error}") from error


def _marker(annotation: Any) -> Any:
    choices: Iterable[Any] = (annotation, *typing.get_args(annotation))
    return next(
        (one.__groundplane__ for one in choices if isinstance(getattr(one, "__groundplane__", None), str)), None
    )


def _descriptions(handler: Any) -> dict[str, str]:
    """Parameters' texts of a docstring with an `Args:` section or `:param name:` fields."""
    doc = inspect.getdoc(_function(handler)) or inspect.getdoc(handler) or ""
    found = {one["name"]: one["text"].strip() for one in _SPHINX_ITEM.finditer(doc)}
    section = _GOOGLE.search(doc)
    if section is None:
        return found
    name, indent = "", ""
    for line in doc[section.end() :].strip("\n").splitlines():
        if not line.strip() or not line.startswith((" ", "\t")):
            break
        item = _GOOGLE_ITEM.match(line)
        if item is not None and (not indent or item["indent"] == indent):
            name, indent = item["name"], item["indent"]
            found[name] = item["text"].strip()
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _importable(module: str, handler: Any) -> str:
    """The module's name for other processes; `__main__` has one where it is a file."""
    if module != "__main__":
        return module
    file = getattr(inspect.getmodule(handler), "__file__", None)
    if not file:
        raise InvalidArgument(
            f"handler: {handler.__qualname__!r} was typed at a prompt; no other process can import it: write a file"
        )
    return str(inspect.getmodulename(file))
