"""What a status socket may say that is no answer, and what an answer of a program is filled up with."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from meshlib.cli.status import ask
from meshlib.cli.status.ask import Silent, Worker
from meshlib.cli.status.find import Socket

ROLLOUT = {
    **{"mode": "on", "percent": 100.0, "source": "default", "reason": "", "requests": {"mesh": 0}},
    **{"observed": 0, "refusals": {}, "reached": {}},
}


def answer(content: bytes) -> Worker | Silent:
    """What ``meshlib status`` takes from a socket that sends ``content``."""

    async def main() -> Worker | Silent:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(content)
            writer.close()

        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "socket")
            server = await asyncio.start_unix_server(serve, path)
            async with server:
                return await ask._ask(Socket(path, path.stat().st_uid, 5), b"{}\n")

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine is not what is tested."""
    monkeypatch.setattr(ask, "PATIENCE", 60.0)


def lines(*parts: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(part).encode() + b"\n" for part in parts)


def process(**fields: Any) -> dict[str, Any]:
    found = {
        **{"schema": 1, "pid": 5, "parent": 1, "uid": 0, "program": "app", "versions": {"meshlib": "1"}},
        **{"at": 1.0, "started": None, "sidecar": "", "events": {}, "recent": [], "meshes": []},
    }
    return {"process": {**found, **fields}}


def of_target(**fields: Any) -> dict[str, Any]:
    found = {
        **{"mesh": 0, "target": "k8s:///orders.shop:http", "authority": "orders.shop.svc", "started": True},
        "rollout": ROLLOUT,
        "totals": {"in_flight": 0, "requests": 0, "failures": 0, "draining": 0},
    }
    return {"target": {**found, **fields}}


@pytest.mark.parametrize(
    "content",
    [
        lines({"process": {"schema": 1}}, {"end": True}),
        lines({"process": {"schema": 1}}, {"endpoints": [], "left_out": 0}),
        b"[" * 500_000 + b"\n",
        lines(process(versions={}), {"end": True}),
        lines(process(), of_target(rollout=None), {"end": True}),
        lines(process(), of_target(rollout={**ROLLOUT, "requests": {}}), {"end": True}),
    ],
    ids=["bare", "endpoints-of-nobody", "deep", "no-version", "no-roll-out", "no-ways"],
)
def test_what_is_no_answer_is_told_as_such(content: bytes) -> None:
    """One odd socket is a line of the report, not the end of it."""
    found = answer(content)
    assert isinstance(found, Silent)
    assert "not understood" in found.why


def test_defaults_are_filled_in_and_what_is_new_is_kept() -> None:
    """Of another version of meshlib: fields that have a default may lack; a cut answer says so."""
    found = answer(lines(process(added=1), of_target(), {"cut": "too long"}, {"end": True}))
    assert isinstance(found, Worker), found
    (target,) = found.found["targets"]
    assert (target["locality"], target["left_out"], len(target["endpoints"])) == ("", 0, 0)
    assert (found.found["added"], found.found["cut"]) == (1, "too long")
