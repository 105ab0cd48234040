"""The DNS fall-back of decision D3: what a bare client on this host would dial for a Kubernetes target."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from meshlib.errors import DataError
from meshlib.model.address import AddressPolicy
from meshlib.model.endpoint import Endpoint
from meshlib.model.target import Target, TargetDefaults

Addresses = Callable[[str], Awaitable[tuple[str, ...]]]
Records = Callable[[str], Awaitable[tuple[tuple[str, int], ...]]]


class DnsFallback:
    """Looks up ``NAME.NS.svc.DOMAIN``: ``addresses`` asks the system's resolver, ``srv`` serves named ports."""

    def __init__(
        self, defaults: TargetDefaults, policy: AddressPolicy, addresses: Addresses, srv: Records
    ) -> None:
        self._defaults = defaults
        self._policy = policy
        self._addresses = addresses
        self._srv = srv

    async def __call__(self, target: Target, /) -> tuple[Endpoint, ...]:
        host = f"{target.name}.{target.namespace}.svc.{self._defaults.cluster_domain}"
        if target.hostname:
            host = f"{target.hostname}.{host}"
        if isinstance(target.port, int):
            found = tuple((address, target.port) for address in await self._addresses(host))
        else:
            found = await self._srv(f"_{target.port}._tcp.{host}")
        return tuple(
            Endpoint(address=checked, port=port, name=host)
            for address, port in found
            if (checked := self._checked(address))
        )

    def _checked(self, address: str) -> str:
        try:
            return self._policy.check(address)
        except DataError:
            return ""  # DNS is as untrusted as a slice; the caller sees an empty answer
