"""The watch of a target: ExternalName hops, the bound, the DNS fall-back, the stay at the Service address."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from meshlib.discovery.base import Resolver
from meshlib.errors import ConfigError, NotSynced, ServiceNotFound
from meshlib.model.endpoint import Endpoint
from meshlib.model.events import Event
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType
from meshlib.model.target import Target, TargetDefaults
from meshlib.model.update import DoesNotExist, Failure, Snapshot
from meshlib.model.vantage import VantagePoint
from meshlib.pickers.base import Picker, PickerContext
from meshlib.pickers.round_robin import BUILDER
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.balancer import Balancer, Surroundings, Way
from meshlib.runtime.watch import DNS_REFRESH, SERVICE_STAY, TargetWatch
from meshlib.testing.clock import FakeClock
from meshlib.testing.manual import ManualResolver, snapshot

VIP = "10.96.0.10"


class Scene:
    """One watched target in virtual time."""

    def __init__(self, target: str = "k8s:///orders.shop:80") -> None:
        self.clock = FakeClock()
        self.resolver = ManualResolver("k8s", "dns")
        self.resolver._loop_call = asyncio.get_running_loop().call_soon_threadsafe
        self.dns: tuple[Endpoint, ...] = ()
        self.dns_calls = 0
        self.events: list[Event] = []
        around = Surroundings(
            now=self.clock.now,
            emit=self.events.append,
            make_subchannels=lambda endpoints, joined: [
                Subchannel(e, threading.Lock(), joined) for e in endpoints
            ],
            build_picker=self._build,
            vantage=lambda slices: VantagePoint(node="n1", zone="z1"),
        )
        self.balancer = Balancer(Target.parse(target), around)
        self.tasks: list[asyncio.Task[object]] = []
        self.watch = TargetWatch(
            self.balancer,
            resolver=lambda scheme: self.resolver,
            defaults=TargetDefaults(),
            lookup=self._lookup,
            spawn=lambda coroutine, name: self._spawn(coroutine),
            sleep=self.clock.sleep,
            sync_timeout=1.0,
        )

    def _spawn(self, coroutine: Awaitable[object]) -> asyncio.Task[object]:
        task = asyncio.ensure_future(coroutine)
        self.tasks.append(task)  # type: ignore[arg-type]
        return task  # type: ignore[return-value]

    def _build(
        self, subchannels: Sequence[Subchannel], service: Service | None, previous: Picker | None
    ) -> Picker:
        return BUILDER.build(subchannels, BUILDER.parse_config({}, ""), PickerContext(random=lambda: 0.5))

    async def _lookup(self, target: Target) -> tuple[Endpoint, ...]:
        self.dns_calls += 1
        return self.dns

    def addresses(self) -> set[str]:
        picker = self.balancer.cell.state.picker
        return {s.endpoint.authority for s in picker.subchannels} if picker else set()

    def error(self) -> Exception:
        make = self.balancer.cell.state.error
        assert make is not None
        return make()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await scenario()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run(whole())


def external(name: str, host: str) -> Snapshot:
    namespace, _, service = name.partition("/")
    return Snapshot(
        Service(
            key=ServiceKey(namespace, service),
            type=ServiceType.EXTERNAL_NAME,
            external_name=host,
            ports=(ServicePort("http", 8080),),
        ),
        (),
        source="manual",
    )


def test_the_bound_is_kept_in_silence() -> None:
    """No word from the control plane: after exactly the bound the DNS answer is published, not before."""

    async def scenario() -> None:
        scene = Scene()
        scene.dns = (Endpoint(address=VIP, port=80),)
        scene.watch.start()
        await scene.clock.advance(0.99)
        assert not scene.balancer.cell.state.settled
        await scene.clock.advance(0.02)
        assert scene.addresses() == {f"{VIP}:80"}

    run(scenario)


def test_nothing_at_all_is_not_synced_after_the_bound() -> None:
    """Neither the API nor DNS: an error that says so, and DNS is asked again later."""

    async def scenario() -> None:
        scene = Scene()
        scene.watch.start()
        await scene.clock.advance(1.5)
        assert isinstance(scene.error(), NotSynced)
        scene.dns = (Endpoint(address=VIP, port=80),)
        await scene.clock.advance(DNS_REFRESH)
        assert scene.addresses() == {f"{VIP}:80"}

    run(scenario)


def test_a_fall_back_answer_is_kept_when_dns_fails_later() -> None:
    """Keep the last good state holds for the fall-back too."""

    async def scenario() -> None:
        scene = Scene()
        scene.dns = (Endpoint(address=VIP, port=80),)
        scene.watch.start()
        await scene.clock.advance(2)
        scene.dns = ()
        await scene.clock.advance(3 * DNS_REFRESH)
        assert scene.dns_calls >= 3
        assert scene.addresses() == {f"{VIP}:80"}

    run(scenario)


def test_dns_is_left_alone_once_the_api_has_spoken() -> None:
    """No look-ups beyond the first when discovery works."""

    async def scenario() -> None:
        scene = Scene()
        scene.resolver.endpoints("shop/orders", ["10.0.0.1:8080"])
        scene.watch.start()
        await scene.clock.advance(100)
        assert scene.dns_calls == 0
        assert scene.addresses() == {"10.0.0.1:8080"}

    run(scenario)


def test_an_external_name_of_a_cluster_host_is_followed() -> None:
    """One Service that stands for another: its endpoints are used, live."""

    async def scenario() -> None:
        scene = Scene()
        scene.resolver.endpoints("other/real", ["10.0.0.5:8080"])
        scene.resolver.publish("shop/orders", external("shop/orders", "real.other.svc.cluster.local"))
        scene.watch.start()
        await scene.clock.settle()
        assert scene.addresses() == {"10.0.0.5:8080"}
        scene.resolver.endpoints("other/real", ["10.0.0.6:8080"])
        await scene.clock.settle()
        assert scene.addresses() == {"10.0.0.6:8080"}

    run(scenario)


def test_an_external_name_elsewhere_is_asked_of_dns() -> None:
    """Another domain: the dns resolver is watched with the port of the target."""

    async def scenario() -> None:
        scene = Scene()
        scene.resolver.publish("shop/orders", external("shop/orders", "api.example.com"))
        scene.watch.start()
        await scene.clock.settle()
        assert [(t.scheme, t.name, t.port) for t in scene.resolver.watched] == [
            ("k8s", "orders", 80),
            ("dns", "api.example.com", 80),
        ]

    run(scenario)


@pytest.mark.parametrize(
    ("addresses", "left"),
    [
        (["127.0.0.1:80"], set()),
        (["[::1]:80", "10.0.0.1:80"], {"10.0.0.1:80"}),
        (["10.0.0.1:80"], {"10.0.0.1:80"}),
    ],
)
def test_an_external_name_does_not_lead_to_our_own_host(addresses: list[str], left: set[str]) -> None:
    """``localhost`` in a dns target is the caller's wish; in a Service it is that of whoever edits Services."""

    async def scenario() -> None:
        scene = Scene()
        scene.resolver.publish("shop/orders", external("shop/orders", "localhost"))
        scene.resolver.publish("localhost", snapshot("shop/x", addresses, port=80))
        scene.watch.start()
        await scene.clock.settle()
        assert [t.name for t in scene.resolver.watched] == ["orders", "localhost"]
        if left:
            assert scene.addresses() == left
        else:
            await scene.clock.advance(1.0)
            await scene.clock.settle()
            assert isinstance(scene.error(), NotSynced)
            assert "loopback" in str(scene.error())

    run(scenario)


