"""What a node needs before the agent runs with few privileges: kernel modules and settings. Pure, but for reading.

Done once per boot by a privileged init step that ends (decision D15). Every setting's previous value is noted first, so
that a clean-up puts it back; modules stay, as somebody else may use them by then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshlib.agent.backends.ipvs import sysctls
from meshlib.agent.settings import AgentSettings

#: What the rules of the nftables table use. Kernels that have one built in say so, and then nothing is loaded.
_TABLE = (
    "nf_tables",
    "nft_ct",
    "nft_chain_nat",
    "nft_masq",
    "nft_reject_inet",
    "nft_fib_inet",
    "nft_numgen",
    "nft_hash",
)
_SYSCTL_ROOT = sysctls.ROOT


@dataclass(frozen=True, slots=True)
class Needed:
    """Modules in the order of loading; settings by name. ``raise_only``: those are floors, a larger value stays."""

    modules: tuple[str, ...]
    sysctls: Mapping[str, str]
    raise_only: frozenset[str] = frozenset()


def needed(settings: AgentSettings, kernel: tuple[int, int], cores: int) -> Needed:
    """For these settings on this kernel with so many processors. Pure."""
    if settings.mode == "userspace":
        return Needed((), {})
    modules: list[str] = ["nf_conntrack"]
    found: dict[str, str] = {}
    if settings.mode in ("auto", "ipvs"):
        schedulers = dict.fromkeys(("rr", "wrr", settings.scheduler))
        modules += ["ip_vs", *(f"ip_vs_{name}" for name in schedulers)]
        found |= sysctls.wanted(kernel, settings.families, strict_arp=settings.strict_arp)
    modules += _TABLE
    if 4 in settings.families:
        found["net.ipv4.ip_forward"] = "1"
    if 6 in settings.families:
        found["net.ipv6.conf.all.forwarding"] = "1"
    floors: dict[str, int] = {}
    if settings.conntrack_max_per_core or settings.conntrack_min:
        floors["net.netfilter.nf_conntrack_max"] = max(
            settings.conntrack_max_per_core * cores, settings.conntrack_min
        )
    for name, seconds in (
        ("established", settings.conntrack_tcp_established),
        ("close_wait", settings.conntrack_tcp_close_wait),
    ):
        if seconds:
            floors[f"net.netfilter.nf_conntrack_tcp_timeout_{name}"] = int(seconds)
    found |= {name: str(value) for name, value in floors.items()}
    return Needed(tuple(modules), found, frozenset(floors))


def lacking(wanted: Needed, root: Path = _SYSCTL_ROOT) -> dict[str, str]:
    """The settings that are not as they should be, with what they are; "" for those that this kernel does not have."""
    found: dict[str, str] = {}
    for name, value in wanted.sysctls.items():
        try:
            actual = root.joinpath(*name.split(".")).read_text().strip()
        except OSError:
            found[name] = ""
            continue
        if name in wanted.raise_only and actual.isdigit() and int(actual) >= int(value):
            continue
        if actual != value:
            found[name] = actual
    return found


def missing_modules(wanted: Collection[str], release: str, root: Path = Path("/")) -> list[str]:
    """Those that are neither loaded nor built in, as far as the kernel tells."""
    loaded = {line.split(" ", 1)[0] for line in _lines(root / "proc/modules")}
    built_in = {
        Path(line).name.split(".", 1)[0].replace("-", "_")
        for line in _lines(root / f"lib/modules/{release}/modules.builtin")
    }
    there = loaded | built_in
    return [name for name in wanted if name not in there and not (root / "sys/module" / name).exists()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
