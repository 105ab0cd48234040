"""Kernel settings: what is wanted, and that what was there can be put back."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from meshlib.agent.backends.ipvs.sysctls import kernel_version, restore_sysctls, set_sysctls, wanted

REUSE = "net.ipv4.vs.conn_reuse_mode"


@pytest.mark.parametrize(
    ("release", "version"), [("6.1.0-18-amd64", (6, 1)), ("5.10.0+", (5, 10)), ("6.18-rc1", (6, 18))]
)
def test_versions(release: str, version: tuple[int, int]) -> None:
    """The first two numbers."""
    assert kernel_version(release) == version


@pytest.mark.parametrize(
    ("kernel", "value"), [((4, 0), None), ((4, 1), "0"), ((5, 8), "0"), ((5, 9), None), ((6, 1), None)]
)
def test_reused_ports_are_a_matter_of_the_kernel(kernel: tuple[int, int], value: str | None) -> None:
    """Newer and older ones are left alone."""
    assert wanted(kernel).get(REUSE) == value


def test_what_is_wanted() -> None:
    """By family; ARP only where it is asked for."""
    assert wanted((6, 1), (4,)) == {
        "net.ipv4.vs.conntrack": "1",
        "net.ipv4.vs.expire_nodest_conn": "1",
        "net.ipv4.vs.expire_quiescent_template": "1",
        "net.ipv4.ip_forward": "1",
    }
    assert "net.ipv6.conf.all.forwarding" in wanted((6, 1), (6,))
    assert wanted((6, 1), strict_arp=True)["net.ipv4.conf.all.arp_ignore"] == "1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two settings."""
    folder = tmp_path / "net" / "ipv4"
    folder.mkdir(parents=True)
    (folder / "ip_forward").write_text("0\n")
    (folder / "other").write_text("1\n")
    return tmp_path


def test_only_what_differs_is_written_and_first_remembered(root: Path) -> None:
    """The value before is told while it still stands."""
    told: list[tuple[str, str, str]] = []

    def remember(name: str, before: str) -> None:
        told.append((name, before, root.joinpath(*name.split(".")).read_text()))

    assert set_sysctls({"net.ipv4.ip_forward": "1", "net.ipv4.other": "1"}, remember, root) == {}
    assert told == [("net.ipv4.ip_forward", "0", "0\n")]
    assert (root / "net/ipv4/ip_forward").read_text() == "1"
    assert restore_sysctls({"net.ipv4.ip_forward": "0", "net.ipv4.gone": "7"}, root) == {}
    assert (root / "net/ipv4/ip_forward").read_text() == "0"


def test_one_that_is_not_there_does_not_stop_the_others(root: Path) -> None:
    """It is told with its errno."""
    failed = set_sysctls(
        {"net.ipv4.vs.conntrack": "1", "net.ipv4.ip_forward": "1"}, lambda name, before: None, root
    )
    assert {name: error.errno for name, error in failed.items()} == {"net.ipv4.vs.conntrack": errno.ENOENT}
    assert (root / "net/ipv4/ip_forward").read_text() == "1"


def test_what_cannot_be_remembered_is_not_changed(root: Path) -> None:
    """The ledger could not be written: the setting stays as it was."""

    def full(name: str, before: str) -> None:
        raise OSError(errno.ENOSPC, "full")

    failed = set_sysctls({"net.ipv4.ip_forward": "1"}, full, root)
    assert failed["net.ipv4.ip_forward"].errno == errno.ENOSPC
    assert (root / "net/ipv4/ip_forward").read_text() == "0\n"


@pytest.mark.parametrize("name", ["/etc/passwd", "kernel.core_pattern", "net.ipv4..", "net", "net.ipv4./x"])
def test_a_ledger_that_was_tampered_with_leads_nowhere_else(root: Path, name: str) -> None:
    """Cleaning up runs as root, and the ledger was written by a process that reads what others wrote."""
    (root / "kernel").mkdir()
    (root / "kernel" / "core_pattern").write_text("core")
    failed = restore_sysctls({name: "|/tmp/mine"}, root)
    assert {key: error.errno for key, error in failed.items()} == {name: errno.EINVAL}
    assert (root / "kernel" / "core_pattern").read_text() == "core"
