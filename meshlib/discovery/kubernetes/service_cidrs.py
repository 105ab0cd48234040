"""ServiceCIDR objects: which networks ClusterIPs come from. Older API servers have none; they may be updated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from meshlib.discovery.kubernetes.api import ApiServer
from meshlib.discovery.kubernetes.faults import FaultKind
from meshlib.discovery.kubernetes.resources import Resource
from meshlib.discovery.kubernetes.transport import RequestFailed
from meshlib.model.decode_service_cidr import service_cidr_from_json
from meshlib.model.wire import Skip

#: In the order of preference: Kubernetes 1.33, 1.31.
VERSIONS = ("v1", "v1beta1")
#: Seconds until a server that has no ServiceCIDRs is asked again: it learns them by being replaced.
RECHECK = 900.0
_NAME = "servicecidrs"


class _Resource(msgspec.Struct):
    name: str = ""


class _Resources(msgspec.Struct):
    resources: list[_Resource] = []


async def find_service_cidrs(
    api: ApiServer, skip: Skip, sleep: Callable[[float], Awaitable[None]]
) -> Resource[tuple[str, ...]]:
    """The newest version that the server has; waits for as long as it has none. Raises RequestFailed."""
    while True:
        for version in VERSIONS:
            if await _served(api, version):
                return _resource(version, skip)
        await sleep(RECHECK)


async def _served(api: ApiServer, version: str) -> bool:
    path = f"/apis/networking.k8s.io/{version}"
    try:
        found = msgspec.json.decode(await api.probe(path, f"GET {path}"), type=_Resources)
    except RequestFailed as failed:
        if failed.fault.kind in (FaultKind.NOT_SERVED, FaultKind.FORBIDDEN):
            return False
        raise
    except msgspec.MsgspecError:
        return False  # whatever it is, it lists nothing
    return any(each.name == _NAME for each in found.resources)


def _resource(version: str, skip: Skip) -> Resource[tuple[str, ...]]:
    return Resource(
        _NAME,
        version,
        f"/apis/networking.k8s.io/{version}/{_NAME}",
        "ServiceCIDR",
        lambda raw: service_cidr_from_json(raw, skip),
        {},
    )
