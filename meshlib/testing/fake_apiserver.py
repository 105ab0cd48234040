"""FakeApiServer: an API server on a raw asyncio socket that can misbehave on demand.

It lists and watches Services, EndpointSlices and Endpoints, of one namespace or of all, like a real one (versions,
bookmarks, 410, selectors by Service name), and every fault that a real one does not produce on demand is a reaction to
a request: see ``react``. It speaks HTTP (``tls``: HTTPS) on loopback, runs on the loop that starts it, and never on its
own clock, so it also works in virtual time.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

_PATHS = re.compile(
    r"/(?:api/v1|apis/discovery\.k8s\.io/(v1|v1beta1))(?:/namespaces/([^/]+))?/(services|endpoints|endpointslices)"
)
_KINDS = {"services": "Service", "endpoints": "Endpoints", "endpointslices": "EndpointSlice"}
_SELECTED = re.compile(r"kubernetes\.io/service-name in \(([^)]*)\)")
_SERVICE = "kubernetes.io/service-name"


@dataclass(frozen=True)
class Request:
    """One request as it came. ``at`` is the loop's time."""

    at: float
    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def watch(self) -> bool:
        return self.params.get("watch") == "true"

    @property
    def resource(self) -> str:
        """``services``, ``endpointslices``, ``endpoints`` or "" for anything else."""
        return self.path.rpartition("/")[2] if _PATHS.fullmatch(self.path) else ""


