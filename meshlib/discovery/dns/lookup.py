"""One look-up as the bare client's system resolver would make it: decision D3's way out when nothing else is known."""

from __future__ import annotations

import asyncio
import socket

from meshlib.discovery.base import ResolverContext
from meshlib.discovery.dns.assemble import srv_entries
from meshlib.discovery.dns.records import Kind, Question, RecordType
from meshlib.discovery.dns.settings import DnsSettings
from meshlib.discovery.dns.system import SystemNames, host_families
from meshlib.errors import DiscoveryError


async def addresses(host: str, context: ResolverContext, timeout: float) -> tuple[str, ...]:
    """The addresses of ``host`` by getaddrinfo, of one family only: that of the system's first choice (RFC 6724).

    Empty when the name does not exist. Raises DiscoveryError when the resolver failed, TimeoutError after ``timeout``
    seconds. The addresses have passed no policy.
    """
    async with asyncio.timeout(timeout):
        try:
            found = await context.run_blocking(_getaddrinfo, host)
        except socket.gaierror as error:
            if error.errno in _ABSENT:
                return ()
            raise DiscoveryError(f"system resolver: {host}: {error.strerror}") from error
        except (OSError, UnicodeError) as error:  # UnicodeError: labels that IDNA refuses
            raise DiscoveryError(f"system resolver: {host}: {error}") from error
    families = {family for family, _ in found[:1]}
    return tuple(dict.fromkeys(address for family, address in found if family in families))


#: "No such name" and "no address of a family we have": statements about the name. All else is about the resolver.
_ABSENT = frozenset(
    code
    for code in (
        socket.EAI_NONAME,
        getattr(socket, "EAI_NODATA", None),
        getattr(socket, "EAI_ADDRFAMILY", None),
    )
    if code is not None
)


def _getaddrinfo(host: str) -> list[tuple[int, str]]:
    infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [(family, str(where[0])) for family, _, _, _, where in infos]


async def srv(name: str, context: ResolverContext, timeout: float) -> tuple[tuple[str, int], ...]:
    """The (address, port) pairs of the absolute SRV ``name``: best priority only, one family (the host's first).

    getaddrinfo knows no SRV, so the servers of resolv.conf are asked. Empty for a negative. Raises DiscoveryError when
    no server gave a usable reply, TimeoutError after ``timeout`` seconds. The addresses have passed no policy.
    """
    # Imported here: the runtime imports this module at start, and dnspython is only wanted when it is used.
    from meshlib.discovery.dns.transport import Asker

    settings = DnsSettings.parse(context.settings)
    system = SystemNames(settings.resolv_conf, settings.hosts)
    families = settings.families or host_families()
    ask = Asker(lambda: system.conf, context.now, settings.port)
    async with asyncio.timeout(timeout):
        answer = await ask(Question(name.rstrip(".").lower(), RecordType.SRV))
        if answer.kind is Kind.UNKNOWN:
            raise DiscoveryError(f"DNS: SRV {name}: {answer.rcode} ({answer.detail})")
        found = dict(answer.glue)
        missing = sorted({record.target for record in answer.srv if record.target} - found.keys())
        types = [RecordType.A if family == 4 else RecordType.AAAA for family in families]
        questions = [Question(target, kind) for target in missing for kind in types]
        for question, reply in zip(questions, await asyncio.gather(*map(ask, questions)), strict=True):
            found[question.name] = found.get(question.name, ()) + reply.addresses
    entries = srv_entries(answer.srv, found)
    best = min((entry.priority for entry in entries), default=0)
    for family in families:
        chosen = [(e.address, e.port) for e in entries if e.priority == best and e.family == family]
        if chosen:
            return tuple(chosen)
    return ()
