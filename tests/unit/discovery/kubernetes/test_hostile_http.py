"""Answers that break HTTP itself, and data that breaks rules of Kubernetes: nothing dies, nothing is forgotten."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest

from meshlib.testing.fake_apiserver import Connection, FakeApiServer, Request
from tests.unit.discovery.kubernetes.test_api_faults import ONE, ORDERS, TWO, play
from tests.unit.discovery.kubernetes.virtual import Client, eventually

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
EVENT = b'{"type":"ADDED","object":{"kind":"EndpointSlice","metadata":{"name":"x","namespace":"shop"}}}'

RAW = {
    "nothing at all": b"",
    "no HTTP": b"\x16\x03\x01\x00\xff" * 50,
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "status 99": b"HTTP/1.1 99 x\r\ncontent-length: 0\r\n\r\n",
    "status 999": b"HTTP/1.1 999 x\r\ncontent-length: 0\r\n\r\n",
    "1xx for ever": b"HTTP/1.1 100 Continue\r\n\r\n" * 5000,
    "switching protocols": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "header of a megabyte": OK + b"x: " + b"a" * (1 << 20) + b"\r\n\r\n",
    "headers for ever": OK + b"x: y\r\n" * 100_000,
    "body shorter than said": OK + b"content-length: 1000\r\n\r\n{}",
    "body longer than said": OK + b"content-length: 2\r\n\r\n{}{}{}",
    "negative length": OK + b"content-length: -5\r\n\r\n",
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "length of letters": OK + b"content-length: ten\r\n\r\n{}",
    "bad chunk size": CHUNKED + b"xyz\r\n{}\r\n0\r\n\r\n",
    "negative chunk": CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n",
    "chunk extension of a megabyte": CHUNKED + b"2;" + b"a" * (1 << 20) + b"\r\n{}\r\n0\r\n\r\n",
    "chunk cut": CHUNKED + b"ff\r\n{}",
    "trailers": CHUNKED + b"2\r\n{}\r\n0\r\nx: y\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "206": b"HTTP/1.1 206 Partial\r\ncontent-length: 2\r\n\r\n{}",
    "304": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "407": b"HTTP/1.1 407 x\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n",
    "421 and a cookie": b"HTTP/1.1 421 x\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n",
    "bad gzip": OK + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\nabcd",
    "unknown encoding": OK + b"content-encoding: x-rot13\r\ncontent-length: 2\r\n\r\n{}",
    "NUL in a header": OK + b"x: a\x00b\r\ncontent-length: 2\r\n\r\n{}",
    "two objects on a line": CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (2 * len(EVENT) + 1, EVENT + EVENT + b"\n"),
    "a line of UTF-16": CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (8, "{}\n".encode("utf-16")),
}


@pytest.mark.parametrize("where", ["group", "list", "watch"])
@pytest.mark.parametrize("raw", RAW.values(), ids=RAW.keys())
def test_broken_http(where: str, raw: bytes) -> None:
    """Whatever comes instead of an answer, on any request: no task dies, nothing known goes, and it ends when it ends;
    in the first minute each request is repeated at most eight times."""

    async def test(server: FakeApiServer, client: Client) -> None:
        async def react(request: Request, connection: Connection) -> bool:
            kind = "watch" if request.watch else "list" if request.resource else "group"
            if kind != where or (kind != "group" and request.resource != "endpointslices"):
                return False
            await connection.send(raw)
            return True

        if where == "group":
            carts = ORDERS
        else:
            client.watch(ORDERS)
            await eventually(lambda: client.addresses(ORDERS) == ONE)
            await asyncio.sleep(2)
            carts = "k8s:///carts.shop:http"
            server.service("shop", "carts")
            server.slice("shop", "carts-1", "carts", ["10.0.7.7"])
        server.react = react
        mark = len(server.requests)
        client.watch(carts)
        server.end_watches("endpointslices")
        await asyncio.sleep(60)
        bad = [r for r in server.requests[mark:] if r.resource == "endpointslices" or not r.resource]
        assert bad
        for again in (True, False):
            assert sum(each.watch is again for each in bad) <= 8
        if where != "group":
            assert client.addresses(ORDERS) == ONE
        server.react = None
        server.slice("shop", "orders-1", "orders", sorted(TWO))
        await eventually(lambda: client.addresses(ORDERS) == TWO, 130)
        if where != "group":
            await eventually(lambda: client.addresses(carts) == {"10.0.7.7"}, 70)

    play(test, synced=False)


def _slice(**more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "shop",
            "name": "orders-1",
            "resourceVersion": "500",
            "labels": {"kubernetes.io/service-name": "orders"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}],
        "ports": [{"name": "http", "port": 8080}],
    }
    return base | more


def _meta(**more: Any) -> dict[str, Any]:
    return _slice(metadata=_slice()["metadata"] | more)


def _deep(levels: int) -> bytes:
    return b'{"type":"ADDED","object":' + b'{"a":' * levels + b"1" + b"}" * levels + b"}"


LINES: dict[str, bytes | dict[str, Any]] = {
    "version of letters": _meta(resourceVersion="abc"),
    "version of 30 digits": _meta(resourceVersion="9" * 30),
    "negative version": _meta(resourceVersion="-1"),
    "no version": _meta(resourceVersion=None),
    "version a number": _meta(resourceVersion=7),
    "labels null": _meta(labels=None),
    "labels a list": _meta(labels=[]),
    "generation 2^70": _meta(generation=2**70),
    "annotation of a megabyte": _meta(annotations={"a": "x" * (1 << 20)}),
    "name of 64 KB": _meta(name="x" * 65536),
    "name a path": _meta(name="../../etc"),
    "other namespace": _meta(namespace="kube-system"),
    "endpoints a text": _slice(endpoints="x"),
    "endpoints an object": _slice(endpoints={}),
    "endpoints of nulls": _slice(endpoints=[None, 1, "x", [], {}]),
    "ports a number": _slice(ports=9),
    "type unknown": _slice(addressType="Carrier pigeon"),
    "type null": _slice(addressType=None),
    "deep": _deep(10_000),
    "duplicate keys": b'{"type":"ADDED","type":"DELETED","object":{},"object":{}}',
    "NaN": b'{"type":"ADDED","object":{"metadata":{"generation":NaN}}}',
    "surrogate": b'{"type":"ADDED","object":{"kind":"EndpointSlice","metadata":{"name":"\\ud800"}}}',
    "huge number": b'{"type":"ADDED","object":{"metadata":{"generation":1' + b"0" * 400 + b"}}}",
    "byte order mark": b'\xef\xbb\xbf{"type":"ADDED","object":{}}',
    "ERROR null": b'{"type":"ERROR","object":null}',
    "ERROR empty": b'{"type":"ERROR","object":{}}',
    "ERROR odd": b'{"type":"ERROR","object":{"code":[],"message":{}}}',
    "ERROR nan": b'{"type":"ERROR","object":{"code":1e999}}',
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_odd_data_on_the_watch(line: bytes | dict[str, Any]) -> None:
    """An object that breaks the rules costs itself at most, and the next good one is taken."""

    async def test(server: FakeApiServer, client: Client) -> None:
        raw = line if isinstance(line, bytes) else json.dumps({"type": "MODIFIED", "object": line}).encode()
        server.send("endpointslices", raw + b"\n")
        await asyncio.sleep(10)
        assert client.addresses(ORDERS) in (ONE, TWO, set())
        server.slice("shop", "orders-1", "orders", ["10.0.0.3"])
        await eventually(lambda: "10.0.0.3" in (client.addresses(ORDERS) or ()), 60)

    play(test)


@pytest.mark.parametrize("turns", range(4, 72, 2))
def test_closed_at_any_turn_of_the_loop(turns: int) -> None:
    """A subscription and a resolver that are closed after any number of turns, wherever their tasks wait then, leave
    no connection (an unclosed one is a ResourceWarning, and so an error here), no task and no user of the pool."""

    async def test(server: FakeApiServer, client: Client) -> None:
        before = asyncio.all_tasks()
        client.watch(ORDERS)
        for _ in range(turns):
            await asyncio.sleep(0)
        api = client.resolver.api
        client.subscriptions[ORDERS].close()
        pool = None if api is None else api._connection
        await client.close()
        assert pool is None or pool.users == 0
        await asyncio.sleep(5)
        assert server.watching("services") == server.watching("endpointslices") == 0
        assert asyncio.all_tasks() - before == set()

    play(test, synced=False)
    gc.collect()


def test_unsubscribed_at_any_turn_the_next_gets_its_set() -> None:
    """No place at the gate stays taken by a task that was cancelled, wherever it waited."""

    async def test(server: FakeApiServer, client: Client) -> None:
        begun = set()
        for turns in range(0, 100, 3):
            client.watch(ORDERS)
            for _ in range(turns):
                await asyncio.sleep(0)
            begun.add(server.watching("endpointslices") > 0)
            client.subscriptions[ORDERS].close()
            client.watch(ORDERS)
            await eventually(lambda: client.addresses(ORDERS) == ONE, 2)
            client.subscriptions[ORDERS].close()
            await eventually(lambda: server.watching("endpointslices") == server.watching("services") == 0, 3)
            client.updates[ORDERS].clear()
        assert begun == {True, False}  # some were closed before their watch began, some afterwards

    play(test, synced=False)
