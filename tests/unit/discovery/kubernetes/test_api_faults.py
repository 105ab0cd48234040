"""What the whole resolver does about each fault of an API server, over real sockets in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from meshlib.discovery.kubernetes.resolver import KubernetesResolver
from meshlib.discovery.kubernetes.transport import CANCEL_PATIENCE
from meshlib.errors import AccessDenied
from meshlib.model.events import EntrySkipped, SourceFailed, SourceRecovered
from meshlib.model.slices import EndpointSlice
from meshlib.model.update import DoesNotExist, Failure, Snapshot
from meshlib.testing.fake_apiserver import Connection, FakeApiServer, Request, status
from tests.unit.discovery.kubernetes.virtual import Client, addresses, always, eventually, run

ORDERS = "k8s:///orders.shop:http"
ONE = {"10.0.0.1"}
TWO = {"10.0.0.1", "10.0.0.2"}

Test = Callable[[FakeApiServer, Client], Coroutine[Any, Any, None]]


@contextlib.asynccontextmanager
async def fake(versions: tuple[str, ...] = ("v1", "v1beta1")) -> AsyncIterator[FakeApiServer]:
    server = FakeApiServer(versions)
    await server.start()
    server.service("shop", "orders")
    server.slice("shop", "orders-1", "orders", sorted(ONE), version=versions[0] if versions else "v1")
    try:
        yield server
    finally:
        await server.close()


def play(
    test: Test, *, synced: bool = True, versions: tuple[str, ...] = ("v1", "v1beta1"), **options: Any
) -> None:
    """Run a scenario with a server that has one Service, and a client (``synced``: that has seen it)."""

    async def main() -> None:
        async with fake(versions) as server:
            client = Client(api_server=server.url, **options)
            if synced:
                client.watch(ORDERS)
                await eventually(lambda: client.addresses(ORDERS) == ONE)
                # Past the watches' proof: only now an outage begins from a healthy state.
                await asyncio.sleep(2)
            try:
                await test(server, client)
            finally:
                await client.close()

    run(main)


def since(server: FakeApiServer, mark: int, watch: bool | None = None, resource: str = "") -> list[Request]:
    found = server.requests[mark:]
    if resource:
        found = [each for each in found if each.resource == resource]
    return [each for each in found if watch is None or each.watch is watch]


def slices_watch_only(reaction: Callable[[Request, Connection], Coroutine[Any, Any, bool]]) -> Any:
    async def react(request: Request, connection: Connection) -> bool:
        if request.watch and request.resource == "endpointslices":
            return await reaction(request, connection)
        return False

    return react


def test_refused_at_start_tells_so_and_asks_rarely() -> None:
    """A1: nobody listens: a hopeless Failure at once, at most 8 attempts in the first minute, then it is found."""

    async def test(server: FakeApiServer, client: Client) -> None:
        await server.refuse()
        start = asyncio.get_running_loop().time()
        for number in range(5):
            client.watch(f"k8s:///orders.ns{number}:http")
        await eventually(lambda: all(client.failures(f"k8s:///orders.ns{n}:http") for n in range(5)), 0.5)
        assert all(client.failures(f"k8s:///orders.ns{n}:http")[0].hopeless for n in range(5))
        await asyncio.sleep(start + 60 - asyncio.get_running_loop().time())
        assert client.resolver.api is not None
        assert 5 <= client.resolver.api.requests <= 8
        await server.start()
        client.watch(ORDERS)
        await eventually(lambda: client.addresses(ORDERS) == ONE, 62)

    play(test, synced=False)


@pytest.mark.parametrize("kind", ["refused", "500", "503", "429", "reset", "short watches"])
@pytest.mark.parametrize("luck", [0.0, 0.999])
def test_first_minute_of_an_outage_costs_eight_requests(kind: str, luck: float) -> None:
    """A3, A17, A19, D8: five synced namespaces together ask at most 8 times in the first minute, whatever the fault."""

    async def test(server: FakeApiServer, client: Client) -> None:
        targets = [f"k8s:///orders.ns{number}:http" for number in range(5)]
        for number, target in enumerate(targets):
            server.service(f"ns{number}", "orders")
            server.slice(f"ns{number}", "orders-1", "orders", ["10.0.0.1"])
            client.watch(target)
        await eventually(lambda: all(client.addresses(target) == ONE for target in targets))
        await asyncio.sleep(2)

        async def react(request: Request, connection: Connection) -> bool:
            if kind == "reset":
                connection.reset()
            elif kind == "short watches":
                await connection.begin_stream()
                await connection.chunk(b"")
            else:
                await connection.answer(int(kind), status(int(kind)))
            return True

        server.react = react
        assert client.resolver.api is not None
        before = client.resolver.api.requests
        start = asyncio.get_running_loop().time()
        await server.refuse()
        if kind != "refused":
            await server.start()
        await asyncio.sleep(60)
        # A watch may be reopened up to a second after it broke, so the minute starts with the first request.
        assert client.resolver.api.requests - before <= 8
        later = client.resolver.api.requests
        await asyncio.sleep(3600 - 60)
        assert (client.resolver.api.requests - later) / 3540 <= 0.05
        assert all(client.addresses(target) == ONE for target in targets)
        assert all(client.describe(target)["stale"] for target in targets)
        if kind != "short watches":  # those fail nobody's question
            # Subscribers know it as well: the last that they heard is no set, which would say that all is well.
            assert all(isinstance(client.last(target), Failure) for target in targets)
        server.react = None
        if kind == "refused":
            await server.start()
        server.slice("ns3", "orders-1", "orders", sorted(TWO))
        await eventually(lambda: client.addresses(targets[3]) == TWO, 125)
        await asyncio.sleep(5)
        assert not client.describe(targets[3])["stale"]
        await eventually(lambda: all(isinstance(client.last(target), Snapshot) for target in targets), 125)
        assert asyncio.get_running_loop().time() - start > 3600

    play(test, synced=False, random_value=luck)


def test_dead_watch_is_noticed_once_bookmarks_were_seen() -> None:
    """A4: silence of more than 90 s on a server that sends bookmarks ends the watch; it resumes without a relist."""

    async def test(server: FakeApiServer, client: Client) -> None:
        server.bookmark("endpointslices")
        await asyncio.sleep(1)
        mark = len(server.requests)
        version = server.resource_version
        await asyncio.sleep(88)
        again = since(server, mark, resource="endpointslices")
        assert [each.watch for each in again] == [True]
        assert again[0].params["resourceVersion"] == str(version)

    play(test)


def test_server_without_bookmarks_is_left_alone() -> None:
    """A21: a quiet server that never sends bookmarks is not taken for dead: one reconnect per 5 minutes at most."""

    async def test(server: FakeApiServer, client: Client) -> None:
        mark = len(server.requests)
        await asyncio.sleep(3600)
        assert len(since(server, mark, watch=True, resource="endpointslices")) <= 12 + 6
        assert not client.describe(ORDERS)["stale"]

    play(test)


def test_headers_that_never_come() -> None:
    """A5: a server that accepts and says nothing is given up after 30 s, and backed off from."""

    async def test(server: FakeApiServer, client: Client) -> None:
        async def hang(request: Request, connection: Connection) -> bool:
            await connection.gone()
            return True

        server.react = hang
        start = asyncio.get_running_loop().time()
        client.watch(ORDERS)
        await eventually(lambda: client.failures(ORDERS), 40)
        assert 29 <= asyncio.get_running_loop().time() - start <= 32
        assert "no answer within 30 s" in str(client.failures(ORDERS)[0].error)
        await asyncio.sleep(start + 60 - asyncio.get_running_loop().time())
        assert len(server.requests) <= 3

    play(test, synced=False)


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
def test_line_cut_in_the_middle(reset: bool) -> None:
    """A6, A7: half a line is no event, the version stays, and the watch resumes from it."""

    async def test(server: FakeApiServer, client: Client) -> None:
        cut: list[Request] = []

        async def react(request: Request, connection: Connection) -> bool:
            if cut:
                return False
            cut.append(request)
            await connection.begin_stream()
            await asyncio.sleep(3)
            line = json.dumps(
                {"type": "DELETED", "object": {"kind": "EndpointSlice", "metadata": {"name": "orders-1"}}}
            )
            await connection.chunk(line[:-2].encode())
            await asyncio.sleep(0.01)
            if reset:
                connection.reset()
            else:
                await connection.send(b"0\r\n\r\n")
            return True

        server.react = slices_watch_only(react)
        server.end_watches("endpointslices")
        await eventually(lambda: server.watching("endpointslices") == 1 and cut, 30)
        assert client.addresses(ORDERS) == ONE
        watches = since(server, 0, watch=True, resource="endpointslices")
        assert watches[-1].params["resourceVersion"] == cut[0].params["resourceVersion"]
        assert len(since(server, 0, watch=False, resource="endpointslices")) == 1
        server.slice("shop", "orders-1", "orders", sorted(TWO))
        await eventually(lambda: client.addresses(ORDERS) == TWO)

    play(test)


def test_line_in_single_bytes_and_odd_line_separators() -> None:
    """A8, A9: chunks of one byte give the same, and U+2028, U+0085 and CR inside a text do not end a line."""

    async def test(server: FakeApiServer, client: Client) -> None:
        obj = {
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "shop",
                "name": "orders-1",
                "resourceVersion": "500",
                "labels": {"kubernetes.io/service-name": "orders"},
                "annotations": {"note": "a\u2028b\u0085c\u2029d\x0be ü €"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}],
            "ports": [{"name": "http", "port": 8080}],
        }
        line = json.dumps({"type": "MODIFIED", "object": obj}, ensure_ascii=False).encode() + b"\r\n"
        for position in range(len(line)):
            server.send("endpointslices", line[position : position + 1])
        await eventually(lambda: client.addresses(ORDERS) == TWO, 1)
        assert not [event for event in client.events if isinstance(event, EntrySkipped)]

    play(test)


def test_invalid_line_relists_once() -> None:
    """A10: a line that is not JSON costs one relist, is counted, and a server that keeps at it is not hammered."""

    async def test(server: FakeApiServer, client: Client) -> None:
        mark = len(server.requests)
        server.send("endpointslices", b'{"type":"ADDED","object":{]}\n')
        await eventually(lambda: len(since(server, mark, watch=True, resource="endpointslices")) == 1, 5)
        assert len(since(server, mark, watch=False, resource="endpointslices")) == 1
        assert client.describe(ORDERS)["skipped"] == 1

        async def react(request: Request, connection: Connection) -> bool:
            await connection.begin_stream()
            await connection.chunk(b"<html>\n")
            return True

        server.react = slices_watch_only(react)
        server.end_watches("endpointslices")
        await asyncio.sleep(10)
        mark = len(server.requests)
        await asyncio.sleep(60)
        assert len(since(server, mark)) <= 6
        assert client.addresses(ORDERS) == ONE

    play(test)


@pytest.mark.parametrize(
    "line",
    [
        {"type": "SURPRISE", "object": {}},
        {"type": "ADDED", "object": {"kind": "Pod", "metadata": {"name": "x", "namespace": "shop"}}},
        {"type": "ADDED", "object": {"kind": "EndpointSlice"}},
        {"type": "ADDED", "object": {"kind": "EndpointSlice", "metadata": {}}},
        {"type": "ADDED", "object": None},
        {"type": "ADDED"},
        {"type": "BOOKMARK", "object": {"kind": "EndpointSlice", "metadata": {}}},
    ],
    ids=lambda line: json.dumps(line)[:60],
)
def test_odd_event_is_skipped(line: dict[str, Any]) -> None:
    """A11: an unknown type, another kind or an object without a name is counted; the watch lives."""

    async def test(server: FakeApiServer, client: Client) -> None:
        mark = len(server.requests)
        server.send("endpointslices", line)
        server.send("endpointslices", b"\n")
        server.slice("shop", "orders-1", "orders", sorted(TWO))
        await eventually(lambda: client.addresses(ORDERS) == TWO, 1)
        assert client.describe(ORDERS)["skipped"] == 1
        assert since(server, mark) == []

    play(test)


@pytest.mark.parametrize(
    "gone",
    [
        None,
        status(410, "Expired"),
        status(410, "Gone"),
        {"kind": "Status", "code": 410},
        {"kind": "Status", "reason": "Expired"},
        {"kind": "Status", "code": "410"},
    ],
    ids=["HTTP status", "Expired", "Gone", "code only", "reason only", "code as text"],
)
def test_expired_version_relists_and_swaps(gone: dict[str, Any] | None) -> None:
    """A12, A13, A25: 410 in any form relists at once from the last version; a missed DELETED is found."""

    async def test(server: FakeApiServer, client: Client) -> None:
        server.slice("shop", "orders-2", "orders", ["10.0.0.2"])
        await eventually(lambda: client.addresses(ORDERS) == TWO)
        mark, version = len(server.requests), server.resource_version
        if gone is None:
            # The deletion happens while nobody watches, and its history is gone.
            async def drop(request: Request, connection: Connection) -> bool:
                if server.compacted == 0:
                    server.delete("EndpointSlice", "shop", "orders-2")
                    server.compact()
                return False

            server.react = slices_watch_only(drop)
            server.end_watches("endpointslices")
        else:
            watchers = server._stores["endpointslices"].watchers
            deaf, watchers[:] = list(watchers), []
            server.delete("EndpointSlice", "shop", "orders-2")
            for queue in deaf:
                queue.put_nowait(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
        await eventually(lambda: client.addresses(ORDERS) == ONE, 3)
        lists = since(server, mark, watch=False, resource="endpointslices")
        assert [each.params.get("resourceVersion") for each in lists] == [str(version)]
        assert client.history(ORDERS)[-1] == ONE
        assert set() not in client.history(ORDERS)

    play(test)


def test_permanent_expiry_is_not_a_hot_loop() -> None:
    """A14: 410 on every watch costs at most 8 lists in the first minute."""

    async def test(server: FakeApiServer, client: Client) -> None:
        async def react(request: Request, connection: Connection) -> bool:
            await connection.answer(410, status(410, "Expired"))
            return True

        server.react = slices_watch_only(react)
        mark = len(server.requests)
        server.end_watches("endpointslices")
        await asyncio.sleep(61)
        assert 3 <= len(since(server, mark, watch=False, resource="endpointslices")) <= 8
        assert client.addresses(ORDERS) == ONE

    play(test, random_value=0.0)


def test_server_behind_our_version() -> None:
    """A16: 504 "Too large resource version" leads to a consistent list at once."""

    async def test(server: FakeApiServer, client: Client) -> None:
        mark = len(server.requests)
        server.send("endpointslices", {"type": "ERROR", "object": status(410, "Expired")})

        async def react(request: Request, connection: Connection) -> bool:
            if request.resource == "endpointslices" and request.params.get("resourceVersion") not in (
                None,
                "0",
                "",
            ):
                causes = {"causes": [{"reason": "ResourceVersionTooLarge"}]}
                await connection.answer(
                    504, status(504, "Timeout", "Too large resource version", details=causes)
                )
                return True
            return False

        server.react = react
        await eventually(lambda: len(since(server, mark, watch=False)) == 2, 2)
        assert "resourceVersion" not in since(server, mark, watch=False)[1].params
        assert since(server, mark, watch=False)[1].params["limit"] == "500"

    play(test)


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 8.7),
        ("-1", 0.8, 2.8),
        ("1e9", 300, 302),
        ("soon", 0.8, 2.8),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0.8, 2.8),
    ],
)
def test_retry_after(header: str, low: float, high: float) -> None:
    """A18: 429 waits as long as Retry-After says, within [0, 300] s, and does not relist."""

    async def test(server: FakeApiServer, client: Client) -> None:
        refused: list[float] = []

        async def react(request: Request, connection: Connection) -> bool:
            if refused:
                return False
            refused.append(request.at)
            await connection.answer(429, status(429, "TooManyRequests"), {"retry-after": header})
            return True

        server.react = react
        mark = len(server.requests)
        server.end_watches("endpointslices")
        await eventually(lambda: len(since(server, mark)) >= 2, 400)
        assert low <= since(server, mark)[1].at - refused[0] <= high
        assert since(server, mark, watch=False) == []

    play(test)


def test_watch_that_ends_in_time_is_reopened_at_once() -> None:
    """A20: the normal end of a watch is followed by the next one within a second, from the same version, no relist."""

    async def test(server: FakeApiServer, client: Client) -> None:
        first = since(server, 0, watch=True, resource="endpointslices")[0]
        timeout = int(first.params["timeoutSeconds"])
        assert 300 <= timeout < 600
        assert first.params["allowWatchBookmarks"] == "true"
        mark = len(server.requests)
        await eventually(lambda: since(server, mark, watch=True, resource="endpointslices"), 620)
        again = since(server, mark, watch=True, resource="endpointslices")[0]
        assert 0 <= again.at - first.at - timeout <= 1.01
        assert since(server, mark, watch=False, resource="endpointslices") == []
        assert not [event for event in client.events if isinstance(event, SourceFailed)]

    play(test)


def test_bookmark_moves_the_version() -> None:
    """A22: after a bookmark a trimmed history does not matter: the watch resumes from the bookmark, without 410."""

    async def test(server: FakeApiServer, client: Client) -> None:
        for number in range(5):
            server.service("elsewhere", f"s{number}")
        server.bookmark("endpointslices")
        await asyncio.sleep(0.1)
        server.compact()
        mark = len(server.requests)
        server.end_watches("endpointslices")
        await eventually(lambda: since(server, mark, watch=True, resource="endpointslices"), 5)
        assert since(server, mark)[0].params["resourceVersion"] == str(server.resource_version)
        await asyncio.sleep(2)
        assert since(server, mark, watch=False, resource="endpointslices") == []

    play(test)


def test_stale_list_does_not_take_us_back() -> None:
    """A26: a relist older than what we know is not believed; a consistent list decides."""

    async def test(server: FakeApiServer, client: Client) -> None:
        server.slice("shop", "orders-1", "orders", sorted(TWO))
        await eventually(lambda: client.addresses(ORDERS) == TWO)
        old = {"kind": "EndpointSliceList", "metadata": {"resourceVersion": "50"}, "items": []}

        async def react(request: Request, connection: Connection) -> bool:
            if request.resource == "endpointslices" and request.params.get("resourceVersion"):
                await connection.answer(200, old)
                return True
            return False

        mark = len(server.requests)
        server.react = react
        server.send("endpointslices", {"type": "ERROR", "object": status(410, "Expired")})
        await eventually(lambda: since(server, mark, watch=True), 5)
        assert len(since(server, mark, watch=False, resource="endpointslices")) == 2
        assert all(each == TWO for each in client.history(ORDERS)[1:])

    play(test)


def test_restored_etcd_is_noticed() -> None:
    """A27: after a restore from a backup watches are silent; the safety relist finds it within 25 minutes."""

    async def test(server: FakeApiServer, client: Client) -> None:
        for _ in range(50):
            server.slice("shop", "orders-1", "orders", sorted(TWO))
        await eventually(lambda: client.addresses(ORDERS) == TWO)
        server.restore(101)
        server.slice("shop", "orders-1", "orders", ["10.0.0.9"])
        server._stores["endpointslices"].watchers.clear()
        await eventually(lambda: client.addresses(ORDERS) == {"10.0.0.9"}, 25 * 60)
        assert client.describe(ORDERS)["slices_watch"]["rewinds"] == 1

    play(test)


@pytest.mark.parametrize("true", [False, True])
def test_suddenly_empty_list_is_confirmed(true: bool) -> None:
    """A28: a relist that is empty though 3 endpoints were known is asked again consistently, then obeyed."""

    async def test(server: FakeApiServer, client: Client) -> None:
        three = {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
        server.slice("shop", "orders-1", "orders", sorted(three))
        await eventually(lambda: client.addresses(ORDERS) == three)

        async def react(request: Request, connection: Connection) -> bool:
            asked = request.resource == "endpointslices" and not request.watch
            if not asked or not (true or request.params.get("resourceVersion")):
                return False
            meta = {"resourceVersion": "900"}
            await connection.answer(200, {"kind": "EndpointSliceList", "metadata": meta, "items": []})
            return True

        server.react = react
        mark = len(server.requests)
        server.send("endpointslices", {"type": "ERROR", "object": status(410, "Expired")})
        await asyncio.sleep(0.3)
        assert len(since(server, mark, watch=False, resource="endpointslices")) == 2
        assert client.addresses(ORDERS) == (set() if true else three)
        assert (set() in client.history(ORDERS)) is true

    play(test)


def test_unconfirmed_empty_list_is_obeyed_after_ten_seconds() -> None:
    """A28: if the confirmation fails, the empty answer stands after 10 s at most."""

    async def test(server: FakeApiServer, client: Client) -> None:
        three = {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
        server.slice("shop", "orders-1", "orders", sorted(three))
        await eventually(lambda: client.addresses(ORDERS) == three)

        async def react(request: Request, connection: Connection) -> bool:
            if request.resource != "endpointslices" or request.watch:
                return False
            if request.params.get("resourceVersion"):
                meta = {"resourceVersion": "900"}
                await connection.answer(200, {"kind": "EndpointSliceList", "metadata": meta, "items": []})
            else:
                await connection.answer(500, status(500))
            return True

        server.react = react
        start = asyncio.get_running_loop().time()
        server.send("endpointslices", {"type": "ERROR", "object": status(410, "Expired")})
        await asyncio.sleep(5)
        assert client.addresses(ORDERS) == three
        await eventually(lambda: client.addresses(ORDERS) == set(), 30)
        assert 9.9 <= asyncio.get_running_loop().time() - start <= 10.3

    play(test)


def test_scale_to_zero_by_null_is_obeyed() -> None:
    """A29: endpoints null in an event is the truth; it is published after the hold of 100 ms, without a question."""

    async def test(server: FakeApiServer, client: Client) -> None:
        mark, start = len(server.requests), asyncio.get_running_loop().time()
        server.slice("shop", "orders-1", "orders", None)
        await eventually(lambda: client.addresses(ORDERS) == set(), 1)
        assert 0.1 <= asyncio.get_running_loop().time() - start <= 0.12
        assert since(server, mark) == []

    play(test)


def test_forbidden_names_the_role_and_is_adopted_when_granted() -> None:
    """A32: 403 from the start gives the YAML to apply, and a later grant is picked up without a restart."""

    async def test(server: FakeApiServer, client: Client) -> None:
        user = 'User "system:serviceaccount:web:front" cannot list resource "endpointslices"'

        async def react(request: Request, connection: Connection) -> bool:
            if not request.resource:
                return False
            await connection.answer(403, status(403, "Forbidden", f"{request.resource} is forbidden: {user}"))
            return True

        server.react = react
        client.watch(ORDERS)
        await eventually(lambda: client.failures(ORDERS), 1)
        failure = client.failures(ORDERS)[0]
        assert failure.hopeless
        assert isinstance(failure.error, AccessDenied)
        assert re.search('name: "?front"?\n  namespace: "?web"?\n', failure.error.fix)
        assert re.search('namespace: "?shop"?\n', failure.error.fix)
        await asyncio.sleep(30)
        server.react = None
        await eventually(lambda: client.addresses(ORDERS) == ONE, 62)
        server.react = react  # taken away again: what is known stays
        server.end_watches()
        await asyncio.sleep(120)
        assert client.addresses(ORDERS) == ONE

    play(test, synced=False)


def test_without_permission_to_read_services() -> None:
    """Slices alone serve a target that names its port; a port number cannot be translated, and the Failure says so."""

    async def test(server: FakeApiServer, client: Client) -> None:
        async def react(request: Request, connection: Connection) -> bool:
            if request.resource == "services":
                await connection.answer(
                    403, status(403, "Forbidden", 'User "bob" cannot list resource "services"')
                )
                return True
            return False

        server.react = react
        client.watch(ORDERS)
        client.watch("k8s:///orders.shop:80")
        await eventually(lambda: client.addresses(ORDERS) == ONE, 2)
        await eventually(
            lambda: "port number can be translated only" in str(client.last("k8s:///orders.shop:80")), 2
        )
        last = client.last("k8s:///orders.shop:80")
        assert isinstance(last, Failure)
        assert last.hopeless
        server.slice("shop", "orders-1", "orders", sorted(TWO))
        await eventually(lambda: client.addresses(ORDERS) == TWO, 2)

    play(test, synced=False)


@pytest.mark.parametrize("versions", [("v1beta1",), ()])
def test_older_apis(versions: tuple[str, ...]) -> None:
    """A33: without v1 the slices come from v1beta1, without any from Endpoints."""

    async def test(server: FakeApiServer, client: Client) -> None:
        subset = {"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "http", "port": 8080}]}
        for name in ("orders", "others"):
            meta = {"namespace": "shop", "name": name}
            server.put({"kind": "Endpoints", "apiVersion": "v1", "metadata": meta, "subsets": [subset]})
        client.watch(ORDERS)
        await eventually(lambda: client.addresses(ORDERS) == ONE, 2)
        wanted = "discovery.k8s.io/v1beta1" if versions else "v1 Endpoints"
        assert client.describe(ORDERS)["api_version"] == wanted
        last = client.last(ORDERS)
        assert isinstance(last, Snapshot)
        assert len(last.slices) == 1

    play(test, synced=False, versions=versions)


def test_version_that_vanishes_is_rediscovered() -> None:
    """A33: a 404 on v1 (server replaced by an older one) asks for the versions again and goes on with v1beta1."""

    async def test(server: FakeApiServer, client: Client) -> None:
        server.versions = ("v1beta1",)
        await server.refuse()
        await server.start()
        server.slice("shop", "orders-1", "orders", sorted(TWO), version="v1beta1")
        await eventually(lambda: client.addresses(ORDERS) == TWO, 30)
        probes = [each for each in server.requests if each.path == "/apis/discovery.k8s.io"]
        assert len(probes) == 2

    play(test)


def test_redirect_is_not_followed() -> None:
    """A35: a redirect is an error; the other host never hears of us."""

    async def test(server: FakeApiServer, client: Client) -> None:
        async with fake() as other:

            async def react(request: Request, connection: Connection) -> bool:
                await connection.answer(307, b"", {"location": other.url + request.path})
                return True

            server.react = react
            client.watch(ORDERS)
            await eventually(lambda: client.failures(ORDERS), 5)
            assert "redirects are not followed" in str(client.failures(ORDERS)[0].error)
            await asyncio.sleep(60)
            assert other.requests == []

    play(test, synced=False)


@pytest.mark.parametrize(
    ("code", "headers", "body"),
    [
        (200, {"content-type": "text/html"}, b"<html>please log in</html>"),
        (200, {"content-encoding": "gzip"}, b"\x1f\x8b\x08"),
        (204, {}, b""),
        (200, {}, b'{"kind":"Status","code":200}'),
        (200, {}, b'{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":[]}'),
        (200, {}, b'{"kind":"EndpointSliceList","items":[]}'),
        (200, {}, b"\xff\xfe{\x00"),
        (200, {}, b"[" * 100_000),
    ],
    ids=["portal", "gzip", "204", "status", "kind", "no version", "UTF-16", "deep"],
)
def test_unreadable_list_changes_nothing(code: int, headers: dict[str, str], body: bytes) -> None:
    """An answer that is not the list asked for is a failure: the last good state stays, and nothing is hammered."""

    async def test(server: FakeApiServer, client: Client) -> None:
        async def react(request: Request, connection: Connection) -> bool:
            if request.watch or not request.resource:
                return False
            await connection.answer(code, body, headers)
            return True

        server.react = react
        mark = len(server.requests)
        server.send("endpointslices", {"type": "ERROR", "object": status(410, "Expired")})
        await asyncio.sleep(60)
        assert client.addresses(ORDERS) == ONE
        assert 2 <= len(since(server, mark)) <= 8
        assert client.describe(ORDERS)["stale"]
        server.react = None
        server.slice("shop", "orders-1", "orders", sorted(TWO))
        await eventually(lambda: client.addresses(ORDERS) == TWO, 62)

    play(test)


def test_burst_is_coalesced_and_in_order() -> None:
    """A36: 2,000 events in one go publish a few snapshots, the last of which is the last state."""

    async def test(server: FakeApiServer, client: Client) -> None:
        before = len(client.updates[ORDERS])
        for number in range(2000):
            server.slice("shop", "orders-1", "orders", ["10.0.0.1", f"10.1.{number // 250}.{number % 250}"])
        await eventually(lambda: client.addresses(ORDERS) == {"10.0.0.1", "10.1.7.249"}, 20)
        times = [at for at, _ in client.updates[ORDERS][before:]]
        assert all(later - earlier >= 0.0049 for earlier, later in itertools.pairwise(times))
        await asyncio.sleep(1)
        assert client.addresses(ORDERS) == {"10.0.0.1", "10.1.7.249"}

    play(test)


def test_overlong_line_ends_the_watch_and_keeps_the_state() -> None:
    """A37: 2 MB in one line are fine; a line without end is given up at 4 MiB, and what is known stays."""

    async def test(server: FakeApiServer, client: Client) -> None:
        server.put(
            {
                "kind": "EndpointSlice",
                "apiVersion": "discovery.k8s.io/v1",
                "metadata": {
                    "namespace": "shop",
                    "name": "orders-1",
                    "labels": {"kubernetes.io/service-name": "orders"},
                    "annotations": {"pad": "x" * 2_000_000},
                },
                "addressType": "IPv4",
                "endpoints": [{"addresses": [a]} for a in sorted(TWO)],
                "ports": [{"name": "http", "port": 8080}],
            }
        )
        await eventually(lambda: client.addresses(ORDERS) == TWO, 5)
        mark = len(server.requests)
        for _ in range(9):
            server.send("endpointslices", b"y" * 500_000)
        await eventually(lambda: since(server, mark, watch=True, resource="endpointslices"), 30)
        assert client.addresses(ORDERS) == TWO

    play(test)


def test_new_service_leaves_no_gap_for_the_others() -> None:
    """A40: adding a service opens a wider list and watch first; changes of the old ones keep arriving meanwhile."""

    async def test(server: FakeApiServer, client: Client) -> None:
        server.service("shop", "carts")
        server.slice("shop", "carts-1", "carts", ["10.0.7.7"])
        release = asyncio.Event()

        async def react(request: Request, connection: Connection) -> bool:
            if "carts" in request.params.get("labelSelector", ""):
                await release.wait()
            return False

        server.react = react
        client.watch("k8s:///carts.shop:http")
        await asyncio.sleep(0.5)
        server.slice("shop", "orders-1", "orders", sorted(TWO))
        await eventually(lambda: client.addresses(ORDERS) == TWO, 0.2)
        release.set()
        await eventually(lambda: client.addresses("k8s:///carts.shop:http") == {"10.0.7.7"}, 3)
        await eventually(lambda: server.watching("endpointslices") == 1, 5)
        assert all(each in (ONE, TWO) for each in client.history(ORDERS))
        server.slice("shop", "orders-1", "orders", ["10.0.0.2"])
        await eventually(lambda: client.addresses(ORDERS) == {"10.0.0.2"}, 1)
        selectors = {
            r.params["labelSelector"] for r in since(server, 0, watch=True, resource="endpointslices")
        }
        assert selectors == {
            "kubernetes.io/service-name in (orders)",
            "kubernetes.io/service-name in (carts,orders)",
        }

    play(test)


def test_service_deleted_and_recreated() -> None:
    """A41: the Service's end is told by the Services list, its return brings a Snapshot; slices alone say nothing."""

    async def test(server: FakeApiServer, client: Client) -> None:
        server.delete("EndpointSlice", "shop", "orders-1")
        await eventually(lambda: client.addresses(ORDERS) == set(), 1)
        assert isinstance(client.last(ORDERS), Snapshot)
        server.delete("Service", "shop", "orders")
        await eventually(lambda: isinstance(client.last(ORDERS), DoesNotExist), 1)
        server.service("shop", "orders")
        server.slice("shop", "orders-9", "orders", sorted(TWO))
        await eventually(lambda: client.addresses(ORDERS) == TWO, 1)

    play(test)


