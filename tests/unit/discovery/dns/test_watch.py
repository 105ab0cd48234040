"""Watching DNS targets in virtual time: what is asked when, and what is published."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from meshlib.discovery.dns.resolver import DnsResolver
from meshlib.discovery.dns.watch import DnsWatch
from meshlib.errors import ConfigError, DiscoveryError
from meshlib.model.events import EntrySkipped, FallbackEnded, FellBack, SourceFailed, SourceRecovered
from meshlib.model.target import Target
from meshlib.model.update import DoesNotExist, Failure, Snapshot
from tests.unit.discovery.virtual import (
    ScriptedDns,
    World,
    a,
    closes,
    nodata,
    nxdomain,
    run,
    srv,
    unusable,
)

POD = (
    "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
)
FQDN = "orders.shop.svc.cluster.local"


class Stage:
    """A resolver on scripted DNS with its own resolv.conf and hosts file."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.resolv_conf, self.hosts = folder / "resolv.conf", folder / "hosts"
        self.resolv_conf.write_text(POD)
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.world = World(
            {"resolv_conf": str(self.resolv_conf), "hosts": str(self.hosts), "families": [4, 6], **settings}
        )
        self.dns = ScriptedDns()
        self.resolver: DnsResolver

    def watch(self, target: str) -> DnsWatch:
        return self.resolver.watch(Target.parse(target), self.world.publish)


Play = Callable[[Stage], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., World]:
    """play(body, **settings): runs the coroutine function in virtual time and closes everything after it."""

    def start(body: Play, **settings: Any) -> World:
        async def scene() -> World:
            stage = Stage(tmp_path, **settings)
            stage.resolver = DnsResolver(stage.world.context(), stage.dns)
            await body(stage)
            await stage.resolver.close()
            published = len(stage.world.updates)
            await asyncio.sleep(100)
            assert len(stage.world.updates) == published, "published after close"
            assert not stage.world.tasks, "tasks left behind"
            return stage.world

        return run(scene())

    return start


def test_live_changes_are_published_within_the_ttl(play: Callable[..., World]) -> None:
    """0 -> n -> m: every change of the records arrives within one TTL, as a new set."""

    async def body(stage: Stage) -> None:
        stage.dns.set("db.test", A=a("10.0.0.1", ttl=5))
        stage.watch("dns:///db.test.:80")
        await asyncio.sleep(1)
        assert stage.world.addresses() == ["10.0.0.1:80"]
        stage.dns.set("db.test", A=a("10.0.0.1", "10.0.0.2", ttl=5))
        await asyncio.sleep(5.1)
        assert stage.world.addresses() == ["10.0.0.1:80", "10.0.0.2:80"]
        assert len(stage.world.updates) == 2, "unchanged answers are not published again"

    play(body)


def test_scale_to_zero_and_back(play: Callable[..., World]) -> None:
    """Headless, scaled to 0: NXDOMAIN twice, then an empty set (not DoesNotExist); pods come back soon."""

    async def body(stage: Stage) -> None:
        stage.dns.set(FQDN, A=a("10.0.0.1", ttl=5))
        stage.watch(f"dns:///{FQDN}.:80")
        await asyncio.sleep(1)
        stage.dns.set(FQDN, A=None)
        start = stage.world.now
        while stage.world.addresses():
            await asyncio.sleep(0.1)
        assert 1.0 <= stage.world.now - start <= 5 + 1 + 0.3
        assert isinstance(stage.world.last, Snapshot)
        stage.dns.set(FQDN, A=a("10.0.0.9", ttl=5))
        await asyncio.sleep(5.1)
        assert stage.world.addresses() == ["10.0.0.9:80"]

    play(body)


