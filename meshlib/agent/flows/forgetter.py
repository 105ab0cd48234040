"""Forgetter: reads the kernel's connection tracking and removes what is stale. Belongs to one thread."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from meshlib.agent.desired import Frontend, FrontendKey, Place
from meshlib.agent.flows.stale import PROTOCOLS, stale
from meshlib.agent.netlink.conntrack import Entry, delete_entry, list_entries, parse_entries
from meshlib.agent.netlink.exchange import Refusal
from meshlib.agent.netlink.messages import Malformed
from meshlib.agent.netlink.socket import NETFILTER, NetlinkSocket


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What one sweep did. ``refused``: entries that the kernel keeps; the next sweep meets them again."""

    looked_at: int
    deleted: int
    refused: tuple[tuple[Entry, Refusal], ...] = ()


class Forgetter:
    """``connect`` opens the socket in the network namespace that is programmed: on first use, and after an error."""

    def __init__(self, connect: Callable[[int], NetlinkSocket] = NetlinkSocket) -> None:
        self._connect = connect
        self._connection: NetlinkSocket | None = None

    def forget(
        self,
        frontends: Mapping[FrontendKey, Frontend],
        place: Place,
        gone: Collection[FrontendKey] = (),
    ) -> Forgotten:
        """One sweep over a family, after its rules are in force. See ``stale``. Raises OSError where the table cannot
        be read: nothing was forgotten then, and the sweep is worth repeating."""
        try:
            return self._sweep(frontends, place, gone)
        except Malformed as error:
            self.close()
            raise OSError(errno.EBADMSG, f"connection tracking tells what cannot be read: {error}") from error
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Give the socket back. Safe to call twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _sweep(
        self, frontends: Mapping[FrontendKey, Frontend], place: Place, gone: Collection[FrontendKey]
    ) -> Forgotten:
        if self._connection is None:
            self._connection = self._connect(NETFILTER)
        messages = self._connection.dump(list_entries(place.family))
        entries = [entry for protocol in PROTOCOLS for entry in parse_entries(messages, protocol)]
        doomed = stale(entries, frontends, place, gone)
        refusals = self._connection.batch([delete_entry(entry) for entry in doomed])
        # Gone already is as good as deleted: flows end while we look.
        refused = tuple(
            (doomed[index], refusal)
            for index, refusal in sorted(refusals.items())
            if refusal.errno != errno.ENOENT
        )
        return Forgotten(len(entries), len(doomed) - len(refusals), refused)
