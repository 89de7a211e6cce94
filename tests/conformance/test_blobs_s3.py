"""The suite of blobs on S3 (MinIO and versitygw), and what is that driver's own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, quote, urlsplit
from urllib.request import urlopen

import boto3
import pytest

import leaks
from groundplane.backends.s3.bucket import LifecycleRule
from groundplane.blobs import Blobs, Capability
from groundplane.blobs.conformance import BlobConformance
from groundplane.blobs.drivers.s3 import S3Blobs
from groundplane.core.errors import (
    FailedPrecondition,
    GroundplaneError,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from groundplane.testing import eventually
from groundplane.testing.checkers import Memory
from groundplane.testing.servers import certificates

pytestmark = pytest.mark.anyio

_MIB = 1024 * 1024


def driver_of(blobs: Blobs) -> S3Blobs:
    return cast(S3Blobs, blobs.driver)


def with_option(url: str, **options: str) -> str:
    return url + "".join(f"&{name}={value}" for name, value in options.items())


@pytest.fixture
async def blobs(s3_url: str) -> AsyncIterator[Blobs]:
    async with Blobs.open(s3_url) as opened:
        yield opened


class TestS3Blobs(BlobConformance):
    @pytest.fixture
    async def blobs(self, s3_url: str) -> AsyncIterator[Blobs]:
        async with Blobs.open(s3_url) as opened:
            yield opened


class TestS3BlobsBelowAPrefix(BlobConformance):
    test_a_hundred_megabytes_pass_through_bounded_memory = None  # once is enough

    @pytest.fixture
    async def blobs(self, s3_url: str) -> AsyncIterator[Blobs]:
        bucket, _, query = s3_url.partition("?")
        async with (
            Blobs.open(f"{bucket}/of/somebody?{query}") as other,
            Blobs.open(f"{bucket}/of/some?{query}") as opened,
        ):
            await other.put("not/ours", b"1")
            yield opened


class TestS3BlobsOfAVersionedBucket(BlobConformance):
    test_a_hundred_megabytes_pass_through_bounded_memory = None

    @pytest.fixture
    async def blobs(self, s3_url: str) -> AsyncIterator[Blobs]:
        async with Blobs.open(s3_url) as plain:
            await driver_of(plain).bucket.set_versioning(True)
        async with Blobs.open(with_option(s3_url, versions="bucket")) as opened:
            assert Capability.VERSIONS in opened.capabilities
            yield opened


@pytest.fixture(scope="module")
def versity(own_server_of_module: Callable[..., Any]) -> Any:
    return own_server_of_module("s3@versitygw")


class TestVersityBlobs(BlobConformance):
    @pytest.fixture
    async def blobs(self, versity: Any, unique_name: str) -> AsyncIterator[Blobs]:
        url = f"s3://{unique_name}?create=true&endpoint={quote(versity.url, safe=':/@')}"
        async with Blobs.open(url) as opened:
            yield opened


# Opening --------------------------------------------------------------------------------------------------------------


async def refused(url: str) -> GroundplaneError:
    with pytest.raises(GroundplaneError) as caught:
        async with asyncio.timeout(15), Blobs.open(url):
            pass
    assert caught.value.message.startswith("blobs: ")
    return caught.value


@pytest.mark.req("BLOB-03.1")
async def test_a_missing_bucket_is_not_found_and_made_where_the_url_asks_for_it(s3_url: str, unique_name: str) -> None:
    missing = s3_url.replace(urlsplit(s3_url).netloc, f"{unique_name}-x")
    error = await refused(missing)
    assert (error.code, error.reason) == ("not_found", "bucket_not_found")
    assert "create it" in error.message
    assert error.__cause__ is not None
    async with Blobs.open(with_option(missing, create="true", versions="bucket")) as made:
        await made.put("k", b"1")
        assert await driver_of(made).bucket.versioning()
        assert not await driver_of(made).bucket.create()


@pytest.mark.req("BLOB-03.1")
@pytest.mark.parametrize("keys", ["nobody:wrong-secret", "{user}:wrong-secret"])
async def test_wrong_credentials_are_permission_denied(s3_url: str, keys: str) -> None:
    endpoint = urlsplit(parse_qs(urlsplit(s3_url).query)["endpoint"][0])
    keys = keys.format(user=endpoint.username)
    error = await refused(
        f"s3://{keys}@{urlsplit(s3_url).netloc}?endpoint={endpoint.scheme}://{endpoint.hostname}:{endpoint.port}"
    )
    assert isinstance(error, PermissionDenied)
    assert error.reason == "store_keys_refused"
    assert "wrong-secret" not in str(error)
    assert "AWS_ACCESS_KEY_ID" in error.message


@pytest.mark.req("BLOB-03.1")
async def test_credentials_come_from_the_environment_and_from_files(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = urlsplit(parse_qs(urlsplit(s3_url).query)["endpoint"][0])
    (tmp_path / "secret").write_text(endpoint.password or "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{endpoint.scheme}://{endpoint.hostname}:{endpoint.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", endpoint.username or "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY_FILE", str(tmp_path / "secret"))
    async with Blobs.open(f"s3://{urlsplit(s3_url).netloc}") as opened:
        await opened.put("k", b"1")
        assert await opened.get("k") == b"1"


async def as_somebody(s3_url: str, actions: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the bucket without keys; those of somebody who may do these things are in the environment."""
    endpoint = urlsplit(parse_qs(urlsplit(s3_url).query)["endpoint"][0])
    address = f"{endpoint.scheme}://{endpoint.hostname}:{endpoint.port}"
    policy = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": actions, "Resource": ["arn:aws:s3:::*"]}],
    }

    def assume() -> dict[str, str]:
        client = boto3.Session().client(
            "sts",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id=endpoint.username,
            aws_secret_access_key=endpoint.password,
        )
        try:
            role = {"RoleArn": "arn:aws:iam::123456789012:role/test", "RoleSessionName": "test"}
            found: dict[str, str] = client.assume_role(**role, Policy=json.dumps(policy))["Credentials"]
            return found
        finally:
            client.close()

    found = await asyncio.to_thread(assume)
    for name, key in (("ACCESS_KEY_ID", "AccessKeyId"), ("SECRET_ACCESS_KEY", "SecretAccessKey")):
        monkeypatch.setenv(f"AWS_{name}", found[key])
    monkeypatch.setenv("AWS_SESSION_TOKEN", found["SessionToken"])
    return f"s3://{urlsplit(s3_url).netloc}?endpoint={address}"