def test_external_name_needs_no_slices() -> None:
    """An ExternalName Service is published as such, even when slices cannot be read."""

    async def test(server: FakeApiServer, client: Client) -> None:
        server.service("shop", "mail", type="ExternalName", externalName="mail.example.com")

        async def react(request: Request, connection: Connection) -> bool:
            if request.resource == "endpointslices":
                await connection.answer(500, status(500))
                return True
            return False

        server.react = react
        client.watch("k8s:///mail.shop:25")
        await eventually(lambda: isinstance(client.last("k8s:///mail.shop:25"), Snapshot), 5)
        last = client.updates["k8s:///mail.shop:25"][-1][1]
        assert isinstance(last, Snapshot)
        assert last.service.external_name == "mail.example.com"

    play(test, synced=False)


@pytest.mark.parametrize("first", ["appears", "vanishes"])
@pytest.mark.parametrize("gap", [0.0, 0.02, 0.08])
def test_endpoint_moving_between_slices_never_vanishes(first: str, gap: float) -> None:
    """A43, D7: an address that moves from one slice to another is in every published set."""

    async def test(server: FakeApiServer, client: Client) -> None:
        steps = [
            lambda: server.slice("shop", "orders-2", "orders", ["10.0.0.1"]),
            lambda: server.slice("shop", "orders-1", "orders", []),
        ]
        for step in steps if first == "appears" else reversed(steps):
            step()
            if gap:
                await asyncio.sleep(gap)
        await always(lambda: client.addresses(ORDERS) == ONE, 1)
        assert all(each == ONE for each in client.history(ORDERS))
        last = client.last(ORDERS)
        assert isinstance(last, Snapshot)
        assert sum(len(each.endpoints) for each in last.slices) == 1

    play(test)