def test_a_named_port_of_an_external_name_becomes_its_number() -> None:
    """The Service's port list tells the number; DNS knows no names."""

    async def scenario() -> None:
        scene = Scene("k8s:///orders.shop:http")
        scene.resolver.publish("shop/orders", external("shop/orders", "api.example.com"))
        scene.watch.start()
        await scene.clock.settle()
        assert scene.resolver.watched[-1].port == 8080
        scene.resolver.endpoints("api.example.com", ["192.0.2.9:8080"], port=8080)
        await scene.clock.settle()
        assert scene.addresses() == {"192.0.2.9:8080"}

    run(scenario)


def test_a_chain_of_external_names_carries_the_number_on() -> None:
    """The first Service tells what the port's name means; those behind it are asked for the number."""

    async def scenario() -> None:
        scene = Scene("k8s:///orders.shop:http")
        scene.resolver.publish("shop/orders", external("shop/orders", "between.other.svc"))
        between = external("other/between", "last.other.svc")
        scene.resolver.publish("other/between", replace(between, service=replace(between.service, ports=())))
        scene.resolver.endpoints("other/last", ["10.0.0.1:9090"], port=8080)
        scene.watch.start()
        await scene.clock.settle()
        assert scene.addresses() == {"10.0.0.1:9090"}

    run(scenario)


