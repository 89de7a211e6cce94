"""Whether a Compose file is one: checked against the schema of the Compose specification, without Docker."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from groundplane.core.errors import InvalidArgument
from groundplane.testing.go_modules import fetched

MODULE, VERSION = "github.com/compose-spec/compose-go/v2", "v2.16.2"


def schema_path() -> Path:
    """The specification's JSON schema (https://github.com/compose-spec/compose-spec), from the module that Docker's own
    `compose` reads its files with. Errors as `groundplane.testing.go_modules.fetched`.
    """
    return fetched(MODULE, VERSION, "schema/compose-spec.json")


def validate(document: Mapping[str, Any] | str | Path) -> list[str]:
    """What is wrong with a Compose document, one line for each error with the place first; empty = nothing.

    A mapping, YAML text, or the path of a file. Needs `jsonschema`, for text and files PyYAML (both in the extra
    `gateway`). What a schema cannot say is checked too: a service that depends on one that there is not, and volumes,
    networks, secrets and configs that are used but not declared.
    """
    from jsonschema.exceptions import best_match

    loaded = _loaded(document)
    errors = [best_match([error]) or error for error in _validator().iter_errors(loaded)]
    places = {tuple(error.absolute_path) for error in errors}
    return sorted(f"{_place(e)}: {e.message}" for e in errors if not _follows(e, places)) or _dangling(loaded)


def _place(error: Any) -> str:
    return "/".join(str(part) for part in error.absolute_path) or "document"


def _follows(error: Any, places: set[tuple[Any, ...]]) -> bool:
    """Whether it only says that a property is not allowed which has an error of its own: a value that is refused leaves
    its property unevaluated.
    """
    if error.validator != "unevaluatedProperties":
        return False
    named = re.findall(r"'([^']+)'", error.message)
    return all((*error.absolute_path, name) in places for name in named)


@cache
def _validator() -> Any:
    from jsonschema.validators import validator_for

    schema = json.loads(schema_path().read_text(encoding="utf-8"))
    kind = validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


def _loaded(document: Mapping[str, Any] | str | Path) -> Any:
    if isinstance(document, Mapping):
        return document
    import yaml

    text = document.read_text(encoding="utf-8") if isinstance(document, Path) else document
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidArgument(f"document: is no YAML: {error}") from error


def _dangling(document: Mapping[str, Any]) -> list[str]:
    services: Mapping[str, Any] = document.get("services") or {}
    found = []
    for name, service in services.items():
        found += [
            f"services/{name}/depends_on: there is no service {other!r}"
            for other in service.get("depends_on", ())
            if other not in services
        ]
        for kind, used in _used(service).items():
            declared = document.get(kind) or {}
            found += [f"services/{name}/{kind}: {one!r} is not declared" for one in used if one not in declared]
    return found


def _used(service: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of declared things that a service uses; `default` is always there, paths need no declaration."""
    networks = [one for one in service.get("networks", ()) if one != "default"]
    volumes = []
    for one in service.get("volumes", ()):
        if isinstance(one, str):
            source, colon, _ = one.partition(":")
            volumes += [source] if colon and source[:1] not in (".", "/", "~", "$") else []
        elif one.get("type") == "volume" and one.get("source"):
            volumes.append(one["source"])
    named = {kind: [_source(one) for one in service.get(kind, ())] for kind in ("secrets", "configs")}
    return {"networks": networks, "volumes": volumes, **named}


def _source(one: str | Mapping[str, Any]) -> str:
    return one if isinstance(one, str) else str(one.get("source", ""))
