"""The gateway's settings."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest

from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.gateway.settings import GatewaySettings, is_loopback, local_url


@pytest.mark.req("GATE-08.3", "GATE-08.1")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_binding_beyond_the_loopback_is_refused(host: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        GatewaySettings(host=host)
    assert caught.value.reason == "auth_required"
    assert repr(host) in caught.value.message


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_the_loopback_may_be_bound(host: str) -> None:
    assert GatewaySettings(host=host).host == host


@pytest.mark.parametrize(
    "wrong", [{"port": -1}, {"port": 65536}, {"admin_port": -1}, {"grace_s": 0}, {"keepalive_s": -1.0}, {"retry_ms": 0}]
)
def test_a_setting_out_of_range_is_named_with_its_value(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        GatewaySettings(**wrong)
    ((field, value),) = wrong.items()
    assert caught.value.message.startswith(f"{field}: {value!r} ")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("::1", "http://[::1]:8080"),
        ("192.0.2.7", "http://192.0.2.7:8080"),
        ("localhost", "http://localhost:8080"),
    ],
)
def test_the_url_that_is_shown_is_one_that_the_gateway_answers(host: str, url: str) -> None:
    assert local_url(host, 8080) == url
    name = urlsplit(url).hostname or ""
    assert is_loopback(name) or name in GatewaySettings(host=host, auth="keys").hosts


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_that_stands_for_all_is_no_name_that_callers_may_use(host: str) -> None:
    assert GatewaySettings(host=host, auth="keys", allowed_hosts=("A.example",)).hosts == {"a.example"}
