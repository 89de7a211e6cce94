"""The sidecar's settings: flags, environment, document; the names people already have."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.core.secrets import Url
from groundplane.mesh import launch
from groundplane.mesh.ends_process import load as load_ends
from groundplane.mesh.sidecar.config import OPTIONS, load
from groundplane.mesh.spec import ActorSpec, Limits

FLAGS = ["--queue", "a", "--socket", "/s"]


@pytest.mark.req("MESH-23.1")
def test_queue_and_socket_are_enough() -> None:
    config = load(FLAGS, {})
    assert (config.actor.name, config.socket, config.actor.timeout_s, config.queues) == (
        "a",
        "/s",
        300.0,
        "embedded://",
    )
    assert (config.happy_end, config.error_end, config.start_timeout_s) == ("happy-end", "error-end", 30.0)


@pytest.mark.req("MESH-23.2")
def test_the_names_of_asya_are_read() -> None:
    config = load(
        [],
        {
            "ASYA_QUEUE_NAME": "q",
            "ASYA_HANDLER": "m.f",
            "ASYA_SOCKET_PATH": "/tmp/s",
            "ASYA_RABBITMQ_URL": "amqp://h/",
            "ASYA_RABBITMQ_EXCHANGE": "x",
            "ASYA_RUNTIME_TIMEOUT": "2m",
            "ASYA_STEP_HAPPY_END": "good",
            "ASYA_STEP_ERROR_END": "bad",
            "ASYA_GATEWAY_URL": "http://g:1",
            "ASYA_LOG_LEVEL": "DEBUG",
        },
    )
    assert (config.actor.name, config.actor.handler, config.socket) == ("q", "m.f", "/tmp/s")
    assert (config.queues, config.exchange, config.actor.timeout_s) == ("amqp://h/?exchange=x", "x", 120.0)
    assert (config.happy_end, config.error_end, config.gateway_url) == ("good", "bad", "http://g:1")
    assert config.log_level == "DEBUG"


@pytest.mark.req("MESH-23.1")
def test_flags_win_over_the_document_and_the_document_over_the_environment() -> None:
    environment = {"GROUNDPLANE_STATE": "/env", "GROUNDPLANE_QUEUE_NAME": "env", "ASYA_QUEUE_NAME": "asya"}
    document = msgspec.json.encode({"actor": {"name": "doc"}, "socket": "/doc"}).decode()
    config = load(["--config", document, "--socket", "/flag"], environment)
    assert (config.actor.name, config.socket, config.state) == ("doc", "/flag", "/env")
    assert load(["--socket", "/s"], environment).actor.name == "env"


@pytest.mark.req("MESH-23.1")
@pytest.mark.parametrize("text, seconds", [("30", 30.0), ("30s", 30.0), ("1m30s", 90.0), ("250ms", 0.25)])
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert load([*FLAGS, "--timeout", text], {}).actor.timeout_s == seconds
    assert load(FLAGS, {"ASYA_RUNTIME_TIMEOUT": text}).actor.timeout_s == seconds


@pytest.mark.parametrize(
    "arguments, environment, field",
    [
        (["--queue", "a"], {}, "socket"),
        (["--socket", "/s"], {}, "name"),
        ([*FLAGS, "--timeout", "soon"], {}, "--timeout"),
        (FLAGS, {"ASYA_RUNTIME_TIMEOUT": "-1"}, "ASYA_RUNTIME_TIMEOUT"),
        ([*FLAGS, "--concurrency", "0"], {}, "concurrency"),
        ([*FLAGS, "--concurrency", "two"], {}, "--concurrency"),
        ([*FLAGS, "--window", "1", "--concurrency", "2"], {}, "window"),
        ([*FLAGS, "--gateway-url", "gateway:80"], {}, "gateway_url"),
        ([*FLAGS, "--protocol", "2"], {}, "protocol"),
        (["--queue", "a/b", "--socket", "/s"], {}, "queue"),
        ([*FLAGS, "--config", '{"sockt": 1}'], {}, "did you mean 'socket'"),
        ([*FLAGS, "--config", '{"actor": {"tmeout": 1}}'], {}, "actor.tmeout"),
        ([*FLAGS, "--config", "/no/such/file"], {}, "config"),
        ([*FLAGS, "--config", "[1]"], {}, "config"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], environment: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load(arguments, environment)
    assert field in caught.value.message


def test_every_option_has_a_flag_a_variable_and_a_help() -> None:
    assert all(option.variables and option.help for option in OPTIONS)
    assert len({option.flag for option in OPTIONS}) == len(OPTIONS)


def test_what_is_launched_is_what_the_processes_read(tmp_path: Path) -> None:
    spec = ActorSpec(name="a", handler="m:f", timeout_s=7.0, concurrency=3, key="k")
    place = launch.Place(state=tmp_path, namespace="acme", limits=Limits(hops_max=9, grace_s=2.0), jobs=Url(""))
    command = launch.sidecar(spec, place, window=12)
    config = load(command.arguments[3:], command.environment)
    assert (config.actor, config.limits, config.window) == (spec, place.limits, 12)
    assert (config.namespace, config.state, config.jobs) == ("acme", str(tmp_path), "")
    assert config.socket == str(place.socket("a")) in launch.runtime(spec, place).arguments
    ends = load_ends(launch.ends(place, joins=["z", "y"]).arguments[3:], {})
    assert (ends.joins, ends.namespace, ends.limits) == (["y", "z"], "acme", place.limits)


def test_urls_reach_the_processes_by_the_environment_and_never_by_the_command_line(tmp_path: Path) -> None:
    url = Url("amqp://user:hunter2@broker/")
    place = launch.Place(state=tmp_path, queues=url)
    sidecar, ends = launch.sidecar(ActorSpec(name="a", handler="m:f"), place), launch.ends(place)
    assert load(sidecar.arguments[3:], sidecar.environment).queues == url.reveal()
    assert load_ends(ends.arguments[3:], ends.environment).queues == url.reveal()
    runtime = launch.runtime(ActorSpec(name="a", handler="m:f"), place)
    assert "hunter2" not in repr([place, sidecar.arguments, ends.arguments, runtime])


def test_a_socket_path_that_is_too_long_is_shortened_the_same_way_each_time() -> None:
    place = launch.Place(state=Path("/" + "d" * 120))
    assert place.socket("a") == place.socket("a") != place.socket("b")
    assert len(str(place.socket("a"))) <= launch.SOCKET_PATH_MAX


@pytest.mark.req("MESH-23.1")
def test_the_ends_take_flags_and_environment_too() -> None:
    config = load_ends(["--joins", "a,b", "--grace", "5s"], {"ASYA_STEP_HAPPY_END": "good", "GROUNDPLANE_STATE": "/st"})
    assert (config.joins, config.limits.grace_s, config.happy_end, config.state) == (["a", "b"], 5.0, "good", "/st")
    with pytest.raises(InvalidArgument, match="config"):
        load_ends(["--config", '{"hapy_end": "x"}'], {})


@pytest.mark.req("MESH-23.1", "CORE-01")
@pytest.mark.parametrize(
    ("queues", "exchange", "effective"),
    [
        ("amqp://h/v?guard=0", "a b", "amqp://h/v?guard=0&exchange=a%20b"),
        ("amqps://h/?exchange=mine", "other", "amqps://h/?exchange=mine"),
        ("amqp://h/", None, "amqp://h/"),
        ("embedded://", "x", "embedded://"),
    ],
)
def test_the_exchange_goes_into_the_url_of_a_broker_that_names_none(
    queues: str, exchange: str | None, effective: str
) -> None:
    flags = ["--queue", "a", "--socket", "/s", "--queues", queues, *(["--exchange", exchange] if exchange else [])]
    assert load(flags, {}).queues == effective
    environment = {"GROUNDPLANE_QUEUES_URL": queues, **({"GROUNDPLANE_EXCHANGE": exchange} if exchange else {})}
    assert load_ends([], environment).queues == effective


@pytest.mark.req("CORE-01")
def test_customary_variables_are_taken_where_a_driver_has_their_scheme_and_are_below_our_own() -> None:
    flags = ["--queue", "a", "--socket", "/s"]
    theirs = {"DATABASE_URL": "postgresql://u@h/db", "RABBITMQ_URL": "amqp://h/"}
    for config in (load(flags, theirs), load_ends([], theirs)):
        assert (config.jobs, config.ledger, config.queues) == (
            theirs["DATABASE_URL"],
            theirs["DATABASE_URL"],
            "amqp://h/",
        )
    others = {"DATABASE_URL": "mysql://u@h/db", "RABBITMQ_URL": "http://h/"}
    for config in (load(flags, others), load_ends([], others)):
        assert (config.jobs, config.ledger, config.queues) == ("embedded://", "embedded://", "embedded://")
    own = {**theirs, "GROUNDPLANE_JOBS_URL": "postgres://mine/db"}
    assert (load(flags, own).jobs, load(flags, own).ledger) == ("postgres://mine/db", theirs["DATABASE_URL"])
