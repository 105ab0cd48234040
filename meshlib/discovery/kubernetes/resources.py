"""What is listed and watched: paths, selectors, and how an object becomes ours. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from meshlib.discovery.kubernetes.reflector import Key
from meshlib.discovery.kubernetes.versions import SliceApi
from meshlib.errors import DataError
from meshlib.model.address import AddressPolicy
from meshlib.model.decode_service import service_from_json
from meshlib.model.decode_slices import SERVICE_LABEL, slice_from_json, slices_from_endpoints_json
from meshlib.model.envelope import object_meta
from meshlib.model.service import Service
from meshlib.model.slices import EndpointSlice
from meshlib.model.wire import Json, Skip

T = TypeVar("T")
#: One API object may hold several slices (an Endpoints object has one per subset and family).
Slices = tuple[EndpointSlice, ...]

#: Beyond this many services the selector asks for every slice that belongs to a service: 64 names of 63 characters make
#: 4 KB of URL, and proxies in front of API servers commonly stop at 8 KB.
MAX_SELECTED = 64


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """``decode`` gives None for an object that is not wanted, and raises DataError for one that cannot be read.

    ``identity`` reads key and resourceVersion off a decoded item, where it has them; that saves a second look at the
    bytes of every object of a list.
    """

    name: str  #: for people: ``shop/endpointslices``
    version: str  #: for people: ``v1``
    path: str
    kind: str
    decode: Callable[[Json], T | None]
    params: Mapping[str, str]
    identity: Callable[[T], tuple[Key, str]] | None = None

    @property
    def list_kind(self) -> str:
        return self.kind + "List"


def services(namespace: str) -> Resource[Service]:
    """All Services of a namespace: their names cannot be selected as a set."""
    return Resource(
        f"{namespace}/services",
        "v1",
        f"/api/v1/namespaces/{namespace}/services",
        "Service",
        service_from_json,
        {},
        lambda service: ((service.key.namespace, service.key.name), service.resource_version),
    )


def selector(names: Iterable[str]) -> str:
    """The label selector for the slices of these services. Names are checked when targets are parsed."""
    wanted = sorted(names)
    if len(wanted) > MAX_SELECTED:
        return SERVICE_LABEL
    return f"{SERVICE_LABEL} in ({','.join(wanted)})"


def slices(
    namespace: str, api: SliceApi, names: frozenset[str], policy: AddressPolicy, skip: Skip
) -> Resource[Slices]:
    """The slices of some Services of a namespace, by whichever API there is."""
    if api is SliceApi.ENDPOINTS:

        def endpoints(raw: Json) -> Slices | None:
            # Endpoints do not carry the name as a label, so the server cannot select.
            if object_meta(raw).name not in names:
                return None
            found = slices_from_endpoints_json(raw, policy, skip)
            for each in found[:1]:
                if each.truncated:
                    skip(
                        f"Endpoints {each.service}",
                        "is truncated at 1,000 addresses (over-capacity); others are unknown",
                    )
            return found

        path = f"/api/v1/namespaces/{namespace}/endpoints"
        return Resource(f"{namespace}/endpoints", "v1", path, "Endpoints", endpoints, {})

    def endpoint_slice(raw: Json) -> Slices | None:
        found = slice_from_json(raw, policy, skip)
        return (found,) if found.service.name in names else None

    path = f"/apis/{api.value}/namespaces/{namespace}/endpointslices"
    return Resource(
        f"{namespace}/endpointslices",
        api.value.rpartition("/")[2],
        path,
        "EndpointSlice",
        endpoint_slice,
        {"labelSelector": selector(names)},
        lambda found: ((found[0].namespace, found[0].name), found[0].resource_version),
    )


@dataclass(frozen=True, slots=True)
class Decoded(Generic[T]):
    """``unreadable`` says why ``item`` is missing though the object is wanted."""

    key: Key
    resource_version: str
    item: T | None
    unreadable: str = ""


def decode(resource: Resource[T], raw: Json, check_kind: bool) -> Decoded[T]:
    """Open one object. Raises DataError if not even its name can be read, or if it is of another kind."""
    if resource.identity is not None and not check_kind:
        with contextlib.suppress(DataError):  # what is wrong with it, and with how much of it, is told below
            item = resource.decode(raw)
            if item is not None:
                return Decoded(*resource.identity(item), item)
    meta = object_meta(raw)
    if not meta.name:
        raise DataError(resource.name, "an object has no metadata.name")
    if check_kind and meta.kind != resource.kind:
        raise DataError(
            resource.name, f"an object of kind {meta.kind[:80]!r} came instead of {resource.kind}"
        )
    key = (meta.namespace, meta.name)
    try:
        return Decoded(key, meta.resource_version, resource.decode(raw))
    except DataError as error:
        return Decoded(key, meta.resource_version, None, str(error))
