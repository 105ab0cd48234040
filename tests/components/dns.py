"""Real DNS servers on loopback: Knot (the authority), Unbound (a cache with faults), Dnsmasq (another temper).

with Knot(folder) as knot, Unbound(folder, forward_to=knot.address) as cache:
    name = knot.fresh_name("orders")
    knot.set_records(name, "A", ["10.0.0.1", "10.0.0.2"], ttl=5)
    cache.drop(name)
"""

from __future__ import annotations

import getpass
import itertools
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import dns.exception
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.update

from tests.components.process import Daemon, free_port, program, wait_for

Address = tuple[str, int]

HOST = "127.0.0.1"

# Unbound may not ask this address, so a name that is forwarded to it fails at once (SERVFAIL).
FORBIDDEN = "127.0.0.99"


class _Server:
    """What the servers share: an address, a folder for a short time, start and stop."""

    daemon: Daemon

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host, self.port = HOST, free_port()
        # Control sockets have a length limit of about 100 characters, which pytest's folders come close to.
        self._sockets = Path(tempfile.mkdtemp(prefix="meshlib-dns-"))

    @property
    def address(self) -> Address:
        return self.host, self.port

    def __enter__(self):  # type: ignore[no-untyped-def]
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.daemon.start()
        self.daemon.wait_until(self._answers, timeout=10)

    def stop(self) -> None:
        self.daemon.stop()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def pause(self) -> None:
        """SIGSTOP: queries vanish, connections hang."""
        self.daemon.pause()

    def resume(self) -> None:
        self.daemon.resume()

    def query(
        self, name: str, rdtype: str = "A", timeout: float = 2.0, tcp: bool = False
    ) -> dns.message.Message:
        """One question, for tests of the servers themselves."""
        send = dns.query.tcp if tcp else dns.query.udp
        return send(dns.message.make_query(name, rdtype), self.host, timeout=timeout, port=self.port)

    def _answers(self) -> bool:
        try:
            self.query("version.mesh.test", timeout=0.2)
        except (dns.exception.DNSException, OSError):
            return False
        return True


class Knot(_Server):
    """Authoritative for its zones; records change live through dynamic updates, visible when the call returns."""

    def __init__(self, folder: Path, zones: Sequence[str] = ("mesh.test", "cluster.local")) -> None:
        executable = program("knotd", package="knot")
        super().__init__(folder)
        self.zones = tuple(zones)
        for zone in self.zones:
            # The last number is how long a "does not exist" may be cached.
            (folder / f"{zone}.zone").write_text(
                f"$ORIGIN {zone}.\n"
                "@ 60 IN SOA ns hostmaster 1 3600 600 86400 2\n"
                "@ 60 IN NS ns\n"
                f"ns 60 IN A {self.host}\n"
            )
        entries = "".join(
            f'  - domain: "{zone}"\n    file: "{zone}.zone"\n    acl: local\n    zonefile-sync: -1\n'
            for zone in self.zones
        )
        config = folder / "knot.conf"
        config.write_text(
            f'server:\n    rundir: "{self._sockets}"\n    listen: {self.host}@{self.port}\n'
            # one worker of each kind is plenty, and starts faster
            "    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n"
            f'control:\n    listen: "{self._sockets / "knot.sock"}"\n'
            f'database:\n    storage: "{folder}"\n'
            "log:\n  - target: stderr\n    any: info\n"
            "acl:\n  - id: local\n    address: 127.0.0.0/8\n    action: [update, transfer]\n"
            f'template:\n  - id: default\n    storage: "{folder}"\n'
            f"zone:\n{entries}"
        )
        self.daemon = Daemon("knotd", [executable, "-c", str(config)], folder)

    def fresh_name(self, prefix: str = "name") -> str:
        """A name that no other test uses."""
        return f"{prefix}-{uuid.uuid4().hex[:8]}.{self.zones[0]}"

    def set_records(self, name: str, rdtype: str, values: Sequence[str], ttl: int = 5) -> None:
        """Replaces the records of this name and type; no values removes them. Names in values end with a dot."""
        update, owner = self._update(name)
        update.delete(owner, rdtype)
        for value in values:
            update.add(owner, ttl, rdtype, value)
        self._send(update)

    def delete(self, name: str, rdtype: str | None = None) -> None:
        update, owner = self._update(name)
        if rdtype is None:
            update.delete(owner)
        else:
            update.delete(owner, rdtype)
        self._send(update)

    def _update(self, name: str) -> tuple[dns.update.UpdateMessage, dns.name.Name]:
        owner = dns.name.from_text(name)
        zone = next(z for z in self.zones if owner.is_subdomain(dns.name.from_text(z)))
        return dns.update.UpdateMessage(zone), owner

    def _send(self, update: dns.update.UpdateMessage) -> None:
        answer = dns.query.tcp(update, self.host, timeout=5, port=self.port)
        assert answer.rcode() == dns.rcode.NOERROR, f"update refused: {dns.rcode.to_text(answer.rcode())}"

    def _answers(self) -> bool:
        # Before its zones are loaded it answers SERVFAIL or REFUSED.
        try:
            return all(self.query(z, "SOA", timeout=0.2).answer for z in self.zones)
        except (dns.exception.DNSException, OSError):
            return False


