"""The netlink socket: the one module here that does input and output.

A socket belongs to the network namespace in which it was opened, for as long as it lives, whatever its thread does
later. It belongs to one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

from meshlib.agent.netlink.exchange import MOST_BYTES, MOST_MESSAGES, Answers, Chunk, Refusal, chunks
from meshlib.agent.netlink.messages import (
    ACK,
    DUMP,
    Malformed,
    Message,
    Request,
    encode_message,
    parse_messages,
)

ROUTE, NETFILTER, GENERIC = 0, 12, 16

_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _CAP_ACK, _EXT_ACK, _STRICT = 1, 10, 11, 12
#: Beyond the system's limit, which needs CAP_NET_ADMIN; without it the limit is what we get.
_SNDBUFFORCE, _RCVBUFFORCE = 32, 33
#: Bytes. Room for the refusals of several sends, and for a burst of notifications.
_BUFFER = 1 << 20
#: Bytes. The kernel fills a dump's datagrams up to what the reader offers, 32 kB at most.
_READ = 64 * 1024
#: Seconds. Answers are there before a send returns; only a broken kernel keeps one back.
_PATIENCE = 10.0
_DUMP_ATTEMPTS = 3


#: Makes a netlink socket of a protocol that listens to groups: a socket, or what behaves like one.
Make = Callable[[int, Sequence[int]], Any]


class KernelRefused(OSError):
    """A request that the kernel did not carry out, with its errno and, where it gave one, its explanation."""


class NetlinkSocket:
    """Requests and answers over one socket of one netlink protocol. Not for two threads at once."""

    def __init__(self, protocol: int, groups: Sequence[int] = (), make: Make | None = None) -> None:
        """``groups``: multicast groups to listen to (their numbers). ``make``: who makes the socket, where that is not
        this process. Raises OSError."""
        self._socket = _make(protocol, groups) if make is None else make(protocol, groups)
        self._sequence = 1
        try:
            for option in (_SNDBUFFORCE, _RCVBUFFORCE):
                with contextlib.suppress(PermissionError):
                    self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
            for option in (_CAP_ACK, _EXT_ACK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            with contextlib.suppress(OSError):  # Linux 4.20: dumps of routes are chosen from by the kernel
                self._socket.setsockopt(_SOL_NETLINK, _STRICT, 1)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back. Safe to call twice."""
        self._socket.close()

    def fileno(self) -> int:
        """For a poll, where groups are listened to."""
        number: int = self._socket.fileno()
        return number

    def request(self, request: Request) -> list[Message]:
        """One request, with its replies. Raises KernelRefused, OSError."""
        answers = Answers(self._take(1), 1)
        self._send(encode_message(request, answers.first, ACK))
        self._receive(answers)
        if answers.refusals:
            raise _refused(answers.refusals[0])
        return answers.replies

    def dump(self, request: Request) -> list[Message]:
        """All entries of a table. One that changed while it was read is read again, a few times, then taken as it is:
        a later audit sees what is missing. Raises KernelRefused, OSError."""
        attempt = 0
        while True:
            attempt += 1
            answers = Answers(self._take(1), 1)
            self._send(encode_message(request, answers.first, DUMP))
            self._receive(answers)
            if answers.refusals:
                raise _refused(answers.refusals[0])
            if not answers.interrupted or attempt == _DUMP_ATTEMPTS:
                return answers.replies

    def batch(
        self, requests: Iterable[Request], most_messages: int = MOST_MESSAGES, most_bytes: int = MOST_BYTES
    ) -> dict[int, Refusal]:
        """All requests in order, many to a send. Returns what was refused, by index; the rest was carried out.

        Where the kernel lost answers (ENOBUFS), every request of that send without one counts as refused with
        ENOBUFS: nobody knows. Where sending itself fails, everything from that send on is refused with its errno.
        """
        refusals: dict[int, Refusal] = {}
        ended: Refusal | None = None
        for chunk in chunks(requests, self._sequence, most_messages, most_bytes):
            self._take(chunk.size)
            if ended is None:
                try:
                    refusals.update(self._exchange(chunk))
                except OSError as error:
                    ended = Refusal(
                        error.errno or errno.EIO, f"the exchange ended: {error.strerror or error}"
                    )
            if ended is not None:
                refusals.update(dict.fromkeys(range(chunk.start, chunk.start + chunk.size), ended))
        return refusals

    def notifications(self) -> list[Message]:
        """What the groups told since the last call, without waiting. Raises OSError(ENOBUFS) when some was lost."""
        told: list[Message] = []
        while (data := self._read(socket.MSG_DONTWAIT)) is not None:
            told.extend(parse_messages(data))
        return told

    def _exchange(self, chunk: Chunk) -> dict[int, Refusal]:
        answers = Answers(chunk.first, chunk.size)
        self._send(chunk.data)
        try:
            self._receive(answers)
        except OSError as error:
            if error.errno not in (errno.ENOBUFS, errno.ETIMEDOUT):
                raise
            self._drain(answers)
            lost = Refusal(error.errno, "the kernel's answer was lost; whether it was done is not known")
            refusals = {chunk.start + index: lost for index in range(chunk.size)}
        else:
            refusals = {}
        refusals.update((chunk.start + index, refusal) for index, refusal in answers.refusals.items())
        return refusals

    def _take(self, count: int) -> int:
        first = self._sequence
        self._sequence = first + count & 0xFFFFFFFF
        return first

    def _send(self, data: bytes) -> None:
        self._socket.sendto(data, (0, 0))

    def _receive(self, answers: Answers) -> None:
        while not answers.complete:
            data = self._read(0)
            if data is None:
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            self._feed(answers, data)

    def _feed(self, answers: Answers, data: bytes) -> None:
        try:
            answers.feed(data)
        except Malformed as error:
            # The rest of it must not be taken for the next answer, nor a dump be left half read.
            while self._read(socket.MSG_DONTWAIT) is not None:
                pass
            raise OSError(errno.EBADMSG, str(error)) from error

    def _drain(self, answers: Answers) -> None:
        """What is still there after a loss: refusals that did get through."""
        while True:
            try:
                data = self._read(socket.MSG_DONTWAIT)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            if data is None:
                return
            self._feed(answers, data)

    def _read(self, flags: int) -> bytes | None:
        """One datagram of the kernel's; None when there is none (in time)."""
        while True:
            try:
                data, sender = self._socket.recvfrom(_READ, flags)
            except BlockingIOError:
                return None
            if sender[0] != 0:
                continue  # another process may send to us as well; only the kernel is asked
            return data


def _make(protocol: int, groups: Sequence[int]) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(_PATIENCE), 0))
        made.bind((0, 0))
        for group in groups:
            made.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        made.close()
        raise
    return made


def _refused(refusal: Refusal) -> KernelRefused:
    text = os.strerror(refusal.errno)
    return KernelRefused(refusal.errno, f"{text}: {refusal.text}" if refusal.text else text)
