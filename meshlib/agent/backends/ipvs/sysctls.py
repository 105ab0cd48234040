"""Kernel settings that IPVS needs, and putting them back.

What is wanted follows from the kernel's version and a few choices; what was there before is told before anything is
written, so that a clean-up restores it. The settings below net.ipv4.vs exist once ip_vs is loaded, and are separate in
each network namespace.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

ROOT = Path("/proc/sys")

#: What is ever set is below it: a ledger that was tampered with leads nowhere else.
_OURS = re.compile(r"net(\.[a-z0-9_]+)+")
#: Between these a reused client port met its old, removed endpoint, or waited a second; newer kernels got it right.
_REUSE_BROKEN_FROM, _REUSE_FIXED_IN = (4, 1), (5, 9)


def wanted(
    kernel: tuple[int, int], families: Collection[int] = (4, 6), *, strict_arp: bool = False
) -> dict[str, str]:
    """Names and values. ``strict_arp``: no device answers for addresses of another, on the whole host. Pure."""
    found = {
        # Connections are tracked, or a masquerade by mark would not see them.
        "net.ipv4.vs.conntrack": "1",
        # A flow whose endpoint was removed ends, instead of going nowhere until it is forgotten.
        "net.ipv4.vs.expire_nodest_conn": "1",
        # A client that was bound to a draining endpoint gets another.
        "net.ipv4.vs.expire_quiescent_template": "1",
    }
    if _REUSE_BROKEN_FROM <= kernel < _REUSE_FIXED_IN:
        found["net.ipv4.vs.conn_reuse_mode"] = "0"
    if 4 in families:
        found["net.ipv4.ip_forward"] = "1"
    if 6 in families:
        found["net.ipv6.conf.all.forwarding"] = "1"
    if strict_arp:
        found |= {"net.ipv4.conf.all.arp_ignore": "1", "net.ipv4.conf.all.arp_announce": "2"}
    return found


def kernel_version(release: str) -> tuple[int, int]:
    """The first two numbers of ``uname -r``: "6.1.0-18-amd64" is (6, 1). Raises ValueError. Pure."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        raise ValueError(f"{release!r} is no kernel's release")
    return int(found[1]), int(found[2])


def set_sysctls(
    values: Mapping[str, str], remember: Callable[[str, str], None], root: Path = ROOT
) -> dict[str, OSError]:
    """Set what differs. ``remember(name, before)`` is called before each write, and may raise to prevent it.

    Returns what could not be read or written; the rest is set. One that does not exist gives ENOENT (ip_vs is not
    loaded, or IPv6 is off), one that this process may not write EACCES, EPERM or EROFS.
    """
    failed: dict[str, OSError] = {}
    for name, value in values.items():
        path = root.joinpath(*name.split("."))
        try:
            before = path.read_text().strip()
            if before != value:
                remember(name, before)
                path.write_text(value)
        except OSError as error:
            failed[name] = error
    return failed


def restore_sysctls(before: Mapping[str, str], root: Path = ROOT) -> dict[str, OSError]:
    """Put back what ``remember`` was told. One that does not exist any more (a module was unloaded) is restored; one
    that cannot be ours is left alone, with EINVAL."""
    failed: dict[str, OSError] = {}
    for name, value in before.items():
        if not _OURS.fullmatch(name):
            failed[name] = OSError(errno.EINVAL, "no kernel setting of ours")
            continue
        try:
            root.joinpath(*name.split(".")).write_text(value)
        except OSError as error:
            if error.errno != errno.ENOENT:
                failed[name] = error
    return failed