def test_one_stray_negative_changes_nothing(play: Callable[..., World]) -> None:
    """A server caught in a reload says NXDOMAIN once: nobody notices."""

    async def body(stage: Stage) -> None:
        stage.dns.set("db.test", A=a("10.0.0.1", ttl=5))
        stage.watch("dns:///db.test.:80")
        await asyncio.sleep(1)
        stage.dns.set("db.test", A=nxdomain())
        asked = len(stage.dns.times("db.test"))
        while len(stage.dns.times("db.test")) == asked:
            await asyncio.sleep(0.1)
        stage.dns.set("db.test", A=a("10.0.0.1", ttl=5))
        await asyncio.sleep(30)
        assert len(stage.world.updates) == 1

    play(body)


def test_unknown_name_is_told_at_once_and_found_later(play: Callable[..., World]) -> None:
    """First look-up NXDOMAIN: DoesNotExist with the names tried; created later: found without a restart."""

    async def body(stage: Stage) -> None:
        stage.watch("dns:///orders:80")
        await asyncio.sleep(1)
        assert isinstance(stage.world.last, DoesNotExist)
        assert FQDN in stage.world.last.reason
        stage.dns.set(FQDN, A=a("10.0.0.1"))
        await asyncio.sleep(6)
        assert stage.world.addresses() == ["10.0.0.1:80"]

    play(body)


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "TIMEOUT"])
def test_faults_keep_the_last_good_set(play: Callable[..., World], rcode: str) -> None:
    """An hour of faults: the set stays, is stale, too old after ten minutes; one event each way; queries back off."""

    async def body(stage: Stage) -> None:
        stage.dns.set("db.test", A=a("10.0.0.1", ttl=5))
        watch = stage.watch("dns:///db.test.:80")
        await asyncio.sleep(1)
        stage.dns.set("db.test", A=unusable(rcode), AAAA=unusable(rcode))
        await asyncio.sleep(300)
        assert stage.world.addresses() == ["10.0.0.1:80"]
        assert isinstance(stage.world.last, Failure)
        assert len(stage.world.failures) == 1
        assert watch.describe()["stale"] is True
        assert watch.describe()["too_old"] is False
        asked = len(stage.dns.times("db.test"))
        await asyncio.sleep(3300)
        assert len(stage.dns.times("db.test")) - asked <= 3300 / 30 + 1
        assert watch.describe()["too_old"] is True
        assert watch.describe()["age"] > 3590
        failed = [
            e
            for e in stage.world.of(SourceFailed)
            if "db.test A" in e.source and not e.source.endswith("AAAA")
        ]
        assert len(failed) == 2, "once when it began, once when it got too old"
        assert all(event.stale for event in failed)
        stage.dns.set("db.test", A=a("10.0.0.1", ttl=5), AAAA=None)
        await asyncio.sleep(31)
        assert isinstance(stage.world.last, Snapshot), "recovery is published, though the set is the same"
        assert stage.world.of(SourceRecovered)
        assert watch.describe()["stale"] is False

    play(body)


def test_first_answer_unusable(play: Callable[..., World]) -> None:
    """Nothing known and SERVFAIL: a Failure at once, hopeless as every server refused; then a set."""

    async def body(stage: Stage) -> None:
        stage.dns.set(
            "db.test", A=unusable("REFUSED", hopeless=True), AAAA=unusable("REFUSED", hopeless=True)
        )
        stage.watch("dns:///db.test.:80")
        await asyncio.sleep(0.5)
        assert isinstance(stage.world.last, Failure)
        assert stage.world.last.hopeless
        assert isinstance(stage.world.last.error, DiscoveryError)
        assert "REFUSED" in str(stage.world.last.error)
        stage.dns.set("db.test", A=a("10.0.0.1"), AAAA=None)
        await asyncio.sleep(3)
        assert stage.world.addresses() == ["10.0.0.1:80"]

    play(body)


def test_one_family_failing_does_not_hide_the_other(play: Callable[..., World]) -> None:
    """A server that drops AAAA queries: the A records are published after the grace of 50 ms, not after the timeout."""

    async def body(stage: Stage) -> None:
        stage.dns.set("db.test", A=a("10.0.0.1"), AAAA=unusable("TIMEOUT"))
        stage.dns.latency["db.test", "AAAA"] = 8.0
        stage.watch("dns:///db.test.:80")
        await asyncio.sleep(0.2)
        assert stage.world.addresses() == ["10.0.0.1:80"]
        await asyncio.sleep(60)
        assert stage.world.addresses() == ["10.0.0.1:80"]
        assert isinstance(stage.world.last, Snapshot), (
            "a family that never worked is no reason to call the set stale"
        )

    play(body)


