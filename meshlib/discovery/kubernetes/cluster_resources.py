"""What the node agent lists and watches: every Service and its slices, and the own Node. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshlib.discovery.kubernetes.resources import Resource, Slices
from meshlib.discovery.kubernetes.versions import SliceApi
from meshlib.model.address import AddressPolicy
from meshlib.model.cluster import Node
from meshlib.model.decode_node import node_from_json
from meshlib.model.decode_service import HEADLESS_LABEL, service_from_json
from meshlib.model.decode_slices import SERVICE_LABEL, slice_from_json, slices_from_endpoints_json
from meshlib.model.decode_trigger import trigger_time
from meshlib.model.service import Service
from meshlib.model.wire import Json, Skip


@dataclass(frozen=True, slots=True)
class SliceObject:
    """The slices that one API object gives. ``trigger``: what led to them, seconds since 1970; no part of the facts."""

    slices: Slices
    trigger: float | None = field(default=None, compare=False)


def all_services() -> Resource[Service]:
    """Every Service: which of them are ours is the compiler's to say, because labels come and go."""
    return Resource(
        "services",
        "v1",
        "/api/v1/services",
        "Service",
        service_from_json,
        {},
        lambda service: ((service.key.namespace, service.key.name), service.resource_version),
    )


def all_slices(api: SliceApi, policy: AddressPolicy, skip: Skip) -> Resource[SliceObject]:
    """The slices of all Services, by whichever API there is. Those of headless Services are left at the server."""
    if api is SliceApi.ENDPOINTS:

        def endpoints(raw: Json) -> SliceObject | None:
            found = slices_from_endpoints_json(raw, policy, skip)
            for each in found[:1]:
                if each.truncated:
                    skip(f"Endpoints {each.service}", "is truncated at 1,000 addresses (over-capacity)")
            return SliceObject(found, trigger_time(raw))

        return Resource("endpoints", "v1", "/api/v1/endpoints", "Endpoints", endpoints, {})

    def endpoint_slice(raw: Json) -> SliceObject | None:
        found = slice_from_json(raw, policy, skip)
        if not found.service.name:
            skip(f"EndpointSlice {found.namespace}/{found.name}", f"has an empty label {SERVICE_LABEL}")
            return None
        return SliceObject((found,), trigger_time(raw))

    return Resource(
        "endpointslices",
        api.value.rpartition("/")[2],
        f"/apis/{api.value}/endpointslices",
        "EndpointSlice",
        endpoint_slice,
        # The controller copies the label from the Service, so this is what kube-proxy sees as well.
        {"labelSelector": f"{SERVICE_LABEL},!{HEADLESS_LABEL}"},
        lambda found: ((found.slices[0].namespace, found.slices[0].name), found.slices[0].resource_version),
    )


def own_node(name: str, skip: Skip) -> Resource[Node]:
    """The Node of this name alone."""
    return Resource(
        f"nodes/{name}",
        "v1",
        "/api/v1/nodes",
        "Node",
        lambda raw: node_from_json(raw, skip),
        {"fieldSelector": f"metadata.name={name}"},
    )
