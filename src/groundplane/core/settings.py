"""Settings: flags > environment > `--env-file` > `groundplane.toml` > defaults, each value with its origin.

`load` decides everything in one place and raises before anything is opened. The table `OPTIONS` is the source of the
settings reference, of `config show`, and of the checks for unknown names.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from groundplane.core.environment import (
    Customary,
    EnvironmentView,
    Variable,
    customary_urls,
    is_service_link,
)
from groundplane.core.errors import GroundplaneError, InvalidArgument, NotFound
from groundplane.core.names import did_you_mean
from groundplane.core.options import OPTIONS, Option
from groundplane.core.secrets import Secret, Url, mask_urls

CONFIG_FILE = "groundplane.toml"
_PREFIX = "GROUNDPLANE_"
_OTHER_VARIABLES = frozenset(
    f"{_PREFIX}{name}"
    for name in (
        # of this module
        "CONFIG",
        # of sidecar and runtime, which read them themselves
        "HANDLER", "HANDLER_MODE", "SOCKET_PATH", "SOCKET_CHMOD", "WORKERS", "STANDBY", "CONCURRENCY", "CUDA_CLEANUP",
        "READY_FILE", "QUEUE_NAME", "SOCKET_PROTOCOL", "EXCHANGE", "GATEWAY_URL", "HAPPY_END", "ERROR_END",
    )
)  # fmt: skip
_OTHER_PREFIXES = (
    "GROUNDPLANE_TEST_",
    "GROUNDPLANE_CONFORMANCE_",
    "GROUNDPLANE_SERVERS_",
    "GROUNDPLANE_FAILPOINTS",
    "GROUNDPLANE_ACTOR_",
    "GROUNDPLANE_REQUIRE_",
)

Schemes = Mapping[str, Mapping[str, frozenset[str] | None]]
"""For each port its URL schemes, and for each of them the query parameters it takes (None: the driver checks)."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting of a plane, with its unit in the name. What each means stands in `groundplane.core.options`."""

    name: str = "default"
    state: Path = Path(".groundplane")
    queues: Url = Url("embedded://")
    jobs: Url = Url("embedded://")
    ledger: Url = Url("embedded://")
    blobs: Url = Url("embedded://")
    security: Url = Url("")
    kv: Url = Url("embedded://")
    bus: Url = Url("embedded://")
    host: str = "127.0.0.1"
    port: int = 8080
    allowed_hosts: tuple[str, ...] = ()
    admin_host: str | None = None
    admin_port: int = 0
    auth: Literal["none", "keys", "oauth", "keys+oauth"] = "none"
    public_url: str | None = None
    issuer: str | None = None
    audience: str | None = None
    jwks_url: str | None = None
    scope_map: tuple[str, ...] = ()
    rate: float | Literal["none"] | None = None
    burst: int | None = None
    live_jobs: int | Literal["none"] | None = None
    streams: int | Literal["none"] | None = None
    drain_delay_s: float = 0.0
    connections: int = 4096
    routes: Path | None = None
    client_url: Url | None = None
    client_key: Secret | None = None
    grace_s: float = 30.0
    hops_max: int = 64
    payload_inline_bytes_max: int = 256 * 1024
    payload_bytes_max: int = 100 * 1024 * 1024
    retention_jobs_s: float = 7 * 86400.0
    retention_events_s: float = 86400.0
    retention_audit_s: float = 90 * 86400.0
    alerts_rules: Path | None = None
    alerts_webhook: Url | None = None
    alerts_smtp: Url | None = None
    alerts_mail_to: tuple[str, ...] = ()
    alerts_mail_from: str | None = None
    alerts_interval_s: float = 15.0
    log_level: str = "info"
    log_format: Literal["auto", "json", "console"] = "auto"

    def __post_init__(self) -> None:
        if not self.security.reveal():
            msgspec.structs.force_setattr(self, "security", self.jobs)


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """The settings, where each came from, and notes for the user (customary variables that were left alone)."""

    settings: Settings
    origins: dict[str, str]
    notes: list[str] = []


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    env_file: Path | None = None,
    config: Path | None = None,
    schemes: Schemes | None = None,
    lacking: Mapping[str, str] | None = None,
) -> Loaded:
    """The effective settings. `flags` maps field names to values, None meaning not given.

    `config` names the TOML file; without it `GROUNDPLANE_CONFIG` does, else `groundplane.toml` of the present folder
    where there is one. Relative paths in the file are relative to it. With `schemes`, URLs are checked against the
    drivers there are; no customary variable selects a scheme of `lacking`, which names the extra that it misses.
    Raises `invalid_argument` (reason `unknown_setting` for a name) that begins with the field and tells file and line;
    `not_found` for a file that was named and is not there.
    """
    environment = EnvironmentView(os.environ if environ is None else environ, env_file)
    _refuse_unknown_variables(environment)
    file = _Toml.find(config, environment)
    customary, notes = _usable(customary_urls(environment), schemes, lacking or {})
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    given = dict(flags or {})
    for option in OPTIONS:
        found = _first(option, given, environment, file, customary, notes)
        origins[option.field] = "default"
        if found is not None:
            values[option.field], origins[option.field] = found
    settings = Settings(**values)
    if "security" not in values and "jobs" in values:
        origins["security"] = f"as jobs ({origins['jobs']})"
    _check_together(settings, origins)
    if schemes is not None:
        _check_urls(settings, origins, schemes)
    return Loaded(settings=settings, origins=origins, notes=notes)


