"""Settings: one order of sources, an origin for each value, errors that say where and what was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from groundplane.core.environment import EnvironmentView, customary_urls
from groundplane.core.errors import GroundplaneError, InvalidArgument, NotFound
from groundplane.core.options import OPTIONS
from groundplane.core.secrets import Url
from groundplane.core.settings import Loaded, Settings, from_bytes, load, shown, to_bytes

SCHEMES: dict[str, dict[str, frozenset[str] | None]] = {
    port: {"embedded": frozenset()} for port in ("queues", "jobs", "ledger", "blobs")
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _load(flags: dict[str, Any] | None = None, env: dict[str, str] | None = None, **more: Any) -> Loaded:
    return load(flags, environ=env or {}, **{"schemes": SCHEMES, **more})


def _refused(flags: dict[str, Any] | None = None, env: dict[str, str] | None = None, **more: Any) -> GroundplaneError:
    with pytest.raises(GroundplaneError) as caught:
        _load(flags, env, **more)
    return caught.value


@pytest.mark.req("CORE-01.1")
def test_flags_come_before_environment_before_env_file_before_toml_before_defaults(tmp_path: Path) -> None:
    Path("groundplane.toml").write_text("[gateway]\nport = 4\n")
    file = tmp_path / "some.env"
    file.write_text("GROUNDPLANE_PORT=3\n")
    given: list[tuple[dict[str, Any], dict[str, str], Path | None]] = [
        ({"port": 1}, {"GROUNDPLANE_PORT": "2"}, file),
        ({}, {"GROUNDPLANE_PORT": "2"}, file),
        ({}, {}, file),
        ({}, {}, None),
    ]
    found = [_load(flags, env, env_file=one) for flags, env, one in given]
    assert [one.settings.port for one in found] == [1, 2, 3, 4]
    Path("groundplane.toml").unlink()
    assert _load().settings.port == 8080
    assert [one.origins["port"] for one in found] == [
        "flag --port", "environment GROUNDPLANE_PORT", f"{file}:1 GROUNDPLANE_PORT", "groundplane.toml:2",
    ]  # fmt: skip


def test_every_option_is_a_field_with_a_default_and_a_variable_and_a_key_of_its_own() -> None:
    assert [option.field for option in OPTIONS] == list(Settings.__struct_fields__)
    assert len({option.key for option in OPTIONS}) == len({option.variable for option in OPTIONS}) == len(OPTIONS)
    assert all(option.help for option in OPTIONS)


@pytest.mark.req("CORE-01.2")
@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[plane]\nname = 'x'\nstat = 'y'\n", 3, ["plane.stat", "did you mean 'state'"]),
        ("\n[plan]\nname = 'x'\n", 2, ["plan:", "did you mean 'plane'"]),
        ("# c\n\n[gateway]\n# d\nqueues = 'embedded://'\n", 5, ["gateway.queues", "did you mean 'plane.queues'"]),
        ("port = 1\n", 1, ["port", "did you mean 'gateway.port'"]),
        ("gateway = 1\n", 1, ["gateway: 1 is no table", "write [gateway]"]),
        ("[gateway]\nhost = '127.0.0.1'\nport = 'many'\n", 3, ["gateway.port", "'many'"]),
        ("[gateway]\nport = 70000\n", 2, ["gateway.port", "70000"]),
        ("[gateway]\nport = true\n", 2, ["gateway.port", "True"]),
        ("[mesh]\ngrace = 'soon'\n", 2, ["mesh.grace", "'soon'"]),
        ("[mesh]\npayload_max = '1 pound'\n", 2, ["mesh.payload_max", "'1 pound'"]),
        ("[log]\nlevel = 'lod'\n", 2, ["log.level", "'lod'"]),
        ("[plane]\nname = 3\n", 2, ["plane.name", "3"]),
        ("[plane]\nqueues = 'nowhere'\n", 2, ["plane.queues", "'nowhere'"]),
        ("gateway.port = 'x'\n", 1, ["gateway.port", "'x'"]),
    ],
)
def test_a_mistake_in_the_file_is_named_with_file_line_and_value(text: str, line: int, words: list[str]) -> None:
    Path("groundplane.toml").write_text(text)
    error = _refused()
    assert error.code == "invalid_argument"
    assert f"groundplane.toml:{line}" in error.message
    for word in words:
        assert word in error.message
    assert error.message.startswith(words[0].rstrip(":"))


@pytest.mark.parametrize("text", ["[plane", "a = ", "[plane]\nname='x'\nname='y'\n", "\x00"])
def test_a_file_that_is_no_toml_is_an_error_of_the_config(text: str) -> None:
    Path("groundplane.toml").write_text(text)
    assert _refused().message.startswith("config: groundplane.toml")


def test_a_file_that_was_named_must_be_there() -> None:
    assert isinstance(_refused(config=Path("x.toml")), NotFound)
    assert isinstance(_refused(env={"GROUNDPLANE_CONFIG": "x.toml"}), NotFound)
    assert isinstance(_refused(env_file=Path("x.env")), NotFound)


def test_a_relative_path_in_the_file_is_relative_to_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "g.toml").write_text("[plane]\nstate = 'data'\n")
    assert _load(config=folder / "g.toml").settings.state == folder / "data"
    assert _load({"state": "data"}).settings.state == Path("data")


@pytest.mark.req("CORE-01.2")
def test_an_unknown_variable_is_an_error_with_a_suggestion_and_so_is_one_of_the_env_file(tmp_path: Path) -> None:
    error = _refused(env={"GROUNDPLANE_QUEUE_URL": "embedded://"})
    assert error.reason == "unknown_setting"
    assert "did you mean 'GROUNDPLANE_QUEUES_URL'" in error.message
    (tmp_path / "e").write_text("\nGROUNDPLANE_PROT=1\n")
    error = _refused(env_file=tmp_path / "e")
    assert f"{tmp_path / 'e'}:2" in error.message
    assert "did you mean 'GROUNDPLANE_PORT'" in error.message


def test_every_variable_that_the_source_reads_is_known(repository: Path) -> None:
    import re

    names = {
        found
        for file in (repository / "src").rglob("*.py")
        for found in re.findall(r"GROUNDPLANE_[A-Z0-9_]*[A-Z0-9]\b", file.read_text())
        if file.name not in ("environment.py", "settings.py")
    }
    assert "GROUNDPLANE_SOCKET_PATH" in names
    for name in names - {"GROUNDPLANE_TEST"}:
        try:
            load(environ={name: "1"})
        except InvalidArgument as error:
            assert error.reason != "unknown_setting", name  # noqa: PT017


def test_variables_that_kubernetes_makes_for_a_service_are_passed_over() -> None:
    env = {
        "GROUNDPLANE_PORT": "tcp://10.0.0.1:80",
        "GROUNDPLANE_SERVICE_HOST": "10.0.0.1",
        "GROUNDPLANE_SERVICE_PORT_HTTP": "80",
        "GROUNDPLANE_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert _load(env=env).settings.port == 8080


@pytest.mark.req("CORE-01.2")
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgres://u:hush@h/x", ["no driver for 'postgres'"]),
        ("embeded://", ["did you mean 'embedded'"]),
        ("embedded://?cache=1", ["unknown query parameter 'cache'", "takes none"]),
        ("embedded://?password=hush", ["unknown query parameter 'password'"]),
        ("embedded", ["is not a URL"]),
        ("embedded://host:port", ["is not a URL"]),
    ],
)
def test_a_url_that_no_driver_understands_is_refused_and_shows_no_secret(url: str, words: list[str]) -> None:
    error = _refused(env={"GROUNDPLANE_JOBS_URL": url})
    for word in words:
        assert word in error.message
    assert "hush" not in str(error)
    assert "GROUNDPLANE_JOBS_URL" in error.message


def test_a_driver_says_which_query_parameters_it_takes() -> None:
    schemes = {**SCHEMES, "jobs": {"pg": frozenset({"pool"}), "own": None}}
    assert _load(env={"GROUNDPLANE_JOBS_URL": "pg://h?pool=3"}, schemes=schemes).settings.jobs.query() == {"pool": "3"}
    assert "did you mean 'pool'" in _refused(env={"GROUNDPLANE_JOBS_URL": "pg://h?poll=3"}, schemes=schemes).message
    _load(env={"GROUNDPLANE_JOBS_URL": "own://h?whatever=3"}, schemes=schemes)


@pytest.mark.req("CORE-01.3")
def test_a_customary_url_that_no_driver_understands_is_remarked_and_left_alone() -> None:
    loaded = _load(env={"DATABASE_URL": "postgresql://me:hush@h/shop"})
    assert loaded.settings.jobs.reveal() == "embedded://"
    assert loaded.origins["jobs"] == "default"
    assert len(loaded.notes) == 1
    assert "DATABASE_URL" in loaded.notes[0]
    assert "hush" not in loaded.notes[0]


@pytest.mark.req("CORE-01.3")
def test_a_customary_url_whose_driver_misses_its_package_is_remarked_and_left_alone() -> None:
    schemes = {**SCHEMES, "jobs": {"postgresql": None, "embedded": frozenset()}}
    loaded = _load(env={"DATABASE_URL": "postgresql://h/shop"}, schemes=schemes, lacking={"postgresql": "postgres"})
    assert loaded.settings.jobs.reveal() == "embedded://"
    assert "groundplane[postgres] is not installed" in loaded.notes[0]
    given = {"GROUNDPLANE_JOBS_URL": "postgresql://h/shop"}  # meant: whoever opens it is told what is missing
    assert _load(env=given, schemes=schemes, lacking={"postgresql": "postgres"}).settings.jobs.scheme == "postgresql"


@pytest.mark.req("CORE-01.3")
def test_a_customary_url_is_a_fallback_below_the_file_where_a_driver_understands_it() -> None:
    schemes = {**SCHEMES, "jobs": {"postgresql": None, "embedded": frozenset()}}
    env = {"DATABASE_URL": "postgresql://h/shop"}
    loaded = _load(env=env, schemes=schemes)
    assert (loaded.settings.jobs.reveal(), loaded.origins["jobs"]) == (env["DATABASE_URL"], "environment DATABASE_URL")
    assert _load(env={**env, "GROUNDPLANE_JOBS_URL": "embedded://"}, schemes=schemes).settings.jobs.scheme == "embedded"
    Path("groundplane.toml").write_text("[plane]\njobs = 'embedded://'\n")
    assert _load(env=env, schemes=schemes).settings.jobs.scheme == "embedded"


@pytest.mark.req("CORE-01.3")
@pytest.mark.parametrize(
    ("env", "port", "url"),
    [
        ({"RABBITMQ_URL": "amqp://h/"}, "queues", "amqp://h/"),
        ({"REDIS_URL": "redis://h:1/7"}, "coordination", "redis://h:1/7"),
        ({"REDIS_HOST": "h"}, "coordination", "redis://h:6379"),
        ({"REDIS_HOST": "h", "REDIS_PORT": "5"}, "coordination", "redis://h:5"),
        ({"MILVUS_HOST": "h", "MILVUS_PORT": "6"}, "vectors", "milvus://h:6"),
        ({"MILVUS_URI": "milvus://x", "MILVUS_HOST": "h"}, "vectors", "milvus://x"),
        ({"KAFKA_BOOTSTRAP_SERVERS": "a:1,b:2"}, "streams", "kafka://a:1,b:2"),
        ({"AUTH_SERVICE_URL": "http://a"}, "auth_service", "http://a"),
        ({"NATS_URL": "nats://h"}, "bus", "nats://h"),
    ],
)
def test_customary_names_become_urls_of_their_ports(env: dict[str, str], port: str, url: str) -> None:
    offered = [one.url for one in customary_urls(EnvironmentView(env)) if one.port == port]
    assert offered == [url]


def test_a_customary_log_level_is_used_where_it_is_one_and_never_stops_a_start() -> None:
    assert _load(env={"LOG_LEVEL": "DEBUG"}).settings.log_level == "debug"
    odd = _load(env={"LOG_LEVEL": "verbose"})
    assert odd.settings.log_level == "info"
    assert "LOG_LEVEL" in odd.notes[0]
    assert _load(env={"LOG_LEVEL": "debug", "GROUNDPLANE_LOG_LEVEL": "warn"}).settings.log_level == "warning"


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("pg://me:hush@h/x\n")
    schemes = {**SCHEMES, "jobs": {"pg": None}}
    loaded = _load(env={"GROUNDPLANE_JOBS_URL_FILE": str(tmp_path / "secret")}, schemes=schemes)
    assert loaded.settings.jobs.reveal() == "pg://me:hush@h/x"
    assert "secret" in loaded.origins["jobs"]
    both = {"GROUNDPLANE_JOBS_URL_FILE": str(tmp_path / "secret"), "GROUNDPLANE_JOBS_URL": "pg://other"}
    assert "set one of the two" in _refused(env=both).message
    missing = _refused(env={"GROUNDPLANE_JOBS_URL_FILE": str(tmp_path / "nothing")})
    assert missing.message.startswith("GROUNDPLANE_JOBS_URL_FILE: ")


@pytest.mark.parametrize(
    ("line", "value"),
    [("A=1", "1"), ("export A=1", "1"), ("A = 'b c' # d", "b c"), ('A="x # y"', "x # y"), ("A=b # c", "b"), ("A=", ""),
     ("A=b#c", "b#c")],
)  # fmt: skip
def test_an_env_file_is_read_as_a_shell_reads_it_without_expansion(tmp_path: Path, line: str, value: str) -> None:
    (tmp_path / "e").write_text(f"# comment\n\n{line}\n")
    found = EnvironmentView({}, tmp_path / "e").names()
    assert found == {"A": f"{tmp_path / 'e'}:3"}
    got = EnvironmentView({}, tmp_path / "e").get("A")
    assert (got.value if got else "") == value


@pytest.mark.parametrize("line", ["what is this", "=x", "A='x", 'A="x" y', "1A=x"])
def test_a_line_that_is_none_is_refused_with_its_number_and_not_shown(tmp_path: Path, line: str) -> None:
    (tmp_path / "e").write_text(f"B=1\n{line}\n")
    with pytest.raises(InvalidArgument) as caught:
        EnvironmentView({}, tmp_path / "e")
    assert f"{tmp_path / 'e'}:2" in caught.value.message
    assert line not in caught.value.message


def test_a_name_that_is_set_twice_in_an_env_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e").write_text("A=1\nA=2\n")
    with pytest.raises(InvalidArgument, match=r"A: .*:2: is set twice, first at .*:1"):
        EnvironmentView({}, tmp_path / "e")


def test_rules_across_fields_name_the_field() -> None:
    assert _refused({"payload_inline_bytes_max": 10, "payload_bytes_max": 5}).message.startswith(
        "payload_inline_bytes_max: 10"
    )
    assert _refused({"port": 9000, "admin_port": 9000}).message.startswith("admin_port: 9000")


def test_settings_travel_to_an_own_process_whole() -> None:
    settings = Settings(port=7, state=Path("/x"), routes=Path("/r.yaml"))
    assert from_bytes(to_bytes(settings)) == settings


@pytest.mark.req("CORE-01.3")
def test_every_row_of_config_show_has_a_value_and_an_origin() -> None:
    rows = shown(_load({"port": 1}))
    assert [row["key"] for row in rows] == [option.key for option in OPTIONS]
    assert {row["origin"] for row in rows} == {"default", "flag --port"}


def test_security_is_where_the_jobs_are_unless_it_is_said() -> None:
    loaded = _load({"jobs": "embedded:///elsewhere"})
    assert loaded.settings.security == Url("embedded:///elsewhere")
    assert loaded.origins["security"] == "as jobs (flag --jobs)"
    apart = _load({"security": "embedded:///here"})
    assert (apart.settings.jobs, apart.settings.security) == (Url("embedded://"), Url("embedded:///here"))
    assert from_bytes(to_bytes(apart.settings)) == apart.settings


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("GROUNDPLANE_AUTH", "password", "auth"),
        ("GROUNDPLANE_ISSUER", "issuer.example.com", "issuer"),
        ("GROUNDPLANE_ISSUER", "ftp://issuer.example.com", "issuer"),
        ("GROUNDPLANE_PUBLIC_URL", "https://user:canary@gateway", "public_url"),
        ("GROUNDPLANE_SCOPE_MAP", "agents", "scope_map"),
        ("GROUNDPLANE_SCOPE_MAP", "agents=", "scope_map"),
    ],
)
def test_settings_of_authentication_that_are_wrong_are_refused_by_name(variable: str, value: str, error: str) -> None:
    with pytest.raises(InvalidArgument, match=f"(?i){error}") as caught:
        load({}, environ={variable: value})
    assert "canary" not in str(caught.value)
