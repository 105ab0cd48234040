"""What this host says about names: resolv.conf and the hosts file, read again when they change, and its families."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from meshlib.discovery.dns.names import ResolvConf, parse_hosts, parse_resolv_conf
from meshlib.errors import DataError

RESOLV_CONF = "/etc/resolv.conf"
HOSTS = "/etc/hosts"
#: Addresses of documentation networks (RFC 5737, RFC 3849): connecting a datagram socket sends nothing, it only asks
#: the kernel for a route and a source address, which is what AI_ADDRCONFIG asks as well.
_PROBES = ((4, socket.AF_INET, "192.0.2.1"), (6, socket.AF_INET6, "2001:db8::1"))

_Signature = tuple[int, int, int] | None


class SystemNames:
    """The two files, kept in memory. ``poll`` is two stat calls on local files, cheap enough for the control loop."""

    def __init__(self, resolv_conf: str = RESOLV_CONF, hosts: str = HOSTS) -> None:
        self._paths = (resolv_conf, hosts)
        self._signatures: list[_Signature] = [None, None]
        self.conf = ResolvConf()
        self.hosts: Mapping[str, tuple[str, ...]] = {}
        self._errors: list[DataError] = []
        self.poll()

    def poll(self) -> bool:
        """Read again what changed; True when the contents differ. A vanished file counts as empty, as for glibc.

        A file that exists but cannot be read keeps what was read before and is told by ``take_errors``.
        """
        changed = False
        for index, path in enumerate(self._paths):
            signature = _signature(path)
            if signature == self._signatures[index] and signature is not None:
                continue
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    text = file.read()
            except FileNotFoundError:
                text = ""
            except OSError as error:
                if signature != self._signatures[index]:
                    self._errors.append(DataError(path, error.strerror or type(error).__name__))
                    self._signatures[index] = signature
                continue
            self._signatures[index] = signature
            if index == 0:
                conf = parse_resolv_conf(text)
                changed = changed or conf != self.conf
                self.conf = conf
            else:
                hosts = parse_hosts(text)
                changed = changed or hosts != self.hosts
                self.hosts = hosts
        return changed

    def take_errors(self) -> list[DataError]:
        """Files that could not be read since the last call, once per change of the file."""
        errors, self._errors = self._errors, []
        return errors


def _signature(path: str) -> _Signature:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def host_families() -> tuple[int, ...]:
    """Families this host has a route for, IPv4 first as Kubernetes' own default is; both when it has none (a laptop
    offline still reaches its loopback)."""
    found = []
    for family, kind, address in _PROBES:
        try:
            with socket.socket(kind, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
        except OSError:
            continue
        found.append(family)
    return tuple(found) or (4, 6)