@pytest.mark.req("BLOB-03.1")
async def test_a_user_who_may_only_read_reads_and_is_denied_the_rest(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Blobs.open(s3_url) as owner:
        await owner.put("k", b"1")
        url = await as_somebody(s3_url, ["s3:GetObject", "s3:ListBucket"], monkeypatch)
        async with Blobs.open(url) as reader:
            assert await reader.get("k") == b"1"
            assert [info.key async for info in reader.list()] == ["k"]
            for call in (reader.put("k", b"2"), reader.put("k", _pieces(10)), reader.delete("k")):
                with pytest.raises(PermissionDenied) as caught:
                    await call
                assert caught.value.reason == "store_access_refused"
        assert await owner.get("k") == b"1"


async def test_a_user_who_may_not_see_the_uploads_of_others_can_upload_in_parts(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await as_somebody(s3_url, ["s3:GetObject", "s3:ListBucket", "s3:PutObject"], monkeypatch)
    async with Blobs.open(url) as writer:
        assert (await writer.put("k", _pieces(10))).size == 10 * _MIB


@pytest.mark.req("BLOB-03.1")
async def test_without_any_credentials_it_says_how_to_give_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    error = await refused("s3://bucket?endpoint=http://127.0.0.1:9")
    assert isinstance(error, PermissionDenied)
    assert "key:secret@" in error.message


@pytest.mark.req("BLOB-05.1")
async def test_a_store_that_is_not_there_is_unavailable() -> None:
    error = await refused("s3://key:secret@bucket?endpoint=http://127.0.0.1:9")
    assert (type(error), error.reason) == (Unavailable, "store_unreachable")
    assert "mend `endpoint`" in error.message


async def test_bucket_versions_that_are_off_are_told_at_the_start(s3_url: str) -> None:
    error = await refused(with_option(s3_url, versions="bucket"))
    assert isinstance(error, FailedPrecondition)
    assert "put-bucket-versioning" in error.message


@pytest.mark.req("BLOB-03.1")
async def test_a_store_behind_tls_is_trusted_by_the_certificates_of_the_url_alone(s3_url: str, tmp_path: Path) -> None:
    endpoint = urlsplit(parse_qs(urlsplit(s3_url).query)["endpoint"][0])
    await asyncio.to_thread(certificates.make, tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "server.pem", tmp_path / "tls" / "server.key")

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection(endpoint.hostname, endpoint.port)
        with contextlib.suppress(OSError):
            await asyncio.gather(carry(reader, to_writer), carry(to_reader, writer))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        url = (
            f"s3://{urlsplit(s3_url).netloc}?endpoint=https://{endpoint.username}:{endpoint.password}@127.0.0.1:{port}"
        )
        assert (await refused(url)).reason == "store_unreachable"
        async with Blobs.open(with_option(url, ca=str(tmp_path / "tls" / "ca.pem"), timeout="2")) as blobs:
            await blobs.put("k", b"1")
            await blobs.put("parts", _pieces(9))
            assert await blobs.get("k") == b"1"
            assert (await blobs.head("parts")).size == 9 * _MIB


async def test_certificates_that_are_not_there_are_told(s3_url: str) -> None:
    error = await refused(with_option(s3_url, ca="/no/such/file"))
    assert isinstance(error, FailedPrecondition)
    assert "/no/such/file" in error.message


async def test_when_it_is_closed_its_connections_are_gone_within_the_timeout(s3_url: str) -> None:
    before = set(leaks.descriptors().values())
    async with Blobs.open(with_option(s3_url, timeout="2")) as blobs:
        await asyncio.gather(*(blobs.put(f"k/{n}", b"1") for n in range(8)))
        assert len([info async for info in blobs.list()]) == 8
        with pytest.raises(NotFound):
            await blobs.get("missing")
        assert any(one.startswith("socket:") for one in set(leaks.descriptors().values()) - before)
    await eventually(lambda: not any(one.startswith("socket:") for one in set(leaks.descriptors().values()) - before))


# Objects --------------------------------------------------------------------------------------------------------------


@pytest.mark.req("BLOB-04.1")
async def test_bytes_that_were_changed_behind_our_back_are_never_returned(blobs: Blobs) -> None:
    await blobs.put("k", b"x" * 5000)
    driver = driver_of(blobs)
    name = driver._names.name("k")
    head = await driver.bucket.run(lambda c: c.head_object(Bucket=driver.address.bucket, Key=name), "test")
    await driver.bucket.run(
        lambda c: c.put_object(
            Bucket=driver.address.bucket, Key=name, Body=b"y" + b"x" * 4999, Metadata=head["Metadata"]
        ),
        "test",
    )
    with pytest.raises(Internal) as caught:
        await blobs.get("k")
    assert caught.value.reason == "checksum_mismatch"


@pytest.mark.req("BLOB-01.1")
async def test_objects_of_other_programs_are_read_in_a_plain_bucket_and_ours_are_what_they_are_called(
    s3_url: str,
) -> None:
    async with Blobs.open(with_option(s3_url, keys="plain")) as blobs:
        driver = driver_of(blobs)
        await driver.bucket.run(
            lambda c: c.put_object(
                Bucket=driver.address.bucket, Key="in/data.csv", Body=b"1,2", ContentType="text/csv"
            ),
            "test",
        )
        info = await blobs.head("in/data.csv")
        assert (info.size, info.content_type, info.checksum) == (3, "text/csv", "")
        assert await blobs.get("in/data.csv") == b"1,2"
        await blobs.put("in/data.tsv", b"1\t2", metadata={"who": "us"})
        seen = await driver.bucket.run(lambda c: c.head_object(Bucket=driver.address.bucket, Key="in/data.tsv"), "test")
        assert seen["Metadata"]["who"] == "us"
        assert [info.key async for info in blobs.list("in/data.c")] == ["in/data.csv"]
        assert [info.key async for info in blobs.list("in/data.csv")] == ["in/data.csv"]
        assert [info.key async for info in blobs.list()] == ["in/data.csv", "in/data.tsv"]


@pytest.mark.req("BLOB-04.1")
async def test_a_presigned_url_reads_the_object_with_any_http_client_until_it_expires(blobs: Blobs) -> None:
    await blobs.put("a b/ö?.txt", b"for everybody", content_type="text/plain")
    url = await blobs.presign("a b/ö?.txt", expires_s=60)

    def read() -> tuple[bytes, str]:
        with urlopen(url, timeout=10) as answer:
            return answer.read(), answer.headers["Content-Type"]

    assert await asyncio.to_thread(read) == (b"for everybody", "text/plain")
    assert "X-Amz-Expires=60" in url


@pytest.mark.req("BLOB-01.3")
@pytest.mark.parametrize("kind", ["stream", "bytes"])
async def test_a_hundred_megabytes_go_up_in_parts_with_bounded_memory_and_leave_no_upload(
    blobs: Blobs, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = driver_of(blobs)
    parts: list[int] = []
    part = driver.bucket.part

    async def seen(name: str, upload: str, number: int, body: Any, doing: str) -> str:
        parts.append(len(body))
        return await part(name, upload, number, body, doing)

    monkeypatch.setattr(driver.bucket, "part", seen)
    await blobs.put("warm", _pieces(9))
    parts.clear()
    data = b"".join([piece async for piece in _pieces(100)]) if kind == "bytes" else _pieces(100)
    memory = Memory()
    put = await blobs.put("huge", data, content_type="text/x", metadata={"who": "me"})
    digest = hashlib.sha256()
    async with blobs.open_object("huge") as reader:
        async for chunk in reader.chunks():
            digest.update(chunk)
    memory.check_growth(48 * _MIB)
    assert (sum(parts), len(parts)) == (100 * _MIB, 13)
    assert put.checksum == digest.hexdigest()
    assert await blobs.head("huge") == put
    assert await driver.bucket.uploads("", "test") == []


async def _pieces(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number % 251]) * _MIB


@pytest.mark.req("BLOB-04.1")
async def test_conditions_hold_for_uploads_in_parts(blobs: Blobs) -> None:
    first = await blobs.put("k", _pieces(10), create=True)
    with pytest.raises(GroundplaneError) as caught:
        await blobs.put("k", _pieces(10), create=True)
    assert caught.value.code == "already_exists"
    await blobs.put("k", _pieces(11), if_match=first.etag)
    with pytest.raises(GroundplaneError) as caught:
        await blobs.put("k", _pieces(12), if_match=first.etag)
    assert caught.value.code == "conflict"
    with pytest.raises(GroundplaneError) as caught:
        await blobs.put("absent", _pieces(12), if_match=first.etag)
    assert caught.value.code == "conflict"
    assert (await blobs.head("k")).size == 11 * _MIB
    assert await driver_of(blobs).bucket.uploads("", "test") == []


async def test_labels_over_what_headers_hold_are_refused_before_anything_is_sent(blobs: Blobs) -> None:
    with pytest.raises(InvalidArgument, match=r"^metadata: "):
        await blobs.put("k", b"", metadata={"ä": "ö" * 900})
    assert [info.key async for info in blobs.list()] == []


# Versions and lifecycle -----------------------------------------------------------------------------------------------


@pytest.mark.req("BLOB-02.1")
async def test_versions_of_the_bucket_survive_a_deletion(s3_url: str) -> None:
    async with Blobs.open(s3_url) as plain:
        await driver_of(plain).bucket.set_versioning(True)
    async with Blobs.open(with_option(s3_url, versions="bucket")) as blobs:
        await blobs.put("k", b"1")
        await blobs.put("k", b"2")
        await blobs.put("k/below", b"other")
        await blobs.delete("k")
        with pytest.raises(NotFound):
            await blobs.get("k")
        found = await blobs.versions("k")
        assert [await blobs.get("k", version=one.id) for one in found] == [b"2", b"1"]
        assert not any(one.present for one in found)
        assert await blobs.driver.delete(["k"], version=found[0].id) == 1
        assert await blobs.driver.delete(["k"], version=found[0].id) == 0
        with pytest.raises(NotFound):
            await blobs.get("k", version=found[0].id)


@pytest.mark.req("BLOB-02.3")
async def test_lifecycle_rules_are_set_for_keys_of_ours_beside_those_of_others(s3_url: str) -> None:
    bucket, _, query = s3_url.partition("?")
    async with Blobs.open(f"{bucket}/plane?{query}") as blobs:
        driver = driver_of(blobs)
        await driver.bucket.set_lifecycle([LifecycleRule(id="theirs", prefix="other/", expire_days=9)])
        await driver.set_lifecycle([LifecycleRule(id="claims", prefix="claims/", expire_days=14, keep_versions=3)])
        await driver.set_lifecycle([LifecycleRule(id="claims", prefix="claims/", expire_days=15)])
        rules = {one["ID"]: one for one in await driver.bucket.lifecycle()}
        assert set(rules) == {"theirs", "groundplane:plane:claims"}
        ours = rules["groundplane:plane:claims"]
        assert (ours["Filter"]["Prefix"], ours["Expiration"]) == ("plane/claims/", {"Days": 15})
        await driver.set_lifecycle([])
        assert [one["ID"] for one in await driver.bucket.lifecycle()] == ["theirs"]
        await driver.bucket.set_lifecycle([])
        assert await driver.bucket.lifecycle() == []


@pytest.mark.req("BLOB-02.3")
async def test_a_rule_that_the_store_does_not_know_is_refused(blobs: Blobs) -> None:
    with pytest.raises((InvalidArgument, Unsupported)) as caught:
        await driver_of(blobs).set_lifecycle([LifecycleRule(id="parts", abort_uploads_days=1)])
    assert caught.value.message.startswith("lifecycle: ")
