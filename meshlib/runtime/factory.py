"""PickerFactory: builds the pickers of one target, following what a Service's annotations may change (decision D11)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from meshlib.errors import ConfigError
from meshlib.model.events import EntrySkipped
from meshlib.model.service import Service
from meshlib.pickers.base import Picker, PickerContext
from meshlib.pickers.hash_key import HashKeySpec, parse_hash_key
from meshlib.pickers.subchannel import Subchannel
from meshlib.policies import order
from meshlib.policies.affinity import Affinity
from meshlib.runtime.config import Config, TargetSettings
from meshlib.runtime.observing import emit
from meshlib.runtime.registry import picker_builder


class PickerFactory:
    """One per target and process; called on the control thread."""

    def __init__(self, config: Config, label: str, random: Callable[[], float]) -> None:
        self._config = config
        self._label = label
        self._random = random
        self._warned: tuple[str, ...] = ()
        self._affinity: Affinity | None = None
        self._policy: object = None
        #: What the Service's annotation says, while nothing local does; replaced as a whole, read by any thread.
        self.annotated_hash_key: HashKeySpec | None = None

    def __call__(
        self, subchannels: Sequence[Subchannel], service: Service | None, previous: Picker | None
    ) -> Picker:
        annotations = dict(service.annotations) if service is not None else {}
        settings = self._config.for_target(
            self._label, annotations, service=str(service.key) if service else ""
        )
        self._warn(settings.warnings)
        self.annotated_hash_key = self._parse_hash_key(settings)
        try:
            builder = picker_builder(settings.picker)
            parsed = builder.parse_config(settings.settings, f"{settings.where}: ")
        except (
            ConfigError
        ) as error:  # an annotation's doing: local settings were checked when the handle was made
            self._warn((str(error),))
            settings = self._config.for_target(self._label)
            builder = picker_builder(settings.picker)
            parsed = builder.parse_config(settings.settings, f"{settings.where}: ")
        policy = (settings.picker, repr(settings.settings))
        context = PickerContext(
            random=self._random,
            client_identity=client_identity(),
            new_lock=threading.Lock,
            previous=previous if policy == self._policy else None,
        )
        self._policy = policy
        affinity = self._sticky(service)
        try:
            return order.plan(subchannels, builder, parsed, context, affinity)
        except (
            Exception
        ) as error:  # a plugin is foreign code, and others wait for the resolver that called us
            self._warn((f"picker {settings.picker!r} could not be built, the default is used: {error!r}",))
            self._policy = None
            builder = picker_builder(Config().picker)
            parsed = builder.parse_config({}, "")
            return order.plan(subchannels, builder, parsed, replace(context, previous=None), affinity)

    def _parse_hash_key(self, settings: TargetSettings) -> HashKeySpec | None:
        try:
            return parse_hash_key(settings.hash_key, settings.where) if settings.hash_key else None
        except ConfigError as error:
            self._warn((str(error),))
            return None

    def _sticky(self, service: Service | None) -> Affinity | None:
        """The target's affinity while its Service asks for one; the sticky endpoint survives edits of the timeout."""
        seconds = service.session_affinity_seconds if service is not None else 0
        if not seconds:
            self._affinity = None
        elif self._affinity is None:
            self._affinity = Affinity(seconds, threading.Lock())
        else:
            self._affinity.timeout = seconds
        return self._affinity

    def _warn(self, warnings: tuple[str, ...]) -> None:
        if warnings and warnings != self._warned:
            self._warned = warnings
            for warning in warnings:
                emit(EntrySkipped("configuration", self._label, warning))


def client_identity() -> str:
    """Identifies this process for hash policies: the pod's name where there is one, and the pid."""
    return f"{os.environ.get('HOSTNAME', '')}/{os.getpid()}"
