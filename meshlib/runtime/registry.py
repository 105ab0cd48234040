"""Names to resolvers and pickers: the built-ins, then entry points; loaded by name, on demand, never all at start."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module, metadata
from typing import Any, cast

from meshlib.discovery.base import ResolverBuilder
from meshlib.discovery.builtin import BUILTIN as RESOLVERS
from meshlib.errors import ConfigError
from meshlib.observe.exporter import ExporterBuilder
from meshlib.pickers.base import PickerBuilder
from meshlib.pickers.builtin import BUILTIN as PICKERS

RESOLVER_GROUP = "meshlib.resolvers"
PICKER_GROUP = "meshlib.pickers"
EXPORTER_GROUP = "meshlib.exporters"
EXPORTERS = {
    "opentelemetry": "meshlib.observe.opentelemetry:BUILDER",
    "prometheus": "meshlib.observe.prometheus:BUILDER",
}
#: What a plugin's object must have: the members of ResolverBuilder, PickerBuilder and ExporterBuilder.
_CONTRACTS = {
    RESOLVER_GROUP: ("schemes", "build"),
    PICKER_GROUP: ("name", "contract", "parse_config", "build"),
    EXPORTER_GROUP: ("name", "start"),
}


@lru_cache(maxsize=128)  # names are few; the bound only guards against names from annotations
def resolver_builder(scheme: str) -> ResolverBuilder:
    """The builder for a URL scheme. Raises ConfigError naming what exists. Built-ins win over plugins."""
    return cast(ResolverBuilder, _load("resolver", RESOLVER_GROUP, RESOLVERS, scheme))


@lru_cache(maxsize=128)
def picker_builder(name: str) -> PickerBuilder:
    """The builder of a picker policy. Raises ConfigError naming what exists. Built-ins win over plugins."""
    return cast(PickerBuilder, _load("picker", PICKER_GROUP, PICKERS, name))


def exporter_builder(name: str) -> ExporterBuilder:
    """The builder of an exporter. Raises ConfigError naming what exists, ModuleNotFoundError where the library of a
    built-in one is missing."""
    return cast(ExporterBuilder, _load("exporter", EXPORTER_GROUP, EXPORTERS, name))


def has_resolver(scheme: str) -> bool:
    """Whether a resolver of that name is built in or installed. Imports none."""
    return scheme in RESOLVERS or any(
        entry.name == scheme for entry in metadata.entry_points(group=RESOLVER_GROUP)
    )


def plugins() -> dict[str, dict[str, str]]:
    """Installed plugins by group: name -> ``distribution version``. Nothing is imported."""
    found: dict[str, dict[str, str]] = {}
    for group in (RESOLVER_GROUP, PICKER_GROUP, EXPORTER_GROUP):
        for entry in metadata.entry_points(group=group):
            dist = entry.dist
            found.setdefault(group, {})[entry.name] = f"{dist.name} {dist.version}" if dist else "unknown"
    return found


def _load(kind: str, group: str, builtin: Mapping[str, str], name: str) -> Any:
    if name in builtin:
        module, _, attribute = builtin[name].partition(":")
        return getattr(import_module(module), attribute)
    entries = tuple(metadata.entry_points(group=group))
    for entry in entries:
        if entry.name == name:
            try:
                found = entry.load()
            except (
                Exception
            ) as error:  # a plugin is foreign code: whatever it raises makes this name unusable, no more
                raise ConfigError(
                    f"{kind} {name!r}", f"the plugin {entry.value} failed to load: {error!r}"
                ) from error
            missing = [needed for needed in _CONTRACTS[group] if not hasattr(found, needed)]
            if missing:
                raise ConfigError(
                    f"{kind} {name!r}",
                    f"the plugin {entry.value} is no builder: it has no {', '.join(missing)}",
                )
            return found
    known = ", ".join(sorted({*builtin, *(entry.name for entry in entries)}))
    raise ConfigError(f"{kind} {name!r}", "unknown", f"known: {known}")