def test_an_external_name_that_leads_nowhere_gives_up_what_it_led_to() -> None:
    """Edited so that the asked port has no number: an error with the reason, not the old endpoints for ever."""

    async def scenario() -> None:
        scene = Scene("k8s:///orders.shop:http")
        scene.resolver.endpoints("other/one", ["10.0.0.1:8080"], port=8080)
        scene.resolver.publish("shop/orders", external("shop/orders", "one.other.svc"))
        scene.watch.start()
        await scene.clock.settle()
        assert scene.addresses() == {"10.0.0.1:8080"}
        edited = external("shop/orders", "one.other.svc")
        scene.resolver.publish("shop/orders", replace(edited, service=replace(edited.service, ports=())))
        await scene.clock.settle()
        error = scene.error()
        assert isinstance(error, ServiceNotFound)
        assert "'http'" in str(error)

    run(scenario)


def test_external_names_in_a_circle_are_found() -> None:
    """a -> b -> a ends in an error that shows the chain, not in endless hops."""

    async def scenario() -> None:
        scene = Scene("orders.shop.svc:80")
        scene.resolver.publish("shop/orders", external("shop/orders", "back.shop.svc.cluster.local"))
        scene.resolver.publish("shop/back", external("shop/back", "orders.shop.svc.cluster.local"))
        scene.watch.start()
        await scene.clock.settle()
        error = scene.error()
        assert isinstance(error, ServiceNotFound)
        assert "circle" in str(error)

    run(scenario)


def test_a_changed_external_name_leaves_the_old_trail() -> None:
    """The subscription of the old name is closed; its late updates count no more."""

    async def scenario() -> None:
        scene = Scene()
        scene.resolver.endpoints("other/one", ["10.0.0.1:8080"])
        scene.resolver.endpoints("other/two", ["10.0.0.2:8080"])
        scene.resolver.publish("shop/orders", external("shop/orders", "one.other.svc"))
        scene.watch.start()
        await scene.clock.settle()
        scene.resolver.publish("shop/orders", external("shop/orders", "two.other.svc"))
        await scene.clock.settle()
        assert scene.addresses() == {"10.0.0.2:8080"}
        assert scene.resolver._watchers["other/one"] == []

    run(scenario)


def test_an_external_name_that_becomes_a_service_ends_the_hop() -> None:
    """The Service's own endpoints win as soon as it has any type of its own."""

    async def scenario() -> None:
        scene = Scene()
        scene.resolver.endpoints("other/one", ["10.0.0.1:8080"])
        scene.resolver.publish("shop/orders", external("shop/orders", "one.other.svc"))
        scene.watch.start()
        await scene.clock.settle()
        scene.resolver.endpoints("shop/orders", ["10.0.0.7:8080"])
        await scene.clock.settle()
        assert scene.addresses() == {"10.0.0.7:8080"}

    run(scenario)


def test_a_failure_of_an_earlier_hop_keeps_the_later_one() -> None:
    """The API goes away after the hop: what the name led to stays in force."""

    async def scenario() -> None:
        scene = Scene()
        scene.resolver.endpoints("other/one", ["10.0.0.1:8080"])
        scene.resolver.publish("shop/orders", external("shop/orders", "one.other.svc"))
        scene.watch.start()
        await scene.clock.settle()
        scene.resolver.publish("shop/orders", Failure(OSError("gone"), hopeless=True))
        await scene.clock.settle()
        assert scene.addresses() == {"10.0.0.1:8080"}

    run(scenario)


