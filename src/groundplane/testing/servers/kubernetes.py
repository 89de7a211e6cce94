"""The API server of Kubernetes alone, on a private etcd: stores, validates and watches; nothing runs what it stores.

Built from the Go module `k8s.io/kubernetes` by a generated main program. No controller and no scheduler run: whoever
tests with it writes EndpointSlices and statuses itself, a namespace that is deleted stays `Terminating`. One user,
`groundplane`, in group `system:masters`; RBAC holds for others. `KUBECONFIG` names a file for any client.

The etcd beside it does not sync: what was confirmed survives the end of processes, not of the machine. kill, pause and
restart mean the API server; its etcd goes on.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from groundplane.core.errors import Unavailable
from groundplane.testing.kubernetes import Cluster
from groundplane.testing.servers import etcd
from groundplane.testing.servers.contract import Installation, NotReady, Place, Program, Report, Server, Source
from groundplane.testing.servers.sources import InstallFailed, execute, go

VERSION = "1.35.0"
USER = "groundplane"
_STAGED = re.compile(r"^\s*(k8s\.io/\S+) => \./staging/", re.MULTILINE)
_GO = re.compile(r"^go (\S+)$", re.MULTILINE)
_MAIN = """package main

import (
	"os"
	_ "time/tzdata"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
"""


class GeneratedMain(Source):
    """kube-apiserver, built from its module: the published module has its parts under other versions (`staging`), so
    the go.mod replaces each of them, as Kubernetes' own does.
    """

    origin = "go"
    version = VERSION
    size_mb = 103
    seconds = 290

    @property
    def command(self) -> str:
        return f"go build of k8s.io/kubernetes/cmd/kube-apiserver@v{VERSION}"

    def find(self, folder: Path) -> Installation | None:
        program = folder / "bin" / "kube-apiserver"
        if not program.exists():
            return None
        return Installation(
            origin=self.origin, version=VERSION, programs={"kube-apiserver": program}, folder=folder
        )  # fmt: skip

    def obstacle(self) -> str | None:
        return None if go() else "Go is not installed: https://go.dev/dl, or apt-get install golang-go"

    def install(self, folder: Path, report: Report) -> None:
        program = go()
        if program is None:
            raise InstallFailed(str(self.obstacle()))
        source = folder / "source"
        source.mkdir()
        (source / "main.go").write_text(_MAIN, encoding="utf-8")
        (source / "go.mod").write_text(_module(_published(program, source, report)), encoding="utf-8")
        named = "k8s.io/component-base/version"
        major, minor, _ = VERSION.split(".")
        stamps = {"gitVersion": f"v{VERSION}", "gitMajor": major, "gitMinor": minor}
        flags = " ".join(["-s", "-w", *(f"-X {named}.{name}={value}" for name, value in stamps.items())])
        words = ["-mod=mod", "-trimpath", "-buildvcs=false", f"-ldflags={flags}", "-o", "../bin/kube-apiserver", "."]
        execute([program, "build", *words], report, cwd=source, env={"CGO_ENABLED": "0"})


def _published(program: str, cwd: Path, report: Report) -> str:
    """The go.mod of the published module."""
    words = [program, "mod", "download", "-json", f"k8s.io/kubernetes@v{VERSION}"]
    report("$ " + " ".join(words))
    done = subprocess.run(words, cwd=cwd.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InstallFailed(f"go mod download: ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return Path(json.loads(done.stdout)["GoMod"]).read_text(encoding="utf-8")


def _module(published: str) -> str:
    """Our go.mod: the same Go, and each staged module at the version that was released with it."""
    staged, found = _STAGED.findall(published), _GO.search(published)
    if not staged or found is None:
        raise InstallFailed("k8s.io/kubernetes: its go.mod names no staged modules; the kit expects another layout")
    released = "v0." + VERSION.partition(".")[2]
    replaced = "".join(f"\t{name} => {name} {released}\n" for name in staged)
    return (
        f"module groundplane.invalid/kube-apiserver\n\ngo {found[1]}\n\n"
        f"require k8s.io/kubernetes v{VERSION}\n\nreplace (\n{replaced})\n"
    )


class Kubernetes(Server):
    """See the module."""

    name = "kubernetes"
    title = "Kubernetes API server"
    ports = ("client", "etcd", "etcd_peer")
    needs = ("etcd",)
    customary = ("KUBECONFIG",)
    options: ClassVar[Mapping[str, str]] = {"arguments": "More words for the API server's command line, as a list."}

    def sources(self) -> Sequence[Source]:
        return [GeneratedMain()]

    def launch(self, place: Place) -> Sequence[Program]:
        (place.folder / "tokens.csv").write_text(f'{place.secret},{USER},1,"system:masters"\n', encoding="utf-8")
        (place.folder / "kubeconfig").write_text(_kubeconfig(place), encoding="utf-8")
        return [_etcd(place), _api_server(place)]

    def check(self, place: Place) -> None:
        if not _certificate(place).exists():
            raise NotReady("it has no certificate yet")
        try:
            status, body = Cluster(self.url(place)).request("GET", "/readyz", timeout_s=1.0)
        except Unavailable as error:
            raise NotReady(str(error)) from error
        if status != 200:
            raise NotReady(f"/readyz: {status} {body[:200]!r}")

    def url(self, place: Place) -> str:
        return f"https://{USER}:{place.secret}@127.0.0.1:{place.port}/?ca={quote(str(_certificate(place)))}"

    def urls(self, place: Place) -> Mapping[str, str]:
        return {"GROUNDPLANE_TEST_KUBERNETES_URL": self.url(place), "KUBECONFIG": str(place.folder / "kubeconfig")}


def _certificate(place: Place) -> Path:
    """Made by the server at its first start, with its own name in it; the authority follows in the same file."""
    return place.folder / "certificates" / "apiserver.crt"


def _etcd(place: Place) -> Program:
    own, peer = place.ports["etcd"], place.ports["etcd_peer"]
    words = ("--log-level", "error")
    started = etcd.program(str(place.others["etcd"].programs["etcd"]), place.data / "etcd", own, peer, words=words)
    return replace(started, companion=True)


def _api_server(place: Place) -> Program:
    key = _certificate(place).with_suffix(".key")
    flags = {
        "etcd-servers": f"http://127.0.0.1:{place.ports['etcd']}",
        "bind-address": "127.0.0.1",
        "advertise-address": "127.0.0.1",
        "secure-port": str(place.port),
        "cert-dir": str(key.parent),
        "service-account-issuer": "https://groundplane.invalid",
        "service-account-key-file": str(key),
        "service-account-signing-key-file": str(key),
        "service-cluster-ip-range": "10.0.0.0/24",
        "authorization-mode": "RBAC",
        "token-auth-file": str(place.folder / "tokens.csv"),
        "disable-admission-plugins": "ServiceAccount",  # no controller makes the accounts that it asks for
        "endpoint-reconciler-type": "none",
        "shutdown-delay-duration": "0s",
        "v": "0",
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    return Program(argv=[place.program("kube-apiserver"), *words, *map(str, place.options.get("arguments", ()))])


def _kubeconfig(place: Place) -> str:
    """JSON is YAML, and needs no library."""
    server = f"https://127.0.0.1:{place.port}"
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {"name": "test", "cluster": {"server": server, "certificate-authority": str(_certificate(place))}}
            ],
            "users": [{"name": USER, "user": {"token": place.secret}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": USER, "namespace": "default"}}],
        },
        indent=1,
    )


SERVER = Kubernetes()
