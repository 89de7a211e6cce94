"""`groundplane completion`: scripts for the shells."""

from __future__ import annotations

import sys
from typing import Literal

from groundplane.cli.output import EXIT_OK


def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print the completion script of a shell.

    Examples:

      groundplane completion bash > ~/.local/share/bash-completion/completions/groundplane

      groundplane completion zsh > ~/.zfunc/_groundplane

      groundplane completion fish > ~/.config/fish/completions/groundplane.fish
    """
    from groundplane.cli.program import build

    sys.stdout.write(build().generate_completion(prog_name="groundplane", shell=shell))
    return EXIT_OK
