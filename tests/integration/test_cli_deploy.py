"""`groundplane deploy` on the command line, and the one-shot migration that its manifests run."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from groundplane.core.settings import Settings
from groundplane.plane import Plane
from integration.dev_plane import groundplane

pytestmark = pytest.mark.integration

APP = Path(__file__).resolve().parents[1] / "apps" / "deploy_app.py"
PASSWORD = "canary-9c07"
URLS = {
    "GROUNDPLANE_QUEUES_URL": f"amqp://acme:{PASSWORD}@broker.example.com/",
    "GROUNDPLANE_JOBS_URL": f"postgresql://acme:{PASSWORD}@database.example.com/acme",
    "GROUNDPLANE_LEDGER_URL": f"postgresql://acme:{PASSWORD}@database.example.com/acme",
    "GROUNDPLANE_BLOBS_URL": f"s3://bucket/prefix?endpoint=https://key:{PASSWORD}@s3.example.com",
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with the App, and settings that name servers."""
    shutil.copy(APP, tmp_path / "app.py")
    return tmp_path


def _deploy(home: Path, *words: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    run = groundplane("deploy", *words, folder=home, **(URLS if env is None else env))
    assert PASSWORD not in run.stdout + run.stderr
    return run


def test_kubernetes_prints_one_document_and_says_which_secrets_are_needed(home: Path) -> None:
    run = _deploy(home, "kubernetes", "app:app", "--image", "acme:1.0", "--name", "acme", "--namespace", "prod")
    assert run.returncode == 0, run.stderr
    kinds = [one["kind"] for one in yaml.safe_load_all(run.stdout)]
    assert kinds.count("Deployment") == 6
    assert kinds.count("ScaledObject") == 4
    assert "kubectl -n prod create secret generic acme-urls --from-literal=GROUNDPLANE_QUEUES_URL=…" in run.stderr
    first = "kubectl -n prod exec deployment/acme-gateway -- groundplane keys create admin --scope admin"
    assert first in run.stderr
    assert "htpasswd" not in run.stdout + run.stderr


@pytest.mark.req("CORE-05.1")
def test_the_same_app_gives_the_same_bytes(home: Path) -> None:
    words = ("kubernetes", "app:app", "--image", "acme:1.0")
    first, second = (_deploy(home, *words, env={**URLS, "PYTHONHASHSEED": seed}) for seed in ("1", "2"))
    assert first.stdout == second.stdout != ""


def test_into_a_folder_files_are_written_and_those_of_others_left(home: Path) -> None:
    out = home / "deploy"
    out.mkdir()
    (out / "Dockerfile").write_text("FROM mine\n")
    (out / "override.yaml").write_text("services: {}\n")
    run = _deploy(home, "compose", "app:app", "--image", "acme:1.0", "--out", out)
    assert (run.returncode, run.stdout) == (0, f"{out}/compose.yaml\n{out}/Dockerfile.dockerignore\n")
    assert "Dockerfile is left as it is" in run.stderr
    assert (out / "Dockerfile").read_text() == "FROM mine\n"
    assert set(yaml.safe_load((out / "compose.yaml").read_text())["services"]) >= {
        "migration",
        "gateway-1",
        "gateway-2",
        "ends",
    }
    assert (out / "override.yaml").exists()


def test_the_file_of_an_actor_that_is_gone_is_removed(home: Path) -> None:
    words = ("kubernetes", "app:app", "--image", "acme:1.0", "--name", "acme", "--out", "deploy", "--json")
    written = json.loads(_deploy(home, *words).stdout)["written"]
    assert "deploy/50-acme-actor-split.yaml" in written
    (home / "app.py").write_text(
        "from groundplane import App\n\napp = App('acme')\n\n\n@app.actor\ndef double(value: int) -> int: ...\n"
    )
    again = _deploy(home, *words)
    assert not (home / "deploy" / "50-acme-actor-split.yaml").exists()
    assert (home / "deploy" / "50-acme-actor-double.yaml").exists()
    assert len(json.loads(again.stdout)["written"]) == 5


def test_manifests_of_both_kinds_stay_in_one_folder(home: Path) -> None:
    out = home / "deploy"
    _deploy(home, "kubernetes", "app:app", "--image", "acme:1.0", "--out", out)
    manifests = {one.name for one in out.iterdir()}
    run = _deploy(home, "compose", "app:app", "--image", "acme:1.0", "--out", out)
    assert "removed" not in run.stderr
    _deploy(home, "kubernetes", "app:app", "--image", "acme:1.0", "--out", out)
    assert {one.name for one in out.iterdir()} == manifests | {"compose.yaml", "Dockerfile", "Dockerfile.dockerignore"}


def test_an_app_in_a_folder_is_found_there_in_the_image(home: Path) -> None:
    (home / "src").mkdir()
    (home / "app.py").rename(home / "src" / "app.py")
    run = _deploy(home, "compose", "src/app.py", "--image", "acme:1.0", "--folder", "/srv", "--json")
    services = yaml.safe_load(json.loads(run.stdout)["files"]["compose.yaml"])["services"]
    assert services["double-runtime"]["working_dir"] == "/srv/src"
    assert services["gateway-1"]["command"][:3] == ["groundplane", "run", "app"]


@pytest.mark.parametrize(
    "words, env, code, said",
    [
        (("app:app", "--image", "acme:1"), {}, 2, "queues: 'embedded://' is a folder of one machine"),
        (("app:app", "--image", "Acme"), URLS, 2, "image: 'Acme' is no reference of an image"),
        (("app:app",), URLS, 2, "--image"),
        (("app:nobody", "--image", "acme:1"), URLS, 1, "'nobody'"),
        (("empty:app", "--image", "acme:1"), URLS, 2, "app: 'empty:app' declares no actors"),
        (("app:app", "--image", "acme:1", "--namespace", "My_Space"), URLS, 2, "namespace: 'My_Space'"),
        (("app:app", "--image", "acme:1", "--replicas-max", "0"), URLS, 2, "replicas_max: 0"),
    ],
)
def test_what_cannot_be_deployed_is_refused_by_name(
    home: Path, words: tuple[str, ...], env: dict[str, str], code: int, said: str
) -> None:
    (home / "empty.py").write_text("from groundplane import App\n\napp = App('empty')\n")
    run = _deploy(home, "kubernetes", *words, env=env)
    assert run.returncode == code, run.stderr
    assert said in run.stderr
    assert run.stdout == ""


def test_tools_of_yaml_files_come_along(home: Path) -> None:
    (home / "routes").mkdir()
    (home / "routes" / "more.yaml").write_text("tools:\n  - {name: again, route: [double]}\n")
    run = _deploy(home, "kubernetes", "app:app", "--image", "acme:1", env={**URLS, "GROUNDPLANE_ROUTES": "routes"})
    configs = [one for one in yaml.safe_load_all(run.stdout) if one["kind"] == "ConfigMap"]
    assert [one["data"] for one in configs if "more.yaml" in one["data"]]


class TestMigration:
    @pytest.mark.req("CORE-08.2", "CORE-06.1")
    def test_it_makes_the_schema_and_the_queues_of_the_app_and_may_run_again(self, home: Path) -> None:
        words = ("db", "upgrade", "--app", "app:app", "--state", "state", "--json")
        for _ in range(2):
            run = groundplane(*words, folder=home)
            assert run.returncode == 0, run.stderr
            declared = json.loads(run.stdout)["queues"]
        assert declared == ["double", "lookUp", "split", "sum.all", "happy-end", "error-end"]
        assert asyncio.run(_queues(home / "state")) == {"double": 6, "lookUp": 6, "split": 6, "sum.all": 6}

    def test_a_server_that_is_away_is_waited_for_and_named(self, home: Path) -> None:
        env = {"GROUNDPLANE_JOBS_URL": "postgresql://127.0.0.1:1/acme"}
        run = groundplane("db", "upgrade", "--wait", "1s", "--state", "state", folder=home, **env)
        assert run.returncode == 1
        assert "127.0.0.1:1" in run.stderr.replace("port 1", "127.0.0.1:1")

    def test_who_waits_for_it_goes_on_when_it_is_done(self, home: Path) -> None:
        (home / "state").mkdir()
        command = [
            str(Path(sys.executable).with_name("groundplane")),
            "db",
            "check",
            "--wait",
            "30s",
            "--state",
            "state",
        ]
        waiting = subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            assert groundplane("db", "upgrade", "--state", "state", folder=home).returncode == 0
            text, _ = waiting.communicate(timeout=30)
        finally:
            waiting.kill()
        assert waiting.returncode == 0, text

    def test_on_a_server_looking_makes_nothing_and_upgrading_does(self, home: Path, postgres_url: str) -> None:
        env = {"GROUNDPLANE_JOBS_URL": postgres_url, "GROUNDPLANE_LEDGER_URL": postgres_url}
        (home / "state").mkdir()
        for _ in range(2):
            run = groundplane("db", "check", "--state", "state", "--json", folder=home, **env)
            found = {one["store"]: one["reason"] for one in json.loads(run.stdout)}
            assert (run.returncode, found["jobs"], found["ledger"]) == (1, "schema_old", "schema_old")
        assert groundplane("db", "upgrade", "--state", "state", folder=home, **env).returncode == 0
        assert groundplane("db", "check", "--state", "state", folder=home, **env).returncode == 0


async def _queues(state: Path) -> dict[str, Any]:
    async with Plane.open(Settings(state=state), ports=("queues",)) as plane:
        return {one.name: one.attempts_max for one in await plane.queues.queues() if not one.name.endswith("-end")}
