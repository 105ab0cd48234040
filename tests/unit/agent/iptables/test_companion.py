"""Chains of iptables beside virtual servers: what they leave to them, and what they do themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from meshlib.agent.backends.iptables.companion import IptablesCompanion
from meshlib.agent.backends.iptables.helper import refusal
from meshlib.agent.backends.iptables.programs import restore
from meshlib.agent.backends.iptables.tables import Tables
from meshlib.agent.desired import Action, FrontendKey, FrontendKind, Masquerade, Route
from meshlib.agent.objects import Objects, Operation, Verb
from meshlib.agent.settings import agent_settings
from meshlib.errors import ConfigError
from tests.unit.agent.iptables.test_iptables_rules import PLACE, frontend

BESIDE = IptablesCompanion(4, lambda key, family: key._replace(address="240.0.0.9"))


def said(objects: Objects, table: str, chain: str = "") -> list[str]:
    """What the rules of a table say behind their comments; ``chain``: those that begin so."""
    found = []
    for key, value in sorted(objects.items()):
        name: Any = key.name
        if name.table == table and name.chain.startswith(f"MESHLIB-{chain}"):
            found += [text.split('" ', 1)[1] for text in value.texts]
    return found


def test_what_a_virtual_server_has_is_settled_as_it_is() -> None:
    """Marked where it is to be masqueraded, not translated, and none of the other ports of its address."""
    objects = BESIDE.translate(replace(frontend(), masquerade=Masquerade.ALWAYS), PLACE)
    match = "-d 10.96.0.1 -p tcp -m tcp --dport 80"
    assert said(objects, "nat", "A-") == [f"{match} -j MARK --set-xmark 0x4000/0x4000", f"{match} -j ACCEPT"]
    assert said(objects, "filter", "A-") == [f"{match} -j RETURN", "-d 10.96.0.1 -j MESHLIB-REFUSE"]
    assert not any("DNAT" in text for text in said(objects, "nat"))


def test_sources_inside_are_led_to_their_own_virtual_server() -> None:
    """By translation, as nothing else would tell them from the others."""
    local = Route(Action.DROP)
    objects = BESIDE.translate(replace(frontend(), inside=frontend().route, route=local), PLACE)
    assert said(objects, "nat", "S-") == ["-p tcp -j DNAT --to-destination 240.0.0.9:80"]
    assert said(objects, "mangle") == []


@pytest.mark.parametrize("address", ["10.96.0.1", ""])
def test_what_is_dropped_for_all_is_dropped_before_a_virtual_server_refuses_it(address: str) -> None:
    """Also the node's own; a node port on the node's addresses alone."""
    dropped = replace(frontend(), key=FrontendKey("TCP", address, 30080), route=Route(Action.DROP))
    objects = BESIDE.translate(replace(dropped, kind=FrontendKind.NODE_PORT), PLACE)
    where = address or PLACE.node_addresses[0]
    assert said(objects, "mangle") == [f"-d {where} -p tcp -m tcp --dport 30080 -j DROP"]


def test_exact_affinity_is_translated_here() -> None:
    """Virtual servers cannot do it."""
    exact = replace(frontend(), affinity_seconds=10, exact_affinity=True)
    assert sum("DNAT" in text for text in said(BESIDE.translate(exact, PLACE), "nat", "S-")) == 4


def test_the_helper_runs_all_of_it() -> None:
    """Its words are those of mode iptables."""
    objects = {**BESIDE.fixed(PLACE), **BESIDE.translate(frontend(), PLACE)}
    text = str(Tables().text(Operation(Verb.ADD, key, value) for key, value in objects.items()))
    assert refusal(restore(4, ""), text) == ""
    assert "-m conntrack --ctstate DNAT" not in text


def test_not_with_addresses_of_a_device() -> None:
    """The node would talk from them, and nothing here masquerades that."""
    with pytest.raises(ConfigError, match="does not go with vip_binding = dummy"):
        agent_settings({"companion": "iptables", "vip_binding": "dummy"})