def test_additions_are_at_once_and_removals_held() -> None:
    """D7: an addition in the same event as a removal is published at once, the removal 100 ms later."""

    async def test(server: FakeApiServer, client: Client) -> None:
        start = asyncio.get_running_loop().time()
        server.slice("shop", "orders-1", "orders", ["10.0.0.2"])
        await eventually(lambda: client.addresses(ORDERS) == TWO, 0.02)
        await eventually(lambda: client.addresses(ORDERS) == {"10.0.0.2"}, 0.2)
        assert 0.1 <= asyncio.get_running_loop().time() - start <= 0.12

    play(test)


def test_label_moves_a_slice_to_another_service() -> None:
    """A slice whose service label changes leaves the old Service and joins the new one."""

    async def test(server: FakeApiServer, client: Client) -> None:
        server.service("shop", "carts")
        client.watch("k8s:///carts.shop:http")
        await eventually(lambda: client.addresses("k8s:///carts.shop:http") == set(), 2)
        server.slice("shop", "orders-1", "carts", ["10.0.0.1"])
        await eventually(lambda: client.addresses("k8s:///carts.shop:http") == ONE, 1)
        await eventually(lambda: client.addresses(ORDERS) == set(), 1)

    play(test)


def test_unreadable_object_keeps_its_last_good_state() -> None:
    """A slice that becomes unreadable keeps its endpoints, in an event and in a relist; the rest goes on."""

    async def test(server: FakeApiServer, client: Client) -> None:
        bad = {
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {
                "namespace": "shop",
                "name": "orders-1",
                "labels": {"kubernetes.io/service-name": "orders"},
            },
            "addressType": "Carrier Pigeon",
        }
        server.put(bad)
        server.slice("shop", "orders-2", "orders", ["10.0.0.2"])
        await eventually(lambda: client.addresses(ORDERS) == TWO, 1)
        server.send("endpointslices", {"type": "ERROR", "object": status(410, "Expired")})
        await asyncio.sleep(3)
        assert client.addresses(ORDERS) == TWO
        skipped = [event for event in client.events if isinstance(event, EntrySkipped)]
        assert len(skipped) == 1
        assert "Carrier Pigeon" in skipped[0].reason

    play(test)


