"""Compose files are judged by the schema of their specification, and by what a schema cannot say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.testing import compose, go_modules
from groundplane.testing.servers.contract import ServerMissing

pytestmark = pytest.mark.req("KIT-01")

_GOOD: dict[str, Any] = {
    "services": {
        "gateway": {
            "image": "groundplane:1",
            "depends_on": {"store": {"condition": "service_healthy"}},
            "volumes": ["state:/state", "./routes.yaml:/routes.yaml:ro"],
            "secrets": ["token"],
            "ports": ["127.0.0.1:8080:8080"],
        },
        "store": {"image": "postgres:16", "volumes": [{"type": "volume", "source": "state", "target": "/data"}]},
    },
    "volumes": {"state": {}},
    "secrets": {"token": {"file": "./token"}},
}


@pytest.fixture(autouse=True)
def schema() -> Path:
    try:
        return compose.schema_path()
    except ServerMissing as error:
        pytest.skip(error.message)


def test_a_good_document_has_no_errors_as_mapping_text_and_file(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(json.dumps(_GOOD))
    assert compose.validate(_GOOD) == []
    assert compose.validate(json.dumps(_GOOD)) == []
    assert compose.validate(tmp_path / "compose.yaml") == []


def test_each_error_has_its_place() -> None:
    wrong = {"services": {"a": {"image": 3}, "b": {"imagee": "x"}}}
    first, second = compose.validate(wrong)
    assert first == "services/a/image: 3 is not of type 'string'"
    assert second.startswith("services/b: ")
    assert "imagee" in second


@pytest.mark.parametrize(
    ("service", "error"),
    [
        ({"depends_on": ["other"]}, "services/a/depends_on: there is no service 'other'"),
        ({"volumes": ["data:/data"]}, "services/a/volumes: 'data' is not declared"),
        ({"networks": ["inner"]}, "services/a/networks: 'inner' is not declared"),
        ({"secrets": [{"source": "key"}]}, "services/a/secrets: 'key' is not declared"),
        ({"configs": ["routes"]}, "services/a/configs: 'routes' is not declared"),
    ],
)
def test_what_is_used_must_be_declared(service: dict[str, Any], error: str) -> None:
    assert compose.validate({"services": {"a": {"image": "x", **service}}}) == [error]


@pytest.mark.parametrize("document", ["[]", "3", "", "services: []"])
def test_what_is_no_compose_document_at_all_is_an_error_and_no_crash(document: str) -> None:
    assert compose.validate(document)


def test_what_is_no_yaml_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="document: is no YAML"):
        compose.validate("a: [")


def test_the_schema_is_fetched_once_and_needs_no_go_afterwards(schema: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(go_modules, "go", lambda: None)
    assert compose.schema_path() == schema
    with pytest.raises(ServerMissing, match=r"go: .*compose-go/v2@v9\.9\.9 is downloaded by Go"):
        go_modules.fetched("github.com/compose-spec/compose-go/v2", "v9.9.9", "schema")
