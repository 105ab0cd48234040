"""The DNS resolver against real servers: knot as the truth, unbound in front of it for caches and faults."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshlib.discovery.dns.resolver import BUILDER
from meshlib.model.events import FellBack, SourceFailed, SourceRecovered
from meshlib.model.update import DoesNotExist, Failure
from tests.integration.resolver_support import resolver

if TYPE_CHECKING:
    from tests.components.dns import Knot, Unbound

BOTH: dict[str, Any] = {"families": [4, 6]}


def test_live_changes_and_scale_to_zero(knot: Knot) -> None:
    """0 -> 2 -> 1 -> 0 -> 3 in the zone, each followed within TTL plus confirmation; empty is empty, not an error."""
    name = knot.fresh_name("orders")

    async def body() -> None:
        async with resolver(BUILDER, **BOTH) as dns:
            orders = dns.watch(f"dns://127.0.0.1:{knot.port}/{name}:80")
            await orders.until(lambda: orders.updates, "a first update")
            assert isinstance(orders.updates[0], DoesNotExist)
            knot.set_records(name, "A", ["10.0.0.1", "10.0.0.2"], ttl=1)
            await orders.until_addresses("10.0.0.1:80", "10.0.0.2:80")
            knot.set_records(name, "A", ["10.0.0.2"], ttl=1)
            await orders.until_addresses("10.0.0.2:80")
            knot.delete(name)
            await orders.until_addresses()
            assert not isinstance(orders.updates[-1], DoesNotExist)
            knot.set_records(name, "A", ["10.0.0.7", "10.0.0.8", "10.0.0.9"], ttl=1)
            await orders.until_addresses("10.0.0.7:80", "10.0.0.8:80", "10.0.0.9:80")
            assert not dns.of(SourceFailed)
            assert orders.subscription.describe()["server"] == f"127.0.0.1:{knot.port}"

    asyncio.run(body())


@pytest.mark.parametrize("count", [200, 1000])
def test_large_answers_arrive_whole(knot: Knot, count: int) -> None:
    """Too many records for UDP: TC, then TCP, and never a part of the set."""
    name = knot.fresh_name("many")
    addresses = [f"10.1.{n // 250}.{n % 250 + 1}" for n in range(count)]
    knot.set_records(name, "A", addresses, ttl=1)

    async def body() -> None:
        async with resolver(BUILDER, **BOTH) as dns:
            many = dns.watch(f"dns://127.0.0.1:{knot.port}/{name}:80")
            await many.until(many.endpoints, "the set")
            assert len(many.endpoints()) == count
            knot.set_records(name, "A", addresses[:3], ttl=1)
            await many.until(lambda: len(many.endpoints()) == 3, "the small set")
            knot.set_records(name, "A", addresses, ttl=1)
            await many.until(lambda: len(many.endpoints()) > 3, "the large set")
            assert len(many.endpoints()) == count, "no partial set in between"

    asyncio.run(body())


def test_ttl_zero_and_ttl_of_a_day(knot: Knot) -> None:
    """TTL 0 is refreshed at the floor, a TTL of a day at the ceiling; both follow changes."""
    zero, day = knot.fresh_name("zero"), knot.fresh_name("day")
    knot.set_records(zero, "A", ["10.0.0.1"], ttl=0)
    knot.set_records(day, "A", ["10.0.0.1"], ttl=86400)

    async def body() -> None:
        async with resolver(BUILDER, ceiling=2.0, **BOTH) as dns:
            watched = [dns.watch(f"dns://127.0.0.1:{knot.port}/{name}:80") for name in (zero, day)]
            for watching in watched:
                await watching.until_addresses("10.0.0.1:80")
            knot.set_records(zero, "A", ["10.0.0.2"], ttl=0)
            knot.set_records(day, "A", ["10.0.0.2"], ttl=86400)
            for watching in watched:
                await watching.until_addresses("10.0.0.2:80", timeout=5)

    asyncio.run(body())


def test_srv_tiers_weights_and_glue(knot: Knot) -> None:
    """SRV as CoreDNS publishes it: ports, weights and tiers of the records, addresses from glue and from queries."""
    host = knot.fresh_name("svc")
    name = f"_http._tcp.{host}"
    for n in (1, 2, 3):
        knot.set_records(f"pod-{n}.{host}", "A", [f"10.0.0.{n}"], ttl=1)
    knot.set_records(
        name, "SRV", [f"0 3 8080 pod-1.{host}.", f"0 1 8081 pod-2.{host}.", f"1 1 8082 pod-3.{host}."], ttl=1
    )

    async def body() -> None:
        async with resolver(BUILDER, **BOTH) as dns:
            svc = dns.watch(f"dns+srv://127.0.0.1:{knot.port}/{name}")
            await svc.until(svc.endpoints, "the set")
            found = {(e.authority, e.priority, e.weight, e.hostname) for e in svc.endpoints()}
            assert found == {
                ("10.0.0.1:8080", 0, 3, "pod-1"),
                ("10.0.0.2:8081", 0, 1, "pod-2"),
                ("10.0.0.3:8082", 1, 1, "pod-3"),
            }
            knot.set_records(f"pod-2.{host}", "A", ["10.0.0.22"], ttl=1)
            await svc.until(lambda: "10.0.0.22:8081" in svc.addresses(), "the moved pod")
            knot.set_records(name, "SRV", ["0 0 0 ."], ttl=1)
            await svc.until_addresses()
            knot.set_records(name, "SRV", [f"0 1 8080 pod-1.{host}."], ttl=1)
            await svc.until_addresses("10.0.0.1:8080")

    asyncio.run(body())


def test_large_srv_set(knot: Knot) -> None:
    """300 SRV targets: more than any UDP reply holds, and each exactly once."""
    host = knot.fresh_name("big")
    name = f"_http._tcp.{host}"
    for n in range(300):
        knot.set_records(f"p{n}.{host}", "A", [f"10.2.{n // 250}.{n % 250 + 1}"], ttl=5)
    knot.set_records(name, "SRV", [f"0 1 8080 p{n}.{host}." for n in range(300)], ttl=5)

    async def body() -> None:
        async with resolver(BUILDER, **BOTH) as dns:
            big = dns.watch(f"dns+srv://127.0.0.1:{knot.port}/{name}")
            await big.until(lambda: len(big.endpoints()) == 300, "all targets")

    asyncio.run(body())


def test_dual_stack(knot: Knot) -> None:
    """Both families: one is balanced over; when its records go, the other takes over; no double weight at any time."""
    name = knot.fresh_name("dual")
    knot.set_records(name, "A", ["10.0.0.1", "10.0.0.2"], ttl=1)
    knot.set_records(name, "AAAA", ["fd00::1", "fd00::2"], ttl=1)

    async def body() -> None:
        async with resolver(BUILDER, **BOTH) as dns:
            dual = dns.watch(f"dns://127.0.0.1:{knot.port}/{name}:80")
            await dual.until_addresses("10.0.0.1:80", "10.0.0.2:80")
            knot.delete(name, "A")
            await dual.until_addresses("[fd00::1]:80", "[fd00::2]:80")

    asyncio.run(body())


def test_cname_chain(knot: Knot) -> None:
    """ExternalName: the chain is followed, and a change at its end arrives."""
    first, end = knot.fresh_name("alias"), knot.fresh_name("end")
    knot.set_records(first, "CNAME", [f"{end}."], ttl=30)
    knot.set_records(end, "A", ["10.0.0.1"], ttl=1)

    async def body() -> None:
        async with resolver(BUILDER, **BOTH) as dns:
            alias = dns.watch(f"dns://127.0.0.1:{knot.port}/{first}:80")
            await alias.until_addresses("10.0.0.1:80")
            knot.set_records(end, "A", ["10.0.0.2"], ttl=1)
            await alias.until_addresses("10.0.0.2:80")

    asyncio.run(body())


def test_service_address_is_told(knot: Knot) -> None:
    """R14 on a real zone: a ClusterIP as CoreDNS publishes it is reported."""
    name = f"vip-{knot.fresh_name('x').partition('.')[0]}.shop.svc.cluster.local"
    knot.set_records(name, "A", ["10.96.0.7"], ttl=1)
    knot.set_records(name, "SRV", [f"0 100 80 {name}."], ttl=1)

    async def body() -> None:
        async with resolver(BUILDER, **BOTH) as dns:
            vip = dns.watch(f"dns://127.0.0.1:{knot.port}/{name}:80")
            await vip.until_addresses("10.96.0.7:80")
            await vip.until(lambda: dns.of(FellBack), "the report")

    asyncio.run(body())


@pytest.mark.parametrize("fault", ["servfail", "refuse", "drop"])
def test_faults_keep_the_last_good_set(knot: Knot, unbound: Unbound, fault: str) -> None:
    """SERVFAIL, REFUSED and silence of a real cache: the set stays, stale and told; then it follows again."""
    name = knot.fresh_name("faulty")
    knot.set_records(name, "A", ["10.0.0.1"], ttl=1)

    async def body() -> None:
        async with resolver(BUILDER, **BOTH) as dns:
            faulty = dns.watch(f"dns://127.0.0.1:{unbound.port}/{name}:80")
            await faulty.until_addresses("10.0.0.1:80")
            await asyncio.to_thread(getattr(unbound, fault), name)
            await faulty.until(lambda: isinstance(faulty.updates[-1], Failure), "the failure")
            assert faulty.addresses() == {"10.0.0.1:80"}
            assert faulty.subscription.describe()["stale"] is True
            assert dns.of(SourceFailed)[0].stale
            knot.set_records(name, "A", ["10.0.0.2"], ttl=1)
            await asyncio.to_thread(unbound.clear, name)
            await faulty.until_addresses("10.0.0.2:80", timeout=40)
            assert dns.of(SourceRecovered)

    asyncio.run(body())


@pytest.mark.parametrize("fault", ["nxdomain", "nodata"])
def test_negatives_are_confirmed(knot: Knot, unbound: Unbound, fault: str) -> None:
    """A negative empties only when it is said twice; the set comes back with the records."""
    name = knot.fresh_name("negative")
    knot.set_records(name, "A", ["10.0.0.1"], ttl=1)

    async def body() -> None:
        async with resolver(BUILDER, **BOTH) as dns:
            negative = dns.watch(f"dns://127.0.0.1:{unbound.port}/{name}:80")
            await negative.until_addresses("10.0.0.1:80")
            await asyncio.to_thread(getattr(unbound, fault), name)
            questions = negative.subscription.describe()["questions"]
            assert questions[0]["kind"] == "records"
            await negative.until_addresses()
            await asyncio.to_thread(unbound.clear, name)
            await negative.until_addresses("10.0.0.1:80", timeout=40)

    asyncio.run(body())


def pod_files(
    folder: Path, server: str, search: str, hosts: str = "127.0.0.1 localhost\n"
) -> tuple[Path, Path]:
    resolv_conf, hosts_file = folder / "resolv.conf", folder / "hosts"
    resolv_conf.write_text(f"search {search}\nnameserver {server}\noptions ndots:5 timeout:1 attempts:1\n")
    hosts_file.write_text(hosts)
    return resolv_conf, hosts_file


def test_search_walk_and_resolv_conf_edited(knot: Knot, tmp_path: Path) -> None:
    """A short name is found through the search list; an edited list and then a dead server are noticed live."""
    short = knot.fresh_name("walk").partition(".")[0]
    knot.set_records(f"{short}.shop.svc.cluster.local", "A", ["10.0.0.1"], ttl=1)
    knot.set_records(f"{short}.mesh.test", "A", ["10.0.0.2"], ttl=1)
    resolv_conf, hosts = pod_files(tmp_path, "127.0.0.1", "none.cluster.local shop.svc.cluster.local")
    settings = {**BOTH, "resolv_conf": str(resolv_conf), "hosts": str(hosts), "port": knot.port, "poll": 0.1}

    async def body() -> None:
        async with resolver(BUILDER, **settings) as dns:
            walk = dns.watch(f"dns:///{short}:80")
            await walk.until_addresses("10.0.0.1:80")
            assert walk.subscription.describe()["name"] == f"{short}.shop.svc.cluster.local"
            pod_files(tmp_path, "127.0.0.1", "mesh.test")
            await walk.until_addresses("10.0.0.2:80")
            pod_files(tmp_path, "127.0.0.99", "mesh.test")
            await walk.until(lambda: isinstance(walk.updates[-1], Failure), "the dead server")
            assert walk.addresses() == {"10.0.0.2:80"}
            pod_files(tmp_path, "127.0.0.1", "mesh.test")
            await walk.until(lambda: not isinstance(walk.updates[-1], Failure), "recovery", timeout=5)

    asyncio.run(body())


def test_hosts_file_overrides(knot: Knot, tmp_path: Path) -> None:
    """hostAliases win over the zone, and the zone is used again when they go."""
    name = knot.fresh_name("aliased")
    knot.set_records(name, "A", ["10.0.0.1"], ttl=1)
    resolv_conf, hosts = pod_files(tmp_path, "127.0.0.1", "mesh.test", f"10.7.7.7 {name}\n")
    settings = {**BOTH, "resolv_conf": str(resolv_conf), "hosts": str(hosts), "port": knot.port, "poll": 0.1}

    async def body() -> None:
        async with resolver(BUILDER, **settings) as dns:
            aliased = dns.watch(f"dns:///{name}:80")
            await aliased.until_addresses("10.7.7.7:80")
            hosts.write_text("127.0.0.1 localhost\n")
            await aliased.until_addresses("10.0.0.1:80")
            hosts.write_text(f"10.7.7.8 {name}\n")
            await aliased.until_addresses("10.7.7.8:80")

    asyncio.run(body())


def test_server_killed_and_back(knot: Knot, tmp_path: Path) -> None:
    """A server of the test's own is stopped, hung and started again: the set stays throughout and then follows."""
    from tests.components.dns import Unbound

    name = knot.fresh_name("killed")
    knot.set_records(name, "A", ["10.0.0.1"], ttl=1)

    async def body() -> None:
        with Unbound(tmp_path, forward_to=knot.address) as cache:
            async with resolver(BUILDER, **BOTH) as dns:
                killed = dns.watch(f"dns://127.0.0.1:{cache.port}/{name}:80")
                await killed.until_addresses("10.0.0.1:80")
                await asyncio.to_thread(cache.daemon.kill)
                await killed.until(lambda: isinstance(killed.updates[-1], Failure), "the dead server")
                assert killed.addresses() == {"10.0.0.1:80"}
                knot.set_records(name, "A", ["10.0.0.2"], ttl=1)
                await asyncio.to_thread(cache.start)
                await killed.until_addresses("10.0.0.2:80", timeout=40)
                cache.pause()
                await killed.until(
                    lambda: isinstance(killed.updates[-1], Failure), "the hung server", timeout=30
                )
                cache.resume()
                await killed.until(
                    lambda: not isinstance(killed.updates[-1], Failure), "recovery", timeout=40
                )

    asyncio.run(body())


def test_partial_truncated_answers_of_dnsmasq_are_not_used(tmp_path: Path) -> None:
    """A server that puts 29 of 200 records into a truncated reply: only the whole set over TCP is published."""
    from tests.components.dns import Dnsmasq
    from tests.components.process import NotAvailable, leave_out

    addresses = [f"10.3.0.{n + 1}" for n in range(200)]
    try:
        server = Dnsmasq(tmp_path, {"many.mesh.test": addresses}, ttl=1)
    except NotAvailable as error:
        leave_out("dns", error)

    async def body() -> None:
        with server:
            async with resolver(BUILDER, **BOTH) as dns:
                many = dns.watch(f"dns://127.0.0.1:{server.port}/many.mesh.test:80")
                await many.until(many.endpoints, "the set")
                assert len(many.endpoints()) == 200

    asyncio.run(body())
