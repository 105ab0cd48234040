"""A refusal of the kernel in the engine's words. Pure."""

from __future__ import annotations

import errno

from meshlib.agent.netlink.exchange import Refusal
from meshlib.agent.objects import Failed, Operation

_HINTS = {
    errno.EPERM: "the capability CAP_NET_ADMIN is missing in this network namespace",
    errno.ENOBUFS: "too many answers at once: the kernel will be read again",
    errno.ENETDOWN: "the device lo is down in this network namespace",
    errno.ENOMEM: "the kernel is out of memory",
}


def failed(operation: Operation, refusal: Refusal, why: str = "") -> Failed:
    """``why``: what this errno means for this operation, where that is known."""
    hint = why or _HINTS.get(refusal.errno, "")
    return Failed(operation, refusal.errno, f"{refusal}" + (f" ({hint})" if hint else ""))
