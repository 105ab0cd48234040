"""A request on its way to one endpoint: what httpx made, and where it goes. Both wires are given one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NO_TIMEOUTS: Mapping[str, float | None] = {}


class Outgoing:
    """Times are seconds; None: unlimited."""

    __slots__ = (
        "body",
        "connect_timeout",
        "extensions",
        "headers",
        "method",
        "secure",
        "timeouts",
        "tls_name",
        "url",
    )

    def __init__(
        self,
        request: Any,
        headers: Any,
        body: Any,
        secure: bool,
        tls_name: str,
        connect_timeout: float | None,
    ) -> None:
        self.method: bytes = request.method
        self.url = request.url  #: as typed
        extensions = request.extensions
        self.extensions: Any = extensions
        #: what the caller set, by kind ("read", "write", "pool")
        self.timeouts: Mapping[str, float | None] = extensions.get("timeout") or _NO_TIMEOUTS
        self.headers = headers
        self.body = body
        self.secure = secure
        self.tls_name = tls_name
        self.connect_timeout = connect_timeout

    def as_core(self, core: Any, address: str, port: int) -> Any:
        """The same as httpcore's Request, dialled at an address."""
        extensions = self.extensions
        timeouts = extensions.get("timeout") or {}
        if timeouts.get("connect") != self.connect_timeout:
            extensions = {**extensions, "timeout": {**timeouts, "connect": self.connect_timeout}}
        if self.secure:
            extensions = {**extensions, "sni_hostname": self.tls_name}
        url = core.URL(
            scheme=self.url.scheme, host=address.encode("ascii"), port=port, target=self.url.target
        )
        return core.Request(self.method, url, headers=self.headers, content=self.body, extensions=extensions)
