"""Which API gives us endpoints: discovery.k8s.io/v1, else v1beta1 (Kubernetes 1.17-1.24), else core v1 Endpoints."""

from __future__ import annotations

import asyncio
import enum

import msgspec

from meshlib.discovery.kubernetes.api import ApiServer
from meshlib.discovery.kubernetes.faults import Fault, FaultKind
from meshlib.discovery.kubernetes.transport import RequestFailed

GROUP_PATH = "/apis/discovery.k8s.io"


class SliceApi(enum.Enum):
    """In the order of preference."""

    V1 = "discovery.k8s.io/v1"
    V1BETA1 = "discovery.k8s.io/v1beta1"
    ENDPOINTS = "v1 Endpoints"


class _Version(msgspec.Struct):
    version: str = ""


class _Group(msgspec.Struct):
    kind: str = ""
    versions: list[_Version] = []


def choose(body: bytes) -> SliceApi:
    """The best version that an APIGroup document lists. Raises msgspec.MsgspecError if it is none."""
    group = msgspec.json.decode(body, type=_Group)
    if group.kind != "APIGroup":
        raise msgspec.ValidationError(f"kind is {group.kind[:80]!r} and not APIGroup")
    offered = {each.version for each in group.versions}
    if "v1" in offered:
        return SliceApi.V1
    return SliceApi.V1BETA1 if "v1beta1" in offered else SliceApi.ENDPOINTS


class Versions:
    """The choice for one API server, asked once for all namespaces, and again after a 404."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api
        self._asking: asyncio.Task[SliceApi] | None = None
        self.chosen: SliceApi | None = None

    async def current(self, not_served: SliceApi | None = None) -> SliceApi:
        """The version to use; ``not_served``: the one that just gave a 404. Raises RequestFailed."""
        if self.chosen is not None and self.chosen is not not_served:
            return self.chosen
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(not_served), name="k8s-versions")
            # Whoever waits gets the exception; if nobody does any more, there is nobody to tell.
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        asking = self._asking
        try:
            # Shielded: the one who is cancelled must not take the answer away from the others.
            return await asyncio.shield(asking)
        finally:
            if asking.done() and self._asking is asking:
                self._asking = None

    async def close(self) -> None:
        """End a question that is under way; nobody waits for its answer any more."""
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
            await asyncio.wait({asking})

    async def _ask(self, not_served: SliceApi | None) -> SliceApi:
        what = f"GET {GROUP_PATH}"
        try:
            body = await self._api.probe(GROUP_PATH, what)
            self.chosen = choose(body)
        except RequestFailed as failed:
            if failed.fault.kind is FaultKind.NOT_SERVED:
                self.chosen = SliceApi.ENDPOINTS
            elif failed.fault.kind is FaultKind.FORBIDDEN:
                # Discovery documents may be closed to us; the 404 of a list then tells the same.
                order = list(SliceApi)
                tried = order.index(not_served) if not_served is not None else -1
                self.chosen = order[(tried + 1) % len(order)]
            else:
                raise
        except msgspec.MsgspecError as error:
            raise RequestFailed(Fault(FaultKind.BAD_DATA, f"{what}: {error}")) from None
        return self.chosen