def test_unknown_family_forbids_an_authoritative_empty(play: Callable[..., World]) -> None:
    """A says NODATA, AAAA fails: that is not known to be empty, so the set stays."""

    async def body(stage: Stage) -> None:
        stage.dns.set("db.test", A=a("10.0.0.1"), AAAA=unusable())
        stage.watch("dns:///db.test.:80")
        await asyncio.sleep(1)
        stage.dns.set("db.test", A=nodata())
        await asyncio.sleep(60)
        assert stage.world.addresses() == ["10.0.0.1:80"]
        stage.dns.set("db.test", AAAA=nodata())
        await asyncio.sleep(40)
        assert stage.world.addresses() == []

    play(body)


@pytest.mark.parametrize("ttl,most,least", [(0, 121, 100), (86400, 6, 3)])
def test_ttl_zero_and_one_day(play: Callable[..., World], ttl: int, most: int, least: int) -> None:
    """TTL 0 is asked once a second, a TTL of a day every 30 s in the cluster: no flood, no day of staleness."""

    async def body(stage: Stage) -> None:
        stage.dns.set(FQDN, A=a("10.0.0.1", "10.0.0.2", ttl=ttl), AAAA=nodata(ttl))
        stage.watch(f"dns:///{FQDN}.:80")
        await asyncio.sleep(120)
        assert least <= len(stage.dns.times(FQDN)) <= most

    play(body)


def test_search_walk_is_done_once_and_remembered(play: Callable[..., World]) -> None:
    """R2: the suffix that matched is re-queried alone; nothing else is asked per refresh."""

    async def body(stage: Stage) -> None:
        stage.dns.set(FQDN, A=a("10.0.0.1", "10.0.0.2"))
        stage.watch("dns:///orders.shop:80")
        await asyncio.sleep(1)
        assert stage.world.addresses() == ["10.0.0.1:80", "10.0.0.2:80"]
        assert [name for _, name, kind in stage.dns.asked if kind == "A"] == [
            "orders.shop.shop.svc.cluster.local",
            FQDN,
        ]
        before = len(stage.dns.asked)
        await asyncio.sleep(50)
        assert {name for _, name, _ in stage.dns.asked[before:]} == {FQDN}

    play(body)


def test_an_earlier_suffix_takes_over_within_a_minute(play: Callable[..., World]) -> None:
    """A name that appears earlier in the search order wins, as it would with the system resolver."""

    async def body(stage: Stage) -> None:
        stage.dns.set("orders.cluster.local", A=a("10.9.9.9"))
        stage.watch("dns:///orders:80")
        await asyncio.sleep(1)
        assert stage.world.addresses() == ["10.9.9.9:80"]
        stage.dns.set(FQDN, A=a("10.0.0.1"))
        await asyncio.sleep(61)
        assert stage.world.addresses() == ["10.0.0.1:80"]

    play(body)


def test_servfail_in_the_walk_is_not_taken_for_absence(play: Callable[..., World]) -> None:
    """A timeout at the first suffix ends in Failure, not DoesNotExist, and is retried."""

    async def body(stage: Stage) -> None:
        stage.dns.set(FQDN, A=unusable("TIMEOUT"), AAAA=unusable("TIMEOUT"))
        stage.watch("dns:///orders:80")
        await asyncio.sleep(1)
        assert isinstance(stage.world.last, Failure)
        stage.dns.set(FQDN, A=a("10.0.0.1"), AAAA=nodata())
        await asyncio.sleep(3)
        assert stage.world.addresses() == ["10.0.0.1:80"]

    play(body)


