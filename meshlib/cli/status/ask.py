"""Asking running programs, all at once; a worker that is stuck delays the others' answers by nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from meshlib.cli.status.find import Socket
from meshlib.runtime.report_form import SCHEMA, ProcessReport
from meshlib.runtime.status_place import peer_of
from meshlib.runtime.status_socket import MAX_ANSWER

#: Seconds until a worker must have answered in full. One that computes holds its own answer up; with one that stands
#: still, nobody wants to wait.
PATIENCE = 5.0
#: Bytes of one line: 250 endpoints with the longest names there can be, or the details of a resolver.
MAX_LINE = 1 << 20
#: What an answer raises that is no meshlib's, or one's of another time.
_NOT_UNDERSTOOD = (ValueError, LookupError, TypeError, AttributeError, RecursionError, msgspec.MsgspecError)


@dataclass(frozen=True, slots=True)
class Worker:
    """One program's answer in the form of the JSON document."""

    socket: Socket
    found: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Silent:
    """A socket that gave no answer, and why."""

    socket: Socket
    why: str


def ask_all(sockets: Iterable[Socket], endpoints: int, others: bool) -> list[Worker | Silent]:
    """In the order given. ``endpoints``: how many of each target; ``others``: also those without traffic."""
    question = json.dumps({"endpoints": endpoints, "others": others}).encode() + b"\n"

    async def everybody() -> list[Worker | Silent]:
        return list(await asyncio.gather(*(_ask(socket, question) for socket in sockets)))

    return asyncio.run(everybody())


async def _ask(socket: Socket, question: bytes) -> Worker | Silent:
    try:
        async with asyncio.timeout(PATIENCE):
            return Worker(socket, await _answer(socket, question))
    except TimeoutError:
        return Silent(socket, f"no answer within {PATIENCE:g} s: stopped, or too busy to answer")
    except PermissionError:
        return Silent(socket, f"only user {socket.uid} and root may ask")
    except (OSError, EOFError) as error:
        return Silent(socket, f"{error}" or repr(error))
    except _NOT_UNDERSTOOD as error:
        return Silent(socket, f"an answer that is not understood: {error!r}")


async def _answer(socket: Socket, question: bytes) -> dict[str, Any]:
    address = socket.address if isinstance(socket.address, Path) else socket.address.decode()
    reader, writer = await asyncio.open_unix_connection(address, limit=MAX_LINE)
    try:
        peer = peer_of(writer.get_extra_info("socket"))
        if peer is not None and peer.uid != socket.uid:
            raise ConnectionError(f"user {peer.uid} answers for user {socket.uid}: not asked")
        writer.write(question)
        return await _assemble(reader)
    finally:
        writer.transport.abort()


async def _assemble(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The document from its lines. Raises ConnectionError for a refusal, EOFError when the end is missing."""
    found: dict[str, Any] = {}
    received = 0
    while line := await reader.readline():
        received += len(line)
        if received > 2 * MAX_ANSWER:
            raise ConnectionError("an answer without end")
        part = json.loads(line)
        if not isinstance(part, dict):
            raise ValueError("lines of objects are expected")
        if "error" in part:
            raise ConnectionError(str(part["error"]))
        if "end" in part:
            if not found:
                raise EOFError("an empty answer")
            return _checked(found)
        if "process" in part:
            found = {**part["process"], "targets": []}
            if found["schema"] != SCHEMA:
                raise ConnectionError(
                    f"it speaks version {found['schema']} of this report (meshlib {found['versions']['meshlib']}), "
                    f"we speak {SCHEMA}: use the meshlib of its environment"
                )
        elif "target" in part:
            found["targets"].append(part["target"])
        elif "endpoints" in part:
            target = found["targets"][-1]
            target["endpoints"] += part["endpoints"]
            target["left_out"] += part["left_out"]
        elif "cut" in part:
            found["cut"] = str(part["cut"])
    raise EOFError("the answer ended in the middle")


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """The document with every key that the tables use. Raises MsgspecError or KeyError for one that lacks."""
    report = msgspec.convert(found, ProcessReport)
    _ = report.versions["meshlib"], [target.rollout.requests["mesh"] for target in report.targets]
    return {**found, **msgspec.to_builtins(report)}
