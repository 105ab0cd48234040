"""Config: the settings of a process, and what they mean for one target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from meshlib.errors import TargetError
from meshlib.model.target import Target, TargetDefaults
from meshlib.runtime.config.annotations import read_annotations
from meshlib.runtime.config.checks import Network
from meshlib.runtime.config.keys import Entry, KeyPath, dotted
from meshlib.runtime.config.sources import FileAt

_EMPTY: Mapping[str, Any] = MappingProxyType({})


def _nothing() -> Any:
    return _EMPTY  # dataclasses take no unhashable default, and a mapping proxy is one


@dataclass(frozen=True, slots=True)
class AddressSettings:
    """``[address]``: networks that the address policy lets through or refuses in addition to its own rules."""

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    allow_loopback: bool = False


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """How one target is balanced. ``where`` names the place that ``picker`` and ``settings`` came from."""

    picker: str
    settings: Mapping[str, Any] = field(default_factory=_nothing)
    hash_key: str = ""
    authority: str = ""
    where: str = "default"
    warnings: tuple[str, ...] = ()  #: annotations that were ignored, each naming Service and annotation


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a process. Immutable; made by ``load_config``; empty text means "find out".

    ``aliases`` maps host names to target text (decision D1). ``discovery`` maps a scheme to its resolver's settings.
    ``sync_timeout`` is in seconds. ``plugins`` names the plugin pickers that a Service annotation may choose.
    ``exporters`` are started with the first Mesh (docs/metrics.md).
    ``wire``: whose connections carry HTTP/1.1, ``httpcore``'s or our own ``fast`` ones (decision D18).
    ``total_connections``: what one httpx client may have open in all; 0: three quarters of the descriptors.
    ``mode``, ``percent`` and ``allow_targets`` (None: no list) stage the roll-out and are obeyed live.
    ``sidecar``: ``auto`` stands back where a mesh is found already (decision D3), ``ignore`` does not look.
    ``status_socket``: where ``meshlib status`` finds this process: ``auto``, ``off``, or the directory to use instead.
    """

    mode: str = "on"
    percent: float = 100.0
    allow_targets: tuple[str, ...] | None = None
    strict: bool = False
    namespace: str = ""
    cluster_domain: str = ""
    node: str = ""
    zone: str = ""
    short_names: bool = True
    sync_timeout: float = 1.0
    sidecar: str = "auto"
    picker: str = "peak_ewma"
    picker_settings: Mapping[str, Any] = field(default_factory=_nothing)
    hash_key: str = ""
    plugins: tuple[str, ...] = ()
    exporters: tuple[str, ...] = ()
    wire: str = "fast"
    total_connections: int = 0
    status_socket: str = "auto"
    aliases: Mapping[str, str] = field(default_factory=_nothing)
    address: AddressSettings = AddressSettings()
    discovery: Mapping[str, Mapping[str, Any]] = field(default_factory=_nothing)
    target: Mapping[str, Mapping[str, Any]] = field(default_factory=_nothing)
    file: str = ""  #: the file that was read; empty: none
    warnings: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=_nothing, repr=False)  #: dotted key -> place
    at: FileAt | None = field(
        default=None, repr=False, compare=False
    )  #: where the file is, or would be; None: not loaded
    #: what was read, and the part of it that no file can change (code and environment)
    entries: Mapping[KeyPath, Entry] = field(default_factory=_nothing, repr=False, compare=False)
    fixed: Mapping[KeyPath, Entry] = field(default_factory=_nothing, repr=False, compare=False)
    #: keys that the file sets to another value than code or environment, which win
    shadowed: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def source(self, *path: str) -> str:
        """Where a value came from: ``source("strict")``, ``source("aliases", "orders.internal")``; else "default"."""
        return self.sources.get(dotted(path), "default")

    def for_target(
        self,
        target_text: str,
        annotations: Mapping[str, str] = _EMPTY,
        *,
        service: str = "",
        defaults: TargetDefaults | None = None,
    ) -> TargetSettings:
        """The settings of one target; never raises: what other tenants write (annotations) is skipped with a warning.

        ``annotations``: those of the Service. Only ``meshlib.dev/picker``, ``meshlib.dev/picker-settings`` and
        ``meshlib.dev/hash-key`` count, and only where nothing local says otherwise. ``service`` is its
        ``ns/name``, for the warnings. ``defaults`` complete the texts of ``[target."..."]`` tables; without them
        the environment's do. Settings stay with their picker: those written for another place's are not mixed in.
        """
        service = service or target_text
        name, own = self.own_table(target_text, defaults)
        offered, warnings = read_annotations(annotations, service, self.plugins, self.picker)
        chosen = TargetSettings(
            picker=self.picker,
            settings=self.picker_settings,
            hash_key=own.get("hash_key") or self.hash_key or offered.hash_key,
            authority=own.get("authority", ""),
            where=self.source("picker_settings" if self.source("picker") == "default" else "picker"),
            warnings=warnings,
        )
        if "picker" in own or "settings" in own:
            picker = own.get("picker", self.picker)
            key = "picker" if "picker" in own else "settings"
            return _with_picker(chosen, picker, own.get("settings", _EMPTY), self.source("target", name, key))
        if offered.picker and chosen.where == "default":
            return _with_picker(chosen, offered.picker, offered.settings, offered.where)
        return chosen

    def own_table(self, text: str, defaults: TargetDefaults | None) -> tuple[str, Mapping[str, Any]]:
        """The name and content of the ``[target."..."]`` table that means this target; empty: there is none."""
        if text in self.target or not self.target:
            return text, self.target.get(text, _EMPTY)
        if defaults is None:
            from meshlib.runtime.config.environment import (
                target_defaults,
            )  # it reads a Config, so it imports us

            defaults = target_defaults(self)
        wanted = _meaning(text, defaults)
        for name, table in self.target.items():
            if _meaning(name, defaults) == wanted:
                return name, table
        return text, _EMPTY


def _with_picker(
    base: TargetSettings, picker: str, settings: Mapping[str, Any], where: str
) -> TargetSettings:
    return TargetSettings(picker, settings, base.hash_key, base.authority, where, base.warnings)


def _meaning(text: str, defaults: TargetDefaults) -> object:
    """Equal for texts that name one Service port: a cluster host name and ``k8s:///`` may do so in many spellings."""
    try:
        target = Target.parse(text, defaults)
    except TargetError:
        return text
    if target.scheme == "k8s":
        return (target.namespace, target.name, target.hostname, target.port)
    return target
