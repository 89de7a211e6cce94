"""Addresses of NATS: what a URL says, what is refused, and that no secret is shown."""

from __future__ import annotations

import pytest

from groundplane.backends.nats import Address
from groundplane.backends.nats.link import backoff_s
from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.core.secrets import Secret, mask_url


def test_a_bare_url_has_the_defaults() -> None:
    address = Address.parse("nats://localhost")
    assert address == Address(hosts=(("localhost", 4222),))


@pytest.mark.req("BUS-16.3", "BUS-23.2")
def test_hosts_login_and_patience_are_read() -> None:
    address = Address.parse(
        "nats://me:p%40ss@a:1,[::1]:2,c?connect_timeout=500ms&reconnect_wait=0.1&reconnect_wait_max=5s"
        "&reconnect_jitter=0&reconnect_rounds=3&ping_interval=2&domain=hub&inbox=_IN.me&x=1",
        extra=["x"],
    )
    assert address.hosts == (("a", 1), ("::1", 2), ("c", 4222))
    assert (address.user, address.password) == ("me", Secret("p@ss"))
    assert (address.connect_timeout_s, address.reconnect_wait_s, address.reconnect_wait_max_s) == (0.5, 0.1, 5.0)
    assert (address.reconnect_jitter, address.reconnect_rounds, address.ping_interval_s) == (0.0, 3, 2.0)
    assert (address.domain, address.inbox, address.options) == ("hub", "_IN.me", {"x": "1"})


def test_a_user_alone_is_a_token_and_is_masked_everywhere() -> None:
    url = "nats://s3cret@host:4222"
    address = Address.parse(url)
    assert address.token == Secret("s3cret")
    assert "s3cret" not in repr(address) + address.masked() + mask_url(url)
    with pytest.raises(InvalidArgument) as caught:
        Address.parse(url + "?nope=1")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://host", "no address of NATS"),
        ("nats://", "cannot be read"),
        ("nats://a:99999", "cannot be read"),
        ("nats://a,,b", "cannot be read"),
        ("nats://a/path", "has a path"),
        ("nats://a?conect_timeout=1", "connect_timeout"),
        ("nats://a?connect_timeout=0", "from 0.1 to 60"),
        ("nats://a?connect_timeout=1&connect_timeout=2", "twice"),
        ("nats://a?reconnect_rounds=-1", "none"),
        ("nats://a?reconnect_jitter=2", "from 0"),
        ("nats://a?reconnect_wait=2&reconnect_wait_max=1", "raise reconnect_wait_max"),
        ("nats://a?tls_first=on", "tls://"),
        ("tls://a?keyfile=k", "certfile"),
        ("nats://u:p@a?creds=f", "choose one"),
        ("nats://a?creds=f&nkey=g", "choose one"),
        ("nats://u:@a", "empty password"),
        ("nats://u:%zz@a", "hexadecimal"),
        ("nats://a?inbox=a b", "joined by dots"),
    ],
)
def test_what_is_wrong_is_named_with_the_field(url: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Address.parse(url, field="bus")
    assert caught.value.message.startswith("bus: ")
    assert says in caught.value.message


def test_files_of_tls_that_cannot_be_used_are_named() -> None:
    with pytest.raises(FailedPrecondition, match=r"none\.pem") as caught:
        Address.parse("tls://a?cafile=/none.pem").ssl_context()
    assert caught.value.reason == "tls_failed"


@pytest.mark.req("BUS-16.2")
def test_waits_between_reconnects_double_up_to_their_cap_and_are_shortened_by_chance() -> None:
    address = Address.parse("nats://a?reconnect_wait=0.1&reconnect_wait_max=1&reconnect_jitter=0.5")
    assert [backoff_s(address, n, 0.0) for n in (1, 2, 3, 4, 5, 100_000)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff_s(address, 1, 1.0) == pytest.approx(0.05)
