"""Answers into a Snapshot: ports, families, tiers, weights, VIPs, and what the model makes of it."""

from __future__ import annotations

from meshlib.discovery.dns.assemble import (
    Entry,
    PortSpec,
    is_service_address,
    plain_entries,
    snapshot,
    srv_entries,
)
from meshlib.discovery.dns.records import Kind, SrvRecord
from meshlib.discovery.dns.table import screen
from meshlib.model.address import AddressPolicy
from meshlib.model.service import ServiceType
from tests.unit.discovery.virtual import a, eligible_of, srv

BOTH = (4, 6)
HTTP = PortSpec(name="http")


def weights(records: list[SrvRecord], addresses: dict[str, tuple[str, ...]]) -> dict[str, tuple[int, int]]:
    return {e.address: (e.priority, e.weight) for e in srv_entries(records, addresses)}


def test_numbers_keep_the_targets_port() -> None:
    """A and AAAA answers: every address on the target's number, weight 1."""
    update = snapshot("orders", PortSpec(8080), plain_entries(["10.0.0.2", "10.0.0.1"], 8080), BOTH)
    assert update.service.type is ServiceType.NAMES
    found = eligible_of(update, 8080)
    assert [e.authority for e in found.endpoints] == ["10.0.0.1:8080", "10.0.0.2:8080"]


def test_dual_stack_pods_have_no_double_weight() -> None:
    """R3: both families are facts, the host's preferred one is balanced over, the other is there when it is empty."""
    entries = plain_entries(["10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2"], 80)
    assert {e.family for e in eligible_of(snapshot("o", PortSpec(80), entries, (4, 6))).endpoints} == {4}
    assert {e.family for e in eligible_of(snapshot("o", PortSpec(80), entries, (6, 4))).endpoints} == {6}
    only_six = [entry for entry in entries if entry.family == 6]
    assert len(eligible_of(snapshot("o", PortSpec(80), only_six, (4, 6))).endpoints) == 2


def test_family_that_the_host_lacks_is_left_out() -> None:
    """An address that cannot be dialled from here is no endpoint."""
    entries = plain_entries(["10.0.0.1", "fd00::1"], 80)
    assert [s.family for s in snapshot("o", PortSpec(80), entries, (4,)).slices] == [4]


def test_srv_tiers_ports_and_weights() -> None:
    """R10: priority is the tier, weight the share, the port is each record's own."""
    records = [SrvRecord(10, 60, 8080, "a"), SrvRecord(10, 40, 8081, "b"), SrvRecord(20, 0, 80, "c")]
    entries = srv_entries(records, {"a": ("10.0.0.1",), "b": ("10.0.0.2",), "c": ("10.0.0.3",)})
    assert [(e.address, e.port, e.priority, e.weight) for e in entries] == [
        ("10.0.0.1", 8080, 10, 60),
        ("10.0.0.2", 8081, 10, 40),
        ("10.0.0.3", 80, 20, 1),
    ]
    update = snapshot("o", HTTP, entries, BOTH)
    assert {e.authority for e in eligible_of(update, "http").endpoints} == {
        "10.0.0.1:8080",
        "10.0.0.2:8081",
        "10.0.0.3:80",
    }
    assert {(e.priority, e.weight) for e in eligible_of(update).endpoints} == {(10, 60), (10, 40), (20, 1)}


def test_weight_zero_is_rare_beside_others_and_equal_alone() -> None:
    """RFC 2782: 0 beside heavier ones is a very small chance, not never; all 0 is no preference."""
    addresses = {"a": ("10.0.0.1",), "b": ("10.0.0.2",)}
    assert weights([SrvRecord(0, 0, 80, "a"), SrvRecord(0, 5, 80, "b")], addresses) == {
        "10.0.0.1": (0, 1),
        "10.0.0.2": (0, 50),
    }
    assert weights([SrvRecord(0, 0, 80, "a"), SrvRecord(0, 0, 80, "b")], addresses) == {
        "10.0.0.1": (0, 1),
        "10.0.0.2": (0, 1),
    }


