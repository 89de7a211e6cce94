"""A receiver of OpenTelemetry's protocol over HTTP that remembers what it was sent: the process of server `otlp`.

    python -m groundplane.testing.otlp_receiver --port 4318

POST /v1/traces, /v1/metrics, /v1/logs take protobuf (decoded with `opentelemetry-proto`) and JSON, plain or gzipped,
and answer as the specification says (https://opentelemetry.io/docs/specs/otlp/#otlphttp): 200 with an empty export
response of the same encoding, 400 for what does not decode, 415 for another content type, 413 above 64 MB.

GET /received answers what came, oldest first, as a JSON array of `{"signal", "headers", "request"}`; `request` is the
export request in OTLP's own JSON encoding (trace and span ids in hexadecimal). `?signal=traces` keeps one kind.
DELETE /received forgets it. PUT /answer `{"status": 503, "retry_after_s": 1}` lets the next exports fail with a status;
`{}` ends that. GET /healthz answers when it serves. At most 10,000 requests are kept; older ones fall out.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

SIGNALS = ("traces", "metrics", "logs")
BODY_BYTES_MAX = 64 * 1024 * 1024
KEPT_MAX = 10_000
_PROTOBUF = "application/x-protobuf"
_JSON = "application/json"
_IDS = frozenset({"traceId", "spanId", "parentSpanId"})


class Undecodable(Exception):
    """The body of an export is not what its headers say."""


class Store:
    """What was received, and how exports are answered for the moment; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT_MAX)
        self._answer: dict[str, Any] = {}

    def add(self, one: dict[str, Any]) -> None:
        with self._lock:
            self._kept.append(one)

    def received(self, signal: str | None) -> list[dict[str, Any]]:
        with self._lock:
            return [one for one in self._kept if signal in (None, one["signal"])]

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    @property
    def answer(self) -> dict[str, Any]:
        """The status that exports are answered with, and after how many seconds to retry; empty = they succeed."""
        return self._answer

    @answer.setter
    def answer(self, value: dict[str, Any]) -> None:
        status = value.get("status", 200)
        if set(value) - {"status", "retry_after_s"} or not isinstance(status, int) or not 200 <= status <= 599:
            raise Undecodable(f"answer: {value!r} is not {{'status': 200..599, 'retry_after_s': seconds}}")
        self._answer = value


def decode(signal: str, body: bytes, *, content_type: str, encoding: str) -> dict[str, Any]:
    """An export request in OTLP's JSON encoding. Raises `Undecodable`."""
    plain = _unpacked(body, encoding)
    if content_type == _JSON:
        return _from_json(plain)
    from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    request = _messages()[signal]()
    try:
        request.ParseFromString(plain)
    except DecodeError as error:
        raise Undecodable(f"body: no {signal} export request: {error}") from error
    decoded: dict[str, Any] = MessageToDict(request, use_integers_for_enums=True)
    hexadecimal: dict[str, Any] = _hexadecimal(decoded)
    return hexadecimal


def _unpacked(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise Undecodable(f"Content-Encoding: {encoding!r} is neither gzip nor identity")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(body, BODY_BYTES_MAX)
    except zlib.error as error:
        raise Undecodable(f"body: no gzip: {error}") from error
    if not unpacker.eof:
        raise Undecodable(f"body: cut off, or more than {BODY_BYTES_MAX} bytes unpacked")
    return plain


def _from_json(body: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(body)
    except ValueError as error:
        raise Undecodable(f"body: no JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise Undecodable(f"body: a JSON object is expected, not {type(decoded).__name__}")
    return decoded


def _messages() -> dict[str, Callable[[], Any]]:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    return {
        "traces": ExportTraceServiceRequest,
        "metrics": ExportMetricsServiceRequest,
        "logs": ExportLogsServiceRequest,
    }


def _hexadecimal(value: Any) -> Any:
    """Protobuf's own JSON has ids in base64, OTLP's has them in hexadecimal."""
    if isinstance(value, list):
        return [_hexadecimal(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64decode(one).hex() if key in _IDS and isinstance(one, str) else _hexadecimal(one)
        for key, one in value.items()
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    store: Store

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path == "/healthz":
            return self._say(200, {"status": "ok"})
        if address.path != "/received":
            return self._say(404, {"message": f"{address.path}: there is /received, /healthz and /v1/{{signal}}"})
        signal = parse_qs(address.query).get("signal", [None])[0]
        if signal not in (None, *SIGNALS):
            return self._say(400, {"message": f"signal: {signal!r} is not one of {', '.join(SIGNALS)}"})
        return self._say(200, self.store.received(signal))

    def do_DELETE(self) -> None:
        if self.path != "/received":
            return self._say(404, {"message": f"{self.path}: there is /received"})
        self.store.clear()
        return self._say(200, {})

    def do_PUT(self) -> None:
        body = self._body()
        if body is None:
            return None
        if self.path != "/answer":
            return self._say(404, {"message": f"{self.path}: there is /answer"})
        try:
            self.store.answer = _from_json(body)
        except Undecodable as error:
            return self._say(400, {"message": str(error)})
        return self._say(200, {})

    def do_POST(self) -> None:
        body = self._body()
        if body is None:
            return None
        signal = self.path.removeprefix("/v1/")
        content_type = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if signal not in SIGNALS or not self.path.startswith("/v1/"):
            return self._say(404, {"message": f"{self.path}: there is /v1/traces, /v1/metrics and /v1/logs"})
        if content_type not in (_PROTOBUF, _JSON):
            return self._say(415, {"message": f"Content-Type: {content_type!r} is neither {_PROTOBUF} nor {_JSON}"})
        if self.store.answer.get("status", 200) != 200:
            return self._refuse()
        try:
            request = decode(
                signal, body, content_type=content_type, encoding=self.headers.get("Content-Encoding", "").lower()
            )
        except Undecodable as error:
            return self._say(400, {"message": str(error)})
        self.store.add({"signal": signal, "headers": dict(self.headers.items()), "request": request})
        return self._send(200, b"{}" if content_type == _JSON else b"", content_type)

    def _refuse(self) -> None:
        answer = self.store.answer
        wait = {"Retry-After": str(answer["retry_after_s"])} if "retry_after_s" in answer else {}
        self._send(answer["status"], b'{"message": "as told by PUT /answer"}', _JSON, wait)

    def _body(self) -> bytes | None:
        """The whole body; None where it was refused and the answer is already sent."""
        try:
            size = int(self.headers.get("Content-Length", "-1"))
        except ValueError:
            size = -1
        if 0 <= size <= BODY_BYTES_MAX:
            return self.rfile.read(size)
        self.close_connection = True
        told = {"message": f"Content-Length: one of at most {BODY_BYTES_MAX} bytes is needed"}
        self._say(413 if size > BODY_BYTES_MAX else 411, told)
        return None

    def _say(self, status: int, answer: object) -> None:
        self._send(status, json.dumps(answer).encode(), _JSON)

    def _send(self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name that the library gives it
        if self.path != "/healthz":
            sys.stderr.write(f"{self.log_date_time_string()} {format % args}\n")


class Receiver(ThreadingHTTPServer):
    """The server of one process; `store` is what it received."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        self.store = Store()
        super().__init__((host, port), type("Handler", (_Handler,), {"store": self.store}))


def compressed(body: bytes) -> bytes:
    """A body as `Content-Encoding: gzip` carries it."""
    return gzip.compress(body, mtime=0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m groundplane.testing.otlp_receiver", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=4318)
    told = parser.parse_args()
    _messages()
    with Receiver(told.host, told.port) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
