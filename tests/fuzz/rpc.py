"""A grammar of MCP messages in both revisions, and a fuzzer that mutates them from one seed against `/mcp`."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2

from fuzz.invariants import Broken, check
from fuzz.mutations import encoded, mutated

LEGACY = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
MODERN = "2026-07-28"
ACCEPT = "application/json, text/event-stream"
DEADLINE_S = 30.0
QUIET_S = 0.02
"""A stream that stands is left after so long without a byte."""
_META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "fuzz", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}},
}
_NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri", "resources/subscribe": "uri"}
_CALLS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"value": 3}, "double"), ({"n": [1, "ä"]}, "echo"), ({}, "fail"), ({}, "tasked"), ({}, "gone")
)  # fmt: skip
_NOT_NAMED_HERE = "nothing has this name"


@dataclass
class Case:
    """One request over HTTP."""

    method: str
    headers: dict[str, str]
    body: bytes
    calls: str = ""
    """The JSON-RPC method that it began as."""


@dataclass
class Fuzzer:
    """Sends cases to one gateway. `known` are the methods that it has handlers for."""

    http: httpx2.AsyncClient
    seed: int
    known: list[str]
    sessions: list[tuple[str, str]] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    """Ids of the last tasks."""
    answered: Counter[str] = field(default_factory=Counter)
    """By method: how often its handler gave a result."""
    statuses: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    reached: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    async def open_sessions(self) -> None:
        """A session of each older revision."""
        for version in LEGACY:
            params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "fuzz", "version": "1"}}
            headers = {"content-type": "application/json", "accept": ACCEPT}
            body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
            answer = await self.http.post("/mcp", json=body, headers=headers)
            headers |= {"mcp-session-id": answer.headers["mcp-session-id"], "mcp-protocol-version": version}
            told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            assert (await self.http.post("/mcp", json=told, headers=headers)).status_code == 202
            self.sessions.append((version, headers["mcp-session-id"]))

    async def run(self, cases: int) -> None:
        """So many cases, one after the other. What breaks an invariant is raised with the seed and the case."""
        for _ in range(cases):
            case = self.case()
            try:
                await self._try(case)
            except (Broken, TimeoutError, httpx2.HTTPError) as error:
                raise Broken(
                    f"seed {self.seed}, case {self.sent}: {type(error).__name__}: {error}\n"
                    f"{case.method} {case.headers}\n{case.body[:2000]!r}"
                ) from error

    def case(self) -> Case:
        """The next request."""
        rng = self._rng
        if rng.random() < 0.03:
            return self._odd()
        modern = rng.random() < 0.5
        method = rng.choice(self.known) if rng.random() < 0.9 else rng.choice(_OTHERS)
        if method in ("initialize", "notifications/initialized"):
            modern = False
        elif method.startswith(("tasks/", "server/", "subscriptions/")):
            modern = rng.random() < 0.95
        document: Any = {"jsonrpc": "2.0", "method": method, "params": self._params(method, modern)}
        if not method.startswith("notifications/"):
            document["id"] = rng.choice((1, 7, "a", 2**31))
        headers = self._headers(document, modern)
        times = rng.choice((0, 0, 1, 1, 1, 2, 3))
        if times:
            document = mutated(rng, document, times)
            if rng.random() < 0.3:
                self._spoil(headers)
        return Case("POST", headers, encoded(rng, document) if times else json.dumps(document).encode(), method)

    def _params(self, method: str, modern: bool) -> dict[str, Any]:
        rng = self._rng
        task = rng.choice(self.tasks) if self.tasks and rng.random() < 0.8 else _NOT_NAMED_HERE
        arguments, name = rng.choice(_CALLS)
        params: dict[str, Any] = {
            "tools/call": {"name": name, "arguments": arguments},
            "initialize": {
                "protocolVersion": rng.choice(LEGACY),
                "capabilities": {},
                "clientInfo": {"name": "fuzz", "version": "1"},
            },
            "notifications/cancelled": {"requestId": rng.choice((1, 7, "a")), "reason": "because"},
            "notifications/progress": {"progressToken": 1, "progress": 1.0},
            "subscriptions/listen": {"notifications": {"toolsListChanged": True, "taskIds": ["x"]}},
            "tasks/get": {"taskId": task},
            "tasks/cancel": {"taskId": task},
            "tasks/update": {"taskId": task, "inputResponses": {"q": {"action": "accept", "content": {}}}},
            "prompts/get": {"name": _NOT_NAMED_HERE, "arguments": {}},
            "resources/read": {"uri": "test://nothing"},
            "resources/subscribe": {"uri": "test://nothing"},
            "logging/setLevel": {"level": "info"},
            "completion/complete": {
                "ref": {"type": "ref/prompt", "name": _NOT_NAMED_HERE},
                "argument": {"name": "a", "value": "b"},
            },
        }.get(method, {})
        if modern:
            params["_meta"] = dict(_META)
        elif rng.random() < 0.3:
            params["_meta"] = {"progressToken": rng.choice((1, "p"))}
        if rng.random() < 0.05:
            params.setdefault("_meta", {})["io.groundplane/idempotency_key"] = rng.choice(("k", "", "a" * 300, 7))
        return params

    def _headers(self, document: dict[str, Any], modern: bool) -> dict[str, str]:
        headers = {"content-type": "application/json", "accept": ACCEPT}
        method = document["method"]
        if modern:
            headers |= {"mcp-protocol-version": MODERN, "mcp-method": method}
            if method in _NAMED:
                headers["mcp-name"] = str(document["params"].get(_NAMED[method]))
            elif "taskId" in document["params"]:
                headers["mcp-name"] = document["params"]["taskId"]
        elif method != "initialize":
            version, session = self._rng.choice(self.sessions)
            headers |= {"mcp-protocol-version": version, "mcp-session-id": session}
        return headers

    def _spoil(self, headers: dict[str, str]) -> None:
        rng = self._rng
        name = rng.choice((*headers, "last-event-id", "idempotency-key", "traceparent", "mcp-session-id", "accept"))
        values = ("", "0", "x", "a" * 200, "1999-01-01", MODERN, "2025-06-18", "text/plain", "*/*", "%00", "tools/list")
        if rng.random() < 0.4 and name in headers:
            del headers[name]
        else:
            headers[name] = rng.choice(values)

    def _odd(self) -> Case:
        """Other methods of HTTP: the standing stream, resumption, the end of a session."""
        rng = self._rng
        session = rng.choice((rng.choice(self.sessions)[1], "0" * 32, "x"))
        headers = {"accept": rng.choice(("text/event-stream", ACCEPT, "*/*")), "mcp-session-id": session}
        if rng.random() < 0.5:
            headers["last-event-id"] = rng.choice(("1", "0", "-1", "99999999999999999999", "x", "1_2"))
        method = rng.choice(("GET", "GET", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD"))
        if method == "DELETE" and session not in ("0" * 32, "x"):
            headers["mcp-session-id"] = "1" * 32  # those that are used are kept
        return Case(method, headers, b"")

    async def _try(self, case: Case) -> None:
        self.sent += 1
        async with asyncio.timeout(DEADLINE_S):
            async with self.http.stream(case.method, "/mcp", headers=case.headers, content=case.body) as answer:
                kind = answer.headers.get("content-type", "")
                body = await (self._first(answer) if _stands(case, kind) else answer.aread())
        self.statuses[answer.status_code] += 1
        sent = case.body + repr(case.headers).encode()
        messages = check(answer.status_code, kind, body if case.method != "HEAD" else b"", sent)
        if any("result" in one or "method" in one for one in messages):
            self.answered[case.calls] += 1
        self.tasks += [task for task in map(_task_of, messages) if task]
        del self.tasks[:-20]
        if case.method == "POST" and answer.headers.get("mcp-session-id") and case.calls == "initialize":
            await self.http.delete("/mcp", headers={"mcp-session-id": answer.headers["mcp-session-id"]})
        self.reached += answer.status_code == 202 or any(_is_of_a_handler(one) for one in messages)

    async def _first(self, answer: httpx2.Response) -> bytes:
        """What a standing stream begins with."""
        body, chunks = b"", answer.aiter_bytes()
        while True:
            try:
                body += await asyncio.wait_for(anext(chunks), QUIET_S)
            except (StopAsyncIteration, TimeoutError):
                return body[: body.rfind(b"\n") + 1]


def _stands(case: Case, kind: str) -> bool:
    """Whether the answer may be a stream that nothing ends."""
    return kind.startswith("text/event-stream") and (case.method == "GET" or b"subscriptions/listen" in case.body)


def _task_of(message: dict[str, Any]) -> str | None:
    """The task that a result is, or the job that it came from, which can be read as one."""
    result = message.get("result")
    if not isinstance(result, dict):
        return None
    return result.get("taskId") or (result.get("_meta") or {}).get("io.groundplane/job_id")


def _is_of_a_handler(message: dict[str, Any]) -> bool:
    """A result, a notification, or a refusal that says what of the parameters is wrong."""
    return "result" in message or "method" in message or message.get("error", {}).get("code") == -32602


_OTHERS = (
    "ping", "initialize", "notifications/initialized", "notifications/cancelled", "notifications/progress",
    "notifications/roots/list_changed", "tools/list", "tools/call", "tasks/get", "tasks/list", "tasks/result",
    "tasks/cancel", "tasks/update", "prompts/list", "prompts/get", "resources/list", "resources/read",
    "resources/templates/list", "resources/subscribe", "logging/setLevel", "completion/complete", "server/discover",
    "subscriptions/listen", "rpc.discover", "", "__init__", "tools/call/extra", "sampling/createMessage",
    "elicitation/create", "roots/list",
)  # fmt: skip