def test_failure_and_recovery_are_told_once() -> None:
    """An outage gives one SourceFailed per minute and watch at most, and its end one SourceRecovered."""

    async def test(server: FakeApiServer, client: Client) -> None:
        await server.refuse()
        await asyncio.sleep(600)
        failed = [event for event in client.events if isinstance(event, SourceFailed)]
        assert 2 <= len(failed) <= 20
        assert all(event.stale for event in failed)
        await server.start()
        await asyncio.sleep(130)
        sources = [event.source for event in client.events if isinstance(event, SourceRecovered)]
        assert len(sources) == len(set(sources)) == 2
        assert client.describe(ORDERS)["problem"] == ""

    play(test)


def test_closing_the_last_subscription_ends_the_watches() -> None:
    """After close() nothing is asked or published any more; a later watch starts anew."""

    async def test(server: FakeApiServer, client: Client) -> None:
        client.subscriptions[ORDERS].close()
        await eventually(lambda: server.watching("endpointslices") == server.watching("services") == 0, 2)
        mark, count = len(server.requests), len(client.updates[ORDERS])
        server.slice("shop", "orders-1", "orders", sorted(TWO))
        await asyncio.sleep(700)
        assert (len(server.requests), len(client.updates[ORDERS])) == (mark, count)
        client.watch(ORDERS)
        await eventually(lambda: client.addresses(ORDERS) == TWO, 2)

    play(test)


