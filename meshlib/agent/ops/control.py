"""The agent's control socket: a Unix socket that only its owner may open. One JSON line in, one out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from meshlib.errors import MeshError

#: Bytes of a request, and seconds until it is there; both are tiny.
MAX_REQUEST = 4096
MAX_SECONDS = 5.0
#: Seconds of an answer: behind a full write of 10,000 Services on a busy node, with a dump of as many of its own.
ANSWER_SECONDS = 30.0

#: From the command and its arguments to the answer. Raises MeshError with what the person shall read.
Handler = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class ControlRefused(MeshError):
    """The agent answered that it will not, or cannot; the text says why."""


class ControlServer:
    """On one asyncio loop."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Replaces a socket that an agent before us left. The ledger's lock tells that no other agent lives."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_REQUEST)
        finally:
            os.umask(mask)

    async def close(self) -> None:
        """Stop listening, and take the socket away."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(MAX_SECONDS):
                line = await reader.readline()
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await self._answer(line)
            except TimeoutError:
                answer = {"error": f"the agent is busy: no answer within {ANSWER_SECONDS:g} s"}
            async with asyncio.timeout(MAX_SECONDS):
                writer.write(json.dumps(answer, default=str).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # whoever asked has gone, or asked for nothing; there is nobody to tell
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Mapping[str, Any]:
        try:
            request = json.loads(line)
            command, arguments = request.pop("command"), request
        except (ValueError, KeyError, AttributeError, TypeError):
            return {"error": "not a command: one JSON object with the key `command` is expected"}
        try:
            return {"ok": await self._handler(str(command), arguments)}
        except MeshError as error:
            return {"error": str(error)}


async def ask(path: Path, command: str, **arguments: Any) -> Mapping[str, Any]:
    """Ask a running agent. Raises ControlRefused: there is none, it may not be asked, or it refuses."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS + MAX_SECONDS):
            # A status of 10,000 Services has a few MB.
            reader, writer = await asyncio.open_unix_connection(path, limit=1 << 28)
            writer.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
            line = await reader.readline()
            writer.close()
    except (FileNotFoundError, ConnectionRefusedError):
        raise ControlRefused(f"no agent is running here ({path})") from None
    except PermissionError:
        raise ControlRefused(f"{path} belongs to the user that the agent runs as: ask as that user") from None
    except (OSError, TimeoutError, ValueError) as error:
        raise ControlRefused(f"the agent at {path} did not answer: {error!r}") from error
    answer: dict[str, Any] = (
        json.loads(line) if line else {"error": "it closed the connection without an answer"}
    )
    if "error" in answer:
        raise ControlRefused(str(answer["error"]))
    found: Mapping[str, Any] = answer["ok"]
    return found
