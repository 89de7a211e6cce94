"""An API server: EndpointSlices of one namespace listed and watched. Errors translated, nothing retried."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from groundplane.backends.kubernetes.address import KubernetesAddress
from groundplane.backends.kubernetes.errors import VERSION_EXPIRED, Status, of_status, refused, unanswered
from groundplane.backends.kubernetes.login import log_in
from groundplane.backends.kubernetes.slices import SERVICE_LABEL, Event, Listed, Slice
from groundplane.core.errors import GroundplaneError, ResourceExhausted, Unavailable

if TYPE_CHECKING:
    import httpx2

PAGE = 500
SLICES_MAX = 50_000
LINE_BYTES_MAX = 8 * 1024 * 1024
_RELISTS_MAX = 3


class _ListMeta(msgspec.Struct, frozen=True, rename={"resource_version": "resourceVersion", "more": "continue"}):
    resource_version: str = ""
    more: str = ""


class _Page(msgspec.Struct, frozen=True):
    metadata: _ListMeta
    items: list[Slice] | None = None


class _Line(msgspec.Struct, frozen=True):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


_page = msgspec.json.Decoder(_Page)
_line = msgspec.json.Decoder(_Line)
_slice = msgspec.json.Decoder(Slice)
_status = msgspec.json.Decoder(Status)


class ApiServer:
    """A logged-in client. Methods may be called concurrently; each request ends within `address.timeout_s`, a watch
    within `watch_timeout_s + timeout_s`.
    """

    def __init__(self, client: httpx2.AsyncClient, address: KubernetesAddress) -> None:
        self.native = client
        self.address = address
        self.requests = 0
        """How many were sent."""

    @classmethod
    @asynccontextmanager
    async def open(cls, address: KubernetesAddress) -> AsyncIterator[ApiServer]:
        """Find the cluster and make a client; no request is sent. Errors as those of `log_in`."""
        client, found = await asyncio.to_thread(log_in, address)
        server = cls(client, found)
        try:
            yield server
        finally:
            await server.aclose()

    def __repr__(self) -> str:
        return f"<ApiServer {self.address.shown}>"

    async def slices(self, service: str | None = None) -> Listed:
        """The slices of the namespace, or of one service, at one version; in pages of 500, begun again where the
        version of the first page is compacted away before the last. `resource_exhausted` above 50,000.
        """
        doing = f"services: listing endpointslices of {service!r}" if service else "services: listing endpointslices"
        for attempt in range(1, _RELISTS_MAX + 1):
            try:
                return await self._pages(self._selection(service), doing)
            except GroundplaneError as error:
                if error.reason != VERSION_EXPIRED or attempt == _RELISTS_MAX:
                    raise
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def watch(self, version: str, service: str | None = None) -> AsyncIterator[AsyncIterator[Event]]:
        """Changes after a version, with bookmarks. Entered when the server has taken the watch; the iterator ends when
        the server ends it (after `watch_timeout_s`).

        `failed_precondition` (reason `version_expired`) where the server does not know the version any more, at the
        begin or later: list again.
        """
        doing = "services: watching endpointslices"
        seconds = int(self.address.watch_timeout_s)
        words = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        query = {**self._selection(service), **words, "resourceVersion": version}
        deadline = asyncio.get_running_loop().time() + seconds + self.address.timeout_s
        answer = await self._begun(query, doing)
        try:
            async with aclosing(self._events(answer, deadline, doing)) as events:
                yield events
        finally:
            await answer.aclose()

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self.native.aclose()

    def _selection(self, service: str | None) -> dict[str, str]:
        chosen = [self.address.selector, f"{SERVICE_LABEL}={service}" if service else SERVICE_LABEL]
        return {"labelSelector": ",".join(one for one in chosen if one)}

    async def _pages(self, selection: Mapping[str, str], doing: str) -> Listed:
        found: list[Slice] = []
        query: dict[str, str] = {**selection, "limit": str(PAGE)}
        while True:
            page = await self._get(query, doing)
            found += page.items or ()
            if len(found) > SLICES_MAX:
                raise ResourceExhausted(
                    f"{doing} at {self.address.shown}: there are more than {SLICES_MAX}; narrow it with selector="
                )
            if not page.metadata.more:
                return Listed(found, page.metadata.resource_version)
            query["continue"] = page.metadata.more

    async def _get(self, query: Mapping[str, str], doing: str) -> _Page:
        import httpx2

        self.requests += 1
        try:
            async with asyncio.timeout(self.address.timeout_s):
                answer = await self.native.get(self._path, params=dict(query), extensions={"trace": _Handshake()})
        except (httpx2.HTTPError, TimeoutError) as error:
            raise unanswered(error, doing, self.address) from error
        if answer.status_code != 200:
            raise refused(answer.status_code, answer.content, doing, self.address)
        try:
            return _page.decode(answer.content)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise unanswered(error, doing, self.address) from error

    async def _begun(self, query: Mapping[str, str], doing: str) -> httpx2.Response:
        """The answer to a watch, its head read."""
        import httpx2

        self.requests += 1
        timeout = httpx2.Timeout(None, connect=self.address.connect_timeout_s)  # the deadlines here are of the whole
        request = self.native.build_request(
            "GET", self._path, params=dict(query), timeout=timeout, extensions={"trace": _Handshake()}
        )
        try:
            async with asyncio.timeout(self.address.timeout_s):
                answer = await self.native.send(request, stream=True)
                if answer.status_code == 200:
                    return answer
                try:
                    body = await answer.aread()
                finally:
                    await answer.aclose()
        except (httpx2.HTTPError, TimeoutError) as error:
            raise unanswered(error, doing, self.address) from error
        raise refused(answer.status_code, body, doing, self.address)

    async def _events(self, answer: httpx2.Response, deadline: float, doing: str) -> AsyncGenerator[Event, None]:
        import httpx2

        chunks, held = answer.aiter_bytes(), b""
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(chunks, None)
            except (httpx2.HTTPError, TimeoutError) as error:
                raise unanswered(error, doing, self.address) from error
            if chunk is None:
                return  # what is held is half a line
            *lines, held = (held + chunk).split(b"\n")
            if len(held) > LINE_BYTES_MAX:
                raise Unavailable(f"{doing}: one change has more than {LINE_BYTES_MAX} bytes", reason="cluster_error")
            for line in lines:
                if line:
                    yield self._event(line, doing)

    def _event(self, line: bytes, doing: str) -> Event:
        try:
            one = _line.decode(line)
            if one.type != "ERROR":
                return Event(one.type, _slice.decode(one.object))
            status = _status.decode(one.object)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise unanswered(error, doing, self.address) from error
        raise of_status(status, doing, self.address)

    @property
    def _path(self) -> str:
        return f"/apis/discovery.k8s.io/v1/namespaces/{self.address.namespace}/endpointslices"


class _Handshake:
    """Closes a connection whose TLS handshake is cancelled: httpcore leaves it open until it is garbage."""

    def __init__(self) -> None:
        self._stream: Any = None

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self._stream = info["return_value"]
        elif event == "connection.start_tls.failed":
            await self._stream.aclose()


__all__ = ["ApiServer"]