class Connection:
    """What a reaction writes its answer to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Raw bytes."""
        self._writer.write(data)
        await self._writer.drain()

    async def answer(
        self, status: int, body: bytes | Mapping[str, Any] = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        """A whole answer."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"HTTP/1.1 {status} x", f"content-length: {len(raw)}", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + raw)

    async def begin_stream(self) -> None:
        """The headers of a watch."""
        await self.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )

    async def chunk(self, data: bytes) -> None:
        """One chunk of the watch; b"" ends it properly."""
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def gone(self) -> None:
        """Wait until the client has closed."""
        while await self._reader.read(65536):
            pass

    def reset(self) -> None:
        """End with RST instead of FIN."""
        self._writer.transport.abort()


Reaction = Callable[[Request, Connection], Awaitable[bool]]


@dataclass(frozen=True)
class _Change:
    """What happened to one object. ``old``: before; ``new``: after, both of the new version; None: there was none."""

    version: int
    old: dict[str, Any] | None
    new: dict[str, Any] | None


@dataclass
class _Store:
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    history: list[_Change] = field(default_factory=list)
    watchers: list[asyncio.Queue[_Change | bytes | None]] = field(
        default_factory=list
    )  #: bytes: to be sent as is


def status(code: int, reason: str = "", message: str = "", **more: Any) -> dict[str, Any]:
    """A Status object."""
    return {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message, **more}


class FakeApiServer:
    """``react`` is asked first for every request; what it does not handle (False) is answered properly."""

    def __init__(self, versions: tuple[str, ...] = ("v1", "v1beta1")) -> None:
        self.versions = versions  #: of discovery.k8s.io; () for a server without it
        self.requests: list[Request] = []
        self.react: Reaction | None = None
        self.resource_version = 100
        self.compacted = 0  #: watches from versions below get 410
        self.port = 0
        self.tls: ssl.SSLContext | None = None  #: looked at by ``start``
        self._stores = {name: _Store() for name in _KINDS}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; after ``refuse`` on the same port again."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, limit=1 << 20, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Close the listening socket and all connections: the server process has died."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        await self.refuse()

    # -- what is in the cluster ---------------------------------------------------------------------------------------

    def put(self, obj: Mapping[str, Any]) -> None:
        """Create or replace an object."""
        store = self._store(obj["kind"])
        self.resource_version += 1
        meta = {**obj["metadata"], "resourceVersion": str(self.resource_version)}
        new = {**obj, "metadata": meta}
        key = (meta["namespace"], meta["name"])
        self._record(store, store.objects.get(key), new)
        store.objects[key] = new

    def delete(self, kind: str, namespace: str, name: str) -> None:
        store = self._store(kind)
        self.resource_version += 1
        self._record(store, store.objects.pop((namespace, name)), None)

    def service(self, namespace: str, name: str, port: int = 80, **spec: Any) -> None:
        ports = [{"name": "http", "port": port, "targetPort": 8080, "protocol": "TCP"}]
        self.put(
            {
                "kind": "Service",
                "apiVersion": "v1",
                "metadata": {"namespace": namespace, "name": name},
                "spec": {
                    "type": "ClusterIP",
                    "clusterIP": "10.96.0.9",
                    "ports": ports,
                    "selector": {"app": name},
                    **spec,
                },
            }
        )

    def slice(
        self, namespace: str, name: str, service: str, addresses: list[str] | None, version: str = "v1"
    ) -> None:
        endpoints = (
            None
            if addresses is None
            else [{"addresses": [a], "conditions": {"ready": True}} for a in addresses]
        )
        self.put(
            {
                "kind": "EndpointSlice",
                "apiVersion": f"discovery.k8s.io/{version}",
                "metadata": {"namespace": namespace, "name": name, "labels": {_SERVICE: service}},
                "addressType": "IPv4",
                "endpoints": endpoints,
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            }
        )

    def compact(self) -> None:
        """Forget the history: watches from any version before now get 410."""
        self.compacted = self.resource_version
        for store in self._stores.values():
            store.history.clear()

    def restore(self, resource_version: int) -> None:
        """An etcd restored from a backup: the objects stay as the caller made them, but the version goes back. Open
        watches hear nothing of it."""
        self.resource_version = resource_version
        for store in self._stores.values():
            store.history.clear()
            store.watchers.clear()

    # -- what open watches get ----------------------------------------------------------------------------------------

    def send(self, resource: str, raw: bytes | Mapping[str, Any]) -> None:
        """A line, or raw bytes, to every open watch of a resource (``endpointslices``)."""
        data = raw if isinstance(raw, bytes) else _line(raw)
        for queue in self._stores[resource].watchers:
            queue.put_nowait(data)

    def bookmark(self, resource: str) -> None:
        kind, version = _KINDS[resource], str(self.resource_version)
        self.send(
            resource, {"type": "BOOKMARK", "object": {"kind": kind, "metadata": {"resourceVersion": version}}}
        )

    def end_watches(self, resource: str | None = None) -> None:
        """End open watches properly."""
        for name, store in self._stores.items():
            for queue in store.watchers if resource in (None, name) else ():
                queue.put_nowait(None)

    def watching(self, resource: str) -> int:
        """How many watches of a resource are open."""
        return len(self._stores[resource].watchers)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _store(self, kind: str) -> _Store:
        return next(self._stores[name] for name, each in _KINDS.items() if each == kind)

    def _record(self, store: _Store, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        if old is not None:
            old = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.resource_version)}}
        change = _Change(self.resource_version, old, new)
        store.history.append(change)
        for queue in store.watchers:
            queue.put_nowait(change)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, Connection(reader, writer)):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    async def _one(self, reader: asyncio.StreamReader, connection: Connection) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        target = urlsplit(head[0].split(" ")[1])
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        now = asyncio.get_running_loop().time()
        request = Request(
            now, unquote(target.path), dict(parse_qsl(target.query, keep_blank_values=True)), headers
        )
        self.requests.append(request)
        if self.react is not None and await self.react(request, connection):
            return False
        if request.path == "/apis/discovery.k8s.io":
            if not self.versions:
                await connection.answer(404, status(404, "NotFound"))
            else:
                await connection.answer(
                    200, {"kind": "APIGroup", "versions": [{"version": v} for v in self.versions]}
                )
            return True
        found = _PATHS.fullmatch(request.path)
        if found is None or (found[1] is not None and found[1] not in self.versions):
            await connection.answer(404, status(404, "NotFound"))
            return True
        if request.watch:
            return await self._watch(request, connection, found[2], found[3])
        await self._list(request, connection, found[2], found[3])
        return True

    @staticmethod
    def _selects(request: Request, namespace: str | None, obj: Mapping[str, Any]) -> bool:
        if namespace is not None and obj["metadata"].get("namespace") != namespace:
            return False
        names = _SELECTED.fullmatch(request.params.get("labelSelector", ""))
        return names is None or obj["metadata"].get("labels", {}).get(_SERVICE) in names[1].split(",")

    async def _list(
        self, request: Request, connection: Connection, namespace: str | None, resource: str
    ) -> None:
        wanted = request.params.get("resourceVersion", "")
        if wanted.isdigit() and int(wanted) > self.resource_version:
            causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
            late = status(504, "Timeout", "Too large resource version", details={"causes": causes})
            await connection.answer(504, late)
            return
        items = [
            obj for obj in self._stores[resource].objects.values() if self._selects(request, namespace, obj)
        ]
        kind = _KINDS[resource] + "List"
        meta = {"resourceVersion": str(self.resource_version)}
        await connection.answer(200, {"kind": kind, "metadata": meta, "items": items})

    async def _watch(
        self, request: Request, connection: Connection, namespace: str | None, resource: str
    ) -> bool:
        store = self._stores[resource]
        since = int(request.params.get("resourceVersion") or 0)
        if since < self.compacted:
            await connection.answer(410, status(410, "Expired", f"too old resource version: {since}"))
            return True
        queue: asyncio.Queue[_Change | bytes | None] = asyncio.Queue()
        for change in store.history:
            if change.version > since:
                queue.put_nowait(change)
        store.watchers.append(queue)
        leaving = asyncio.create_task(connection.gone())
        try:
            await connection.begin_stream()
            deadline = asyncio.get_running_loop().time() + float(request.params.get("timeoutSeconds", "1800"))
            while not leaving.done():
                taking = asyncio.create_task(queue.get())
                left = max(0.0, deadline - asyncio.get_running_loop().time())
                await asyncio.wait({taking, leaving}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    taking.cancel()
                    await asyncio.wait({taking})
                taken = taking.result() if taking.done() and not taking.cancelled() else None
                if taken is None:
                    break
                line = taken if isinstance(taken, bytes) else self._event(request, namespace, taken)
                if line:
                    await connection.chunk(line)
            if not leaving.done():
                await connection.chunk(b"")
        finally:
            if queue in store.watchers:
                store.watchers.remove(queue)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        return False

    def _event(self, request: Request, namespace: str | None, change: _Change) -> bytes:
        """The line for a watch; b"": none. An object that leaves the selector is DELETED for it, as it was before."""
        old, new = (
            each if each is not None and self._selects(request, namespace, each) else None
            for each in (change.old, change.new)
        )
        if new is not None:
            return _line({"type": "MODIFIED" if old is not None else "ADDED", "object": new})
        return _line({"type": "DELETED", "object": old}) if old is not None else b""


def _line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
