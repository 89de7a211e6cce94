"""Secrets do not show themselves."""

from __future__ import annotations

import json
import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.core.errors import InvalidArgument
from groundplane.core.secrets import Secret, Url, check_url, hides, mask_url, mask_urls
from groundplane.core.settings import Settings

pytestmark = pytest.mark.req("CORE-09.1")
words = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=6, max_size=30)


@given(words)
def test_no_ordinary_way_of_showing_a_secret_shows_it(word: str) -> None:
    secret = Secret(f"zq{word}")
    for text in (str(secret), repr(secret), f"{secret}", f"{secret!r:>40}", repr([secret]), repr({"a": secret})):
        assert secret.reveal() not in text
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(TypeError):
        msgspec.json.encode(secret)


@given(words)
def test_a_url_shows_all_but_its_secrets(word: str) -> None:
    url = Url(f"amqp://me:zq{word}@broker:5672/vh?heartbeat=3&api_key=zq{word}&Token=zq{word}")
    assert f"zq{word}" not in repr(url)
    assert str(url) == "amqp://me:***@broker:5672/vh?heartbeat=3&api_key=***&Token=***"
    assert f"zq{word}" not in repr(Settings(queues=url))


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("embedded://", "embedded://"),
        ("redis://:pw@h/3", "redis://:***@h/3"),
        ("postgresql://u@h/x", "postgresql://u@h/x"),
        ("pg://u:p%40w@h/x?sslpassword=s", "pg://u:***@h/x?sslpassword=***"),
        ("s3://bucket?access_key=AK&secret_access_key=S&endpoint=http://u:p@h:1", "s3://bucket?access_key=***&"
         "secret_access_key=***&endpoint=http://u:***@h:1"),
        ("x://[bad", "***"),
    ],
)  # fmt: skip
def test_masks_by_example(url: str, masked: str) -> None:
    assert mask_url(url) == masked


def test_a_password_with_an_at_sign_in_it_is_masked_whole() -> None:
    assert mask_url("pg://u:pa@ss@host/x") == "pg://u:***@host/x"


def test_urls_inside_of_a_text_are_masked() -> None:
    assert (
        mask_urls("cannot reach pg://u:pw@h/x, nor amqp://a:b@c") == "cannot reach pg://u:***@h/x, nor amqp://a:***@c"
    )


def test_secrets_compare_by_value_and_kind() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != Url("a")
    assert len({Secret("a"), Secret("a"), Url("a")}) == 2


def test_a_checked_url_has_a_scheme() -> None:
    assert check_url("jobs", "Embedded://").scheme == "embedded"
    assert check_url("jobs", "redis://h/5").query() == {}


def test_a_url_may_name_several_hosts_each_with_a_port_that_is_one() -> None:
    assert check_url("queues", "amqp://u:p@h1:5672,h2:5673,[::1]:5674/v").scheme == "amqp"
    with pytest.raises(InvalidArgument, match="port"):
        check_url("queues", "amqp://u:p@h1:5672,h2:many/v")


@pytest.mark.parametrize(
    ("name", "value", "hidden"),
    [
        ("password", "hunter", True),
        ("access_token", "running", True),
        ("state", "running", False),
        ("State", "runing", False),
        ("state", "af0ifjsldkj", True),
        ("code", "SplxlOBeZQQYbYS6WxSbIA", True),
        ("tool", "af0ifjsldkj", False),
    ],
)
def test_what_comes_under_the_name_of_a_secret_is_hidden(name: str, value: str, hidden: bool) -> None:
    assert hides(name, value) is hidden
