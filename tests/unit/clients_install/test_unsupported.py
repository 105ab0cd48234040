"""Real libraries of versions that we do not know are left alone, with one warning each (decision D18).

``make versions`` runs it where such are installed; with known ones there is nothing to see here, and
``test_an_unknown_httpx_is_left_alone`` shows the same with a pretended version.
"""

from __future__ import annotations

import warnings
from typing import Any

import httpx
import pytest

import meshlib
from meshlib.clients.httpx.flavour import load
from tests.components.backends import Backends

pytestmark = pytest.mark.skipif(not load("httpx").unsupported, reason="make versions brings such an httpx")


def meshlib_warnings(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(each.message) for each in caught if "not a version this meshlib knows" in str(each.message)]


def test_install_leaves_it_alone_and_says_so_once(backends: Backends) -> None:
    """Clients and functions work as ever, over the pools of their own library."""
    (server,) = backends.http(1)
    before: list[Any] = [dict(vars(kind)) for kind in (httpx.HTTPTransport, httpx.AsyncHTTPTransport)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        meshlib.install()
        try:
            after = [dict(vars(kind)) for kind in (httpx.HTTPTransport, httpx.AsyncHTTPTransport)]
            assert after == before
            with httpx.Client() as client:
                assert client.get(server.url).status_code == 200
            assert httpx.get(server.url).status_code == 200
        finally:
            meshlib.uninstall()
    (told,) = meshlib_warnings(caught)
    assert f"httpx {httpx.__version__}" in told


def test_wrap_and_transports_pass_through(backends: Backends) -> None:
    """Explicit use of a library that cannot be balanced is a warning too, and a client that works."""
    (server,) = backends.http(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with meshlib.wrap(httpx.Client()) as client:
            assert client.get(server.url).status_code == 200
        with httpx.Client(transport=meshlib.httpx.MeshTransport()) as client:
            assert client.get(server.url).status_code == 200
    assert len(meshlib_warnings(caught)) == 2
