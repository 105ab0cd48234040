"""The one-shot look-up of decision D3: what the bare client's system resolver would give."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from meshlib.discovery.base import ResolverContext
from meshlib.discovery.dns import lookup
from meshlib.errors import DiscoveryError
from tests.integration.resolver_support import real_context

if TYPE_CHECKING:
    from tests.components.dns import Knot


def ask(body: Callable[[ResolverContext], Any], **settings: Any) -> Any:
    async def main() -> Any:
        return await body(real_context(settings, [], set()))

    return asyncio.run(main())


def test_addresses_are_the_system_resolvers() -> None:
    """``localhost`` gives what getaddrinfo gives, of one family only."""
    found = ask(lambda context: lookup.addresses("localhost", context, 5))
    first = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)[0]
    assert first[4][0] in found
    assert len({":" in address for address in found}) == 1


def test_one_family_in_the_systems_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two families: the first choice of the system (RFC 6724) decides, the other is left out, repeats count once."""
    infos = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::2", 0, 0, 0)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", 0, 0, 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: infos)
    assert ask(lambda context: lookup.addresses("dual", context, 5)) == ("fd00::1", "fd00::2")


def test_absent_name_is_empty_and_a_failing_resolver_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "No such name" is an answer; "try again" is an error; a hanging resolver ends with the timeout."""

    def fail(code: int) -> Callable[..., NoReturn]:
        def getaddrinfo(*_: object, **__: object) -> NoReturn:
            raise socket.gaierror(code, "scripted")

        return getaddrinfo

    monkeypatch.setattr(socket, "getaddrinfo", fail(socket.EAI_NONAME))
    assert ask(lambda context: lookup.addresses("gone", context, 5)) == ()
    monkeypatch.setattr(socket, "getaddrinfo", fail(socket.EAI_AGAIN))
    with pytest.raises(DiscoveryError):
        ask(lambda context: lookup.addresses("again", context, 5))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(0.5))
    with pytest.raises(TimeoutError):
        ask(lambda context: lookup.addresses("slow", context, 0.05))


@pytest.mark.parametrize("name", ["a" * 64 + ".test", "a..b", "\ud800"])
def test_what_is_no_name(name: str) -> None:
    """A text that the resolver cannot even encode is an error of ours, not a UnicodeError."""
    with contextlib.suppress(DiscoveryError):
        assert ask(lambda context: lookup.addresses(name, context, 5)) == ()


def test_srv_of_a_named_port(knot: Knot, tmp_path: Path) -> None:
    """SRV with and without glue, best priority only; absent is empty; a dead server is an error."""
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    host = knot.fresh_name("svc")
    for n in (1, 2, 3):
        knot.set_records(f"p{n}.{host}", "A", [f"10.0.0.{n}"])
    knot.set_records(
        f"_http._tcp.{host}", "SRV", [f"0 1 8080 p1.{host}.", f"0 1 8081 p2.{host}.", f"5 1 8082 p3.{host}."]
    )
    settings = {"resolv_conf": str(resolv_conf), "port": knot.port, "families": [4, 6]}

    def srv(name: str, **more: Any) -> Any:
        return ask(lambda context: lookup.srv(name, context, 5), **{**settings, **more})

    assert set(srv(f"_http._tcp.{host}")) == {("10.0.0.1", 8080), ("10.0.0.2", 8081)}
    assert srv(f"_grpc._tcp.{host}") == ()
    with pytest.raises(DiscoveryError):
        srv(f"_http._tcp.{host}", port=1)
