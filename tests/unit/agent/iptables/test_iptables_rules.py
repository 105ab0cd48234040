"""iptables: rules, the text that writes them, and what the helper's process refuses to run."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from meshlib.agent.backends.iptables import IptablesBackend
from meshlib.agent.backends.iptables.helper import refusal, serve
from meshlib.agent.backends.iptables.programs import Done, restore
from meshlib.agent.backends.iptables.rules import HOOK, RULES, Name, identity, rules
from meshlib.agent.backends.iptables.tables import Tables, read
from meshlib.agent.backends.iptables.translate import fixed, translate
from meshlib.agent.desired import (
    Action,
    Frontend,
    FrontendKey,
    FrontendKind,
    Masquerade,
    Place,
    PortKey,
    Route,
    Target,
)
from meshlib.agent.objects import ObjectKey, Operation, Verb
from meshlib.model.service import ServiceKey

OWNER = PortKey(ServiceKey("shop", "web"), "http", "TCP")
PLACE = Place(4, ("10.0.0.1",), ("10.1.0.0/24",), service_ranges=("10.96.0.0/16",))


def frontend(count: int = 2, address: str = "10.96.0.1", port: int = 80, **more: Any) -> Frontend:
    targets = tuple(Target(f"10.1.0.{number}", 8080) for number in range(2, 2 + count))
    route = Route(Action.FORWARD if targets else Action.REJECT, targets)
    kind = more.pop("kind", FrontendKind.CLUSTER_IP)
    return Frontend(FrontendKey("TCP", address, port), kind, OWNER, route, **more)


def name_of(key: ObjectKey) -> Name:
    found: Any = key.name
    assert isinstance(found, Name)
    return found


def texts(objects: Any, chain: str) -> list[str]:
    """What the rules of a chain say behind their comments."""
    return [
        text.split('" ', 1)[1]
        for key, value in sorted(objects.items())
        if name_of(key).chain.startswith(chain)
        for text in value.texts
    ]


def program(tables: Tables, old: Any, new: Any) -> str:
    plan = [Operation(Verb.ADD, key, value) for key, value in new.items() if old.get(key) != value]
    plan += [Operation(Verb.REMOVE, key, value) for key, value in old.items() if key not in new]
    text = tables.text(plan)
    tables.done(text)
    return str(text)


def saved(text: str) -> str:
    """What iptables-save would say after a first iptables-restore: this text."""
    return "\n".join(
        line.replace("-I ", "-A ").replace(" 1 -m comment", " -m comment") for line in text.splitlines()
    )


def test_two_rules_for_a_frontend_and_one_for_an_endpoint() -> None:
    """And none where nothing is masqueraded."""
    objects = translate(frontend(masquerade=Masquerade.OFF_NODE), PLACE)
    assert texts(objects, "MESHLIB-S-") == [
        "-p tcp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.1.0.2:8080",
        "-p tcp -j DNAT --to-destination 10.1.0.3:8080",
    ]
    (mark, jump) = texts(
        {key: value for key, value in objects.items() if name_of(key).table == "nat"}, "MESHLIB-A-"
    )
    assert mark == "-d 10.96.0.1 -p tcp -m tcp --dport 80 -j MESHLIB-OFF-NODE"
    assert jump.startswith("-d 10.96.0.1 -p tcp -m tcp --dport 80 -j MESHLIB-S-")
    assert len(translate(frontend(), PLACE)) == len(objects)


def test_frontends_with_the_same_endpoints_share_them() -> None:
    """A node port costs its own rule only; another set is another chain."""
    cluster = translate(frontend(), PLACE)
    port = translate(frontend(address="", port=30080, kind=FrontendKind.NODE_PORT), PLACE)
    other = translate(frontend(1), PLACE)

    def chains(objects: Any) -> set[str]:
        return {name_of(key).chain for key in objects if name_of(key).chain.startswith("MESHLIB-S-")}

    assert chains(cluster) == chains(port)
    assert chains(cluster).isdisjoint(chains(other))


def test_names_are_short_enough() -> None:
    """The kernel takes 28 characters of a chain's name, 255 of a comment."""
    long = PortKey(ServiceKey("n" * 63, "s" * 63), "p" * 15, "SCTP")
    v6 = "2001:db8:1111:2222:3333:4444:5555:6666"
    route = Route(Action.FORWARD, (Target(v6, 65535),))
    found = Frontend(
        FrontendKey("SCTP", v6, 65535), FrontendKind.LOAD_BALANCER, long, route, route, affinity_seconds=9
    )
    objects = {**translate(found, Place(6)), **fixed(PLACE)}
    for key, value in objects.items():
        assert len(name_of(key).chain) <= 28
        for text in value.texts:
            assert len(text.split('"')[1]) < 256