def test_watching_a_service_again_needs_no_new_list() -> None:
    """A Service whose last subscription ended is known at once when it returns, while others go on."""

    async def test(server: FakeApiServer, client: Client) -> None:
        carts = "k8s:///carts.shop:http"
        server.service("shop", "carts")
        server.slice("shop", "carts-1", "carts", ["10.0.7.7"])
        client.watch(carts)
        await eventually(lambda: client.addresses(carts) == {"10.0.7.7"}, 3)
        client.subscriptions[carts].close()
        server.slice("shop", "carts-1", "carts", ["10.0.7.8"])
        await asyncio.sleep(5)
        mark = len(server.requests)
        client.updates[carts].clear()
        client.watch(carts)
        await eventually(lambda: client.addresses(carts) == {"10.0.7.8"}, 0.1)
        assert since(server, mark) == []
        server.slice("shop", "carts-1", "carts", ["10.0.7.9"])
        await eventually(lambda: client.addresses(carts) == {"10.0.7.9"}, 1)

    play(test)


def test_no_credentials_are_hopeless_and_looked_for_again(tmp_path: Any) -> None:
    """Without any source of credentials the Failure says what was tried; a service account that appears is used."""

    async def main() -> None:
        async with fake() as server:
            environ: dict[str, str] = {}
            client = Client(environ=environ, service_account_dir=str(tmp_path), in_cluster=None)
            client.watch(ORDERS)
            await eventually(lambda: client.failures(ORDERS), 1)
            assert client.failures(ORDERS)[0].hopeless
            assert "KUBERNETES_SERVICE_HOST is not set" in str(client.failures(ORDERS)[0].error)
            assert client.describe(ORDERS)["problem"].startswith("no Kubernetes credentials")
            client.watch("k8s:///carts.shop:http")
            await eventually(lambda: client.failures("k8s:///carts.shop:http"), 1)
            assert server.requests == []
            await client.close()

    run(main)


