"""Transactions over netlink: many messages that take effect together or not at all.

The kernel takes a transaction as one send, and answers when it is committed or taken back: each refused message with an
error, the last one with an acknowledgement where nothing was wrong with it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Sequence

from meshlib.agent.backends.nftables.messages import begin, end
from meshlib.agent.netlink.exchange import Answers, Refusal
from meshlib.agent.netlink.messages import ACK, Request, encode_message
from meshlib.agent.netlink.socket import NETFILTER, Make, NetlinkSocket

#: Bytes. A full load of 10,000 Services with three endpoints each is 6 MB; the kernel charges a send to this limit.
_SEND_BUFFER = 1 << 28
#: Bytes. Answers of some ten thousand refused messages.
_RECEIVE_BUFFER = 1 << 23
_SNDBUFFORCE, _RCVBUFFORCE = 32, 33


class TransactionSocket(NetlinkSocket):
    """Dumps and transactions of nf_tables, in the network namespace in which it was opened."""

    def __init__(self, make: Make | None = None) -> None:
        """Raises OSError; PermissionError without CAP_NET_ADMIN, which a transaction needs anyway."""
        super().__init__(NETFILTER, make=make)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, _SEND_BUFFER)
            self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _RECEIVE_BUFFER)
        except BaseException:
            self.close()
            raise

    def commit(self, requests: Sequence[Request]) -> dict[int, Refusal]:
        """One transaction. Empty: it took effect. Else nothing did; the refusals by index, -1 for the transaction
        as a whole. Raises OSError when the answer was lost (ENOBUFS, ETIMEDOUT): whether it took effect is not known.
        """
        if not requests:
            return {}
        answers = Answers(self._take(len(requests) + 2), len(requests) + 1)
        self._send(_encode(requests, answers.first))
        try:
            self._receive(answers)
        except OSError as error:
            if error.errno in (errno.ENOBUFS, errno.ETIMEDOUT):
                self._drain(answers)
            raise
        return {index - 1: refusal for index, refusal in answers.refusals.items()}


def _encode(requests: Sequence[Request], first: int) -> bytes:
    def numbered() -> Iterable[bytes]:
        yield encode_message(begin(), first)
        last = len(requests)
        for index, request in enumerate(requests, 1):
            yield encode_message(request, first + index & 0xFFFFFFFF, ACK if index == last else 0)
        yield encode_message(end(), first + last + 1 & 0xFFFFFFFF)

    return b"".join(numbered())
