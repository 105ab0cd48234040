"""A second reader for replies that httptools refuses: h11, which is what the bare library reads with.

Whether such a reply is good is decided by the same parser that decides without meshlib.
"""

from __future__ import annotations

from typing import Any

#: httpcore's bound on anything incomplete, bytes.
MAX_INCOMPLETE = 100 * 1024


class SecondReader:
    """Reads one reply, from its first byte to its end. ``head``: (version, status, reason, headers)."""

    __slots__ = ("_connection", "_error", "_h11", "_said", "complete", "head")

    def __init__(self, bodiless: bool, upgrades: bool, error: type[Exception]) -> None:
        import h11

        self._h11: Any = h11
        self._error = error
        self._said = False
        self._connection: Any = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_INCOMPLETE)
        # h11 wants to know the question: only its method and whether it proposes a protocol matter to the answer
        headers = [("Host", "x"), *([("Connection", "upgrade"), ("Upgrade", "x")] if upgrades else [])]
        self._connection.send(h11.Request(method="HEAD" if bodiless else "GET", target="/", headers=headers))
        self._connection.send(h11.EndOfMessage())
        self.head: tuple[bytes, int, bytes, list[tuple[bytes, bytes]]] | None = None
        self.complete = False

    def feed(self, data: bytes) -> list[bytes]:
        """Parts of the body; ``data`` empty: the connection ended. Raises the error class given."""
        h11, parts = self._h11, []
        try:
            self._connection.receive_data(data)
            while not self.complete:
                event: Any = self._connection.next_event()
                if event is h11.NEED_DATA:
                    break
                if isinstance(event, h11.Data):
                    parts.append(bytes(event.data))
                elif isinstance(event, h11.Response) or getattr(event, "status_code", 0) == 101:
                    version = b"HTTP/" + event.http_version
                    self.head = (version, event.status_code, event.reason, event.headers.raw_items())
                    self.complete = event.status_code == 101
                elif not isinstance(
                    event, h11.InformationalResponse
                ):  # EndOfMessage, ConnectionClosed, PAUSED
                    self.complete = True
        except h11.RemoteProtocolError as refused:
            raise self._error(str(refused)) from refused
        return parts

    @property
    def reusable(self) -> bool:
        """The reply has ended, h11 would go on to the next one, and nothing came after it."""
        done, connection = self._h11.DONE, self._connection
        ended = self.complete and connection.our_state is done and connection.their_state is done
        return bool(ended and connection.trailing_data == (b"", False))

    def leftover(self) -> bytes:
        """After a 101: what belongs to the other protocol. Once; then empty."""
        if self._said or self.head is None or self.head[1] != 101:
            return b""
        self._said = True
        return bytes(self._connection.trailing_data[0])