def test_tokens_never_leak(tmp_path: Any) -> None:
    """A113: no repr, event, message or describe() holds the token, even when it is refused."""

    async def main() -> None:
        (tmp_path / "token").write_text("s3cr3t-t0ken")
        async with fake() as server:

            async def react(request: Request, connection: Connection) -> bool:
                await connection.answer(401, status(401, "Unauthorized"))
                return True

            server.react = react
            client = Client(api_server=server.url, service_account_dir=str(tmp_path))
            client.watch(ORDERS)
            await asyncio.sleep(60)
            assert server.requests[0].headers["authorization"] == "Bearer s3cr3t-t0ken"
            assert len(server.requests) <= 8
            assert client.failures(ORDERS)[0].hopeless
            assert client.resolver.api is not None
            shown = repr(
                (client.events, client.updates, client.describe(ORDERS), client.resolver.api.credentials)
            )
            shown += str([str(failure.error) for failure in client.failures(ORDERS)])
            assert "s3cr3t" not in shown
            assert str(tmp_path) in shown
            await client.close()

    run(main)


def test_rotated_token_is_retried_at_once(tmp_path: Any) -> None:
    """A30: a 401 re-reads the token; a new one is tried at once, and nothing is dropped or told."""

    async def main() -> None:
        (tmp_path / "token").write_text("old")
        valid = {"old"}
        async with fake() as server:

            async def react(request: Request, connection: Connection) -> bool:
                if request.headers["authorization"].removeprefix("Bearer ") in valid:
                    return False
                await connection.answer(401, status(401, "Unauthorized"))
                return True

            server.react = react
            client = Client(api_server=server.url, service_account_dir=str(tmp_path))
            client.watch(ORDERS)
            await eventually(lambda: client.addresses(ORDERS) == ONE)
            await asyncio.sleep(2)
            valid.clear()
            valid.add("new")
            (tmp_path / "token").write_text("new")
            server.end_watches()
            server.slice("shop", "orders-1", "orders", sorted(TWO))
            await eventually(lambda: client.addresses(ORDERS) == TWO, 3)
            assert not [event for event in client.events if isinstance(event, SourceFailed)]
            await client.close()

    run(main)


