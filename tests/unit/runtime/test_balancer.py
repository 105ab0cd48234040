"""The balancer: which way calls take, from Updates, the DNS fall-back and the passing of time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from meshlib.errors import (
    AccessDenied,
    NoEndpoints,
    NoLocalEndpoints,
    NotSynced,
    ServiceNotFound,
    UnknownPort,
)
from meshlib.model.endpoint import Endpoint
from meshlib.model.events import EndpointsChanged, Event, FallbackEnded, FellBack
from meshlib.model.service import Service, ServiceType, TrafficPolicy
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort
from meshlib.model.target import Target
from meshlib.model.update import DoesNotExist, Failure, Snapshot
from meshlib.model.vantage import VantagePoint
from meshlib.pickers.base import Picker, PickerContext
from meshlib.pickers.round_robin import BUILDER
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.balancer import Balancer, Surroundings, Way
from meshlib.testing.manual import snapshot

TARGET = "k8s:///orders.shop:80"
VIP = "10.96.0.10"


class Bench:
    """One balancer and everything around it."""

    def __init__(
        self, target: str = TARGET, *, strict: bool = False, vantage: VantagePoint | None = None
    ) -> None:
        self.events: list[Event] = []
        self.removed: list[Subchannel] = []
        self.time = 100.0
        self.vantage = vantage or VantagePoint(node="n1", zone="z1")
        self.mesh = ""
        around = Surroundings(
            now=lambda: self.time,
            emit=self.events.append,
            make_subchannels=lambda endpoints, joined: [
                Subchannel(e, threading.Lock(), joined) for e in endpoints
            ],
            build_picker=self.build,
            vantage=lambda slices: self.vantage,
            mesh_present=lambda: self.mesh,
            strict=strict,
        )
        self.balancer = Balancer(Target.parse(target), around)
        self.balancer.on_removed(self.removed.append)

    def build(
        self, subchannels: Sequence[Subchannel], service: Service | None, previous: Picker | None
    ) -> Picker:
        return BUILDER.build(subchannels, BUILDER.parse_config({}, ""), PickerContext(random=lambda: 0.5))

    def picks(self) -> set[str]:
        picker = self.balancer.cell.state.picker
        assert picker is not None
        found = [picker.pick() for _ in range(2 * len(picker.subchannels))]
        return {s.endpoint.authority for s in found if s is not None}

    def error(self) -> Exception:
        make = self.balancer.cell.state.error
        assert make is not None
        return make()


def orders(*addresses: str, **fields: object) -> Snapshot:
    fields.setdefault("cluster_ips", (VIP,))
    return snapshot("shop/orders", addresses, **fields)


def test_a_snapshot_is_picked_from_and_reported_once() -> None:
    """Endpoints become picks; an equal snapshot makes no second event."""
    bench = Bench()
    bench.balancer.apply(orders("10.0.0.1:8080", "10.0.0.2:8080"))
    assert bench.picks() == {"10.0.0.1:8080", "10.0.0.2:8080"}
    bench.balancer.apply(orders("10.0.0.1:8080", "10.0.0.2:8080"))
    changes = [e for e in bench.events if isinstance(e, EndpointsChanged)]
    assert [([a.authority for a in e.added], e.removed, e.total) for e in changes] == [
        (["10.0.0.1:8080", "10.0.0.2:8080"], (), 2)
    ]


def test_state_of_an_endpoint_survives_a_change_of_the_others() -> None:
    """The Subchannel of an endpoint that stays is the same object; the one that left is told to the clients."""
    bench = Bench()
    bench.balancer.apply(orders("10.0.0.1:8080", "10.0.0.2:8080"))
    before = {s.endpoint.address: s for s in bench.balancer.subchannels}
    bench.balancer.apply(orders("10.0.0.2:8080", "10.0.0.3:8080"))
    after = {s.endpoint.address: s for s in bench.balancer.subchannels}
    assert after["10.0.0.2"] is before["10.0.0.2"]
    assert bench.removed == [before["10.0.0.1"]]
    assert before["10.0.0.1"].removed
    assert after["10.0.0.3"].joined_at == bench.time
    assert after["10.0.0.2"].joined_at == float("-inf")


def test_joiners_are_told_with_their_peers_before_those_that_leave() -> None:
    """The first set has no peers; later ones name the joiners, the members before, and how many there are."""
    bench = Bench()
    told: list[object] = []

    def names(subchannels: Sequence[Subchannel]) -> list[str]:
        return [subchannel.endpoint.address for subchannel in subchannels]

    bench.balancer.on_joined(
        lambda joined, peers, members: told.append((names(joined), names(peers), members))
    )
    bench.balancer.on_removed(lambda subchannel: told.append(subchannel.endpoint.address))
    bench.balancer.apply(orders("10.1.0.1:80", "10.1.0.2:80"))
    assert told == []
    bench.balancer.apply(orders("10.1.0.2:80", "10.1.0.3:80"))
    assert told == [(["10.1.0.3"], ["10.1.0.1", "10.1.0.2"], 2), "10.1.0.1"]
    bench.balancer.apply(orders("10.1.0.2:80"))
    assert told[2:] == ["10.1.0.3"]


def test_the_same_address_under_a_new_pod_uid_is_another_endpoint() -> None:
    """A reused pod address starts with fresh state, and the old one's connections are given up."""
    bench = Bench()
    first = orders("10.0.0.1:8080")
    bench.balancer.apply(first)
    old = bench.balancer.subchannels[0]
    slice_ = first.slices[0]
    reborn = EndpointSlice(
        namespace=slice_.namespace,
        name=slice_.name,
        service=slice_.service,
        family=4,
        ports=slice_.ports,
        endpoints=(SliceEndpoint(address="10.0.0.1", uid="another"),),
    )
    bench.balancer.apply(replace(first, slices=(reborn,)))
    assert bench.balancer.subchannels[0] is not old
    assert bench.removed == [old]


