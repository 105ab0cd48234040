"""SliceStore: the slices of one source, found by Service. No IO and no lock: it belongs to the thread that feeds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from meshlib.model.service import ServiceKey
from meshlib.model.slices import EndpointSlice

_Key = tuple[str, str]  # namespace and name of the object that the slices came in


class SliceStore:
    """Slices keyed by (namespace, object name), indexed by Service.

    Every change returns the Services whose slices are different now. A slice that is equal to the stored one
    changes nothing and leaves the stored object in place, so that what is computed per slice stays valid
    after a relist. A slice that moves to another Service by its label changes both; a slice of the same name
    with a new uid replaces the old one.
    """

    __slots__ = ("_by_service", "_objects")

    def __init__(self) -> None:
        self._objects: dict[_Key, tuple[EndpointSlice, ...]] = {}
        self._by_service: dict[ServiceKey, dict[tuple[str, str], EndpointSlice]] = {}

    def __len__(self) -> int:
        """How many objects are held."""
        return len(self._objects)

    def apply(self, slice_: EndpointSlice) -> frozenset[ServiceKey]:
        """Add or replace one slice."""
        return self.apply_object(slice_.namespace, slice_.name, (slice_,))

    def apply_object(
        self, namespace: str, name: str, slices: Iterable[EndpointSlice]
    ) -> frozenset[ServiceKey]:
        """Add or replace all slices that one object gave: an Endpoints object gives several, or none."""
        key = (namespace, name)
        old = self._objects.get(key, ())
        before = {slice_.name: slice_ for slice_ in old}
        new = tuple(_keep(slice_, before.get(slice_.name)) for slice_ in slices)
        self._objects[key] = new
        if len(new) == len(old) and all(one is other for one, other in zip(new, old, strict=True)):
            return frozenset()
        changed = set()
        kept = {id(slice_) for slice_ in new}
        for slice_ in old:
            if id(slice_) not in kept:
                self._forget(slice_)
                changed.add(slice_.service)
        were = {id(slice_) for slice_ in old}
        for slice_ in new:
            if id(slice_) not in were:
                self._by_service.setdefault(slice_.service, {})[slice_.namespace, slice_.name] = slice_
                changed.add(slice_.service)
        return _named(changed)

    def delete(self, namespace: str, name: str) -> frozenset[ServiceKey]:
        """Remove one object; unknown ones change nothing."""
        changed = set()
        for slice_ in self._objects.pop((namespace, name), ()):
            self._forget(slice_)
            changed.add(slice_.service)
        return _named(changed)

    def replace(self, slices: Iterable[EndpointSlice]) -> frozenset[ServiceKey]:
        """Replace everything by a complete list, one object per slice."""
        return self.replace_objects({(slice_.namespace, slice_.name): (slice_,) for slice_ in slices})

    def replace_objects(
        self, objects: Mapping[tuple[str, str], Iterable[EndpointSlice]]
    ) -> frozenset[ServiceKey]:
        """Replace everything by a complete list of objects, keyed by (namespace, name)."""
        changed: set[ServiceKey] = set()
        for namespace, name in [key for key in self._objects if key not in objects]:
            changed |= self.delete(namespace, name)
        for (namespace, name), slices in objects.items():
            changed |= self.apply_object(namespace, name, slices)
        return frozenset(changed)

    def in_object(self, namespace: str, name: str) -> tuple[EndpointSlice, ...]:
        """The slices that one object gave; empty for an unknown one."""
        return self._objects.get((namespace, name), ())

    def slices_of(self, service: ServiceKey) -> tuple[EndpointSlice, ...]:
        """The slices of one Service, sorted by name; empty when there are none."""
        found = self._by_service.get(service, {})
        return tuple(found[key] for key in sorted(found))

    def services(self) -> frozenset[ServiceKey]:
        """The Services that have at least one slice."""
        return _named(self._by_service)

    def _forget(self, slice_: EndpointSlice) -> None:
        held = self._by_service.get(slice_.service, {})
        key = (slice_.namespace, slice_.name)
        if held.get(key) is slice_:
            del held[key]
            if not held:
                del self._by_service[slice_.service]


def _keep(new: EndpointSlice, old: EndpointSlice | None) -> EndpointSlice:
    return old if old is not None and old == new else new


def _named(services: Iterable[ServiceKey]) -> frozenset[ServiceKey]:
    """Without the slices that lack the Service label: nobody asks for them."""
    return frozenset(service for service in services if service.name)
