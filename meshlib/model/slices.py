"""EndpointSlice: the one form into which v1, v1beta1, Endpoints, DNS answers, files and static lists are decoded."""

from __future__ import annotations

import msgspec

from meshlib.model.service import ServiceKey


class SlicePort(msgspec.Struct, frozen=True, gc=False):
    """A port of a slice. ``port`` None means "all ports": the caller must name the number."""

    name: str
    port: int | None
    protocol: str = "TCP"
    app_protocol: str = ""


class SliceEndpoint(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One endpoint of a slice: address checked, conditions resolved (nil rules applied), ports not yet joined."""

    address: str
    uid: str = ""
    name: str = ""
    hostname: str = ""
    node: str = ""
    zone: str = ""
    weight: int = 1
    priority: int = 0
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    hint_zones: tuple[str, ...] = ()
    hint_nodes: tuple[str, ...] = ()


class EndpointSlice(msgspec.Struct, frozen=True, kw_only=True):
    """One slice. A change replaces the slice as a whole."""

    namespace: str
    name: str
    service: ServiceKey
    family: int  #: 4 or 6
    ports: tuple[SlicePort, ...] = ()
    endpoints: tuple[SliceEndpoint, ...] = ()
    uid: str = ""
    resource_version: str = ""
    generation: int = 0  #: metadata.generation: the tie-break "newest" between conflicting copies
    truncated: bool = False  #: Endpoints object over capacity: it does not hold all addresses
