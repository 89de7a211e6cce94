"""What steers the kit: variables of the environment, read once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from groundplane.core.errors import InvalidArgument

STARTUP_TIMEOUT_S = 120.0
TEST_TIMEOUT_S = 60.0
_YES, _NO = frozenset({"1", "true", "yes", "on"}), frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, kw_only=True)
class KitSettings:
    """GROUNDPLANE_TEST_* and GROUNDPLANE_REQUIRE_SERVERS."""

    startup_timeout_s: float = STARTUP_TIMEOUT_S
    """GROUNDPLANE_TEST_STARTUP_TIMEOUT: how long a server may take until it answers."""
    timeout_s: float = TEST_TIMEOUT_S
    """GROUNDPLANE_TEST_TIMEOUT: how long one test may take, where pytest-timeout is installed; 0 = no limit."""
    keep: bool = False
    """GROUNDPLANE_TEST_KEEP: folders of servers, with data and logs, stay after the run; namespaces of failed tests
    stay in any case until then.
    """
    verbose: bool = False
    """GROUNDPLANE_TEST_VERBOSE: say what is started, where, and how long it took."""
    allow_remote: bool = False
    """GROUNDPLANE_TEST_ALLOW_REMOTE: servers given by a URL need not be on loopback."""
    require: frozenset[str] = frozenset()
    """GROUNDPLANE_REQUIRE_SERVERS: names (or NAME@VERSION), or `all`: a server that is missing fails its tests instead
    of skipping them.
    """

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> KitSettings:
        """From the environment. `invalid_argument` names the variable."""
        given = os.environ if environ is None else environ
        return cls(
            startup_timeout_s=_seconds(given, "GROUNDPLANE_TEST_STARTUP_TIMEOUT", STARTUP_TIMEOUT_S, lowest=0.1),
            timeout_s=_seconds(given, "GROUNDPLANE_TEST_TIMEOUT", TEST_TIMEOUT_S, lowest=0.0),
            keep=_flag(given, "GROUNDPLANE_TEST_KEEP"),
            verbose=_flag(given, "GROUNDPLANE_TEST_VERBOSE"),
            allow_remote=_flag(given, "GROUNDPLANE_TEST_ALLOW_REMOTE"),
            require=frozenset(n.strip() for n in given.get("GROUNDPLANE_REQUIRE_SERVERS", "").split(",") if n.strip()),
        )

    def requires(self, spec: str) -> bool:
        """Whether it is a failure that a server is missing: `all` means each name; a version (`postgres@15`) is
        required where it is listed as such.
        """
        return spec in self.require or ("all" in self.require and "@" not in spec)


def _seconds(given: Mapping[str, str], name: str, default: float, *, lowest: float) -> float:
    text = given.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not lowest <= value < float("inf"):
        raise InvalidArgument(f"{name}: {text!r} is not a number of seconds from {lowest:g} on")
    return value


def _flag(given: Mapping[str, str], name: str) -> bool:
    text = given.get(name, "").strip().lower()
    if text not in _YES | _NO:
        raise InvalidArgument(f"{name}: {text!r} is neither 1 nor 0")
    return text in _YES