def test_resolv_conf_edited(play: Callable[..., World]) -> None:
    """A new search list is walked within a second or two; the old set stays in force until then."""

    async def body(stage: Stage) -> None:
        stage.dns.set(FQDN, A=a("10.0.0.1"))
        stage.dns.set("orders.other.test", A=a("10.0.0.2"))
        stage.watch("dns:///orders:80")
        await asyncio.sleep(1)
        stage.resolv_conf.write_text("search other.test\nnameserver 10.96.0.11\noptions ndots:5\n")
        await asyncio.sleep(1.5)
        assert stage.world.addresses() == ["10.0.0.2:80"]
        assert not stage.world.failures

    play(body)


def test_a_changed_resolv_conf_ends_the_back_off(play: Callable[..., World]) -> None:
    """New servers are asked at once, not after the 30 s of the old ones' back-off."""

    async def body(stage: Stage) -> None:
        stage.dns.set("db.test", A=unusable("TIMEOUT"), AAAA=unusable("TIMEOUT"))
        stage.watch("dns:///db.test.:80")
        await asyncio.sleep(200)
        stage.dns.set("db.test", A=a("10.0.0.1"), AAAA=nodata())
        stage.resolv_conf.write_text(POD.replace("10.96.0.10", "10.96.0.11"))
        await asyncio.sleep(1.2)
        assert stage.world.addresses() == ["10.0.0.1:80"]

    play(body)


def test_hosts_file_wins_and_lets_go(play: Callable[..., World]) -> None:
    """/etc/hosts comes before DNS, edits count within a second, and DNS takes over when the entry goes."""

    async def body(stage: Stage) -> None:
        stage.dns.set("db.test", A=a("10.0.0.1"))
        stage.hosts.write_text("10.7.7.7 db.test\n")
        watch = stage.watch("dns:///db.test:80")
        await asyncio.sleep(1.1)
        assert stage.world.addresses() == ["10.7.7.7:80"]
        assert not stage.dns.asked
        assert watch.describe()["source"] == "hosts"
        stage.hosts.write_text("10.7.7.8 db.test\n10.7.7.9 db.test\n")
        await asyncio.sleep(1.1)
        assert stage.world.addresses() == ["10.7.7.8:80", "10.7.7.9:80"]
        stage.hosts.write_text("# nothing\n")
        await asyncio.sleep(1.5)
        assert stage.world.addresses() == ["10.0.0.1:80"]

    play(body)


def test_localhost_needs_no_dns(play: Callable[..., World]) -> None:
    """``dns:///localhost:8080`` works without any setting and asks nobody."""

    async def body(stage: Stage) -> None:
        stage.watch("dns:///localhost:8080")
        await asyncio.sleep(1)
        assert stage.world.addresses() == ["127.0.0.1:8080"]
        assert not stage.dns.asked

    play(body)


def test_an_address_as_name(play: Callable[..., World]) -> None:
    """A literal address is its own answer."""

    async def body(stage: Stage) -> None:
        stage.watch("dns:///[fd00::1]:80")
        await asyncio.sleep(1)
        assert stage.world.addresses() == ["[fd00::1]:80"]
        assert not stage.dns.asked

    play(body)


def test_poisoned_answers_are_refused_and_told_once(play: Callable[..., World]) -> None:
    """Loopback in an answer: skipped, counted at each reply, told once; alone it never replaces the good set."""

    async def body(stage: Stage) -> None:
        stage.dns.set("db.test", A=a("10.0.0.1", "127.0.0.1", ttl=1))
        watch = stage.watch("dns:///db.test.:80")
        await asyncio.sleep(10)
        assert stage.world.addresses() == ["10.0.0.1:80"]
        assert len(stage.world.of(EntrySkipped)) == 1
        assert watch.describe()["skipped"] >= 8
        stage.dns.set("db.test", A=a("127.0.0.1", ttl=1))
        await asyncio.sleep(10)
        assert stage.world.addresses() == ["10.0.0.1:80"]

    play(body)