def test_ten_thousand_endpoints_do_not_block_the_loop() -> None:
    """A list of 100 slices is decoded in steps: other tasks run in between."""

    async def test(server: FakeApiServer, client: Client) -> None:
        server.service("shop", "big")
        for number in range(100):
            server.slice("shop", f"big-{number}", "big", [f"10.{number}.0.{i}" for i in range(1, 101)])
        steps = 0

        def now() -> float:
            # Virtual time stands still while code runs; here each look at the clock finds a millisecond gone.
            nonlocal steps
            steps += 1
            return asyncio.get_running_loop().time() + steps / 1000

        turns = 0

        async def sleep(seconds: float) -> None:
            nonlocal turns
            turns += seconds == 0
            await asyncio.sleep(seconds)

        client.context = replace(client.context, now=now, sleep=sleep)
        client.resolver = KubernetesResolver(client.context)
        client.watch("k8s:///big.shop:http")
        await eventually(lambda: len(client.addresses("k8s:///big.shop:http") or ()) == 10_000, 10)
        # 100 slices of a millisecond each, in steps of about SLICE_OF_WORK: a turn after every third, if not more.
        assert turns >= 25
        last = client.last("k8s:///big.shop:http")
        assert isinstance(last, Snapshot)
        assert len(addresses(last.slices)) == 10_000
        assert all(isinstance(each, EndpointSlice) for each in last.slices)

    play(test, synced=False)


