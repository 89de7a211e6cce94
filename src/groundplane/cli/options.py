"""Options that commands share, and the settings that they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from groundplane.cli.output import Output
from groundplane.core.settings import Loaded, Settings, load
from groundplane.plane import installed_schemes, lacking_schemes


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Where the plane's settings come from, and how results are printed."""

    state: Annotated[Path | None, Parameter(help="State folder of the embedded storage (default: .groundplane).")] = (
        None
    )
    name: Annotated[str | None, Parameter(help="Namespace of the plane (default: default).")] = None
    config: Annotated[Path | None, Parameter(help="Settings file (default: ./groundplane.toml, if it is there).")] = (
        None
    )
    env_file: Annotated[Path | None, Parameter(help="File of NAME=value lines, below the environment.")] = None
    json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False

    @property
    def output(self) -> Output:
        """Where results go."""
        return Output(json=self.json)

    def load(self, **flags: Any) -> Loaded:
        """The effective settings with their origins; `flags` of the command itself on top."""
        given = {"state": self.state, "name": self.name, **flags}
        return load(
            given, env_file=self.env_file, config=self.config, schemes=installed_schemes(), lacking=lacking_schemes()
        )

    def settings(self, **flags: Any) -> Settings:
        """The effective settings; what was left alone is remarked."""
        loaded = self.load(**flags)
        for note in loaded.notes:
            self.output.note(f"note: {note}")
        settings = loaded.settings
        return msgspec.structs.replace(settings, state=settings.state.expanduser().absolute())


COMMON = Common()