def test_allow_loopback_opts_in(play: Callable[..., World]) -> None:
    """The setting for development and tests accepts loopback answers."""

    async def body(stage: Stage) -> None:
        stage.dns.set("db.test", A=a("127.0.0.2"))
        stage.watch("dns:///db.test.:80")
        await asyncio.sleep(1)
        assert stage.world.addresses() == ["127.0.0.2:80"]

    play(body, allow_loopback=True)


def test_srv_with_glue_asks_nothing_else(play: Callable[..., World]) -> None:
    """R10: targets with glue are not asked for."""

    async def body(stage: Stage) -> None:
        glue = {"a.test": ("10.0.0.1",), "b.test": ("10.0.0.2",)}
        stage.dns.set(
            "_http._tcp.svc.test", SRV=srv((0, 3, 8080, "a.test"), (1, 1, 8081, "b.test"), glue=glue)
        )
        stage.watch("dns+srv:///_http._tcp.svc.test.")
        await asyncio.sleep(1)
        found = {(e.authority, e.weight, e.priority) for e in stage.world.eligible().endpoints}
        assert found == {("10.0.0.1:8080", 3, 0), ("10.0.0.2:8081", 1, 1)}
        assert {kind for _, _, kind in stage.dns.asked} == {"SRV"}

    play(body)


def test_srv_targets_without_glue_are_asked(play: Callable[..., World]) -> None:
    """Only the missing targets are asked for; the set waits for them, and follows their changes."""

    async def body(stage: Stage) -> None:
        stage.dns.set(
            "_http._tcp.svc.test",
            SRV=srv((0, 1, 80, "a.test"), (0, 1, 80, "b.test"), glue={"a.test": ("10.0.0.1",)}, ttl=30),
        )
        stage.dns.set("b.test", A=a("10.0.0.2", ttl=2))
        stage.watch("dns+srv:///_http._tcp.svc.test.")
        await asyncio.sleep(0.5)
        assert stage.world.addresses() == ["10.0.0.1:80", "10.0.0.2:80"]
        assert len(stage.world.updates) == 1, "no half set in between"
        assert {name for _, name, kind in stage.dns.asked if kind == "A"} == {"b.test"}
        stage.dns.set("b.test", A=a("10.0.0.3", ttl=2))
        await asyncio.sleep(2.1)
        assert stage.world.addresses() == ["10.0.0.1:80", "10.0.0.3:80"]

    play(body)


def test_a_slow_srv_target_does_not_hold_the_others(play: Callable[..., World]) -> None:
    """One target that never answers is waited for one second, then the others are published."""

    async def body(stage: Stage) -> None:
        stage.dns.set(
            "_http._tcp.svc.test",
            SRV=srv((0, 1, 80, "a.test"), (0, 1, 80, "slow.test"), glue={"a.test": ("10.0.0.1",)}),
        )
        stage.dns.set("slow.test", A=unusable("TIMEOUT"), AAAA=unusable("TIMEOUT"))
        stage.dns.latency.update({("slow.test", "A"): 9.0, ("slow.test", "AAAA"): 9.0})
        stage.watch("dns+srv:///_http._tcp.svc.test.")
        await asyncio.sleep(0.9)
        assert not stage.world.updates
        await asyncio.sleep(0.3)
        assert stage.world.addresses() == ["10.0.0.1:80"]

    play(body)


def test_srv_dot_is_an_empty_set(play: Callable[..., World]) -> None:
    """Target ".": known to be empty, at once, and back when it is offered again."""

    async def body(stage: Stage) -> None:
        name = "_http._tcp.svc.test"
        stage.dns.set(name, SRV=srv((0, 1, 80, "a.test"), glue={"a.test": ("10.0.0.1",)}))
        stage.watch(f"dns+srv:///{name}.")
        await asyncio.sleep(1)
        stage.dns.set(name, SRV=srv((0, 0, 0, "")))
        await asyncio.sleep(5.1)
        assert stage.world.addresses() == []
        stage.dns.set(name, SRV=srv((0, 1, 80, "a.test"), glue={"a.test": ("10.0.0.1",)}))
        await asyncio.sleep(5.1)
        assert stage.world.addresses() == ["10.0.0.1:80"]

    play(body)


