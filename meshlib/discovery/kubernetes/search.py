"""The search for credentials, repeated for as long as there are none."""

from __future__ import annotations

import os
from collections.abc import Callable

from meshlib.discovery.base import ResolverContext
from meshlib.discovery.kubernetes.credentials import Credentials, find_credentials
from meshlib.errors import MeshError
from meshlib.model.events import SourceFailed, SourceRecovered

#: Seconds between two searches for credentials: a service account or a kubeconfig may appear later (a mounted volume).
SEARCH_AGAIN = 60.0


async def search_credentials(
    context: ResolverContext, on_problem: Callable[[MeshError], None]
) -> Credentials:
    """Looks until there are some; every failed look is told, and each different one sent as an event."""
    settings, problem = context.settings, ""
    environ = settings.get("environ")
    while True:
        try:
            found = await find_credentials(
                settings,
                os.environ if environ is None else environ,
                context.run_blocking,
                context.now,
                context.wall,
            )
        except MeshError as error:
            if problem != str(error):
                context.emit(SourceFailed("kubernetes", error, stale=False, retry_in=SEARCH_AGAIN))
            problem = str(error)
            on_problem(error)
        else:
            if problem:
                context.emit(SourceRecovered("kubernetes"))
            return found
        await context.sleep(SEARCH_AGAIN)