def test_what_is_written_is_read_back() -> None:
    """Equal by digest, whatever words iptables-save finds for a rule; one without a comment is nobody's wish."""
    wanted = {**fixed(PLACE), **translate(frontend(), PLACE)}
    text = program(Tables(), {}, wanted)
    assert read(saved(text)).objects() == wanted
    reworded = saved(text).replace("-d 10.96.0.1 -p", "-d 10.96.0.1/32 -p")
    assert read(reworded).objects() == wanted
    strange = saved(text).replace(
        "*nat\n", "*nat\n:MESHLIB-LONELY - [0:0]\n-A MESHLIB-IN -j ACCEPT\n-A PREROUTING -j X\n"
    )
    more = set(read(strange).objects()) - set(wanted)
    assert {name_of(key).chain for key in more} == {"MESHLIB-LONELY", "MESHLIB-IN"}


def test_everything_goes_again() -> None:
    """Chains are removed with what led to them, in one text; hooks rule by rule."""
    wanted = {**fixed(PLACE), **translate(frontend(), PLACE)}
    tables = Tables()
    text = program(tables, {}, wanted)
    away = program(tables, wanted, {})
    made = {line.split()[0][1:] for line in text.splitlines() if line.startswith(":")}
    gone = {line.split()[1] for line in away.splitlines() if line.startswith("-X")}
    assert made == gone
    assert away.count("\n-D ") == sum(key.kind == HOOK for key in wanted)
    assert tables.objects() == {}


def test_a_change_rewrites_only_its_chains() -> None:
    """Other chains are not named."""
    tables = Tables()
    before = {**fixed(PLACE), **translate(frontend(), PLACE)}
    for number in range(2, 9):
        before.update(translate(frontend(address=f"10.96.{number}.1"), PLACE))
    program(tables, {}, before)
    after = {**before}
    for key in translate(frontend(), PLACE):
        if name_of(key).chain.startswith("MESHLIB-S-"):
            continue
        after.pop(key)
    after.update(translate(frontend(3), PLACE))
    changed = [line for line in program(tables, before, after).splitlines() if line.startswith(":")]
    assert len(changed) <= 5


def test_identity() -> None:
    """The comment says where and what; anything else is not ours."""
    name = Name("nat", "MESHLIB-X", 3, "TCP 10.96.0.1:80 shop/web:http/TCP")
    value = rules(name, ["-j ACCEPT"])
    assert identity(value.texts[0]) == (3, name.words, value.digests[0])
    assert identity('-m comment --comment "something" -j ACCEPT') is None
    assert identity("-j ACCEPT") is None


class Kernel:
    """A program that refuses what has a word in it."""

    def __init__(self, bad: str = "", error: str = "iptables-restore: line {} failed") -> None:
        self.bad, self.error = bad, error
        self.runs = 0

    def __call__(self, words: Sequence[str], text: str) -> Done:
        if words[0].endswith("-save"):
            return Done(0, "", "")
        self.runs += 1
        for number, line in enumerate(text.splitlines(), 1):
            if self.bad and self.bad in line:
                return Done(1, "", self.error.format(number))
        return Done(0, "", "")