def test_a_failure_keeps_the_last_good_set() -> None:
    """No error of a control plane empties a set; it is visible as staleness."""
    bench = Bench()
    bench.balancer.apply(orders("10.0.0.1:8080"))
    known_at, bench.time = bench.time, bench.time + 60.0
    bench.balancer.apply(Failure(OSError("refused"), hopeless=True))
    assert bench.picks() == {"10.0.0.1:8080"}
    assert str(bench.balancer.last_error) == "refused"
    assert bench.balancer.updated_at == known_at  # the data is as old as it is, whoever failed to refresh it


def test_a_known_empty_set_is_an_error_at_once() -> None:
    """NoEndpoints says which Service and where the data came from; it does not fall back to DNS."""
    bench = Bench()
    bench.balancer.dns_answered((Endpoint(address=VIP, port=80),))
    bench.balancer.apply(orders())
    error = bench.error()
    assert type(error) is NoEndpoints
    assert "shop/orders" in str(error)
    assert "manual" in str(error)


def test_none_local_under_a_local_policy_is_an_error_of_its_own() -> None:
    """Others exist elsewhere: NoLocalEndpoints, never a spill to another node."""
    bench = Bench()
    bench.balancer.apply(orders("10.0.0.1:8080", internal_traffic_policy=TrafficPolicy.LOCAL))
    assert type(bench.error()) is NoLocalEndpoints


def test_every_raise_gets_a_fresh_exception() -> None:
    """A shared exception would collect the tracebacks of all callers."""
    bench = Bench()
    bench.balancer.apply(orders())
    assert bench.error() is not bench.error()


def test_an_absent_service_is_an_error_even_if_dns_answers() -> None:
    """The API has spoken: an explicit target that does not exist is not dialled by name."""
    bench = Bench()
    bench.balancer.apply(DoesNotExist("no such Service"))
    bench.balancer.dns_answered((Endpoint(address=VIP, port=80),))
    bench.balancer.stop_waiting()
    assert type(bench.error()) is ServiceNotFound


