"""YAML that is the same each time: keys in the order that they were given, texts of several lines as blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from groundplane.core.errors import FailedPrecondition

NOTE = "# written by `groundplane deploy`; run it again instead of editing\n"


def to_yaml(documents: Sequence[dict[str, Any]], *, note: str = NOTE) -> str:
    """The documents of one file. `failed_precondition` (reason `missing_extra`) without PyYAML."""
    try:
        import yaml
    except ImportError as error:
        raise FailedPrecondition(
            "deploy: PyYAML is not installed; install groundplane[gateway]", reason="missing_extra"
        ) from error

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            return super().increase_indent(flow, False)

    def text(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    options: dict[str, Any] = {"sort_keys": False, "default_flow_style": False, "width": 120, "allow_unicode": True}
    parts = [yaml.dump(document, Dumper=Dumper, **options) for document in documents]
    return note + "---\n".join(parts)