def shown(loaded: Loaded) -> list[dict[str, Any]]:
    """Rows for `config show`: `key`, `value` (secrets masked), `origin`, `help`."""
    rows = []
    for option in OPTIONS:
        value = getattr(loaded.settings, option.field)
        plain = value.masked() if isinstance(value, Secret) else str(value) if isinstance(value, Path) else value
        plain = ",".join(plain) if isinstance(plain, tuple) else plain
        rows.append({
            "key": option.key, "value": plain, "origin": loaded.origins[option.field],
            "variable": option.variable, "help": option.help,
        })  # fmt: skip
    return rows


def to_bytes(settings: Settings) -> bytes:
    """The settings for a process of one's own, over a pipe: secrets are in clear, so nowhere else."""
    return msgspec.json.encode(settings, enc_hook=lambda one: one.reveal() if isinstance(one, Secret) else str(one))


def from_bytes(data: bytes) -> Settings:
    """What `to_bytes` wrote."""
    return msgspec.json.decode(data, type=Settings, dec_hook=lambda kind, value: kind(value))


class _Toml:
    """A parsed `groundplane.toml` that can tell the line of a key."""

    def __init__(self, path: Path, text: str, data: dict[str, Any]) -> None:
        self.path = path
        self._lines = text.splitlines()
        self._data = data

    @classmethod
    def find(cls, config: Path | None, environment: EnvironmentView) -> _Toml | None:
        named = environment.get("GROUNDPLANE_CONFIG")
        path = config or (Path(named.value) if named else Path(CONFIG_FILE))
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            if config is None and named is None:
                return None
            raise NotFound(f"config: {str(path)!r} does not exist; mend --config or GROUNDPLANE_CONFIG") from error
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"config: {str(path)!r} cannot be read: {error}") from error
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InvalidArgument(f"config: {path} is no TOML: {mask_urls(str(error))}") from error
        file = cls(path, text, data)
        file._refuse_unknown()
        return file

    def get(self, option: Option) -> tuple[Any, str] | None:
        section, _, key = option.key.partition(".")
        table = self._data.get(section, {})
        if key not in table:
            return None
        return table[key], f"{self.path}:{self._line(section, key)}"

    def _refuse_unknown(self) -> None:
        known: dict[str, list[str]] = {}
        for option in OPTIONS:
            section, _, key = option.key.partition(".")
            known.setdefault(section, []).append(key)
        for section, table in self._data.items():
            if section not in known or not isinstance(table, dict):
                keys = [option.key for option in OPTIONS if option.key.endswith(f".{section}")]
                hint = f"; did you mean {keys[0]!r}?" if keys else did_you_mean(section, known)
                where = self._line(section) if isinstance(table, dict) else self._line("", section)
                if section in known:
                    raise InvalidArgument(
                        f"{section}: {mask_urls(repr(table))} is no table; write [{section}] ({self.path}:{where})"
                    )
                raise _unknown(section, f"{self.path}:{where}", f"no such section{hint}")
            for key in table:
                if key not in known[section]:
                    hint = did_you_mean(key, known[section]) or _elsewhere(key)
                    raise _unknown(
                        f"{section}.{key}", f"{self.path}:{self._line(section, key)}", f"no such setting{hint}"
                    )

    def _line(self, section: str, key: str = "") -> int:
        """The line where the section, or a key of it, stands; dotted keys and inline tables are found too."""
        header = re.compile(rf"\s*\[\s*[\"']?{re.escape(section)}[\"']?\s*[\].]")
        wanted = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]")
        dotted = re.compile(rf"\s*[\"']?{re.escape(section)}[\"']?\s*[=.]")
        inside, at_section = section == "", 1
        for number, line in enumerate(self._lines, start=1):
            if line.lstrip().startswith("["):
                inside = bool(header.match(line))
                at_section = number if inside else at_section
                if inside and not key:
                    return number
            elif (inside and key and wanted.match(line)) or (section and dotted.match(line) and key in line):
                return number
        return at_section


def _first(
    option: Option,
    flags: dict[str, Any],
    environment: EnvironmentView,
    file: _Toml | None,
    customary: Mapping[str, Customary],
    notes: list[str],
) -> tuple[Any, str] | None:
    """The value of the highest source that has the option, checked, and its origin."""
    if flags.get(option.field) is not None:
        origin = f"flag --{option.field.removesuffix('_s').replace('_', '-')}"
        return _parsed(option, option.field, flags[option.field], origin), origin
    own = environment.get(option.variable, secret=option.secret)
    if own is not None and not is_service_link(option.variable, own.value):
        return _parsed(option, option.variable, own.value, own.source), f"{own.source} {option.variable}"
    in_file = file.get(option) if file is not None else None
    if in_file is not None:
        return _parsed(option, option.key, in_file[0], in_file[1], file), in_file[1]
    return _customary(option, environment, customary, notes)  # below the file: it may be meant for others


