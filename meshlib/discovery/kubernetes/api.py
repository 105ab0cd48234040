"""One API server as the reflectors of a process see it: the gate, the credentials and the connection in one place."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping

import httpx

from meshlib.discovery.base import ResolverContext
from meshlib.discovery.kubernetes.credentials import Credentials, TlsMaterial
from meshlib.discovery.kubernetes.faults import GATE_KINDS, Fault, FaultKind
from meshlib.discovery.kubernetes.gate import Gate, Ticket
from meshlib.discovery.kubernetes.transport import (
    MAX_LIST,
    Answer,
    RequestFailed,
    TransportFactory,
    open_transport,
    send,
    to_the_end,
)
from meshlib.errors import DataError, MeshError
from meshlib.model.envelope import ListEnvelope, list_from_json

#: Seconds for a probe, body included: one probe stands for all requests of the process, so one that drips must end.
PROBE_TIMEOUT = 30.0


class _Connection:
    """A transport with the number of its users, so that a replaced one is closed when the last has gone."""

    def __init__(self, transport: httpx.AsyncBaseTransport, tls: TlsMaterial) -> None:
        self.transport = transport
        self.tls = tls
        self.users = 0
        self.retired = False

    async def release(self) -> None:
        self.users -= 1
        await self.close_if_unused()

    async def close_if_unused(self) -> None:
        if self.retired and self.users == 0:
            await to_the_end(self.transport.aclose())


class WatchStream:
    """An open watch. Call ``prove`` when it turned out to work, and ``close`` at its end, always."""

    def __init__(self, api: ApiServer, answer: Answer, ticket: Ticket, connection: _Connection) -> None:
        self._api = api
        self._answer = answer
        self._ticket = ticket
        self._connection = connection
        self._proven = False
        self.broken = False  #: set when the server or the network ended it, not its time limit or ourselves

    async def chunk(self) -> bytes:
        """The next bytes; b"" when the server ended the watch. Raises RequestFailed when it broke."""
        data = await self._answer.chunk()
        if data:
            self._api.contact()
        return data

    def prove(self) -> None:
        self._proven = True
        self._api.succeeded(self._ticket)

    async def close(self) -> None:
        gate = self._api.gate
        if not self.broken:
            gate.answered(self._ticket)
        elif self._proven:
            gate.suspect(self._ticket)
        else:
            self._api.failed(
                self._ticket, Fault(FaultKind.SHORT_WATCH, "the watch broke before it delivered anything")
            )
        self._api.wake()
        try:
            await self._answer.close()
        finally:
            await self._connection.release()


class ApiServer:
    """Lives on the control loop. Every request passes the gate (decision D8); 401 is retried once with a new token."""

    def __init__(
        self,
        credentials: Credentials,
        context: ResolverContext,
        transport_factory: TransportFactory = open_transport,
    ) -> None:
        self.credentials = credentials
        self.context = context
        self.gate = Gate(context.random)
        self.requests = 0  #: sent since the start
        self.contact_at: float | None = None  #: when the server last said anything useful
        self.fault: Fault | None = None  #: why the gate is shut; None while the server is well
        self.listeners: set[Callable[[Fault], None]] = set()  #: told of every such fault, whoever met it
        self._transport_factory = transport_factory
        self._connection: _Connection | None = None
        self._changed = asyncio.Event()

    @property
    def server(self) -> str:
        return self.credentials.server

    def contact(self) -> None:
        self.contact_at = self.context.now()

    def wake(self) -> None:
        """Let those who wait for the outcome of a probe ask again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def succeeded(self, ticket: Ticket) -> None:
        self.gate.succeeded(ticket)
        if self.gate.proven:
            self.fault = None
        self.wake()

    def failed(self, ticket: Ticket, fault: Fault) -> None:
        self.gate.failed(ticket, self.context.now(), fault.retry_after)
        self.fault = fault
        for listener in list(self.listeners):
            listener(fault)
        self.wake()

    async def list(
        self, path: str, params: Mapping[str, str], list_kind: str, timeout: float, what: str
    ) -> ListEnvelope:
        """One page. Raises RequestFailed."""
        ticket = await self._admit()
        try:
            async with asyncio.timeout(timeout):
                body = await self._get(path, params, what)
            found = list_from_json(body)
            if found.kind != list_kind:
                raise DataError("list", f"kind is {found.kind[:80]!r} and not {list_kind}")
        except TimeoutError:
            fault = Fault(FaultKind.UNREACHABLE, f"{what}: not complete within {timeout:.0f} s")
            self._settle(ticket, fault)
            raise RequestFailed(fault) from None
        except DataError as error:
            fault = Fault(FaultKind.BAD_DATA, f"{what}: {error}")
            self._settle(ticket, fault)
            raise RequestFailed(fault) from None
        except RequestFailed as error:
            self._settle(ticket, error.fault)
            raise
        except BaseException:
            self._settle(ticket, None)
            raise
        self.contact()
        self.succeeded(ticket)
        return found

    async def probe(self, path: str, what: str) -> bytes:
        """A small document that is served from memory: its answer does not show that lists and watches work."""
        ticket = await self._admit()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                body = await self._get(path, {}, what)
        except TimeoutError:
            fault = Fault(FaultKind.UNREACHABLE, f"{what}: not complete within {PROBE_TIMEOUT:.0f} s")
            self._settle(ticket, fault)
            raise RequestFailed(fault) from None
        except RequestFailed as error:
            self._settle(ticket, error.fault if error.fault.kind in GATE_KINDS else None)
            raise
        except BaseException:
            self._settle(ticket, None)
            raise
        self.contact()
        self._settle(ticket, None)
        return body

    async def watch(self, path: str, params: Mapping[str, str], what: str) -> WatchStream:
        """Open a watch; returns when its headers came. Raises RequestFailed."""
        ticket = await self._admit()
        try:
            answer, connection = await self._send(path, params, what)
        except RequestFailed as error:
            self._settle(ticket, error.fault)
            raise
        except BaseException:
            self._settle(ticket, None)
            raise
        self.contact()
        return WatchStream(self, answer, ticket, connection)

    async def close(self) -> None:
        """Close what is idle; open watches close with their drivers, which end first."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.retired = True
            await connection.close_if_unused()

    async def _admit(self) -> Ticket:
        while True:
            answer = self.gate.admit(self.context.now())
            if isinstance(answer, Ticket):
                return answer
            seconds = answer.until - self.context.now()
            if seconds == float("inf"):
                await self._changed.wait()
            else:
                await self.context.sleep(max(0.0, seconds))

    def _settle(self, ticket: Ticket, fault: Fault | None) -> None:
        if fault is None:
            self.gate.answered(ticket)
        elif fault.kind in GATE_KINDS:
            self.failed(ticket, fault)
        else:
            self.succeeded(ticket)
        self.wake()

    async def _get(self, path: str, params: Mapping[str, str], what: str) -> bytes:
        answer, connection = await self._send(path, params, what)
        try:
            return await answer.body(MAX_LIST)
        finally:
            try:
                await answer.close()
            finally:
                await connection.release()

    async def _send(self, path: str, params: Mapping[str, str], what: str) -> tuple[Answer, _Connection]:
        credentials = self.credentials
        try:
            await credentials.refresh()
        except MeshError as error:
            raise RequestFailed(Fault(FaultKind.UNAUTHORIZED, f"{what}: {error}")) from None
        shown = (credentials.token, credentials.tls)
        try:
            return await self._send_once(path, params, what)
        except RequestFailed as failed:
            if failed.fault.kind is not FaultKind.UNAUTHORIZED:
                raise
            try:
                await credentials.refresh(force=True)
            except MeshError as error:
                raise RequestFailed(Fault(FaultKind.UNAUTHORIZED, f"{what}: {error}")) from None
            if (credentials.token, credentials.tls) == shown:
                text = (
                    f"{failed.fault.message}; the credentials ({credentials.description}) have no newer token"
                )
                if credentials.problem:
                    text += f": {credentials.problem}"
                raise RequestFailed(
                    Fault(FaultKind.UNAUTHORIZED, text, 401, failed.fault.retry_after)
                ) from None
        return await self._send_once(path, params, what)

    async def _send_once(self, path: str, params: Mapping[str, str], what: str) -> tuple[Answer, _Connection]:
        connection = await self._connect(what)
        connection.users += 1
        self.requests += 1
        credentials = self.credentials
        try:
            answer = await send(
                connection.transport,
                credentials.server,
                path,
                params,
                credentials.token,
                credentials.tls.server_name,
                what,
            )
        except BaseException:
            await connection.release()
            raise
        return answer, connection

    async def _connect(self, what: str) -> _Connection:
        current, credentials = self._connection, self.credentials
        if current is not None and current.tls == credentials.tls:
            return current
        tls = credentials.tls
        try:
            transport = await self.context.run_blocking(self._transport_factory, tls, credentials.proxy)
        except (
            ssl.SSLError,
            OSError,
            ValueError,
            ImportError,
        ) as error:  # ImportError: a SOCKS proxy, no socksio
            text = f"{what}: the CA, client certificate or proxy of {credentials.description} is unusable: {error}"
            raise RequestFailed(Fault(FaultKind.UNREACHABLE, text)) from None
        current, self._connection = self._connection, _Connection(transport, tls)
        if current is not None:
            current.retired = True
            await current.close_if_unused()
        return self._connection
