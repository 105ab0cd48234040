"""resolv.conf, the hosts file and the search walk, as glibc reads them."""

from __future__ import annotations

import pytest

from meshlib.discovery.dns.names import (
    ResolvConf,
    Walk,
    candidates,
    combine,
    local_addresses,
    parse_hosts,
    parse_resolv_conf,
)
from meshlib.discovery.dns.records import Kind
from meshlib.errors import DataError

POD = """\
search shop.svc.cluster.local svc.cluster.local cluster.local
nameserver 10.96.0.10
options ndots:5
"""


def test_pod_resolv_conf() -> None:
    """What the kubelet writes is understood."""
    conf = parse_resolv_conf(POD)
    assert conf.servers == ("10.96.0.10",)
    assert conf.search == ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")
    assert conf.ndots == 5


@pytest.mark.parametrize(
    "text,expected",
    [
        ("", ResolvConf()),
        (
            "nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver ::1\nnameserver 1.1.1.4",
            ("1.1.1.1", "1.1.1.2", "::1"),
        ),
        ("nameserver evil.com\nnameserver 999.1.1.1\nnameserver 9.9.9.9", ("9.9.9.9",)),
        ("#nameserver 1.1.1.1\n;nameserver 1.1.1.2\nnameserver", ("127.0.0.1",)),
        ("NAMESERVER 1.1.1.1\x00\n\ufeff", ("127.0.0.1",)),
    ],
)
def test_nameservers(text: str, expected: object) -> None:
    """At most three, addresses only, comments and junk ignored, 127.0.0.1 when there is none."""
    conf = parse_resolv_conf(text)
    assert (conf if isinstance(expected, ResolvConf) else conf.servers) == expected


def test_options_are_bounded_as_in_glibc() -> None:
    """Numbers out of range are clamped, junk is ignored, flags are recognised."""
    conf = parse_resolv_conf(
        "options ndots:99 timeout:0 attempts:77 rotate use-vc no-aaaa ndots:x ndots:-1 ndots:\u0661 edns0 future"
    )
    assert (conf.ndots, conf.timeout, conf.attempts) == (15, 1, 5)
    assert conf.rotate
    assert conf.use_tcp
    assert conf.no_aaaa


def test_last_of_domain_and_search_wins() -> None:
    """resolv.conf(5): they exclude each other, the last one counts."""
    assert parse_resolv_conf("search a.test b.test\ndomain c.test").search == ("c.test",)
    assert parse_resolv_conf("domain c.test\nsearch A.test. a.test b..test").search == ("a.test",)


@pytest.mark.parametrize(
    "name,expected",
    [
        (
            "orders",
            ["orders.shop.svc.cluster.local", "orders.svc.cluster.local", "orders.cluster.local", "orders"],
        ),
        ("orders.", ["orders"]),
        (
            "Orders.Shop",
            [
                "orders.shop.shop.svc.cluster.local",
                "orders.shop.svc.cluster.local",
                "orders.shop.cluster.local",
                "orders.shop",
            ],
        ),
        ("a.b.c.d.e.f", ["a.b.c.d.e.f", "a.b.c.d.e.f.shop.svc.cluster.local"]),
    ],
)
def test_candidates_in_a_pod(name: str, expected: list[str]) -> None:
    """The search list first below ndots, the name itself first from ndots on, a trailing dot alone."""
    assert list(candidates(name, parse_resolv_conf(POD)))[: len(expected)] == expected


@pytest.mark.parametrize("name", ["", ".", "a..b", ".a", "a" * 64, "a." * 127 + "ab", "ümlaut", "a b", "a\n"])
def test_what_is_no_name(name: str) -> None:
    """A text that cannot be a DNS name is refused with the reason, before anything is asked."""
    with pytest.raises(DataError):
        candidates(name, ResolvConf())


def test_candidates_leave_out_what_gets_too_long() -> None:
    """A suffix that would make the name longer than DNS allows is passed over."""
    name = ".".join(["a" * 60] * 4)
    assert candidates(name, parse_resolv_conf("search " + "b" * 60)) == (name,)


def test_walk_stops_at_the_first_records() -> None:
    """NXDOMAIN and NODATA go on, records end the walk."""
    walk = Walk(("a", "b", "c", "d"))
    walk.feed(Kind.NXDOMAIN)
    walk.feed(Kind.NODATA)
    assert not walk.done
    walk.feed(Kind.RECORDS)
    assert walk.done
    assert (walk.outcome, walk.found, walk.nodata) == (Kind.RECORDS, "c", "b")
    assert walk.tried == ["a nxdomain", "b nodata", "c records"]


def test_walk_remembers_servfail_but_not_silence() -> None:
    """glibc: SERVFAIL goes on to the next suffix, a timeout ends the search; neither proves absence."""
    walk = Walk(("a", "b"))
    walk.feed(Kind.UNKNOWN, servfail=True)
    walk.feed(Kind.NXDOMAIN)
    assert (walk.done, walk.outcome, walk.failed) == (True, Kind.UNKNOWN, "a")
    walk = Walk(("a", "b"))
    walk.feed(Kind.UNKNOWN)
    assert (walk.done, walk.outcome, walk.failed) == (True, Kind.UNKNOWN, "a")


def test_walk_without_any_record() -> None:
    """All absent is absent; one that exists without records is NODATA."""
    walk = Walk(("a", "b"))
    walk.feed(Kind.NXDOMAIN)
    walk.feed(Kind.NXDOMAIN)
    assert walk.outcome is Kind.NXDOMAIN
    walk = Walk(("a", "b"))
    walk.feed(Kind.NODATA)
    walk.feed(Kind.NXDOMAIN)
    assert (walk.outcome, walk.nodata) == (Kind.NODATA, "a")


def test_combine_prefers_what_tells_most() -> None:
    """Records win; a failure forbids a negative; NODATA means that the name exists."""
    assert combine((Kind.RECORDS, Kind.UNKNOWN)) is Kind.RECORDS
    assert combine((Kind.NXDOMAIN, Kind.UNKNOWN)) is Kind.UNKNOWN
    assert combine((Kind.NXDOMAIN, Kind.NODATA)) is Kind.NODATA
    assert combine((Kind.NXDOMAIN, Kind.NXDOMAIN)) is Kind.NXDOMAIN


def test_hosts_file() -> None:
    """Aliases, comments, several lines per name, case, junk."""
    hosts = parse_hosts(
        "127.0.0.1 localhost\n10.0.0.1 DB db.shop # the database\n10.0.0.2 db\n10.0.0.1 db\nnonsense db\n"
        "fd00::1 db\n#10.9.9.9 db\n10.0.0.3\n"
    )
    assert hosts["db"] == ("10.0.0.1", "10.0.0.2", "fd00::1")
    assert hosts["db.shop"] == ("10.0.0.1",)


def test_local_addresses() -> None:
    """The hosts file wins; localhost needs neither it nor DNS (RFC 6761); other names are not local."""
    assert local_addresses("localhost", {}) == ("127.0.0.1", "::1")
    assert local_addresses("app.localhost.", {}) == ("127.0.0.1", "::1")
    assert local_addresses("localhost", {"localhost": ("127.0.0.9",)}) == ("127.0.0.9",)
    assert local_addresses("notlocalhost", {}) == ()
