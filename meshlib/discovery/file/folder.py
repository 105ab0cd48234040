"""Reads a file or folder of manifests and keeps what was last good of each file. Blocking; runs on a helper thread.

``scan`` is a function from the previous state to the next one, so nothing is shared between threads.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from meshlib.discovery.file.documents import MAX_BYTES
from meshlib.discovery.file.objects import FileObjects, read_objects, synthesised
from meshlib.errors import DataError
from meshlib.model.address import AddressPolicy
from meshlib.model.service import Service, ServiceKey
from meshlib.model.slices import EndpointSlice

#: What in a folder is a manifest. Hidden entries are not: ConfigMap volumes keep their generations in ``..data``.
SUFFIXES = (".yaml", ".yml", ".json")

Signature = tuple[int, int, int, int]
#: In place of a signature: the file is not there.
GONE: Signature = (0, -1, 0, 0)


@dataclass(frozen=True, slots=True)
class FileState:
    """One file: the signature and objects in force, and what is wrong with its newest content, if anything is."""

    signature: Signature | None = None  #: of the content last looked at; None: look again
    objects: FileObjects | None = None  #: last good; None: never
    problem: DataError | None = None
    suspect: Signature | None = None  #: seen once with less in it than before: believed when seen again


@dataclass(frozen=True, slots=True)
class FolderState:
    """All files of one path, by name."""

    files: Mapping[str, FileState] = field(default_factory=dict)
    problem: DataError | None = None  #: the path itself cannot be read

    @property
    def problems(self) -> tuple[DataError, ...]:
        """What is wrong now: of the path, then of each file in the order of names."""
        own = (self.problem,) if self.problem is not None else ()
        return own + tuple(
            state.problem for _, state in sorted(self.files.items()) if state.problem is not None
        )

    @property
    def complete(self) -> bool:
        """False when a file was never readable: then a Service that is not found may stand in that one."""
        return self.problem is None and all(state.objects is not None for state in self.files.values())


def scan(path: str, before: FolderState, policy: AddressPolicy) -> FolderState:
    """Look at ``path`` again; returns ``before`` itself when nothing changed.

    A change that takes something away (broken, fewer objects, vanished) counts when it is seen twice with the same
    signature: editors that write in place or replace in two steps would otherwise empty a set for a moment. What was
    never good counts at once.
    """
    try:
        names = _names(path)
    except OSError as error:
        problem = DataError(path, _reason(error))
        if before.problem is not None and str(before.problem) == str(problem):
            return before
        return replace(before, problem=problem)
    files: dict[str, FileState] = {}
    for name, full in names.items():
        state = _look(full, name, before.files.get(name, FileState()), policy)
        files[name] = state
    for name, state in before.files.items():
        if name not in files and state.suspect != GONE:
            files[name] = replace(state, suspect=GONE)
    if before.problem is None and files == dict(before.files):
        return before
    return FolderState(files)


def _names(path: str) -> dict[str, str]:
    """Name for people -> full path. Raises OSError when the path is not there or not readable."""
    if not stat.S_ISDIR(os.stat(path).st_mode):
        return {os.path.basename(path): path}
    return {
        entry: os.path.join(path, entry)
        for entry in sorted(os.listdir(path))
        if entry.endswith(SUFFIXES) and not entry.startswith(".")
    }


def _look(full: str, name: str, state: FileState, policy: AddressPolicy) -> FileState:
    signature = GONE
    try:
        signature = _signature(full)
        if signature == state.signature:
            return state if state.suspect is None else replace(state, suspect=None)
        text = _read(full, name)
        if _signature(full) != signature:
            return state  # being written now: the next scan sees the end of it
        found = read_objects(text, name, policy)
    except (
        OSError
    ) as error:  # not readable, a link that leads nowhere, or removed since the folder was listed
        return _worse(state, GONE, DataError(name, _reason(error)))
    except DataError as error:
        return _worse(state, signature, error)
    if state.objects is not None and found.count < state.objects.count and state.suspect != signature:
        return replace(state, suspect=signature)
    return FileState(signature, found)


def _worse(state: FileState, signature: Signature, problem: DataError) -> FileState:
    if state.objects is not None and state.suspect != signature:
        return replace(state, suspect=signature)
    if state.problem is not None and str(state.problem) == str(problem):
        problem = state.problem  # the same object: equal states mean "nothing changed"
    return FileState(signature if signature != GONE else None, state.objects, problem, state.suspect)


def _signature(full: str) -> Signature:
    status = os.stat(full)
    if not stat.S_ISREG(status.st_mode):
        raise DataError(os.path.basename(full), "is not a regular file")
    return (status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns)


def _read(full: str, name: str) -> str:
    with open(full, "rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise DataError(f"{name}:1", f"is larger than {MAX_BYTES // 1024 // 1024} MiB")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}:{line}", "is not UTF-8") from None


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


@dataclass(frozen=True, slots=True)
class Registry:
    """The Services and slices of all files together. Pure data."""

    services: Mapping[ServiceKey, Service]
    slices: Mapping[ServiceKey, tuple[EndpointSlice, ...]]
    skipped: tuple[tuple[str, str], ...]


def registry(state: FolderState) -> Registry:
    """Join the files. Of two objects of one name the first counts (by file name, then position), the other is told."""
    services: dict[ServiceKey, Service] = {}
    places: dict[object, str] = {}
    slices: dict[ServiceKey, list[EndpointSlice]] = {}
    legacy: dict[ServiceKey, list[EndpointSlice]] = {}
    skipped: list[tuple[str, str]] = []

    def first(identity: object, title: str, place: str) -> bool:
        known = places.setdefault(identity, place)
        if known != place:
            skipped.append((place, f"{title} stands in {known} already"))
        return known == place

    for _, file in sorted(state.files.items()):
        if file.objects is None:
            continue
        skipped.extend(file.objects.skipped)
        for service, place in file.objects.services:
            if first(("Service", service.key), f"Service {service.key}", place):
                services[service.key] = service
        for slice_, place in file.objects.slices:
            title = f"EndpointSlice {slice_.namespace}/{slice_.name}"
            if first(("EndpointSlice", slice_.namespace, slice_.name), title, place):
                slices.setdefault(slice_.service, []).append(slice_)
        for slice_, place in file.objects.legacy:
            if first(("Endpoints", slice_.service), f"Endpoints {slice_.service}", place):
                legacy.setdefault(slice_.service, []).append(slice_)
    for key, found in legacy.items():
        slices.setdefault(key, found)  # slices, where there are any, say the same and more (KEP-752)
    joined = {key: tuple(found) for key, found in slices.items()}
    for key, group in joined.items():
        if key not in services:
            services[key] = synthesised(key, group)
    return Registry(services, joined, tuple(skipped))
