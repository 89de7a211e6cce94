"""Where heavy servers come from: what is asked of Maven, Go and the wheel, and what is said when one is missing."""

from __future__ import annotations

import json
import lzma
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from groundplane.testing.servers import milvus, sources
from groundplane.testing.servers.kafka import MavenJars
from groundplane.testing.servers.kubernetes import GeneratedMain
from groundplane.testing.servers.sources import InstallFailed, PyPI

pytestmark = pytest.mark.req("KIT-01")

_PUBLISHED = """module k8s.io/kubernetes

go 1.25.0

require k8s.io/api v0.0.0

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/client-go => ./staging/src/k8s.io/client-go
)
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it but what the test puts there, before the shell's own programs."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def _is(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    (folder / name).chmod(0o755)


def test_kafka_asks_maven_for_the_pinned_jars_and_their_dependencies(programs: Path, tmp_path: Path) -> None:
    _is(programs, "java", "echo 'openjdk version \"21.0.2\"' >&2")
    _is(
        programs,
        "mvn",
        f'echo "$@" > {tmp_path}/asked; mkdir "{tmp_path}/libs"; touch "{tmp_path}/libs/kafka_2.13-4.1.1.jar"',
    )
    source = MavenJars()
    assert source.find(tmp_path) is None
    assert source.obstacle() is None
    source.install(tmp_path, print)
    asked = (tmp_path / "asked").read_text().split()
    assert {"dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={tmp_path}/libs"} <= set(
        asked
    )
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    listed = ET.parse(tmp_path / "pom.xml").findall(".//m:dependency", space)
    names = [":".join(part.text or "" for part in one) for one in listed]
    assert names == [f"{name}:{version}" for name, version in MavenJars.jars.items()]
    found = source.find(tmp_path)
    assert found is not None
    assert (found.version, found.origin, found.programs["java"]) == ("4.1.1", "maven", programs / "java")


def test_kafka_says_which_tool_is_missing(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-4.1.1.jar").touch()
    assert MavenJars().find(tmp_path) is None
    assert "no Java 17 on PATH: apt-get install openjdk-17" in str(MavenJars().obstacle())
    _is(programs, "java", "echo 'openjdk version \"11.0.1\"' >&2")
    assert "no Java 17" in str(MavenJars().obstacle())
    (programs / "java").unlink()
    newer = programs.parent / "newer"
    newer.mkdir()
    _is(newer, "java", "echo 'openjdk version \"17\"' >&2")
    os.environ["PATH"] = str(newer)
    assert MavenJars().obstacle() == "Maven is not installed: apt-get install maven"
    with pytest.raises(InstallFailed, match="Maven is not installed"):
        MavenJars().install(tmp_path, print)


def test_the_api_server_is_built_with_each_staged_module_at_the_version_released_with_it(
    programs: Path, tmp_path: Path
) -> None:
    published = tmp_path / "published.mod"
    published.write_text(_PUBLISHED)
    answer = json.dumps({"GoMod": str(published)})
    _is(
        programs,
        "go",
        f"if [ $1 = mod ]; then echo '{answer}'; else mkdir ../bin && echo \"$@\" > ../bin/kube-apiserver; fi",
    )
    source = GeneratedMain()
    assert source.find(tmp_path) is None
    source.install(tmp_path, print)
    module = (tmp_path / "source" / "go.mod").read_text()
    assert "\ngo 1.25.0\n" in module
    assert "\nrequire k8s.io/kubernetes v1.35.0\n" in module
    assert "\tk8s.io/api => k8s.io/api v0.35.0\n\tk8s.io/client-go => k8s.io/client-go v0.35.0\n" in module
    assert "app.NewAPIServerCommand()" in (tmp_path / "source" / "main.go").read_text()
    assert "gitVersion=v1.35.0" in (tmp_path / "bin" / "kube-apiserver").read_text()
    found = source.find(tmp_path)
    assert found is not None
    assert found.version == "1.35.0"


def test_another_layout_of_kubernetes_is_said_instead_of_built(programs: Path, tmp_path: Path) -> None:
    published = tmp_path / "published.mod"
    published.write_text("module k8s.io/kubernetes\n\ngo 1.99\n")
    _is(programs, "go", f"echo '{json.dumps({'GoMod': str(published)})}'")
    with pytest.raises(InstallFailed, match="names no staged modules"):
        GeneratedMain().install(tmp_path, print)
    _is(programs, "go", "echo 'no route to the proxy' >&2; exit 1")
    (tmp_path / "again").mkdir()
    with pytest.raises(InstallFailed, match="no route to the proxy"):
        GeneratedMain().install(tmp_path / "again", print)


def test_without_go_the_api_server_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundplane.testing.servers.kubernetes.go", lambda: None)
    assert str(GeneratedMain().obstacle()).startswith("Go is not installed: https://go.dev/dl")


def test_the_programs_of_the_milvus_wheel_are_unpacked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unpacked(self: PyPI, folder: Path, report: sources.Report) -> None:
        packed = folder / "milvus" / "data" / "bin"
        packed.mkdir(parents=True)
        (packed / "milvus.lzma").write_bytes(lzma.compress(b"a program"))
        (packed / "libknowhere.so.lzma").write_bytes(lzma.compress(b"a library"))

    monkeypatch.setattr(PyPI, "install", unpacked)
    (source,) = milvus.SERVER.sources()
    source.install(tmp_path, print)
    assert (tmp_path / "server" / "milvus").read_bytes() == b"a program"
    assert os.access(tmp_path / "server" / "milvus", os.X_OK)
    assert (tmp_path / "server" / "libknowhere.so").read_bytes() == b"a library"
    assert not list(tmp_path.rglob("*.lzma"))