def test_srv_search_walk(play: Callable[..., World]) -> None:
    """The search list applies to the host part of an SRV name."""

    async def body(stage: Stage) -> None:
        glue = {"10-0-0-1." + FQDN: ("10.0.0.1",)}
        stage.dns.set(f"_http._tcp.{FQDN}", SRV=srv((0, 1, 8080, "10-0-0-1." + FQDN), glue=glue))
        stage.watch("dns+srv:///_http._tcp.orders")
        await asyncio.sleep(1)
        assert stage.world.addresses() == ["10.0.0.1:8080"]

    play(body)


def test_srv_walk_again_keeps_both_names_asked(play: Callable[..., World]) -> None:
    """While an earlier suffix is tried again, slowly, the found name is followed on; then the earlier one wins."""

    async def body(stage: Stage) -> None:
        early, late = f"_http._tcp.{FQDN}", "_http._tcp.orders.cluster.local"
        stage.dns.set(late, SRV=srv((0, 1, 80, "a.test")))
        stage.dns.set("a.test", A=a("10.0.0.1"))
        stage.watch("dns+srv:///_http._tcp.orders")
        await asyncio.sleep(1)
        stage.dns.latency[early, "SRV"] = 10.0
        stage.dns.set(early, SRV=srv((0, 1, 80, "b.test"), glue={"b.test": ("10.0.0.9",)}))
        await asyncio.sleep(62)
        stage.dns.set("a.test", A=a("10.0.0.2"))
        await asyncio.sleep(5)
        assert stage.world.addresses() == ["10.0.0.2:80"]
        await asyncio.sleep(10)
        assert stage.world.addresses() == ["10.0.0.9:80"]

    play(body)


