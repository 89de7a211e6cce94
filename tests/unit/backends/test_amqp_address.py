"""URLs of brokers: what they mean, and what is said about those that mean nothing."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from groundplane.backends.amqp import Address
from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.core.secrets import Secret, Url, check_url


def test_a_bare_url_means_guest_on_the_customary_port() -> None:
    address = Address.parse("amqp://localhost")
    assert address == Address(hosts=(("localhost", 5672),))
    assert (address.user, address.password.reveal(), address.vhost) == ("guest", "guest", "/")
    assert (address.heartbeat_s, address.connect_timeout_s, address.tls, address.verify) == (2, 3.0, False, True)


def test_every_part_of_a_url_is_read_and_decoded() -> None:
    address = Address.parse(
        "amqps://j%40ne:p%2Fss%3Aw%C3%B6rd@h1:1111,[::1]:2222,h3/my%2Fvhost?heartbeat=7&connect_timeout=1.5"
        "&rpc_timeout=20&blocked_timeout=0&frame_max=8192&body_max=65536&verify=off&cafile=/a%20b.pem"
        "&certfile=c.pem&keyfile=k.pem&exchange=mesh",
        extra=("exchange",),
    )
    assert address.hosts == (("h1", 1111), ("::1", 2222), ("h3", 5671))
    assert (address.user, address.password.reveal(), address.vhost) == ("j@ne", "p/ss:wörd", "my/vhost")
    assert (address.heartbeat_s, address.connect_timeout_s, address.rpc_timeout_s) == (7, 1.5, 20.0)
    assert (address.blocked_timeout_s, address.frame_max, address.body_max) == (0.0, 8192, 65536)
    assert (address.tls, address.verify) == (True, False)
    assert (address.cafile, address.certfile, address.keyfile) == ("/a b.pem", "c.pem", "k.pem")
    assert address.options == {"exchange": "mesh"}


@pytest.mark.parametrize(
    "url, vhost",
    [
        ("amqp://h", "/"),
        ("amqp://h/", "/"),
        ("amqp://h/%2F", "/"),
        ("amqp://h/%2f", "/"),
        ("amqp://h/a", "a"),
        ("amqp://h/%20", " "),
    ],
)
def test_an_empty_path_is_the_virtual_host_slash(url: str, vhost: str) -> None:
    assert Address.parse(url).vhost == vhost


@pytest.mark.req("CORE-01.2")
@pytest.mark.parametrize(
    "url, said",
    [
        ("localhost:5672", "is no address of a broker; write amqp://"),
        ("http://localhost", "is no address of a broker"),
        ("amqp://", "a host that cannot be read"),
        ("amqp://h1,,h2", "a host that cannot be read"),
        ("amqp://h:0", "a host that cannot be read"),
        ("amqp://h:70000", "a host that cannot be read"),
        ("amqp://h:port", "a host that cannot be read"),
        ("amqp://::1/", "a host that cannot be read"),
        ("amqp://h/a/b", "write a '/' inside the virtual host's name as %2F"),
        ("amqp://h/%zz", "a '%' without two hexadecimal digits in its virtual host"),
        ("amqp://h/%ff", "bytes that are no UTF-8 in its virtual host"),
        ("amqp://u%:p@h/", "a '%' without two hexadecimal digits in its user"),
        ("amqp://h/" + "v" * 256, "more than 255 bytes"),
        ("amqp://h/?heartbet=2", "an unknown parameter 'heartbet'; did you mean 'heartbeat'?"),
        ("amqp://h/?exchnge=2", "did you mean 'exchange'?"),
        ("amqp://h/?zzzz=2", "known are blocked_timeout, "),
        ("amqp://h/?heartbeat=0", "heartbeat='0'; write a whole number of seconds from 1 to 60"),
        ("amqp://h/?heartbeat=1.5", "write a whole number of seconds"),
        ("amqp://h/?connect_timeout=nan", "write a number of seconds from 0.1 to 60.0"),
        ("amqp://h/?frame_max=10", "write a whole number of bytes from 4096"),
        ("amqps://h/?verify=maybe", "write on or off"),
        ("amqps://h/?cafile=", "name a file"),
        ("amqp://h/?heartbeat=2&heartbeat=3", "the parameter 'heartbeat' twice"),
        ("amqp://h/?cafile=x", "cafile without TLS; write amqps://"),
        ("amqp://h/?verify=off", "verify without TLS"),
        ("amqps://h/?keyfile=k", "keyfile without certfile"),
    ],
)
def test_a_url_that_means_nothing_is_refused_with_the_field_and_what_to_do(url: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Address.parse(url, field="queues", extra=("exchange",))
    assert said in caught.value.message
    assert caught.value.message.startswith("queues: ")


def test_no_error_and_no_representation_shows_the_password() -> None:
    address = Address.parse(Url("amqp://user:s3cret@h1,h2:1/v%20h"))
    shown = f"{address!r} {address} {address.masked()}"
    assert "s3cret" not in shown
    assert address.masked() == "amqp://user:***@h1:5672,h2:1/v%20h"
    assert isinstance(address.password, Secret)
    for wrong in ("amqp://user:s3cret@h1/?bogus=1", "amqp://user:s3cret@/", "amqpx://user:s3cret@h"):
        with pytest.raises(InvalidArgument) as caught:
            Address.parse(wrong)
        assert "s3cret" not in str(caught.value)


def test_a_masked_address_with_several_hosts_is_a_url_that_settings_take() -> None:
    url = "amqp://user:pass@h1:5672,h2:5673/v"
    assert Address.parse(check_url("queues", url)).hosts == (("h1", 5672), ("h2", 5673))


def test_tls_checks_the_server_unless_that_is_turned_off_by_name() -> None:
    assert Address.parse("amqp://h").ssl_context() is None
    strict = Address.parse("amqps://h").ssl_context()
    assert strict is not None
    assert (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    loose = Address.parse("amqps://h?verify=off").ssl_context()
    assert loose is not None
    assert (loose.verify_mode, loose.check_hostname) == (ssl.CERT_NONE, False)


def test_a_certificate_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("no certificate")
    for name in (broken, tmp_path / "missing.pem"):
        with pytest.raises(FailedPrecondition, match=r"tls: .*\.pem.*mend cafile") as caught:
            Address.parse(f"amqps://h?cafile={name}").ssl_context()
        assert caught.value.reason == "tls_failed"
