"""Documents into the model: which Services and slices a file holds, and what is wrong with it, with lines. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from meshlib.discovery.file.documents import Document, parse
from meshlib.errors import DataError
from meshlib.model.address import AddressPolicy
from meshlib.model.decode_service import service_from_object
from meshlib.model.decode_slices import slice_from_object, slices_from_endpoints_object
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType
from meshlib.model.slices import EndpointSlice

_SLICE_VERSIONS = frozenset({"discovery.k8s.io/v1", "discovery.k8s.io/v1beta1"})
_LISTS = frozenset({"List", "ServiceList", "EndpointSliceList", "EndpointsList"})
#: msgspec names the place of an error as ``$.spec.ports[0]``.
_PLACE = re.compile(r"\$((?:\.\w+|\[\d+\])+)")


@dataclass(frozen=True, slots=True)
class FileObjects:
    """What one file says. ``skipped``: (``file:line``, reason) of pieces left out. Places are for people."""

    services: tuple[tuple[Service, str], ...] = ()  #: with ``file:line``
    slices: tuple[tuple[EndpointSlice, str], ...] = ()
    legacy: tuple[tuple[EndpointSlice, str], ...] = ()  #: from core ``v1`` Endpoints objects
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def count(self) -> int:
        """Services, slices and their endpoints together: a file that suddenly has fewer may be half written."""
        slices = [slice_ for slice_, _ in (*self.slices, *self.legacy)]
        return len(self.services) + len(slices) + sum(len(slice_.endpoints) for slice_ in slices)


def read_objects(text: str, name: str, policy: AddressPolicy) -> FileObjects:
    """The objects in the text of the file ``name`` (JSON if it ends in ``.json``, else YAML, any number of documents).

    Kinds other than Service, EndpointSlice, Endpoints and lists of them are ignored. Raises DataError placed at
    ``name:line`` when the text is broken or an object as a whole is unusable: then the file's last good state stays.
    """
    services: list[tuple[Service, str]] = []
    slices: list[tuple[EndpointSlice, str]] = []
    legacy: list[tuple[EndpointSlice, str]] = []
    skipped: list[tuple[str, str]] = []
    try:
        documents = [entry for document in parse(text, name.endswith(".json")) for entry in _flat(document)]
    except DataError as error:
        raise DataError(_at(name, int(error.where.removeprefix("line "))), error.reason) from None
    for document in documents:
        place = _at(name, document.line)

        def skip(where: str, reason: str, document: Document = document) -> None:
            skipped.append((f"{_at(name, _line(document, where, reason))} ({where})", reason))

        kind, version = document.value["kind"], document.value.get("apiVersion")
        try:
            if kind == "Service" and version == "v1":
                services.append((service_from_object(document.value), place))
            elif kind == "EndpointSlice" and version in _SLICE_VERSIONS:
                slices.append((_named(slice_from_object(document.value, policy, skip)), place))
            elif kind == "Endpoints" and version == "v1":
                found = slices_from_endpoints_object(document.value, policy, skip)
                legacy.extend((slice_, place) for slice_ in found)
        except DataError as error:
            line = _line(document, error.where, error.reason)
            raise DataError(_at(name, line), f"{error.where}: {error.reason}") from None
    return FileObjects(tuple(services), tuple(slices), tuple(legacy), tuple(skipped))


def _flat(document: Document) -> Iterator[Document]:
    """The document itself, or the items of a List."""
    if not isinstance(document.value, dict):
        raise DataError(f"line {document.line}", "a manifest is an object with apiVersion and kind")
    kind = document.value.get("kind")
    if not isinstance(kind, str) or not kind:
        raise DataError(f"line {document.line_of('kind')}", "the object has no kind")
    if not isinstance(document.value.get("apiVersion", ""), str):
        raise DataError(f"line {document.line_of('apiVersion')}", "apiVersion is not a text")
    if kind in _LISTS:
        for item in document.items():
            if isinstance(item.value, dict) and "kind" not in item.value and kind != "List":
                # Typed lists, as the API serves them, leave kind and apiVersion to the list itself.
                given = {"kind": kind.removesuffix("List"), "apiVersion": document.value.get("apiVersion")}
                item = Document({**given, **item.value}, item.line, item.node)
            yield from _flat(item)
    else:
        yield document


def _named(slice_: EndpointSlice) -> EndpointSlice:
    """A slice without the service-name label stands for a Service of its own name."""
    if slice_.service.name:
        return slice_
    return msgspec.structs.replace(slice_, service=ServiceKey(slice_.namespace, slice_.name))


def _at(name: str, line: int) -> str:
    return f"{name}:{line}"


def _line(document: Document, where: str, reason: str) -> int:
    """The line that a decoder's error is about: its path inside the object, from ``where`` or from msgspec's text."""
    metadata = document.value.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    title = f"{document.value['kind']} {metadata.get('namespace') or 'default'}/{metadata.get('name')}"
    path = where.removeprefix(title).removeprefix(str(document.value["kind"])).strip(" .")
    place = _PLACE.search(reason)
    if not path and place is None:
        path = reason.partition(" ")[0]  # "metadata.name 'X' is not ..."
    return document.line_of(path + (place.group(1) if place else ""))


def synthesised(key: ServiceKey, slices: tuple[EndpointSlice, ...]) -> Service:
    """The Service of slices that come without one: headless, with the ports that the slices list."""
    ports: dict[tuple[str, str], ServicePort] = {}
    for slice_ in slices:
        for port in slice_.ports:
            if port.port is not None:
                known = ServicePort(port.name, port.port, port.protocol, app_protocol=port.app_protocol)
                ports.setdefault((port.name, port.protocol), known)
    return Service(key=key, type=ServiceType.HEADLESS, ports=tuple(ports.values()), has_selector=False)