@pytest.mark.parametrize("kind", ["group", "list"])
def test_answer_that_drips_for_ever(kind: str) -> None:
    """Headers and then a byte now and then, on the one probe that stands for all: given up, and asked again."""

    async def test(server: FakeApiServer, client: Client) -> None:
        async def react(request: Request, connection: Connection) -> bool:
            if request.resource != ("" if kind == "group" else "endpointslices"):
                return False
            await connection.begin_stream()
            while True:
                await connection.chunk(b" ")
                await asyncio.sleep(5)

        server.react = react
        client.watch(ORDERS)
        await eventually(lambda: client.failures(ORDERS), 70)
        assert "not complete within" in str(client.failures(ORDERS)[0].error)
        server.react = None
        await eventually(lambda: client.addresses(ORDERS) == ONE, 10)

    play(test, synced=False)


@pytest.mark.parametrize("answered", ["nothing", "services"])
def test_closing_before_anything_is_known_leaves_nothing(answered: str) -> None:
    """A server that says nothing (any more), and a resolver for three namespaces that is closed meanwhile: nothing is
    asked by those who waited, it is no slower than for one namespace, and no task and no connection is left."""

    async def test(server: FakeApiServer, client: Client) -> None:
        gone: list[Request] = []

        async def react(request: Request, connection: Connection) -> bool:
            if request.resource == answered:
                return False
            await connection.gone()
            gone.append(request)
            return True

        server.react = react
        before = asyncio.all_tasks()
        for name in ("shop", "bank", "post"):
            client.watch(f"k8s:///orders.{name}:http")
        await asyncio.sleep(3)
        waiting = [each for each in server.requests if each.resource != answered]
        start = asyncio.get_running_loop().time()
        await client.close()
        assert asyncio.get_running_loop().time() - start < 2 * CANCEL_PATIENCE
        await asyncio.sleep(5)
        assert len(waiting) == 1
        assert gone == waiting
        assert [each for each in server.requests if each.resource != answered] == waiting
        assert asyncio.all_tasks() - before == set()

    play(test, synced=False)


def test_anonymous_is_offered_no_role() -> None:
    """403 for system:anonymous is about the credentials; the fix is no Role for everybody."""

    async def test(server: FakeApiServer, client: Client) -> None:
        async def react(request: Request, connection: Connection) -> bool:
            message = 'services is forbidden: User "system:anonymous" cannot list resource "services"'
            await connection.answer(403, status(403, "Forbidden", message))
            return True

        server.react = react
        client.watch(ORDERS)
        await eventually(lambda: client.failures(ORDERS))
        error = client.failures(ORDERS)[0].error
        assert isinstance(error, AccessDenied)
        assert "kind: Role" not in error.fix
        assert "check the credentials" in error.fix

    play(test, synced=False)


def _tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_rotated_authority(tmp_path: Path) -> None:
    """A34: a certificate of an unknown authority is refused and the state stays; once the CA file has the new one, it
    is used without a restart. The bundle may hold comments in any language."""

    async def main() -> None:
        old, new = trustme.CA(), trustme.CA()
        (tmp_path / "token").write_text("t")
        (tmp_path / "ca.crt").write_bytes("# Autorit\u00e9 \u8a8d\u8a3c\n".encode() + old.cert_pem.bytes())
        server = FakeApiServer()
        server.tls = _tls(old)
        await server.start()
        server.service("shop", "orders")
        server.slice("shop", "orders-1", "orders", sorted(ONE))
        client = Client(api_server=server.url, service_account_dir=str(tmp_path))
        client.watch(ORDERS)
        await eventually(lambda: client.addresses(ORDERS) == ONE)
        await asyncio.sleep(2)
        await server.refuse()
        server.tls = _tls(new)
        await server.start()
        server.slice("shop", "orders-1", "orders", sorted(TWO))
        mark = len(server.requests)
        await asyncio.sleep(100)
        assert server.requests[mark:] == []  # no token went to whoever that is
        assert client.addresses(ORDERS) == ONE
        assert "certificate" in client.describe(ORDERS)["problem"].lower()
        (tmp_path / "ca.crt").write_bytes(new.cert_pem.bytes())
        await eventually(lambda: client.addresses(ORDERS) == TWO, 60 + 61)
        await client.close()
        await server.close()

    run(main)


def test_cancelled_in_the_tls_handshake() -> None:
    """A resolver that is closed while a slow server still shakes hands leaves no connection."""

    async def main() -> None:
        server = FakeApiServer()
        server.tls = _tls(trustme.CA())
        await server.start()
        ends: list[asyncio.StreamWriter] = []
        over = asyncio.Event()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inner, outer = await asyncio.open_connection("127.0.0.1", server.port)
            ends.extend((writer, outer))

            async def answers() -> None:
                while data := await inner.read(65536):
                    await asyncio.sleep(0.2)  # the handshake takes longer than the close
                    writer.write(data)

            with contextlib.suppress(ConnectionError):
                back = asyncio.create_task(answers())
                while data := await reader.read(65536):
                    outer.write(data)
                outer.close()
                await asyncio.wait({back})
            over.set()

        front = await asyncio.start_server(relay, "127.0.0.1", 0)
        client = Client(api_server=f"https://127.0.0.1:{front.sockets[0].getsockname()[1]}")
        client.watch(ORDERS)
        await eventually(lambda: len(ends) == 2)
        await asyncio.sleep(0.05)
        await client.close()
        await asyncio.wait_for(over.wait(), 2)
        assert client.failures(ORDERS) == []
        for end in ends:
            end.close()
        front.close()
        await server.close()

    run(main)
