"""The App of `apps/deploy_app.py` as a plan, the same in every test of manifests."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import msgspec
import yaml

from groundplane.cli.loading import Description, describe_apart
from groundplane.core.secrets import Url
from groundplane.core.settings import Settings
from groundplane.deploy.plan import Plan, plan_of

GOLDEN = Path(__file__).parent / "golden" / "deploy"
IMAGE = "registry.example.com/acme/plane:1.0"
PASSWORD = "canary-4f1b"
SETTINGS = Settings(
    name="acme",
    queues=Url(f"amqp://acme:{PASSWORD}@broker.example.com/acme"),
    jobs=Url(f"postgresql://acme:{PASSWORD}@database.example.com/acme"),
    ledger=Url(f"postgresql://acme:{PASSWORD}@database.example.com/acme"),
    blobs=Url(f"s3://bucket/prefix?endpoint=https://key:{PASSWORD}@s3.example.com"),
    grace_s=20.0,
    allowed_hosts=("gateway.example.com",),
)
SERVING = msgspec.structs.replace(
    SETTINGS,
    kv=Url(f"nats://acme:{PASSWORD}@nats.example.com:4222"),
    bus=Url(f"nats://acme:{PASSWORD}@nats.example.com:4222"),
)
"""With what an App needs that serves something."""
ROUTES = {"tools.yaml": "tools:\n  - name: again\n    route: [double, double]\n"}


@functools.cache
def description() -> Description:
    """The App, described in a process of its own."""
    return describe_apart("deploy_app:app", Path(__file__).parent / "apps")


def plan(settings: Settings = SETTINGS, **more: Any) -> Plan:
    """The plan of the App."""
    given = {"image": IMAGE, "actors": description().actors.values(), "routes": ROUTES, **more}
    return plan_of(app="deploy_app:app", settings=settings, **given)


def objects(files: dict[str, str]) -> list[dict[str, Any]]:
    """All documents of YAML files."""
    return [one for text in files.values() for one in yaml.safe_load_all(text)]
