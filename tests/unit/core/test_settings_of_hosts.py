"""Settings about hosts: whom the gateway answers behind a proxy, and where its admin port is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.core.settings import from_bytes, load, shown, to_bytes


@pytest.mark.parametrize("text", ["a.example,b.example", " a.example , b.example "])
def test_hosts_come_as_a_text_with_commas(text: str) -> None:
    assert load(environ={"GROUNDPLANE_ALLOWED_HOSTS": text}).settings.allowed_hosts == ("a.example", "b.example")


def test_hosts_come_as_a_list_of_toml(tmp_path: Path) -> None:
    file = tmp_path / "groundplane.toml"
    file.write_text('[gateway]\nallowed_hosts = ["a.example", "::1"]\nadmin_host = "0.0.0.0"\n')
    loaded = load(config=file, environ={})
    assert loaded.settings.allowed_hosts == ("a.example", "::1")
    assert loaded.settings.admin_host == "0.0.0.0"
    assert from_bytes(to_bytes(loaded.settings)) == loaded.settings
    rows = {row["key"]: row["value"] for row in shown(loaded)}
    assert (rows["gateway.allowed_hosts"], rows["gateway.admin_host"]) == ("a.example,::1", "0.0.0.0")


@pytest.mark.req("TEL-01.3")
def test_by_default_no_other_host_is_allowed_and_the_admin_port_is_where_the_gateway_is() -> None:
    settings = load(environ={}).settings
    assert (settings.allowed_hosts, settings.admin_host, settings.host) == ((), None, "127.0.0.1")


@pytest.mark.parametrize("wrong", ["https://a.example", "a.example,,b", "a b", ","])
def test_what_is_no_list_of_hosts_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^GROUNDPLANE_ALLOWED_HOSTS: "):
        load(environ={"GROUNDPLANE_ALLOWED_HOSTS": wrong})


@pytest.mark.parametrize("wrong", [[], [1], 7, True])
def test_a_list_of_toml_is_checked_too(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^allowed_hosts: "):
        load({"allowed_hosts": wrong}, environ={})
