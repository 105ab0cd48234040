"""The tests of the asyncio client and of its fast wire once more, on uvloop's loops: client and servers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest

from tests.integration import test_httpx_async, test_httpx_fast
from tests.integration.test_httpx_fast import deaf, silent  # noqa: F401 - fixtures

uvloop = pytest.importorskip("uvloop")

#: Of threads only; and TLS sessions: uvloop has no option for them, each connection begins with a full handshake.
LEFT_OUT = {"test_threads_wait_for_their_turn", "test_tls_sessions_are_resumed"}


@pytest.fixture(autouse=True)
def uvloop_everywhere() -> Iterator[None]:
    """As ``uvloop.install()`` does it: every loop that is made is one of uvloop's, except meshlib's own."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)


for source in (test_httpx_async, test_httpx_fast):
    for name, value in vars(source).items():
        if name.startswith("test_") and inspect.isfunction(value) and name not in LEFT_OUT:
            globals()[name] = value


def test_these_are_uvloops_loops() -> None:
    """The tests above prove something about uvloop only if this holds."""

    async def kind() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert asyncio.run(kind()).partition(".")[0] == "uvloop"