def test_a_recreated_service_is_used_again() -> None:
    """DoesNotExist is not for ever."""
    bench = Bench()
    bench.balancer.apply(DoesNotExist("deleted"))
    bench.balancer.apply(orders("10.0.0.9:8080"))
    assert bench.picks() == {"10.0.0.9:8080"}


def test_an_unlisted_port_names_the_ports_that_exist() -> None:
    """UnknownPort is of use only if it says what to write instead."""
    bench = Bench("k8s:///orders.shop:81")
    bench.balancer.apply(orders("10.0.0.1:8080"))
    error = bench.error()
    assert type(error) is UnknownPort
    assert "80" in str(error)


def test_waiting_goes_on_until_the_bound_then_dns_decides() -> None:
    """Before the bound nothing is published; after it the address of the bare client is dialled, and said so."""
    bench = Bench()
    bench.balancer.dns_answered((Endpoint(address=VIP, port=80),))
    assert not bench.balancer.cell.state.settled
    bench.balancer.stop_waiting()
    assert bench.picks() == {f"{VIP}:80"}
    assert [e.path for e in bench.events if isinstance(e, FellBack)] == ["dns"]


def test_a_hopeless_failure_ends_the_waiting_at_once() -> None:
    """No RBAC: nobody waits out the bound."""
    bench = Bench()
    bench.balancer.dns_answered((Endpoint(address=VIP, port=80),))
    bench.balancer.apply(Failure(AccessDenied("forbidden", "apply this Role"), hopeless=True))
    assert bench.picks() == {f"{VIP}:80"}


def test_a_hopeless_failure_still_lets_the_name_be_looked_up() -> None:
    """The failure may be quicker than DNS: callers wait for the look-up that is under way, not for the bound."""
    bench = Bench()
    bench.balancer.apply(Failure(AccessDenied("forbidden"), hopeless=True))
    assert not bench.balancer.cell.state.settled
    bench.balancer.dns_answered((Endpoint(address=VIP, port=80),))
    assert bench.picks() == {f"{VIP}:80"}


def test_knowledge_that_arrives_later_is_adopted() -> None:
    """From the DNS fall-back to the pods without a restart, with one event that says so."""
    bench = Bench()
    bench.balancer.apply(Failure(AccessDenied("forbidden"), hopeless=True))
    bench.balancer.dns_answered((Endpoint(address=VIP, port=80),))
    assert bench.balancer.way is Way.DNS
    bench.balancer.apply(orders("10.0.0.1:8080"))
    assert bench.picks() == {"10.0.0.1:8080"}
    assert [type(e) for e in bench.events if isinstance(e, FellBack | FallbackEnded)] == [
        FellBack,
        FallbackEnded,
    ]


def test_without_knowledge_and_without_dns_it_is_not_synced_with_the_cause() -> None:
    """The discovery error is the cause, so that the log says what to repair."""
    bench = Bench()
    denied = AccessDenied("forbidden", "apply this Role")
    bench.balancer.dns_answered(())
    bench.balancer.apply(Failure(denied, hopeless=True))
    error = bench.error()
    assert type(error) is NotSynced
    assert error.__cause__ is denied


def test_strict_never_falls_back_to_dns() -> None:
    """strict turns the fall-back into an error."""
    bench = Bench(strict=True)
    bench.balancer.dns_answered((Endpoint(address=VIP, port=80),))
    bench.balancer.apply(Failure(OSError("dropped"), hopeless=True))
    assert type(bench.error()) is NotSynced


def test_a_mesh_that_is_there_already_gets_the_service_address() -> None:
    """With a sidecar meshlib stands back: the Service's own address, with one event."""
    bench = Bench()
    bench.mesh = "an Istio sidecar"
    bench.balancer.apply(orders("10.0.0.1:8080"))
    assert bench.picks() == {f"{VIP}:80"}
    assert [(e.path, "Istio" in e.reason) for e in bench.events if isinstance(e, FellBack)] == [
        ("service-address", True)
    ]


