"""Doctor's own questions to the API server: few, small, bounded; and what several checks need of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

#: A question of doctor's may take this long, seconds: longer than an API server ever should, shorter than patience.
TIMEOUT = 5.0
#: Services of a namespace that are looked at, for their addresses: what a namespace has, with room.
MAX_SERVICES = 1000


@dataclass(frozen=True, slots=True)
class Api:
    """An open client for one API server."""

    client: httpx.AsyncClient
    extensions: dict[str, str]

    async def get(self, path: str, **params: Any) -> httpx.Response:
        return await self.client.get(path, params=params, extensions=self.extensions)

    async def object(self, path: str, **params: Any) -> dict[str, Any] | None:
        """The document, or None when it may not be read, does not exist, is none, or does not come in time."""
        try:
            answer = await self.get(path, **params)
            found = json.loads(answer.content) if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None
        return found if isinstance(found, dict) else None


@dataclass(slots=True)
class Cluster:
    """What was learned on the way. ``vips``: cluster IP to ``NAMESPACE/NAME``, in the namespaces looked at."""

    vips: dict[str, str] = field(default_factory=dict)

    def add_services(self, document: Any) -> None:
        """Tolerates anything: what does not look like a Service is none."""
        items = document.get("items") if isinstance(document, dict) else None
        for item in items if isinstance(items, list) else ():
            try:
                name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
                addresses = item["spec"].get("clusterIPs") or [item["spec"].get("clusterIP")]
                self.vips.update({str(each): name for each in addresses if each and each != "None"})
            except (LookupError, TypeError, AttributeError):
                continue