def test_a_fault_of_the_asker_is_a_failure_like_any_other(
    play: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception where none should be does not end the refreshes of a name: it is told, and the set stays."""

    async def body(stage: Stage) -> None:
        stage.dns.set("db.test", A=a("10.0.0.1"))
        stage.watch("dns:///db.test.:80")
        await asyncio.sleep(1)
        good = stage.dns.table
        monkeypatch.setattr(stage.dns, "table", None)
        await asyncio.sleep(20)
        assert isinstance(stage.world.last, Failure)
        assert "TypeError" in str(stage.world.last.error) or "AttributeError" in str(stage.world.last.error)
        monkeypatch.setattr(stage.dns, "table", good)
        stage.dns.set("db.test", A=a("10.0.0.2"))
        await asyncio.sleep(31)
        assert stage.world.addresses() == ["10.0.0.2:80"]

    play(body)


def test_many_targets_share_one_question(play: Callable[..., World]) -> None:
    """Single flight: fifty targets on one name cost one query per family and TTL; the last to close stops them."""

    async def body(stage: Stage) -> None:
        stage.dns.set("db.test", A=a("10.0.0.1", ttl=5))
        stage.dns.default_latency = 0.2
        watches = [stage.watch(f"dns:///db.test.:{port}") for port in range(8000, 8050)]
        await asyncio.sleep(1)
        assert len(stage.dns.times("db.test")) == 1
        assert len(stage.world.updates) == 50
        for watch in watches[1:]:
            closes(watch)
        await asyncio.sleep(30)
        assert len(stage.dns.times("db.test")) >= 6
        closes(watches[0])
        asked = len(stage.dns.asked)
        await asyncio.sleep(30)
        assert len(stage.dns.asked) == asked

    play(body)


def test_refreshes_of_many_names_drift_apart(play: Callable[..., World]) -> None:
    """200 names started together: after a while no tenth of a second sees more than a small share of the queries."""

    async def body(stage: Stage) -> None:
        for n in range(200):
            stage.dns.set(f"n{n}.test", A=a("10.0.0.1", ttl=30), AAAA=nodata(30))
            stage.watch(f"dns:///n{n}.test.:80")
        await asyncio.sleep(600)
        late = [at for at, _, kind in stage.dns.asked if kind == "A" and at > 300]
        slots: dict[int, int] = {}
        for at in late:
            slots[int(at * 10)] = slots.get(int(at * 10), 0) + 1
        assert max(slots.values()) <= 12
        assert len(late) >= 200 * 300 / 30

    play(body)


def test_vip_is_told(play: Callable[..., World]) -> None:
    """R14: a ClusterIP behind a name is reported loudly once, and the report ends when it becomes headless."""

    async def body(stage: Stage) -> None:
        stage.dns.set(FQDN, A=a("10.96.0.7", ttl=5), SRV=srv((0, 100, 80, FQDN)))
        watch = stage.watch(f"dns:///{FQDN}.:80")
        await asyncio.sleep(20)
        assert len(stage.world.of(FellBack)) == 1
        assert watch.describe()["service_address"] is True
        assert len([1 for _, _, kind in stage.dns.asked if kind == "SRV"]) == 1, "asked once per change"
        stage.dns.set(FQDN, A=a("10.0.0.1", "10.0.0.2"), SRV=None)
        await asyncio.sleep(6)
        assert len(stage.world.of(FallbackEnded)) == 1
        assert watch.describe()["service_address"] is False

    play(body)


def test_single_pod_is_no_vip(play: Callable[..., World]) -> None:
    """A headless Service with one pod has one address as well; its SRV says so."""

    async def body(stage: Stage) -> None:
        stage.dns.set(FQDN, A=a("10.0.0.1"), SRV=srv((0, 100, 80, "10-0-0-1." + FQDN)))
        stage.watch(f"dns:///{FQDN}.:80")
        await asyncio.sleep(20)
        assert not stage.world.of(FellBack)

    play(body)


def test_no_aaaa_option_halves_the_queries(play: Callable[..., World]) -> None:
    """``options no-aaaa``: only A is asked."""

    async def body(stage: Stage) -> None:
        stage.resolv_conf.write_text(POD + "options no-aaaa\n")
        stage.dns.set("db.test", A=a("10.0.0.1"))
        stage.watch("dns:///db.test.:80")
        await asyncio.sleep(30)
        assert {kind for _, name, kind in stage.dns.asked if name == "db.test"} == {"A"}

    play(body)


def test_describe_says_where_it_comes_from(play: Callable[..., World]) -> None:
    """R16: server, rcode, ttl, age, generation and each question are there for people."""

    async def body(stage: Stage) -> None:
        stage.dns.set(FQDN, A=a("10.0.0.1", "10.0.0.2", ttl=5))
        watch = stage.watch("dns:///orders:80")
        await asyncio.sleep(2)
        told = watch.describe()
        assert told["name"] == FQDN
        assert (told["server"], told["rcode"], told["ttl"]) == ("10.96.0.10:53", "NOERROR", 5)
        assert 1.5 < told["age"] < 2.5
        assert told["tried"] == [f"{FQDN} records"]
        assert {row["question"] for row in told["questions"]} == {f"{FQDN} A", f"{FQDN} AAAA"}

    play(body)


@pytest.mark.parametrize(
    "settings,key",
    [
        ({"ttl": 5}, "ttl"),
        ({"floor": 0}, "floor"),
        ({"floor": float("nan")}, "floor"),
        ({"floor": 10, "ceiling": 5}, "floor"),
        ({"ceiling": "5"}, "ceiling"),
        ({"allow_loopback": "yes"}, "allow_loopback"),
        ({"families": [5]}, "families"),
        ({"port": 0}, "port"),
        ({"hosts": 7}, "hosts"),
        ({"poll": True}, "poll"),
    ],
)
def test_bad_settings_name_their_key(settings: dict[str, Any], key: str) -> None:
    """A setting that cannot be used is refused when the resolver is built, by its full name."""

    async def body() -> None:
        with pytest.raises(ConfigError, match=f"discovery.dns.{key}"):
            DnsResolver(World(settings).context(), ScriptedDns())

    run(body())