def test_a_local_policy_on_an_unknown_node_dials_the_service_address() -> None:
    """Nothing can be said about "local" without knowing our node; the kernel knows."""
    bench = Bench(vantage=VantagePoint())
    bench.balancer.apply(orders("10.0.0.1:8080", internal_traffic_policy=TrafficPolicy.LOCAL))
    assert bench.picks() == {f"{VIP}:80"}


def test_hints_in_an_unknown_zone_dial_the_service_address() -> None:
    """Hints cannot be honoured without our own place."""
    bench = Bench(vantage=VantagePoint())
    plain = orders("10.0.0.1:8080")
    slice_ = plain.slices[0]
    hinted = EndpointSlice(
        namespace=slice_.namespace,
        name=slice_.name,
        service=slice_.service,
        family=4,
        ports=(SlicePort("", 8080),),
        endpoints=(SliceEndpoint(address="10.0.0.1", zone="z1", hint_zones=("z1",)),),
    )
    bench.balancer.apply(replace(plain, slices=(hinted,)))
    assert bench.picks() == {f"{VIP}:80"}
    bench.vantage = VantagePoint(zone="z1")
    bench.balancer.decide()
    assert bench.picks() == {"10.0.0.1:8080"}


def test_a_service_of_another_proxy_is_dialled_by_its_address() -> None:
    """The label service-proxy-name gives the Service to somebody else: its address, never around it."""
    bench = Bench()
    bench.balancer.apply(orders("10.0.0.1:8080", proxy_name="kube-router"))
    assert bench.picks() == {f"{VIP}:80"}
    assert "kube-router" in bench.balancer.reason


def test_strict_makes_standing_back_an_error() -> None:
    """strict: no silent detour through the Service address."""
    bench = Bench(strict=True)
    bench.mesh = "a Linkerd sidecar"
    bench.balancer.apply(orders("10.0.0.1:8080"))
    assert "Linkerd" in str(bench.error())


def test_refused_pods_send_calls_to_the_service_address_until_the_set_changes() -> None:
    """Sticky while the same pods are there; a new set is tried again."""
    bench = Bench()
    bench.balancer.apply(orders("10.0.0.1:8080"))
    bench.balancer.pods_refused(bench.balancer.set.endpoints)
    assert bench.picks() == {f"{VIP}:80"}
    bench.balancer.apply(orders("10.0.0.1:8080"))
    assert bench.picks() == {f"{VIP}:80"}
    bench.balancer.apply(orders("10.0.0.1:8080", "10.0.0.2:8080"))
    assert bench.picks() == {"10.0.0.1:8080", "10.0.0.2:8080"}


def test_a_stay_at_the_service_address_ends() -> None:
    """try_pods_again goes back to the same pods."""
    bench = Bench()
    bench.balancer.apply(orders("10.0.0.1:8080"))
    bench.balancer.pods_refused(bench.balancer.set.endpoints)
    bench.balancer.try_pods_again()
    assert bench.picks() == {"10.0.0.1:8080"}


def test_a_headless_service_has_no_address_of_its_own() -> None:
    """Nothing to stand back to: the pods are dialled whatever is there."""
    bench = Bench("orders.shop.svc:8080")
    bench.mesh = "an Istio sidecar"
    bench.balancer.apply(orders("10.0.0.1:8080", type=ServiceType.HEADLESS, cluster_ips=()))
    assert bench.picks() == {"10.0.0.1:8080"}
    assert bench.balancer.service_endpoint() is None


@pytest.mark.parametrize(("host", "found"), [("pod-a", "10.0.0.1:8080"), ("10-0-0-2", "10.0.0.2:8080")])
def test_a_per_pod_host_name_is_that_one_endpoint(host: str, found: str) -> None:
    """By hostname, or by the dashed address of a pod that has none, as cluster DNS does."""
    bench = Bench(f"{host}.orders.shop.svc:8080")
    plain = orders("10.0.0.1:8080", "10.0.0.2:8080", type=ServiceType.HEADLESS, cluster_ips=())
    slice_ = plain.slices[0]
    named = EndpointSlice(
        namespace=slice_.namespace,
        name=slice_.name,
        service=slice_.service,
        family=4,
        ports=slice_.ports,
        endpoints=(
            SliceEndpoint(address="10.0.0.1", hostname="pod-a"),
            SliceEndpoint(address="10.0.0.2"),
        ),
    )
    bench.balancer.apply(replace(plain, slices=(named,)))
    assert bench.picks() == {found}