def test_deletion_of_the_service_reaches_the_callers() -> None:
    """DoesNotExist of the first hop closes what it led to."""

    async def scenario() -> None:
        scene = Scene()
        scene.resolver.endpoints("other/one", ["10.0.0.1:8080"])
        scene.resolver.publish("shop/orders", external("shop/orders", "one.other.svc"))
        scene.watch.start()
        await scene.clock.settle()
        scene.resolver.publish("shop/orders", DoesNotExist("deleted"))
        await scene.clock.settle()
        assert isinstance(scene.error(), ServiceNotFound)
        assert scene.resolver._watchers["other/one"] == []

    run(scenario)


def test_the_stay_at_the_service_address_is_bounded() -> None:
    """After the stay the pods are tried again."""

    async def scenario() -> None:
        scene = Scene()
        scene.resolver.publish("shop/orders", snapshot("shop/orders", ["10.0.0.1:8080"], cluster_ips=(VIP,)))
        scene.watch.start()
        await scene.clock.settle()
        scene.watch.pods_refused(scene.balancer.set.endpoints)
        assert scene.balancer.way is Way.SERVICE
        await scene.clock.advance(SERVICE_STAY - 1)
        assert scene.balancer.way is Way.SERVICE
        await scene.clock.advance(2)
        assert scene.balancer.way is Way.PODS

    run(scenario)


def test_close_ends_subscriptions_and_tasks() -> None:
    """Nothing is watched and nothing sleeps after close."""

    async def scenario() -> None:
        scene = Scene()
        scene.watch.start()
        await scene.clock.settle()
        scene.watch.close()
        await scene.clock.settle()
        assert scene.resolver._watchers["shop/orders"] == []
        assert all(task.done() for task in scene.tasks)

    run(scenario)


def test_a_hop_that_is_overtaken_is_not_followed() -> None:
    """Two changes of an ExternalName in one turn of the loop: the later one counts, whatever it is."""

    async def scenario() -> None:
        for last, expected in (
            (external("shop/orders", "two.other.svc"), {"10.0.0.2:8080"}),
            (snapshot("shop/orders", ["10.0.0.3:8080"], port=80), {"10.0.0.3:8080"}),
        ):
            scene = Scene()
            scene.resolver.endpoints("other/one", ["10.0.0.1:8080"])
            scene.resolver.endpoints("other/two", ["10.0.0.2:8080"])
            scene.watch.start()
            (publish,) = scene.resolver._watchers["shop/orders"]
            publish(external("shop/orders", "one.other.svc"))
            publish(last)
            await scene.clock.advance(0.1)
            assert scene.addresses() == expected

    run(scenario)


def test_a_resolver_that_cannot_be_made_leaves_the_way_by_dns() -> None:
    """A plugin that breaks, a setting it refuses: the caller learns why, and calls go where they went without it."""

    async def scenario() -> None:
        scene = Scene()
        broken = ConfigError("discovery.k8s", "no such file")

        def refuse(scheme: str) -> Resolver:
            raise broken

        scene.watch._resolver = refuse
        scene.watch.start()
        await scene.clock.advance(1.5)
        error = scene.error()
        assert isinstance(error, NotSynced)
        assert error.__cause__ is broken
        scene.dns = (Endpoint(address=VIP, port=80),)
        await scene.clock.advance(DNS_REFRESH)
        assert scene.addresses() == {f"{VIP}:80"}

    run(scenario)


def test_a_watch_closed_before_it_began_does_not_begin() -> None:
    """Its Mesh was closed while the start was still waiting for something."""

    async def scenario() -> None:
        scene = Scene()
        scene.watch.close()
        scene.watch.start()
        assert scene.resolver.watched == []
        assert scene.tasks == []

    run(scenario)