def _customary(
    option: Option, environment: EnvironmentView, customary: Mapping[str, Customary], notes: list[str]
) -> tuple[Any, str] | None:
    offered = customary.get(option.field)
    if offered is not None:
        url = _parsed(option, offered.variables, offered.url, offered.source)
        return url, f"{offered.source} {offered.variables}"
    found: Variable | None = environment.get(option.customary) if option.customary else None
    if found is None:
        return None
    try:
        return option.parse(option.customary, found.value), f"{found.source} {option.customary}"
    except InvalidArgument as error:  # somebody else's variable never stops a start
        notes.append(f"{option.customary} ({found.source}) is not used: {error.message}")
        return None


def _parsed(option: Option, label: str, value: Any, origin: str, file: _Toml | None = None) -> Any:
    try:
        parsed = option.parse(label, value)
    except GroundplaneError as error:
        raise InvalidArgument(f"{error.message} ({origin})", reason=error.reason, details={"origin": origin}) from None
    if file is not None and isinstance(parsed, Path) and not parsed.is_absolute():
        return file.path.parent / parsed
    return parsed


def _usable(
    offered: list[Customary], schemes: Schemes | None, lacking: Mapping[str, str]
) -> tuple[dict[str, Customary], list[str]]:
    """The customary URLs that a driver of this version understands; a note for each of the others."""
    usable: dict[str, Customary] = {}
    unused: dict[str, Customary] = {}
    for one in offered:
        scheme = Url(one.url).scheme
        if scheme and schemes is not None and scheme in schemes.get(one.port, {}) and scheme not in lacking:
            usable.setdefault(one.port, one)
        elif schemes is not None:
            unused.setdefault(one.variables, one)
    used = {one.variables for one in usable.values()}
    notes = [
        f"{name} ({one.source}) is not used: {_why_not(Url(one.url).scheme, lacking)}; embedded storage is used"
        for name, one in unused.items()
        if name not in used and one.port in {option.field for option in OPTIONS}
    ]
    return usable, notes


def _why_not(scheme: str, lacking: Mapping[str, str]) -> str:
    if scheme in lacking:
        return f"groundplane[{lacking[scheme]}] is not installed"
    return f"no driver for {scheme or 'it'!r} is here"


def _check_urls(settings: Settings, origins: Mapping[str, str], schemes: Schemes) -> None:
    for option in OPTIONS:
        value = getattr(settings, option.field)
        if not isinstance(value, Url) or option.field not in schemes:
            continue
        known, origin = schemes[option.field], origins[option.field]
        if value.scheme not in known:
            hint = did_you_mean(value.scheme, known) or f"; there is {', '.join(sorted(known))}"
            raise InvalidArgument(f"{option.field}: no driver for {value.scheme!r}{hint} ({origin})")
        if value.scheme == "embedded" and value.host:
            raise InvalidArgument(
                f"{option.field}: {value.masked()!r} names a host; write embedded:// or embedded:///folder ({origin})"
            )
        parameters = known[value.scheme]
        for name in value.query() if parameters is not None else ():
            if name not in (parameters or ()):
                hint = did_you_mean(name, parameters or ()) or f"; {value.scheme}:// takes " + (
                    ", ".join(sorted(parameters or ())) or "none"
                )
                raise InvalidArgument(
                    f"{option.field}: {value.masked()!r} has an unknown query parameter {name!r}{hint} ({origin})",
                    reason="unknown_setting",
                )


def _check_together(settings: Settings, origins: Mapping[str, str]) -> None:
    if settings.payload_inline_bytes_max > settings.payload_bytes_max:
        raise InvalidArgument(
            f"payload_inline_bytes_max: {settings.payload_inline_bytes_max!r} is more than payload_bytes_max "
            f"{settings.payload_bytes_max!r}; lower it ({origins['payload_inline_bytes_max']})"
        )
    if settings.admin_port and settings.admin_port == settings.port:
        raise InvalidArgument(
            f"admin_port: {settings.admin_port!r} is the gateway's port too; choose another ({origins['admin_port']})"
        )


def _refuse_unknown_variables(environment: EnvironmentView) -> None:
    known = {option.variable for option in OPTIONS}
    known |= {f"{option.variable}_FILE" for option in OPTIONS if option.secret} | _OTHER_VARIABLES
    for name, source in environment.names().items():
        if not name.startswith(_PREFIX) or name in known or name.startswith(_OTHER_PREFIXES):
            continue
        if not is_service_link(name, ""):
            raise _unknown(name, source, f"no such variable{did_you_mean(name, known)}")


def _unknown(field: str, where: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {what} ({where})", reason="unknown_setting", details={"origin": where})


def _elsewhere(key: str) -> str:
    """A key that is known in another section."""
    full = [option.key for option in OPTIONS if option.key.partition(".")[2] == key]
    return f"; did you mean {full[0]!r}?" if full else ""
