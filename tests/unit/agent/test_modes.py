"""Which mode is chosen, from what the backends say about themselves."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.agent.backends.base import Probe
from meshlib.agent.modes import Chosen, NoBackend, choose

GOOD, BAD = Probe(True, "works"), Probe(False, "module missing", ())
HALF = Probe(True, "no companion", complete=False)
FOUR = Probe(True, "no IPv6", (4,))


class Backend:
    def __init__(self, said: Probe) -> None:
        self._said = said

    def probe(self) -> Probe:
        return self._said


def chosen(mode: str, said: dict[str, Probe]) -> Chosen:
    makers: dict[str, Any] = {
        name: lambda family, probe=probe: Backend(probe) for name, probe in said.items()
    }
    return choose(mode, (4, 6), makers)


@pytest.mark.acceptance(106)
@pytest.mark.parametrize(
    ("ipvs", "nftables", "iptables", "mode"),
    [
        (GOOD, GOOD, GOOD, "ipvs"),
        (BAD, GOOD, GOOD, "nftables"),
        (BAD, BAD, GOOD, "iptables"),
        (HALF, GOOD, GOOD, "nftables"),
        (HALF, BAD, GOOD, "iptables"),
        (HALF, BAD, BAD, "ipvs"),
        (HALF, HALF, BAD, "ipvs"),
        (FOUR, GOOD, GOOD, "ipvs"),
    ],
)
def test_auto(ipvs: Probe, nftables: Probe, iptables: Probe, mode: str) -> None:
    """The best that works wholly, else the best that works; everything that was tried is told."""
    found = chosen("auto", {"ipvs": ipvs, "nftables": nftables, "iptables": iptables})
    assert found.mode == mode
    assert found.probes["ipvs"].reason == ipvs.reason
    assert set(found.backends) == ({4} if ipvs is FOUR else {4, 6})


@pytest.mark.acceptance(107)
def test_an_explicit_mode_is_that_or_nothing() -> None:
    """Also one that lacks something: the person has said so."""
    assert chosen("ipvs", {"ipvs": HALF, "nftables": GOOD}).mode == "ipvs"
    with pytest.raises(NoBackend, match=r"(?s)ipvs: module missing.*never falls back"):
        chosen("ipvs", {"ipvs": BAD, "nftables": GOOD})


def test_nothing_works() -> None:
    """Every attempt is named with its reason, those that are not built in as well."""
    with pytest.raises(
        NoBackend, match=r"(?s)ipvs: module missing.*nftables: this build.*iptables: this build"
    ):
        chosen("auto", {"ipvs": BAD})
