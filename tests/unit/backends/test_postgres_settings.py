"""What a URL of PostgreSQL may say, and what is refused by its name."""

from __future__ import annotations

import pytest

from groundplane.backends.postgres import parse_url
from groundplane.core.errors import InvalidArgument


def test_a_plain_url_has_defaults_that_work() -> None:
    settings = parse_url("jobs", "postgresql://app:secret@db.example/app")
    assert settings.conninfo == {
        "user": "app",
        "password": "secret",
        "host": "db.example",
        "dbname": "app",
        "connect_timeout": 3,
        "application_name": "groundplane",
    }
    assert (settings.schema, settings.pool_max, settings.call_timeout_s) == ("groundplane", 8, 4.0)


def test_our_options_and_those_of_libpq_are_told_apart() -> None:
    settings = parse_url(
        "jobs",
        "postgres://h/d?schema=mine&pool_min=2&pool_max=3&sslmode=require&connect_timeout=9&prepare_threshold=none",
    )
    assert (settings.schema, settings.pool_min, settings.pool_max, settings.prepare_threshold) == ("mine", 2, 3, None)
    assert (settings.conninfo["sslmode"], settings.conninfo["connect_timeout"]) == ("require", "9")


def test_several_hosts_are_taken_as_libpq_takes_them() -> None:
    settings = parse_url("jobs", "postgresql://u@one:5433,two:5434/d?target_session_attrs=read-write")
    assert (settings.conninfo["host"], settings.conninfo["port"]) == ("one,two", "5433,5434")


@pytest.mark.req("CORE-09")
def test_the_password_is_shown_nowhere() -> None:
    settings = parse_url("jobs", "postgresql://app:canary@h/d?sslpassword=canary")
    assert "canary" not in f"{settings!r} {settings.shown}"
    with pytest.raises(InvalidArgument) as caught:
        parse_url("jobs", "postgresql://app:canary@[::1/d")
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://h/d?schemas=x", r"option 'schemas' is not known; did you mean 'schema'\?"),
        ("postgresql://h/d?ssl_mode=x", "did you mean 'sslmode'"),
        ("postgresql://h/d?schema=Mine", "lower-case identifier"),
        ("postgresql://h/d?schema=pg_mine", "lower-case identifier"),
        ("postgresql://h/d?schema=a;drop", "lower-case identifier"),
        ("postgresql://h/d?pool_max=1", "pool_max '1' is not a whole number from 2"),
        ("postgresql://h/d?pool_min=9", "pool_min 9 is more than pool_max 8"),
        ("postgresql://h/d?call_timeout=0", "call_timeout '0'"),
        ("postgresql://h/d?connect_timeout=soon", "connect_timeout 'soon'"),
        ("postgresql://[::1/d", "is no URL"),
        ("postgresql://h/d%zz", "cannot be read by libpq"),
        ("postgresql://h/d#part", "after '#'"),
        ("mysql://h/d", "must begin with postgresql://"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(url: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told) as caught:
        parse_url("jobs", url)
    assert caught.value.message.startswith("jobs: ")


def test_urls_that_one_pool_can_serve_have_one_key() -> None:
    one = parse_url("jobs", "postgresql://u@h/d?schema=a").key
    assert parse_url("ledger", "postgresql://u@h/d?schema=a").key == one
    for other in (
        "postgresql://u@h/d?schema=b",
        "postgresql://v@h/d?schema=a",
        "postgresql://u@h/d?schema=a&pool_max=9",
    ):
        assert parse_url("jobs", other).key != one
