"""URLs of clusters: what they say, what is wrong with bad ones; how a cluster is found; errors by reason and status."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import httpx2
import pytest

from groundplane.backends.kubernetes import KubernetesAddress, parse_url
from groundplane.backends.kubernetes.errors import Status, of_status, refused, unanswered
from groundplane.backends.kubernetes.login import log_in
from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.core.reasons import REASONS
from groundplane.core.secrets import Secret

HERE = KubernetesAddress(server="https://10.0.0.1:6443", namespace="shop")


def test_a_url_says_all_that_is_needed() -> None:
    address = parse_url(
        "services",
        "kubernetes://me:s%2Fe%23@10.0.0.1:6443/shop?ca=/etc/ca.pem&selector=app%3Dx&timeout=2.5&connect_timeout=1"
        "&watch_timeout=1m&backoff=50ms&backoff_max=2",
    )
    assert address == KubernetesAddress(
        server="https://10.0.0.1:6443",
        namespace="shop",
        token=Secret("s/e#"),
        ca="/etc/ca.pem",
        selector="app=x",
        timeout_s=2.5,
        connect_timeout_s=1.0,
        watch_timeout_s=60.0,
        backoff_s=0.05,
        backoff_max_s=2.0,
    )
    assert address.shown == "https://10.0.0.1:6443 (namespace shop)"
    assert "s/e#" not in repr(address) + str(address)


def test_a_url_may_leave_the_cluster_to_the_machine() -> None:
    assert parse_url("services", "kubernetes://") == KubernetesAddress()
    assert parse_url("services", "kubernetes:///shop?kubeconfig=/k&context=dev") == KubernetesAddress(
        namespace="shop", kubeconfig="/k", context="dev"
    )
    assert parse_url("services", "kubernetes://[::1]/shop").server == "https://[::1]:443"


@pytest.mark.parametrize(
    "url, words",
    [
        ("k8s://x", "does not begin with kubernetes://"),
        ("kubernetes:///Shop", "'Shop' is not a namespace"),
        ("kubernetes:///a/b", "'a/b' is not a namespace"),
        ("kubernetes://me@host/", "a user without a token"),
        ("kubernetes://me:hidden@/", "a user or a port, and no host"),
        ("kubernetes://host:99999/", "[Pp]ort"),
        ("kubernetes:///?contxt=x", "unknown option 'contxt'.*did you mean 'context'"),
        ("kubernetes:///?context=a&context=b", "context is given twice"),
        ("kubernetes:///?context=", "context is empty"),
        ("kubernetes://host/?context=a", "context and a host exclude each other"),
        ("kubernetes:///?ca=/x", "ca needs the host"),
        ("kubernetes://me:hidden@host/?token_file=/x", "token_file is given beside a token"),
        ("kubernetes:///?service_account=/x&context=a", "exclude each other"),
        ("kubernetes:///?timeout=-1", "timeout: '-1' is not a positive duration"),
        ("kubernetes:///?watch_timeout=500ms", "whole seconds, at least 1"),
        ("kubernetes:///?backoff=3&backoff_max=2", "backoff is more than backoff_max"),
        ("kubernetes:///#x", "it has a '#'"),
    ],
)
def test_a_bad_url_is_refused_with_the_field_and_without_its_secret(url: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as refusal:
        parse_url("services", url)
    assert refusal.value.message.startswith("services: ")
    assert "hidden" not in str(refusal.value)


def test_without_any_configuration_it_is_said_what_to_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with pytest.raises(FailedPrecondition, match="kubernetes:///\\?kubeconfig=FILE") as refusal:
        log_in(KubernetesAddress())
    assert refusal.value.reason == "cluster_config"
    monkeypatch.setenv("KUBECONFIG", "/nowhere/a:/nowhere/b")
    with pytest.raises(FailedPrecondition, match="KUBECONFIG='/nowhere/a:/nowhere/b' names no file"):
        log_in(KubernetesAddress())


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: [token-word", "in line"),
        ("{}", "KeyError: 'clusters'"),
        ("{clusters: [], contexts: []}", "No current context"),
        ("{clusters: [], contexts: [], users: 7}", "TypeError"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_told_without_its_content(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(FailedPrecondition, match=words) as refusal:
        log_in(KubernetesAddress(kubeconfig=str(path)))
    assert refusal.value.reason == "cluster_config"
    assert str(path) in refusal.value.message
    assert "token-word" not in refusal.value.message


def test_a_context_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(json.dumps({"clusters": [], "contexts": [], "current-context": "dev"}))
    with pytest.raises(FailedPrecondition, match="'prod' not found"):
        log_in(KubernetesAddress(kubeconfig=str(path), context="prod"))


@pytest.mark.parametrize(
    "status, code, reason",
    [
        (Status(401, "Unauthorized", "no"), "permission_denied", "cluster_login_refused"),
        (Status(403, "Forbidden", "no"), "permission_denied", "cluster_access_refused"),
        (Status(403), "permission_denied", "cluster_access_refused"),
        (Status(404, "NotFound"), "not_found", ""),
        (Status(410, "Expired"), "failed_precondition", "version_expired"),
        (Status(410, "Gone"), "failed_precondition", "version_expired"),
        (Status(410), "failed_precondition", "version_expired"),
        (Status(400, "BadRequest"), "invalid_argument", ""),
        (Status(409, "Conflict"), "conflict", ""),
        (Status(409, "AlreadyExists"), "already_exists", ""),
        (Status(429, "TooManyRequests"), "resource_exhausted", "cluster_busy"),
        (Status(500, "ServerTimeout"), "unavailable", "cluster_error"),
        (Status(500, "SomethingNew"), "unavailable", "cluster_error"),
        (Status(502), "unavailable", "cluster_error"),
        (Status(504, "Timeout"), "unavailable", "cluster_error"),
        (Status(418, "Teapot"), "failed_precondition", ""),
    ],
)
def test_statuses_are_told_apart_by_reason_and_by_code(status: Status, code: str, reason: str) -> None:
    error = of_status(status, "services: listing", HERE)
    assert (error.code, error.reason) == (code, reason)
    assert error.message.startswith("services: listing at https://10.0.0.1:6443 (namespace shop)")
    assert error.details["status"] == status.code
    assert not reason or REASONS[reason].code == code


def test_an_answer_that_is_no_status_is_told_by_its_http_code() -> None:
    assert refused(503, b"<html>bad gateway", "services: listing", HERE).reason == "cluster_error"
    assert refused(403, b'{"reason": 7}', "services: listing", HERE).reason == "cluster_access_refused"


def test_what_keeps_a_server_from_answering_is_told_apart() -> None:
    def told(error: BaseException) -> tuple[str, str]:
        made = unanswered(error, "services: listing", HERE)
        return made.code, made.reason

    untrusted = httpx2.ConnectError("x")
    untrusted.__cause__ = ssl.SSLCertVerificationError("x")
    plain = httpx2.ConnectError("x")
    plain.__cause__ = ssl.SSLError(1, "wrong version")
    assert told(untrusted) == ("failed_precondition", "tls_failed")
    assert told(plain) == ("failed_precondition", "tls_failed")
    assert told(httpx2.ConnectError("x")) == ("unavailable", "cluster_unreachable")
    assert told(httpx2.ConnectTimeout("x")) == ("unavailable", "cluster_unreachable")
    assert told(httpx2.ReadTimeout("x")) == ("unavailable", "cluster_silent")
    assert told(TimeoutError()) == ("unavailable", "cluster_silent")
    assert told(httpx2.RemoteProtocolError("x")) == ("unavailable", "connection_lost")
