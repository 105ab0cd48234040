"""What the configuration says about the roll-out of one target: mode, percent, and whether the allow-list has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from meshlib.errors import TargetError
from meshlib.model.hosts import HostKind, match_host
from meshlib.model.service import ROLLOUT_MODE
from meshlib.model.target import Target, TargetDefaults
from meshlib.policies.rollout import Mode, Wish
from meshlib.runtime.config.annotations import MODES
from meshlib.runtime.config.environment import alias_targets
from meshlib.runtime.config.keys import Entry, KeyPath, dotted
from meshlib.runtime.config.settings import Config

#: The keys that are obeyed live, at the top of the file and in a target's table.
LIVE = ("mode", "percent", "allow_targets")
LIVE_OF_TARGET = ("mode", "percent")
_LIVE = frozenset((key,) for key in LIVE)


def wish_for(config: Config, target: Target, defaults: TargetDefaults) -> Wish:
    """What is configured for ``target``. A target's own table wins over the whole process; the list bounds both."""
    name, own = config.own_table(str(target), defaults)

    def found(key: str) -> tuple[Any, str]:
        if key in own:
            return own[key], config.source("target", name, key)
        return getattr(config, key), config.source(key)

    mode, mode_source = found("mode")
    percent, percent_source = found("percent")
    return Wish(
        mode=Mode(mode),
        percent=percent,
        allowed=_is_listed(config, target, defaults),
        mode_source=mode_source,
        percent_source=percent_source,
        allowed_source=config.source("allow_targets"),
    )


def annotated_mode(annotations: Mapping[str, str], wish: Wish) -> tuple[Mode | None, str]:
    """What a Service's annotation asks for, or None; and why it is ignored, or "". A text that is no mode at all is
    said where all annotations are checked."""
    text = annotations.get(ROLLOUT_MODE, "")
    if text not in MODES:
        return None, ""
    mode = Mode(text)
    if mode.rank > wish.mode.rank:
        return (
            None,
            f"{text!r} is more than {wish.mode.value!r} ({wish.mode_source}): a Service may only lower it",
        )
    return mode, ""


def _is_listed(config: Config, target: Target, defaults: TargetDefaults) -> bool:
    if config.allow_targets is None:
        return True
    aliases = alias_targets(config, defaults)
    return any(_means(entry, target, defaults, aliases) for entry in config.allow_targets)


def _means(entry: str, target: Target, defaults: TargetDefaults, aliases: Mapping[str, Target]) -> bool:
    """Whether an entry of the list, a target or a host with or without a port, stands for ``target``."""
    if "://" in entry:
        try:
            return _same(Target.parse(entry, defaults), target, with_port=True)
        except TargetError:  # it was checked when it was read, with other defaults
            return False
    host, _, port = entry.partition(":")
    match = match_host("http", host, int(port) if port else None, defaults, aliases)
    exact = bool(port) or match.kind is HostKind.ALIAS
    return any(_same(named, target, with_port=exact) for named in match.targets)


def _same(one: Target, other: Target, with_port: bool) -> bool:
    if one.scheme != "k8s" or other.scheme != "k8s":
        return one == other
    service = (one.name, one.namespace, one.hostname) == (other.name, other.namespace, other.hostname)
    return service and (not with_port or one.port == other.port)


def is_live(path: KeyPath) -> bool:
    """Whether a change of this key takes effect without a restart."""
    return path in _LIVE or (len(path) == 3 and path[0] == "target" and path[2] in LIVE_OF_TARGET)


def changes(before: Config, after: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How two readings differ: the live keys as ``key: old -> new``, and the other keys, which want a restart."""
    live, others = [], []
    for path in sorted({*before.entries, *after.entries}):
        old, new = before.entries.get(path), after.entries.get(path)
        if old is not None and new is not None and old.value == new.value:
            continue
        if is_live(path):
            live.append(f"{dotted(path)}: {_shown(old)} -> {_shown(new)}")
        else:
            others.append(dotted(path))
    return tuple(live), tuple(others)


def with_live_keys(config: Config, read: Config) -> Config:
    """``config`` with the live keys of ``read``, a later reading of the same file, and nothing else of it."""
    target = {
        name: {k: v for k, v in table.items() if k not in LIVE_OF_TARGET}
        for name, table in config.target.items()
    }
    for name, table in read.target.items():
        for key in LIVE_OF_TARGET:
            if key in table:
                target.setdefault(name, {})[key] = table[key]
    sources = {key: place for key, place in config.sources.items() if key not in _live_names(config)}
    sources.update({key: place for key, place in read.sources.items() if key in _live_names(read)})
    return replace(
        config,
        **{key: getattr(read, key) for key in LIVE},
        target=MappingProxyType({name: MappingProxyType(table) for name, table in target.items()}),
        sources=MappingProxyType(sources),
        file=read.file,
    )


def _live_names(config: Config) -> set[str]:
    return {dotted(path) for path in config.entries if is_live(path)}


def _shown(entry: Entry | None) -> str:
    return "default" if entry is None else str(entry.value)
