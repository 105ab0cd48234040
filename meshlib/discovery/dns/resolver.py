"""The ``dns`` and ``dns+srv`` resolver: what its watches share, and the poll of the two files below them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from meshlib.discovery.base import Publish, ResolverContext
from meshlib.discovery.dns.records import Answer, Question
from meshlib.discovery.dns.settings import DnsSettings
from meshlib.discovery.dns.system import SystemNames, host_families
from meshlib.discovery.dns.table import Ask, Table
from meshlib.discovery.dns.watch import DnsWatch, Shared
from meshlib.model.events import SourceFailed
from meshlib.model.target import Target


class DnsResolver:
    """Implements discovery.base.Resolver. Raises ConfigError for a bad ``[discovery.dns]`` table.

    ``ask`` replaces the network in tests. dnspython is imported with the first question, not before.
    """

    def __init__(self, context: ResolverContext, ask: Ask | None = None) -> None:
        self._context = context
        self._settings = settings = DnsSettings.parse(context.settings)
        self._system = SystemNames(settings.resolv_conf, settings.hosts)
        self._asker: Ask | None = ask
        policy = context.address_policy
        if settings.allow_loopback:
            policy = replace(policy, allow_loopback=True)
        self._table = Table(context, self._ask, policy, settings.limits)
        self._shared = Shared(context, self._table, self._system, settings.families or host_families())
        self._watches: list[DnsWatch] = []
        self._poller: asyncio.Task[Any] | None = None

    def watch(self, target: Target, publish: Publish) -> DnsWatch:
        """Start to follow a target; the first update comes on a later turn of the loop."""
        if self._poller is None:
            self._poller = self._context.spawn(self._poll(), name="dns files")
        self._look_at_files()
        self._watches = [watch for watch in self._watches if not watch.closed]
        watch = DnsWatch(self._shared, target, publish)
        self._watches.append(watch)
        return watch

    async def close(self) -> None:
        """Close all watches; nothing is asked or published afterwards."""
        tasks: list[asyncio.Task[Any]] = []
        if self._poller is not None:
            self._poller.cancel()
            tasks.append(self._poller)
            self._poller = None
        # The table first: a watch releases its questions one by one, and their tasks are wanted here.
        tasks.extend(self._table.close())
        for watch in self._watches:
            watch.close()
            tasks.append(watch.task)
        self._watches.clear()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, question: Question, avoid: str = "") -> Answer:
        if self._asker is None:
            # Imported here: a program whose targets all come from elsewhere does not pay for dnspython.
            from meshlib.discovery.dns.transport import Asker

            self._asker = Asker(lambda: self._system.conf, self._context.now, self._settings.port)
        return await self._asker(question, avoid)

    async def _poll(self) -> None:
        while True:
            await self._context.sleep(self._settings.poll)
            self._look_at_files()

    def _look_at_files(self) -> None:
        changed = self._system.poll()
        for error in self._system.take_errors():
            self._context.emit(SourceFailed("dns files", error, True, self._settings.poll))
        if changed:
            self._table.environment_changed()
            for watch in self._watches:
                watch.environment_changed()


class DnsBuilder:
    """Implements discovery.base.ResolverBuilder."""

    schemes: tuple[str, ...] = ("dns", "dns+srv")

    def build(self, context: ResolverContext) -> DnsResolver:
        return DnsResolver(context)


BUILDER = DnsBuilder()