def test_a_target_shares_its_weight_among_its_addresses() -> None:
    """Weight belongs to the target: three addresses of one do not get three times the traffic of another."""
    records = [SrvRecord(0, 1, 80, "a"), SrvRecord(0, 1, 80, "b")]
    found = weights(records, {"a": ("10.0.0.1", "10.0.0.2", "10.0.0.3"), "b": ("10.0.0.4",)})
    assert found["10.0.0.4"][1] == sum(found[f"10.0.0.{n}"][1] for n in (1, 2, 3))


def test_same_address_in_two_tiers_stays_in_the_better() -> None:
    """An endpoint exists once: in the lowest priority that names it; within a tier shares add up."""
    records = [SrvRecord(20, 9, 80, "a"), SrvRecord(10, 1, 80, "b"), SrvRecord(10, 2, 80, "c")]
    assert weights(records, {"a": ("10.0.0.1",), "b": ("10.0.0.1",), "c": ("10.0.0.1",)}) == {
        "10.0.0.1": (10, 3)
    }


def test_targets_without_address_and_dot_give_nothing() -> None:
    """A target that does not resolve takes nothing from the others; "." offers nothing."""
    assert weights([SrvRecord(0, 1, 80, "a"), SrvRecord(0, 1, 80, "gone")], {"a": ("10.0.0.1",)}) == {
        "10.0.0.1": (0, 1)
    }
    assert srv_entries([SrvRecord(0, 0, 0, "")], {}) == ()


def test_port_names_come_from_the_srv_name() -> None:
    """``_grpc._udp.host`` is the port ``grpc`` over UDP."""
    assert PortSpec.of_srv("_grpc._udp.host.test") == PortSpec(name="grpc", protocol="UDP")


def test_snapshots_of_equal_facts_are_equal() -> None:
    """R12: order never makes a difference; a new address does."""
    first = snapshot("o", PortSpec(80), plain_entries(["10.0.0.1", "10.0.0.2"], 80), BOTH)
    second = snapshot("o", PortSpec(80), plain_entries(["10.0.0.2", "10.0.0.1"], 80), BOTH)
    third = snapshot("o", PortSpec(80), plain_entries(["10.0.0.2"], 80), BOTH)
    assert first == second
    assert first.version != third.version


def test_vip_is_recognised() -> None:
    """R14: a ClusterIP Service's SRV points at its own name; a headless one's at its pods."""
    name = "orders.shop.svc.cluster.local"
    assert is_service_address(name, srv((0, 100, 80, name)))
    assert not is_service_address(name, srv((0, 100, 80, f"10-0-0-1.{name}")))
    assert not is_service_address(name, srv((0, 0, 0, "")))


def test_policy_screens_every_address() -> None:
    """Addresses that the policy refuses go, the others stay, each refusal with its reason."""
    answer, refused = screen(a("10.0.0.1", "127.0.0.1", "169.254.169.254"), AddressPolicy())
    assert answer.addresses == ("10.0.0.1",)
    assert [where for where, _ in refused] == ["127.0.0.1", "169.254.169.254"]
    allowed, refused = screen(a("127.0.0.1"), AddressPolicy(allow_loopback=True))
    assert (allowed.addresses, refused) == (("127.0.0.1",), ())


def test_only_refused_addresses_are_no_truth() -> None:
    """Acceptance 105: a poisoned answer must not empty a set, so it counts as unusable."""
    answer, refused = screen(a("127.0.0.1", "0.0.0.0"), AddressPolicy())
    assert answer.kind is Kind.UNKNOWN
    assert len(refused) == 2
    answer, _ = screen(srv((0, 1, 0, "a.test")), AddressPolicy())
    assert answer.kind is Kind.UNKNOWN


def test_glue_is_screened_too() -> None:
    """Glue is an address like any other."""
    answer, refused = screen(srv((0, 1, 80, "a.test"), glue={"a.test": ("127.0.0.1",)}), AddressPolicy())
    assert answer.glue == (("a.test", ()),)
    assert len(refused) == 1


def test_entries_know_their_family() -> None:
    """The family of an entry is read from its canonical text."""
    assert (Entry("10.0.0.1", 80).family, Entry("fd00::1", 80).family) == (4, 6)
