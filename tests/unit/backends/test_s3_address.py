"""URLs of buckets: what they say, where the rest comes from, and what is wrong with bad ones; errors by code."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundplane.backends.s3 import S3Address, parse_url
from groundplane.backends.s3.errors import translate
from groundplane.core.errors import InvalidArgument
from groundplane.core.secrets import Secret

KEYS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hidden"}


def parsed(url: str, environ: dict[str, str] | None = None) -> S3Address:
    return parse_url("blobs", url, environ or {})


def test_a_url_says_all_that_is_needed() -> None:
    address = parsed(
        "s3://me:s%2Fe+c%3F@bucket/some/prefix/?endpoint=http://127.0.0.1:9000&region=eu-west-1&timeout=2.5"
        "&connect_timeout=1&style=virtual&keys=plain&versions=bucket&create=true&ca=/etc/ca.pem"
    )
    assert address == S3Address(
        bucket="bucket",
        prefix="some/prefix",
        endpoint="http://127.0.0.1:9000",
        region="eu-west-1",
        access_key="me",
        secret_key=Secret("s/e+c?"),
        timeout_s=2.5,
        connect_timeout_s=1.0,
        virtual_host=True,
        keys="plain",
        versions="bucket",
        create=True,
        ca="/etc/ca.pem",
    )
    assert address.shown == "'s3://bucket/some/prefix' at http://127.0.0.1:9000"


def test_credentials_may_stand_in_the_endpoint_and_are_shown_nowhere() -> None:
    address = parsed("s3://bucket?endpoint=https://me:hidden@store.example:9000/")
    assert (address.endpoint, address.access_key) == ("https://store.example:9000", "me")
    assert address.secret_key == Secret("hidden")
    assert "hidden" not in repr(address) + str(address) + address.shown


def test_the_environment_gives_what_the_url_does_not(tmp_path: Path) -> None:
    address = parsed("s3://bucket", {**KEYS, "AWS_SESSION_TOKEN": "t", "AWS_DEFAULT_REGION": "a", "AWS_REGION": "b"})
    assert (address.access_key, address.secret_key, address.session_token) == ("me", Secret("hidden"), Secret("t"))
    assert (address.region, address.endpoint) == ("b", None)
    both = {"AWS_ENDPOINT_URL": "http://all:1", "AWS_ENDPOINT_URL_S3": "http://s3:1"}
    assert parsed("s3://bucket", both).endpoint == "http://s3:1"
    (tmp_path / "secret").write_text("from the file\n")
    file = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY_FILE": str(tmp_path / "secret")}
    assert parsed("s3://bucket", file).secret_key == Secret("from the file")


def test_credentials_of_the_url_win_and_take_no_token_of_the_environment_along() -> None:
    address = parsed("s3://you:yours@bucket", {**KEYS, "AWS_SESSION_TOKEN": "mine"})
    assert (address.access_key, address.secret_key, address.session_token) == ("you", Secret("yours"), None)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://", "name of a bucket"),
        ("s3://Bucket_1", "'Bucket_1' is not the name of a bucket"),
        ("s3://b", "name of a bucket"),
        ("s3://bucket?endpoint=127.0.0.1:9000", "endpoint must be http"),
        ("s3://bucket?endpoint=http://host/path", "endpoint must be scheme, host and port alone"),
        ("s3://bucket?endpoint=http://host:port", "[Pp]ort"),
        ("s3://bucket?endpont=http://host", "unknown option 'endpont'.*did you mean 'endpoint'"),
        ("s3://bucket?timeout=soon", "timeout is 'soon'"),
        ("s3://bucket?timeout=0", "timeout is '0'"),
        ("s3://bucket?style=dns", "style is 'dns'; use 'path' or 'virtual'"),
        ("s3://bucket?create=yes", "create is 'yes'"),
        ("s3://bucket?region=a&region=b", "region is given twice"),
        ("s3://bucket/a//b", "segment that is empty"),
        ("s3://bucket/../b", "segment that is empty, '.' or '..'"),
        ("s3://bucket/" + "x" * 201, "longer than 200 bytes"),
        ("s3://key@bucket", "access key without a secret"),
        ("s3://bucket#x", "'#'"),
    ],
)
def test_a_bad_url_is_refused_with_what_is_wrong(url: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^blobs: .*{said}"):
        parsed(url)


def test_half_of_the_credentials_is_an_error_and_no_secret_is_quoted() -> None:
    with pytest.raises(InvalidArgument, match="only one is set"):
        parsed("s3://bucket", {"AWS_ACCESS_KEY_ID": "me"})
    with pytest.raises(InvalidArgument) as caught:
        parsed("s3://me:hidden@bucket?endpoint=http://me:hidden@host/path")
    assert "hidden" not in str(caught.value)


class Answer(Exception):
    def __init__(self, code: str, status: int) -> None:
        super().__init__(
            f"status code: {status} X: <Error><Code>{code}</Code></Error>" if code else f"status code: {status}"
        )


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("NoSuchBucket", 404, ("not_found", "bucket_not_found", False)),
        ("InvalidAccessKeyId", 403, ("permission_denied", "store_keys_refused", False)),
        ("SignatureDoesNotMatch", 403, ("permission_denied", "store_keys_refused", False)),
        ("AccessDenied", 403, ("permission_denied", "store_access_refused", False)),
        ("RequestTimeTooSkewed", 403, ("failed_precondition", "clock_skew", False)),
        ("SlowDown", 503, ("resource_exhausted", "store_busy", True)),
        ("XMinioStorageFull", 507, ("resource_exhausted", "disk_full", True)),
        ("IncompleteBody", 400, ("unavailable", "store_error", True)),
        ("RequestTimeout", 400, ("unavailable", "store_error", True)),
        ("InternalError", 500, ("unavailable", "store_error", True)),
        ("", 403, ("permission_denied", "store_access_refused", False)),
        ("", 502, ("unavailable", "store_error", True)),
        ("SomethingNew", 418, ("failed_precondition", "", False)),
    ],
)
def test_errors_are_told_by_their_code(code: str, status: int, expected: tuple[str, str, bool]) -> None:
    error = translate(Answer(code, status), "key: reading 'k'", parsed("s3://bucket"))
    assert (error.code, error.reason, error.retryable) == expected
    assert error.message.startswith("key: reading 'k' in 's3://bucket' in us-east-1")


def test_the_code_of_a_deletion_among_many_is_read_and_one_in_a_key_is_not() -> None:
    address = parsed("s3://bucket")
    deletion = 'DeleteObjects request failed for key k: Access Denied. (code: AccessDenied)\n  code: "AccessDenied",'
    assert translate(OSError(deletion), "key: deleting", address).code == "permission_denied"
    odd = "at location <Error><Code>AccessDenied</Code> status code: 404 X: <Error><Code>NoSuchKey</Code></Error>"
    assert translate(OSError(odd), "key: reading", address).code == "not_found"


def test_no_answer_at_all_is_unavailable() -> None:
    error = translate(OSError("no route"), "key: reading 'k'", parsed("s3://bucket"))
    assert (error.code, error.reason, error.retryable) == ("unavailable", "store_unreachable", True)