@pytest.mark.parametrize("error", ["iptables-restore: line {} failed", "something else"])
def test_what_is_refused_fails_alone(error: str) -> None:
    """Found by the line that the program names, else by halving; the rest is written."""
    kernel = Kernel("--dport 666", error)
    backend = IptablesBackend(4, kernel, ("",))
    plan = [
        Operation(Verb.ADD, key, value)
        for port in (80, 81, 666, 82)
        for key, value in translate(frontend(port=port, address=f"10.96.{port % 255}.1"), PLACE).items()
    ]
    failed = backend.apply(tuple(plan), 0.0)
    assert [name_of(each.operation.key).words for each in failed] == [f"TCP 10.96.156.1:666 {OWNER}"]
    assert failed[0].errno == errno.EIO
    assert kernel.runs < 20


def test_no_permission_fails_all_at_once() -> None:
    """Without trying again and again."""
    kernel = Kernel("*nat", "iptables-restore: Permission denied (you must be root)")
    backend = IptablesBackend(4, kernel, ("",))
    plan = tuple(Operation(Verb.ADD, key, value) for key, value in fixed(PLACE).items())
    assert {each.errno for each in backend.apply(plan, 0.0)} == {errno.EPERM}
    assert kernel.runs == 1
    assert not backend.probe().usable


def test_the_helper_runs_nothing_else() -> None:
    """Only iptables' programs, and only text about our chains."""
    words = restore(4, "-nft")
    good = program(Tables(), {}, {**fixed(PLACE), **translate(frontend(), PLACE)})
    assert refusal(words, good) == ""
    assert refusal(("iptables-save",), "") == ""
    for bad in (
        "sh -c x",
        "iptables-restore",
        "/tmp/iptables-restore -w 10 --noflush",
        "nft -f -",
        "iptables-restore -w 1 --noflush -M x",
    ):
        assert refusal(bad.split(), "")
    for line in (
        "-F INPUT",
        "-A INPUT -j ACCEPT",
        ":INPUT DROP [0:0]",
        "-I INPUT 1 -j ACCEPT",
        "-D FORWARD -j DROP",
        "-P INPUT DROP",
        "-A KUBE-SERVICES -j MESHLIB-IN",
        "*raw",
        "-X KUBE-SERVICES",
        ":MESHLIB-X ACCEPT [0:0]",
        # Options that have a program run as the helper, or a file read.
        "-A MESHLIB-IN -M /tmp/mine -m nothing -j ACCEPT",
        "-A MESHLIB-IN --modprobe=/tmp/mine -j ACCEPT",
        "-A MESHLIB-IN --mo /tmp/mine -j ACCEPT",
        '-A MESHLIB-IN "-M" /tmp/mine -j ACCEPT',
        '-A MESHLIB-IN -""M /tmp/mine -j ACCEPT',
        "-A MESHLIB-IN \\-M /tmp/mine -j ACCEPT",
        "-A MESHLIB-IN -m bpf --object-pinned /sys/fs/bpf/x -j ACCEPT",
        "-A MESHLIB-IN -m ../../tmp/mine -j ACCEPT",
        "-A MESHLIB-IN -j NFQUEUE",
        "-I INPUT 1 -M /tmp/mine -j MESHLIB-IN",
    ):
        assert refusal(words, good.replace("COMMIT", f"{line}\nCOMMIT", 1)), line


def test_the_helper_answers() -> None:
    """What was run, what was not, and why."""
    from meshlib.agent.backends.iptables import helper

    near, far = socket.socketpair()
    kernel = Kernel()
    thread = threading.Thread(target=serve, args=(far, kernel))
    thread.start()
    client = helper.Helper.__new__(helper.Helper)
    client._connection, client._bodies = near, helper._bodies(near)
    assert client(restore(4, ""), "*nat\nCOMMIT\n") == Done(0, "", "")
    with pytest.raises(PermissionError):
        client(("sh",), "")
    assert kernel.runs == 1
    near.close()
    thread.join(10)
    far.close()


def test_kinds() -> None:
    """Rules before what leads to them; every object is ours by its name or comment."""
    backend = IptablesBackend(4, Kernel(), ("",))
    assert backend.kinds == (RULES, HOOK)
    for key in backend.fixed(PLACE):
        assert backend.ledger_key(key) is None
        assert isinstance(key, ObjectKey)