def test_when_all_endpoints_are_new_none_of_them_ramps() -> None:
    """A cold start would be no faster for ramping everybody."""
    bench = Bench()
    bench.balancer.apply(orders())
    bench.balancer.apply(orders("10.0.0.1:8080", "10.0.0.2:8080"))
    assert {s.joined_at for s in bench.balancer.subchannels} == {float("-inf")}


def test_a_failure_after_a_known_absence_changes_nothing() -> None:
    """ "No such Service" is the last good answer too: an API server that goes away does not turn it into a guess."""
    bench = Bench()
    bench.balancer.dns_answered((Endpoint(address=VIP, port=80),))
    bench.balancer.stop_waiting()
    bench.balancer.apply(DoesNotExist("deleted"))
    bench.balancer.apply(Failure(AccessDenied("watch broke"), hopeless=True))
    assert isinstance(bench.error(), ServiceNotFound)
    assert not bench.balancer.wants_dns


def test_a_stay_that_ends_after_the_service_was_deleted_changes_nothing() -> None:
    """The timer of the stay at the Service address, and a late answer through it, find that the Service is gone."""
    bench = Bench()
    bench.balancer.dns_answered((Endpoint(address=VIP, port=80),))
    bench.balancer.stop_waiting()
    bench.balancer.apply(orders("10.0.0.1:8080"))
    bench.balancer.pods_refused(bench.balancer.set.endpoints)
    bench.balancer.apply(DoesNotExist("deleted"))
    bench.balancer.try_pods_again()
    assert isinstance(bench.error(), ServiceNotFound)
    bench.balancer.pods_refused(bench.balancer.set.endpoints)
    assert isinstance(bench.error(), ServiceNotFound)


def test_a_refusal_says_nothing_about_a_set_that_came_later() -> None:
    """The pods of a rollout refused, then new ones came: the answer of the Service address must not bar those."""
    bench = Bench()
    bench.balancer.apply(orders("10.0.0.1:8080"))
    refused = bench.balancer.set.endpoints
    bench.balancer.apply(orders("10.0.0.2:8080"))
    bench.balancer.pods_refused(refused)
    assert bench.balancer.way is Way.PODS


def test_endpoints_of_the_dns_fall_back_are_adopted_or_told_as_removed() -> None:
    """Callers whose own bound ended early hold Subchannels of the fall-back: those must not be forgotten."""
    bench = Bench()
    bench.balancer.dns_answered((Endpoint(address=VIP, port=80), Endpoint(address="10.96.0.11", port=80)))
    early = bench.balancer.dns_picker
    assert early is not None
    first, second = early.subchannels
    bench.balancer.dns_answered((Endpoint(address=VIP, port=80),))
    assert bench.removed == [second]
    assert second.removed
    bench.balancer.stop_waiting()
    assert list(bench.balancer.subchannels) == [first]
    bench.balancer.apply(orders("10.0.0.1:8080"))
    assert bench.removed == [second, first]
    assert bench.balancer.dns_picker is None


def test_endpoints_of_the_dns_fall_back_leave_when_discovery_speaks_first() -> None:
    """Knowledge within the bound: connections that were opened by way of DNS are given up."""
    for update in (orders("10.0.0.1:8080"), orders(), DoesNotExist("deleted")):
        bench = Bench()
        bench.balancer.dns_answered((Endpoint(address=VIP, port=80),))
        assert bench.balancer.dns_picker is not None
        (early,) = bench.balancer.dns_picker.subchannels
        bench.balancer.apply(update)
        assert bench.removed == [early], update
        assert bench.balancer.dns_picker is None