class Unbound(_Server):
    """A caching resolver. Faults are for a name and everything below it, until clear()."""

    def __init__(self, folder: Path, forward_to: Address) -> None:
        executable = program("unbound", package="unbound")
        self._control = program("unbound-control", package="unbound")
        super().__init__(folder)
        self._faults: dict[str, str] = {}
        self.config = folder / "unbound.conf"
        self.config.write_text(
            "server:\n"
            f"  interface: {self.host}@{self.port}\n"
            f'  directory: "{folder}"\n'
            '  username: ""\n  chroot: ""\n  pidfile: ""\n  logfile: ""\n  use-syslog: no\n  do-daemonize: no\n'
            "  num-threads: 1\n"
            "  access-control: 127.0.0.0/8 allow\n"
            f"  do-not-query-localhost: no\n  do-not-query-address: {FORBIDDEN}\n"
            # no DNSSEC: the zones here are not signed
            '  module-config: "iterator"\n'
            # a reserved name that it would answer itself
            '  local-zone: "test." nodefault\n'
            "  cache-max-negative-ttl: 2\n"
            f'remote-control:\n  control-enable: yes\n  control-interface: "{self._sockets / "control"}"\n'
            "  control-use-cert: no\n"
            f'forward-zone:\n  name: "."\n  forward-addr: {forward_to[0]}@{forward_to[1]}\n'
        )
        self.daemon = Daemon("unbound", [executable, "-d", "-c", str(self.config)], folder)

    def drop(self, name: str) -> None:
        """No answer at all."""
        self._local_zone(name, "always_deny")

    def refuse(self, name: str) -> None:
        self._local_zone(name, "always_refuse")

    def nxdomain(self, name: str) -> None:
        self._local_zone(name, "always_nxdomain")

    def nodata(self, name: str) -> None:
        """NOERROR without records: the name exists, but not with this type."""
        self._local_zone(name, "always_nodata")

    def servfail(self, name: str) -> None:
        self.clear(name)
        self.control("forward_add", "+i", name, FORBIDDEN)
        self._faults[name] = "forward_remove"
        self.flush(name)

    def clear(self, name: str | None = None) -> None:
        """Ends the fault of this name, or all."""
        for faulty in [name] if name else list(self._faults):
            if undo := self._faults.pop(faulty, None):
                self.control(undo, faulty)
                self.flush(faulty)

    def flush(self, name: str = ".") -> None:
        """Forgets what it has cached, at and below this name, and how its upstream behaved."""
        self.control("flush_zone", name)
        self.control("flush_infra", "all")

    def control(self, *command: str) -> str:
        args = [self._control, "-c", str(self.config), *command]
        result = subprocess.run(args, capture_output=True, text=True, timeout=10)
        assert result.returncode == 0, f"{' '.join(command)}: {result.stdout}{result.stderr}"
        return result.stdout

    def _local_zone(
        self,
        name: str,
        kind: Literal["always_deny", "always_refuse", "always_nxdomain", "always_nodata"],
    ) -> None:
        self.clear(name)
        self.control("local_zone", name, kind)
        self._faults[name] = "local_zone_remove"


class Dnsmasq(_Server):
    """A small forwarder whose truncated answers hold a part of the records (others send none)."""

    def __init__(self, folder: Path, hosts: Mapping[str, Sequence[str]], ttl: int = 5) -> None:
        executable = program("dnsmasq", package="dnsmasq-base")
        super().__init__(folder)
        self._hosts = folder / "hosts"
        self._write(hosts)
        args = [
            executable,
            "--keep-in-foreground",
            "--log-facility=-",
            "--conf-file=/dev/null",
            "--pid-file=",
            f"--user={getpass.getuser()}",
            f"--port={self.port}",
            f"--listen-address={self.host}",
            "--bind-interfaces",
            "--no-resolv",
            "--no-hosts",
            f"--addn-hosts={self._hosts}",
            f"--local-ttl={ttl}",
            # what it answers in UDP, whatever the client offers
            "--edns-packet-max=512",
        ]
        self.daemon = Daemon("dnsmasq", args, folder)

    def set_hosts(self, hosts: Mapping[str, Sequence[str]]) -> None:
        self._write(hosts)
        self.daemon.send(signal.SIGHUP)
        name, values = next((n, v) for n, v in hosts.items() if v)
        wait_for(lambda: self._addresses(name) == set(values), what="dnsmasq to read its hosts")

    def _addresses(self, name: str) -> set[str]:
        answer = self.query(name, tcp=True)
        return {str(record) for records in answer.answer for record in records}

    def _write(self, hosts: Mapping[str, Sequence[str]]) -> None:
        pairs = itertools.chain.from_iterable([(v, name) for v in values] for name, values in hosts.items())
        self._hosts.write_text("".join(f"{address} {name}\n" for address, name in pairs))
