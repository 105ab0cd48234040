"""Decode EndpointSlices (``discovery.k8s.io/v1`` and ``v1beta1``) and core ``v1`` Endpoints into the one form.

Rules: nil ``ready`` is true, nil ``serving`` is ``ready``, nil ``terminating`` is false; only
``addresses[0]`` counts; a nil port name is "" and a nil protocol TCP (the API server's own defaults); port 0
is skipped; FQDN slices are refused, because a name in the hands of whoever writes slices is a way around the
address policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from sys import intern

from meshlib.errors import DataError
from meshlib.model.address import AddressPolicy, family
from meshlib.model.decode_service import PROTOCOLS
from meshlib.model.names import MAX_NAME, MAX_PORT
from meshlib.model.service import ServiceKey
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort
from meshlib.model.wire import (
    Conditions,
    EndpointAddress,
    HintTarget,
    Json,
    Meta,
    Reference,
    Skip,
    SliceMeta,
    Subset,
    WireEndpoint,
    WireEndpoints,
    WirePort,
    WireSlice,
    as_mapping,
    converted,
    converted_list,
    typed,
    untyped,
)

SERVICE_LABEL = "kubernetes.io/service-name"
OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
_HOSTNAME_TOPOLOGY = "kubernetes.io/hostname"
_ZONE_TOPOLOGY = "topology.kubernetes.io/zone"
_FAMILIES = {"IPv4": 4, "IPv6": 6}
_NO_CONDITIONS = Conditions()
_NO_REFERENCE = Reference()
_UNHINTED: tuple[str, ...] = ()


def slice_from_json(raw: Json, policy: AddressPolicy, skip: Skip) -> EndpointSlice:
    """Decode one EndpointSlice; ``skip(where, reason)`` is called for every piece that is left out.

    Raises DataError when the object as a whole cannot be used: then the last good one stays in force.
    """
    try:
        wire = typed(raw, WireSlice, "EndpointSlice")
    except DataError:
        return slice_from_object(untyped(raw, "EndpointSlice"), policy, skip)
    data = bytes(raw)
    printable = _printable(data)
    return _slice(wire, policy, skip, printable=printable, plain=printable and _plain(data))


def slice_from_object(obj: object, policy: AddressPolicy, skip: Skip) -> EndpointSlice:
    """The same from dicts and lists (YAML, or JSON that is already decoded)."""
    fields = as_mapping(obj, "EndpointSlice")
    meta = converted(fields.get("metadata"), SliceMeta, "EndpointSlice metadata")
    where = f"EndpointSlice {meta.namespace or 'default'}/{meta.name or ''}"
    kind = fields.get("addressType") or "IPv4"
    if not isinstance(kind, str):
        raise DataError(f"{where} addressType", "is not a text")
    wire = WireSlice(
        metadata=meta,
        address_type=kind,
        ports=converted_list(fields, "ports", WirePort, where, skip),
        endpoints=converted_list(fields, "endpoints", WireEndpoint, where, skip),
    )
    return _slice(wire, policy, skip, printable=False, plain=False)


def slices_from_endpoints_json(raw: Json, policy: AddressPolicy, skip: Skip) -> tuple[EndpointSlice, ...]:
    """Decode a core ``v1`` Endpoints object: one slice per subset and family, named ``NAME[SUBSET]``.

    ``truncated`` is set when the object says that it does not hold all addresses (over-capacity annotation).
    Raises DataError when the object as a whole cannot be used.
    """
    try:
        wire = typed(raw, WireEndpoints, "Endpoints")
    except DataError:
        return slices_from_endpoints_object(untyped(raw, "Endpoints"), policy, skip)
    return _endpoints(wire, policy, skip)


def slices_from_endpoints_object(obj: object, policy: AddressPolicy, skip: Skip) -> tuple[EndpointSlice, ...]:
    """The same from dicts and lists."""
    fields = as_mapping(obj, "Endpoints")
    meta = converted(fields.get("metadata"), Meta, "Endpoints metadata")
    where = f"Endpoints {meta.namespace or 'default'}/{meta.name or ''}"
    subsets: list[Subset] = []
    listed = fields.get("subsets")
    if listed is not None and not isinstance(listed, list):
        skip(f"{where}.subsets", "is not a list")
        listed = None
    for position, entry in enumerate(listed or ()):
        place = f"{where}.subsets[{position}]"
        if not isinstance(entry, dict):
            skip(place, "is not an object")
            subsets.append(Subset())  # keeps the numbers, and so the names, of the following subsets
            continue
        subsets.append(
            Subset(
                addresses=converted_list(entry, "addresses", EndpointAddress, place, skip),
                not_ready_addresses=converted_list(entry, "notReadyAddresses", EndpointAddress, place, skip),
                ports=converted_list(entry, "ports", WirePort, place, skip),
            )
        )
    return _endpoints(WireEndpoints(metadata=meta, subsets=subsets), policy, skip)


def _clean(text: str | None, where: str, skip: Skip) -> str:
    """A name that may be shown and compared: what is too long or unprintable is dropped, its endpoint is kept."""
    if not text:
        return ""
    if len(text) > MAX_NAME or not text.isprintable():
        skip(where, "is too long or has unprintable characters")
        return ""
    return text


def _printable(data: bytes) -> bool:
    """Whether no text in this JSON can hold an unprintable character: plain ASCII without a single escape.

    True for what API servers write about slices in practice, and found at the speed of memory; asking every
    text of ten thousand endpoints costs milliseconds.
    """
    return data.isascii() and b"\\" not in data and b"\x7f" not in data


def _plain(data: bytes) -> bool:
    """Whether the endpoints in printable JSON have none of the rarer fields (hints, host names, v1beta1's topology)."""
    return b'"hints"' not in data and b'"hostname"' not in data and b'"topology"' not in data


def _place_name(text: str, names: dict[str | None, str], where: str, skip: Skip) -> str:
    """A node or zone name: checked once per slice, and one object for all endpoints that share it."""
    name = names[text] = _clean(text, f"{where} node or zone name", skip)
    return name


def _hinted(
    targets: list[HintTarget] | None, names: dict[str | None, str], where: str, skip: Skip
) -> tuple[str, ...]:
    if not targets:
        return _UNHINTED
    found = [names.get(target.name) for target in targets]
    return tuple(
        _place_name(target.name, names, where, skip) if name is None else name
        for target, name in zip(targets, found, strict=True)
    )


def _slice(
    wire: WireSlice, policy: AddressPolicy, skip: Skip, *, printable: bool, plain: bool
) -> EndpointSlice:
    meta = wire.metadata
    if not meta.name:
        raise DataError("EndpointSlice", "has no metadata.name")
    namespace = intern(meta.namespace or "default")
    where = f"EndpointSlice {namespace}/{meta.name}"
    slice_family = _FAMILIES.get(wire.address_type)
    if slice_family is None:
        raise DataError(where, f"addressType {wire.address_type!r:.80} is not IPv4 or IPv6")
    listed = wire.endpoints or ()
    endpoints = _plain_endpoints(listed, slice_family, policy) if plain else None
    if endpoints is None:
        endpoints = _slice_endpoints(listed, slice_family, policy, where, skip, printable)
    return EndpointSlice(
        namespace=namespace,
        name=meta.name,
        service=ServiceKey(namespace, intern((meta.labels or {}).get(SERVICE_LABEL, ""))),
        family=slice_family,
        ports=_ports(wire.ports, where, skip),
        endpoints=endpoints,
        uid=meta.uid or "",
        resource_version=meta.resource_version or "",
        generation=meta.generation or 0,
    )


def _ports(ports: Sequence[WirePort] | None, where: str, skip: Skip) -> tuple[SlicePort, ...]:
    good = []
    for position, port in enumerate(ports or ()):
        place = f"{where} ports[{position}]"
        protocol = port.protocol or "TCP"
        if port.port is not None and not 1 <= port.port <= MAX_PORT:
            skip(place, f"{port.port!r:.20} is not a port (1-65535)")
        elif protocol not in PROTOCOLS:
            skip(place, f"protocol {protocol!r:.80} is not TCP, UDP or SCTP")
        elif len(port.name or "") > MAX_NAME:
            skip(place, "its name is too long")
        else:
            good.append(
                SlicePort(intern(port.name or ""), port.port, intern(protocol), port.app_protocol or "")
            )
    return tuple(good)


def _plain_endpoints(
    listed: Sequence[WireEndpoint], slice_family: int, policy: AddressPolicy
) -> tuple[SliceEndpoint, ...] | None:
    """The endpoints of a slice with nothing unusual in it; None when there is, for the loop that can say what."""
    check = policy.check
    shared: dict[str | None, str] = {None: ""}
    share = (
        shared.setdefault
    )  # one object for the names of a node and a zone, however many endpoints have them
    try:
        good = [
            SliceEndpoint(
                address=check(wire.addresses[0]),  # type: ignore[index]
                uid=(reference := wire.target_ref or _NO_REFERENCE).uid or "",
                name=reference.name or "",
                node=share(node := wire.node_name, node or ""),
                zone=share(zone := wire.zone, zone or ""),
                ready=(ready := (conditions := wire.conditions or _NO_CONDITIONS).ready is not False),
                serving=ready if (serving := conditions.serving) is None else serving,
                terminating=conditions.terminating is True,
            )
            for wire in listed
        ]
    except (DataError, TypeError, IndexError):
        return None
    longest = max(map(len, [text for e in good for text in (e.uid, e.name)]), default=0)
    if 2 * longest > MAX_NAME or max(map(len, shared.values())) > MAX_NAME:
        return None
    if [e for e in good if (":" in e.address) is not (slice_family == 6)]:
        return None
    return tuple(good)


def _slice_endpoints(
    endpoints: Iterable[WireEndpoint],
    slice_family: int,
    policy: AddressPolicy,
    where: str,
    skip: Skip,
    printable: bool,
) -> tuple[SliceEndpoint, ...]:
    # This and the comprehension above run for every endpoint of a first list, so they call little and look up less.
    good: list[SliceEndpoint] = []
    names: dict[str | None, str] = {None: "", "": ""}
    check, known = policy.check, names.get
    is_six = slice_family == 6
    for position, wire in enumerate(endpoints):
        if not wire.addresses:
            skip(f"{where} endpoints[{position}]", "has no address")
            continue
        try:
            address = check(wire.addresses[0])
        except DataError as error:
            skip(f"{where} endpoints[{position}]", str(error))
            continue
        if (":" in address) is not is_six:
            reason = f"{address} is not of the slice's family, IPv{slice_family}"
            skip(f"{where} endpoints[{position}]", reason)
            continue
        reference = wire.target_ref or _NO_REFERENCE
        uid, name, hostname = reference.uid or "", reference.name or "", wire.hostname or ""
        if len(uid) + len(name) + len(hostname) > MAX_NAME or not (
            printable or (uid + name + hostname).isprintable()
        ):
            place = f"{where} endpoints[{position}]"
            uid = _clean(uid, f"{place}.targetRef.uid", skip)
            name = _clean(name, f"{place}.targetRef.name", skip)
            hostname = _clean(hostname, f"{place}.hostname", skip)
        node, zone = wire.node_name, wire.zone
        if wire.topology:
            node = node or wire.topology.get(_HOSTNAME_TOPOLOGY)
            zone = zone or wire.topology.get(_ZONE_TOPOLOGY)
        node_name, zone_name = known(node), known(zone)
        if node and node_name is None:
            node_name = _place_name(node, names, where, skip)
        if zone and zone_name is None:
            zone_name = _place_name(zone, names, where, skip)
        conditions, hints = wire.conditions or _NO_CONDITIONS, wire.hints
        ready = conditions.ready is not False
        good.append(
            SliceEndpoint(
                address=address,
                uid=uid,
                name=name,
                hostname=hostname,
                node=node_name or "",
                zone=zone_name or "",
                ready=ready,
                serving=ready if conditions.serving is None else conditions.serving,
                terminating=conditions.terminating is True,
                hint_zones=_hinted(hints.for_zones, names, where, skip) if hints else _UNHINTED,
                hint_nodes=_hinted(hints.for_nodes, names, where, skip) if hints else _UNHINTED,
            )
        )
    return tuple(good)


def _endpoints(wire: WireEndpoints, policy: AddressPolicy, skip: Skip) -> tuple[EndpointSlice, ...]:
    meta = wire.metadata
    if not meta.name:
        raise DataError("Endpoints", "has no metadata.name")
    namespace = meta.namespace or "default"
    key = ServiceKey(namespace, meta.name)
    where = f"Endpoints {key}"
    # "warning" (before Kubernetes 1.22) tells of too many addresses, but all of them are there.
    truncated = (meta.annotations or {}).get(OVER_CAPACITY) == "truncated"
    slices: list[EndpointSlice] = []
    for position, subset in enumerate(wire.subsets or ()):
        place = f"{where} subsets[{position}]"
        ports = _ports(subset.ports, place, skip)
        found = _addresses(subset.addresses, True, policy, f"{place}.addresses", skip)
        found += _addresses(subset.not_ready_addresses, False, policy, f"{place}.notReadyAddresses", skip)
        for slice_family in (4, 6):
            endpoints = tuple(entry for entry in found if family(entry.address) == slice_family)
            if endpoints:
                slices.append(
                    EndpointSlice(
                        namespace=namespace,
                        name=f"{meta.name}[{position}]" + ("" if slice_family == 4 else "/IPv6"),
                        service=key,
                        family=slice_family,
                        ports=ports,
                        endpoints=endpoints,
                        uid=meta.uid or "",
                        resource_version=meta.resource_version or "",
                        generation=meta.generation or 0,
                        truncated=truncated,
                    )
                )
    return tuple(slices)


def _addresses(
    listed: Sequence[EndpointAddress] | None, ready: bool, policy: AddressPolicy, where: str, skip: Skip
) -> list[SliceEndpoint]:
    good = []
    for position, wire in enumerate(listed or ()):
        place = f"{where}[{position}]"
        try:
            address = policy.check(wire.ip)
        except DataError as error:
            skip(place, str(error))
            continue
        reference = wire.target_ref or _NO_REFERENCE
        good.append(
            SliceEndpoint(
                address=address,
                uid=_clean(reference.uid, f"{place}.targetRef.uid", skip),
                name=_clean(reference.name, f"{place}.targetRef.name", skip),
                hostname=_clean(wire.hostname, f"{place}.hostname", skip),
                node=_clean(wire.node_name, f"{place}.nodeName", skip),
                ready=ready,
                serving=ready,
            )
        )
    return good
