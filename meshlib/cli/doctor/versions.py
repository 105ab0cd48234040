"""Doctor's look at versions: what is installed and running, against the supported ranges (docs/versions.md)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from meshlib.cli.doctor.findings import Finding, lack, note, ok

DISTRIBUTION = "meshlib-sdk"
#: Below it EndpointSlices are not served (or not by default), and core Endpoints are read instead.
OLDEST_KUBERNETES = (1, 17)
_CLASSIFIER = re.compile(r"Programming Language :: Python :: (\d+)\.(\d+)")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^;]*)")
_BOUND = re.compile(r"(>=|<)\s*([0-9.]+)")


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:2])) -> Iterable[Finding]:
    """The running Python against those that the tests run on."""
    try:
        classifiers = metadata.metadata(DISTRIBUTION).get_all("Classifier") or []
    except metadata.PackageNotFoundError:
        return  # run from its source: nothing says what it was made for
    tested = sorted(
        (int(found[1]), int(found[2])) for each in classifiers if (found := _CLASSIFIER.fullmatch(each))
    )
    shown = ".".join(map(str, version))
    if tested and version > tested[-1]:
        yield note(
            "libraries", f"Python {shown} is newer than what is tested ({'.'.join(map(str, tested[-1]))})"
        )
    elif tested and version < tested[0]:
        yield lack(
            "libraries",
            f"Python {shown} is older than what is supported ({'.'.join(map(str, tested[0]))})",
            "use a newer Python",
        )


def check_bounds(requirements: Iterable[str] | None = None) -> Iterable[Finding]:
    """What is installed against the bounds that meshlib's own package declares: pip lets others overrule them."""
    if requirements is None:
        try:
            requirements = metadata.requires(DISTRIBUTION) or []
        except metadata.PackageNotFoundError:
            return
    for text in requirements:
        found = _REQUIREMENT.match(text)
        if found is None or "extra ==" in text:
            continue
        name, bounds = found[1], found[2]
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # told where libraries are imported
        for sign, bound in _BOUND.findall(bounds):
            older = numbers(installed) < numbers(bound)
            if older if sign == ">=" else not older:
                yield lack(
                    "libraries",
                    f"{name} {installed} is outside of the supported range ({bounds.strip()})",
                    f"pip install '{name}{bounds.strip()}'",
                )
                break


def check_kubernetes(document: Mapping[str, Any] | None) -> Iterable[Finding]:
    """The API server's ``/version``."""
    area = "kubernetes"
    found = re.match(r"v?(\d+)\.(\d+)", str((document or {}).get("gitVersion", "")))
    if found is None:
        yield note(area, "the API server does not tell its version")
        return
    version = (int(found[1]), int(found[2]))
    if version < OLDEST_KUBERNETES:
        yield note(
            area,
            f"Kubernetes {found[0]} is older than the supported {'.'.join(map(str, OLDEST_KUBERNETES))}",
            "core Endpoints are read there, without zones, topology hints and terminating endpoints",
        )
    else:
        yield ok(area, f"Kubernetes {found[0].removeprefix('v')}")


def numbers(version: str) -> tuple[int, ...]:
    """The release part of a version, for comparing: ``0.27.0rc1`` is (0, 27, 0); zeros at the end do not count."""
    release = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in release[0].split(".")] if release else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
