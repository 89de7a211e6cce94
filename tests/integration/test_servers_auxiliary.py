"""The small servers beside a plane: Prometheus with two helpers, nginx before a gateway, a receiver of telemetry, an
authorization server.
"""

from __future__ import annotations

import gzip
import json
import threading
import urllib.error
import urllib.request
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.testing.servers import oidc, otlp
from groundplane.testing.servers.contract import StartFailed
from groundplane.testing.servers.instance import Instance
from integration.server_lab import goes_through_its_life, private
from leaks import eventually

pytestmark = [pytest.mark.integration, pytest.mark.req("KIT-01")]
_WAIT_S = 20.0


def _ask(url: str, *, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        content: bytes = answer.read()
        return content


def _value(prometheus: str, query: str) -> float | None:
    """What a query says now; None where it has no sample."""
    found = json.loads(_ask(f"{prometheus}/api/v1/query?query={quote(query)}"))["data"]["result"]
    return float(found[0]["value"][1]) if found else None


def _push(gateway: str, value: int) -> None:
    _ask(f"{gateway}/metrics/job/nightly", method="PUT", body=f"records_total {value}\n".encode())


@pytest.mark.prometheus
@pytest.mark.pushgateway
@pytest.mark.slow
def test_prometheus_scrapes_what_a_job_pushed_and_keeps_it_over_kill_and_restart() -> None:
    with private("pushgateway") as gateway:
        _push(gateway.url, 7)
        with private("prometheus", targets=[f"127.0.0.1:{gateway.port}"]) as server:
            assert eventually(lambda: _value(server.url, 'records_total{job="nightly"}') == 7, _WAIT_S)
            goes_through_its_life(server)
            goes_through_its_life(gateway)
            assert _value(server.url, 'max_over_time(records_total{job="nightly"}[10m])') == 7
            _push(gateway.url, 8)
            assert eventually(lambda: _value(server.url, 'records_total{job="nightly"}') == 8, _WAIT_S)


@pytest.mark.prometheus
@pytest.mark.slow
def test_prometheus_scrapes_targets_that_are_told_while_it_runs() -> None:
    with private("prometheus") as server:
        told = [{"targets": [f"127.0.0.1:{server.port}"], "labels": {"role": "itself"}}]
        (server.folder / "targets" / "later.json").write_text(json.dumps(told))
        assert eventually(lambda: _value(server.url, 'up{role="itself"}') == 1, _WAIT_S)


@pytest.mark.prometheus
@pytest.mark.alertmanager
@pytest.mark.slow
def test_a_rule_that_fires_reaches_a_webhook_through_alertmanager() -> None:
    rules = {"groups": [{"name": "g", "rules": [{"alert": "Fires", "expr": "vector(1)", "labels": {"team": "a"}}]}]}
    with _hears() as (url, heard), private("alertmanager", webhook=url) as manager:
        with private("prometheus", rules=rules, alertmanagers=[f"127.0.0.1:{manager.port}"]):
            assert eventually(lambda: any("Fires" in json.dumps(one) for one in heard), _WAIT_S)
        first = json.loads(heard[0])
        assert first["status"] == "firing"
        assert first["alerts"][0]["labels"] == {"alertname": "Fires", "team": "a"}
        goes_through_its_life(manager)


@pytest.mark.alertmanager
@pytest.mark.smtp
def test_an_alert_is_mailed_to_the_kits_mailbox() -> None:
    from groundplane.testing.servers.smtp import caught

    with (
        private("smtp") as mail,
        private("alertmanager", smtp=f"127.0.0.1:{mail.port}", mail_to="ops@x.test") as server,
    ):
        alert = [{"labels": {"alertname": "Low"}, "annotations": {"summary": "the queue stands"}}]
        told = {"Content-Type": "application/json"}
        _ask(f"{server.url}/api/v2/alerts", method="POST", body=json.dumps(alert).encode(), headers=told)
        assert eventually(lambda: bool(caught(mail.data, to="ops@x.test")), _WAIT_S)
        (message,) = caught(mail.data, to="ops@x.test")
        assert "[FIRING:1]" in str(message["Subject"])
        assert "Low" in str(message["Subject"])


@contextmanager
def _hears(answer: bytes = b"{}") -> Iterator[tuple[str, list[str]]]:
    """An HTTP server in this process and the bodies, or paths, that it was asked with."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self._answer()

        def do_GET(self) -> None:
            heard.append(self.path)
            self._answer()

        def _answer(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing to the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/", heard
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.nginx
def test_nginx_hands_requests_on_to_its_upstreams_in_turn() -> None:
    with _hears(b"one") as (first, asked_of_first), _hears(b"two") as (second, _):
        addresses = [one.removeprefix("http://").rstrip("/") for one in (first, second)]
        with private("nginx", upstream=addresses) as server:
            assert {_ask(f"{server.url}/v1/jobs?limit=1") for _ in range(4)} == {b"one", b"two"}
            assert asked_of_first[0] == "/v1/jobs?limit=1"
            goes_through_its_life(server)
            assert {_ask(f"{server.url}/again") for _ in range(4)} == {b"one", b"two"}
            server.pause()
            with pytest.raises(TimeoutError):
                urllib.request.urlopen(f"{server.url}/paused", timeout=0.3)
            server.resume()
            assert _ask(server.url) in (b"one", b"two")


@pytest.mark.nginx
def test_nginx_hands_a_stream_on_as_it_comes() -> None:
    """The second event is sent only after the first one has arrived behind the proxy."""
    with _streams() as (address, go_on), private("nginx", upstream=address) as server:
        with urllib.request.urlopen(f"{server.url}/events", timeout=10) as answer:
            assert answer.readline() == b"data: first\n"
            go_on.set()
            assert answer.read() == b"data: second\n"


@contextmanager
def _streams() -> Iterator[tuple[str, threading.Event]]:
    """A server in this process that sends an event, waits until it is told to go on, and sends another."""
    go_on = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b"data: first\n")
            if go_on.wait(_WAIT_S):
                self.wfile.write(b"data: second\n")

        def log_message(self, *_: object) -> None:
            """Nothing to the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", go_on
        finally:
            go_on.set()
            server.shutdown()
            thread.join()


@pytest.mark.nginx
def test_nginx_without_an_upstream_serves_its_folder_and_takes_more_words() -> None:
    with private("nginx", server="location = /told { return 203; }") as server:
        (server.data / "index.html").write_text("here")
        (server.data / "index.html").chmod(0o644)
        assert _ask(server.url) == b"here"
        with urllib.request.urlopen(f"{server.url}/told", timeout=5) as answer:
            assert answer.status == 203


@pytest.mark.nginx
def test_a_configuration_that_nginx_refuses_is_told_with_its_own_words() -> None:
    with pytest.raises(StartFailed, match="unknown directive"), private("nginx", server="nonsense on;"):
        pass
    with pytest.raises(StartFailed, match="upstream"), private("nginx", upstream="no address; }"):
        pass


# Telemetry ----------------------------------------------------------------------------------------------------------

_TRACE_ID, _SPAN_ID = bytes(range(16)), bytes(range(8))


@pytest.fixture
def receiver() -> Iterator[Instance]:
    with private("otlp") as server:
        yield server


def _spans(name: str) -> bytes:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name, span.kind = _TRACE_ID, _SPAN_ID, name, 2
    return bytes(request.SerializeToString())


def _export(url: str, signal: str, body: bytes, **headers: str) -> bytes:
    told = {"Content-Type": "application/x-protobuf", **{k.replace("_", "-"): v for k, v in headers.items()}}
    return _ask(f"{url}/v1/{signal}", method="POST", body=body, headers=told)


def _only_span(one: dict[str, Any]) -> dict[str, Any]:
    span: dict[str, Any] = one["request"]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    return span


@pytest.mark.otlp
def test_exports_of_each_signal_are_decoded_and_remembered_in_order(receiver: Instance) -> None:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    metrics, logs = ExportMetricsServiceRequest(), ExportLogsServiceRequest()
    metrics.resource_metrics.add().scope_metrics.add().metrics.add().name = "queue.depth"
    logs.resource_logs.add().scope_logs.add().log_records.add().body.string_value = "ready"
    assert _export(receiver.url, "traces", _spans("hop")) == b""
    _export(receiver.url, "metrics", metrics.SerializeToString())
    _export(receiver.url, "logs", logs.SerializeToString())
    assert [one["signal"] for one in otlp.received(receiver.url)] == ["traces", "metrics", "logs"]
    (trace,) = otlp.received(receiver.url, "traces")
    assert _only_span(trace) == {"traceId": _TRACE_ID.hex(), "spanId": _SPAN_ID.hex(), "name": "hop", "kind": 2}
    assert "queue.depth" in json.dumps(otlp.received(receiver.url, "metrics"))
    assert "ready" in json.dumps(otlp.received(receiver.url, "logs"))
    otlp.clear(receiver.url)
    assert otlp.received(receiver.url) == []


@pytest.mark.otlp
def test_gzip_and_json_exports_say_the_same_as_plain_protobuf(receiver: Instance) -> None:
    plain = _spans("hop")
    _export(receiver.url, "traces", gzip.compress(plain), Content_Encoding="gzip")
    written = json.dumps(otlp.received(receiver.url)[0]["request"]).encode()
    _export(receiver.url, "traces", written, Content_Type="application/json; charset=utf-8")
    first, second = otlp.received(receiver.url, "traces")
    assert first["request"] == second["request"]


@pytest.mark.otlp
@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"\xff\xff", {}, 400),
        (b"{", {"Content_Type": "application/json"}, 400),
        (b"[]", {"Content_Type": "application/json"}, 400),
        (b"no gzip", {"Content_Encoding": "gzip"}, 400),
        (b"x", {"Content_Encoding": "br"}, 400),
        (b"x", {"Content_Type": "text/plain"}, 415),
    ],
)
def test_an_export_that_does_not_decode_is_refused_and_not_remembered(
    receiver: Instance, body: bytes, headers: dict[str, str], status: int
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        _export(receiver.url, "traces", body, **headers)
    with refused.value as answer:
        assert answer.code == status
        assert json.loads(answer.read())["message"]
    assert otlp.received(receiver.url) == []


@pytest.mark.otlp
def test_the_receiver_may_be_told_to_refuse_and_to_accept_again(receiver: Instance) -> None:
    otlp.answer_with(receiver.url, 503, retry_after_s=2)
    with pytest.raises(urllib.error.HTTPError) as refused:
        _export(receiver.url, "traces", _spans("hop"))
    with refused.value as answer:
        assert (answer.code, answer.headers["Retry-After"]) == (503, "2")
    with pytest.raises(InvalidArgument, match="answer"):
        otlp.answer_with(receiver.url, 99)
    otlp.answer_with(receiver.url)
    _export(receiver.url, "traces", _spans("hop"))
    assert len(otlp.received(receiver.url)) == 1


@pytest.mark.otlp
def test_the_receiver_lives_through_kill_and_restart(receiver: Instance) -> None:
    goes_through_its_life(receiver)
    _export(receiver.url, "traces", _spans("after"))
    assert _only_span(otlp.received(receiver.url)[0])["name"] == "after"
    assert receiver.urls["OTEL_EXPORTER_OTLP_ENDPOINT"] == receiver.url


# Authorization ------------------------------------------------------------------------------------------------------


def _key_ids(url: str) -> list[str]:
    keys: list[dict[str, str]] = json.loads(_ask(f"{url}/jwks"))["keys"]
    assert all(key["use"] == "sig" and "d" not in key for key in keys)
    return [key["kid"] for key in keys]


def _header_and_claims(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    header, claims = (json.loads(urlsafe_b64decode(part + "==")) for part in token.split(".")[:2])
    return header, claims


@pytest.mark.oidc
def test_the_authorization_server_signs_tokens_for_a_resource_and_keeps_its_keys_over_kill_and_restart() -> None:
    with private("oidc", algorithm="ES256", lifetime_s=60) as server:
        (first,) = _key_ids(server.url)
        second = oidc.rotate(server.url, keep=True)
        assert _key_ids(server.url) == [second, first]
        goes_through_its_life(server)
        assert _key_ids(server.url) == [second, first]
        header, claims = _header_and_claims(oidc.token(server.url, resource="https://a.example/mcp", scope="tools:*"))
        assert (header["alg"], header["typ"], header["kid"]) == ("ES256", "at+jwt", second)
        assert (claims["iss"], claims["aud"], claims["client_id"]) == (server.url, "https://a.example/mcp", "client")
        assert (claims["scope"], claims["exp"] - claims["iat"]) == ("tools:*", 60)
        third = oidc.rotate(server.url)
        assert _key_ids(server.url) == [third]
        oidc.set_clock(server.url, -3600)
        _, earlier = _header_and_claims(oidc.token(server.url, resource="https://a.example/mcp"))
        assert 3500 < claims["iat"] - earlier["iat"] < 3700


@pytest.mark.oidc
def test_the_authorization_server_refuses_other_clients_scopes_and_resources() -> None:
    clients = [
        {"client_id": "one", "client_secret": "s 1%", "scope": "read"},
        {"client_id": "two", "client_secret": "s2", "scope": "operate"},
    ]
    with private("oidc", clients=clients, resources=["https://a.example"]) as server:
        assert oidc.token(server.url, "one", "s 1%", resource="https://a.example", scope="read")
        for secret, resource, scope, why in (
            ("s2", "https://a.example", "read", "invalid_client"),
            ("s 1%", "https://b.example", "read", "invalid_target"),
            ("s 1%", "https://a.example", "operate", "invalid_scope"),
        ):
            with pytest.raises(InvalidArgument, match=why):
                oidc.token(server.url, "one", secret, resource=resource, scope=scope)


@pytest.mark.oidc
@pytest.mark.parametrize(
    ("option", "value"), [("clients", [{"client_id": "one"}]), ("lifetime_s", 0), ("algorithm", "HS256")]
)
def test_options_that_the_authorization_server_cannot_have_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(StartFailed, match=option), private("oidc", **{option: value}):
        pass
