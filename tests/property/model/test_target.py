"""Targets: canonical text and parser are inverse, and no text does worse than TargetError."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import assume, example, given
from hypothesis import strategies as st

from meshlib.errors import DataError, TargetError
from meshlib.model.address import RELAXED
from meshlib.model.hosts import HostKind, match_host
from meshlib.model.names import is_host_name, is_port_name
from meshlib.model.target import StaticAddress, Target, TargetDefaults

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
hosts = st.from_regex(r"([a-z0-9_]([a-z0-9_-]{0,8}[a-z0-9_])?\.){0,3}[a-z][a-z0-9]{0,8}\.?", fullmatch=True)
ports = st.integers(1, 65535)
port_names = labels.filter(is_port_name)
addresses = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda n: str(IPv4Address(n))),
    st.integers(0, 2**128 - 1).map(lambda n: str(IPv6Address(n))),
).filter(lambda text: _passes(text))
defaults = st.builds(TargetDefaults, namespace=labels, cluster_domain=hosts.map(lambda name: name.strip(".")))


def _passes(text: str) -> bool:
    try:
        return RELAXED.check(text) == text
    except DataError:
        return False


@st.composite
def targets(draw: st.DrawFn) -> Target:
    scheme = draw(st.sampled_from(["k8s", "host", "dns", "dns+srv", "static", "file"]))
    server = draw(st.one_of(st.just(""), st.builds(_server, addresses, ports)))
    match scheme:
        case "k8s":
            return Target.kubernetes(draw(labels), draw(labels), draw(st.one_of(ports, port_names)))
        case "host":
            hostname = draw(st.one_of(st.just(""), labels))
            port = draw(st.one_of(ports, port_names))
            return Target.kubernetes(draw(labels), draw(labels), port, hostname=hostname, by_host=True)
        case "dns":
            name = draw(hosts.filter(is_host_name))
            return Target("dns", name=name, port=draw(ports), server=server, authority=name.removesuffix("."))
        case "dns+srv":
            host = draw(hosts.filter(is_host_name))
            name = f"_{draw(labels)}._{draw(st.sampled_from(['tcp', 'udp']))}.{host}"
            return Target("dns+srv", name=name, server=server, authority=host.removesuffix("."))
        case "static":
            places = draw(st.lists(st.tuples(addresses, ports), min_size=1, max_size=5, unique=True))
            found = tuple(StaticAddress(a, p, draw(st.integers(0, 65535))) for a, p in places)
            first = found[0].address
            return Target("static", addresses=found, authority=f"[{first}]" if ":" in first else first)
        case _:
            path = "/" + "/".join(draw(st.lists(labels, max_size=4)))
            name, namespace = draw(labels), draw(labels)
            port = draw(st.one_of(ports, port_names))
            return Target(
                "file",
                name=name,
                namespace=namespace,
                port=port,
                path=path,
                authority=f"{name}.{namespace}.svc",
            )


def _server(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@given(targets(), defaults)
def test_text_and_target_are_inverse(target: Target, environment: TargetDefaults) -> None:
    """The canonical text of any target parses to that target, whatever the defaults are."""
    assert Target.parse(str(target), environment) == target


pieces = st.lists(
    st.sampled_from(
        [
            "k8s:///",
            "dns:///",
            "dns+srv:///",
            "static:///",
            "file:///",
            "x://",
            "orders",
            "shop",
            ".svc",
            ".",
            ":",
            "80",
            "/",
            "#",
            "@",
            "[",
            "]",
            "fd00::1",
            "10.0.0.1",
            ";weight=",
            ",",
            "_http._tcp.",
            "cluster.local",
            " ",
            "%41",
            "é",
        ]
    ),
    max_size=8,
).map("".join)


@given(st.one_of(st.text(max_size=60), pieces))
@example("static:///" + "1.1.1.1:1," * 100)
def test_any_text_is_a_target_or_an_error(text: str) -> None:
    """Parsing gives a target that its own text gives again, or a TargetError whose part lies inside the text."""
    found = _parsed(text)
    if isinstance(found, TargetError):
        assert 0 <= found.start <= found.end <= len(text)
        assert found.reason in str(found)
    else:
        assert Target.parse(str(found)) == found


def _parsed(text: str) -> Target | TargetError:
    try:
        return Target.parse(text)
    except TargetError as error:
        return error


@given(labels, labels, ports, st.sampled_from(["", ".", ".cluster.local", ".cluster.local."]), st.data())
def test_host_match_agrees_with_parser(
    name: str, namespace: str, port: int, end: str, data: st.DataObject
) -> None:
    """What a URL's host means and what the same host means as a target is one thing, in any case."""
    host = f"{name}.{namespace}.svc{end}"
    mixed = "".join(data.draw(st.sampled_from([c, c.upper()])) for c in host)
    match = match_host("http", mixed, port, TargetDefaults(), {})
    assert match.kind is HostKind.CLUSTER
    assert match.target == Target.parse(f"{mixed}:{port}")


@given(st.text(max_size=40), st.one_of(st.none(), st.integers(-1, 70000)), defaults, st.integers(0, 6))
def test_match_never_raises(host: str, port: int | None, environment: TargetDefaults, ndots: int) -> None:
    """Any text as a host gets an answer with a reason, and candidates only for what is ours."""
    pod = TargetDefaults(environment.namespace, "cluster.local", ("shop.svc.cluster.local",), ndots)
    match = match_host("http", host, port, pod, {})
    assert match.reason
    assert bool(match.targets) is (match.kind is not HostKind.NOT_OURS)
    for target in match.targets:
        assert Target.parse(str(target)) == target


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{}", "0x{:x}", "0{:o}", "127.{}", "1.2.0x{:x}"]))
def test_no_spelling_of_an_address_causes_a_look_up(number: int, form: str) -> None:
    """Whatever inet_aton may read as an address is not ours."""
    host = form.format(number)
    assume(len(host) < 60)
    pod = TargetDefaults("shop", "cluster.local", ("shop.svc.cluster.local",), 5)
    assert match_host("http", host, 80, pod, {}).kind is HostKind.NOT_OURS
