"""An S3 server: MinIO (default) or versitygw (`s3@versitygw`), both built from their Go modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import NotReady, Place, Program, Server, Source
from groundplane.testing.servers.sources import Go

ACCESS_KEY = "groundplane"


class S3Server(Server):
    """S3."""

    name = "s3"
    title = "S3 (MinIO or versitygw)"
    light = True
    ports = ("api", "console")
    options: ClassVar[Mapping[str, str]] = {"env": "Variables of the server's environment, as a mapping."}

    def sources(self) -> Sequence[Source]:
        minio, versity = "github.com/minio/minio", "github.com/versity/versitygw"
        return (
            Go(minio, module=minio, version="v0.0.0-20260212201848-7aac2a2c5b7c", shown="minio", program="minio",
               size_mb=110, seconds=150),
            Go(f"{versity}/cmd/versitygw", module=versity, version="v1.8.0", shown="versitygw", program="versitygw",
               size_mb=60, seconds=60),
        )  # fmt: skip

    def launch(self, place: Place) -> Sequence[Program]:
        address = f"{wire.HOST}:{place.port}"
        extra = place.options.get("env", {})
        if "minio" in place.installation.programs:
            keys = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": place.secret, "MINIO_UPDATE": "off"}
            console = f"{wire.HOST}:{place.ports['console']}"
            words = ["server", "--address", address, "--console-address", console, str(place.data)]
            return [Program(argv=[place.program("minio"), *words], env={**keys, **extra})]
        keys = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": place.secret}
        versions = place.folder / "versions"
        versions.mkdir(exist_ok=True)
        words = ["--port", address, "--health", "/health", "posix", "--versioning-dir", str(versions), str(place.data)]
        return [Program(argv=[place.program("versitygw"), *words], env={**keys, **extra})]

    def check(self, place: Place) -> None:
        path = "/minio/health/ready" if "minio" in place.installation.programs else "/health"
        wire.expect(200, place.port, path)
        status, body = wire.s3("GET", place.port, "/", keys=(ACCESS_KEY, place.secret))
        if status != 200:
            raise NotReady(f"list of buckets: {status} {body[:200]!r}")

    def url(self, place: Place) -> str:
        return f"http://{ACCESS_KEY}:{place.secret}@{wire.HOST}:{place.port}"

    def urls(self, place: Place) -> Mapping[str, str]:
        endpoint = f"http://{wire.HOST}:{place.port}"
        return {
            "GROUNDPLANE_TEST_S3_URL": self.url(place),
            "AWS_ENDPOINT_URL": endpoint, "AWS_ENDPOINT_URL_S3": endpoint, "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": place.secret, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }  # fmt: skip


SERVER = S3Server()
