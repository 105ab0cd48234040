"""The small pure parts: back-off, gate, lines, faults, versions, the Role, the hold of removals."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from meshlib.discovery.kubernetes.backoff import Backoff
from meshlib.discovery.kubernetes.faults import FaultKind, from_error_event, from_response, retry_after
from meshlib.discovery.kubernetes.gate import Gate, Ticket, Wait
from meshlib.discovery.kubernetes.holding import HOLD, Holding
from meshlib.discovery.kubernetes.lines import LineSplitter, LineTooLong
from meshlib.discovery.kubernetes.rbac import Subject, role_yaml
from meshlib.discovery.kubernetes.reflector import (
    Fault,
    List,
    ListPage,
    Reflector,
    ReflectorProtocolError,
    Restarted,
    Sleep,
    Watch,
    version_is_older,
)
from meshlib.discovery.kubernetes.resources import selector
from meshlib.discovery.kubernetes.versions import SliceApi, choose
from meshlib.model.service import ServiceKey
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort


def test_backoff_doubles_to_the_cap_and_forgets_after_two_minutes() -> None:
    """0.8 s doubled up to 30 s, times 1 to 2; two minutes without trouble start it anew."""
    backoff, now, delays = Backoff(), 0.0, []
    for _ in range(8):
        delays.append(backoff.next(now, 0.0))
        now += delays[-1]
    assert delays == [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    assert backoff.next(now, 0.999) == pytest.approx(59.97)
    assert not backoff.quiet(now + 59.97 + 120)
    assert backoff.next(now + 59.97 + 120.1, 0.0) == 0.8


def test_gate_lets_one_probe_stand_for_all() -> None:
    """Unproven: one at a time. A failure shuts it for all, a success opens it, old answers count for nothing."""
    gate = Gate(lambda: 0.0)
    first = gate.admit(0.0)
    assert isinstance(first, Ticket)
    assert gate.admit(0.0) == Wait(math.inf)
    gate.succeeded(first)
    many = [gate.admit(1.0) for _ in range(5)]
    assert all(isinstance(each, Ticket) for each in many)
    old = [each for each in many if isinstance(each, Ticket)]
    gate.failed(old[0], 2.0)
    gate.failed(old[1], 2.0)
    assert gate.failures == 1
    assert gate.admit(2.5) == Wait(2.8)
    gate.succeeded(old[2])
    assert not gate.proven
    probe = gate.admit(2.8)
    assert isinstance(probe, Ticket)
    assert gate.admit(2.8) == Wait(math.inf)
    gate.failed(probe, 3.0, retry_after=7.0)
    assert gate.closed_for(3.0) == 7.0
    last = gate.admit(10.0)
    assert isinstance(last, Ticket)
    gate.succeeded(last)
    assert isinstance(gate.admit(10.0), Ticket)


def test_gate_probe_that_says_nothing_frees_the_place() -> None:
    """A cancelled request or a version probe opens nothing, but the next may go."""
    gate = Gate(lambda: 0.0)
    first = gate.admit(0.0)
    assert isinstance(first, Ticket)
    gate.answered(first)
    assert isinstance(gate.admit(0.0), Ticket)
    assert isinstance(gate.admit(0.0), Wait)


def test_gate_suspects_after_a_broken_watch() -> None:
    """A proven watch that broke makes the next request a probe, at once."""
    gate = Gate(lambda: 0.0)
    first = gate.admit(0.0)
    assert isinstance(first, Ticket)
    gate.succeeded(first)
    gate.suspect(first)
    assert isinstance(gate.admit(5.0), Ticket)
    assert isinstance(gate.admit(5.0), Wait)


def test_line_limit() -> None:
    """A line of the limit passes, one byte more does not, whether it ends or not."""
    assert list(LineSplitter(4).feed(b"abcd\n")) == [b"abcd"]
    with pytest.raises(LineTooLong):
        list(LineSplitter(4).feed(b"abcde\n"))
    splitter = LineSplitter(4)
    assert list(splitter.feed(b"abc")) == []
    with pytest.raises(LineTooLong):
        list(splitter.feed(b"de"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7", 7.0),
        ("-1", 0.0),
        ("1e9", 300.0),
        ("soon", None),
        ("nan", None),
        ("inf", 300.0),
        (None, None),
        (True, None),
        (3, 3.0),
    ],
)
def test_retry_after_is_clamped(value: object, expected: float | None) -> None:
    """Seconds within [0, 300], or nothing."""
    assert retry_after(value) == expected


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (401, FaultKind.UNAUTHORIZED),
        (403, FaultKind.FORBIDDEN),
        (404, FaultKind.NOT_SERVED),
        (410, FaultKind.EXPIRED),
        (429, FaultKind.THROTTLED),
        (500, FaultKind.SERVER),
        (504, FaultKind.SERVER),
        (204, FaultKind.BAD_DATA),
        (301, FaultKind.REJECTED),
        (422, FaultKind.REJECTED),
    ],
)
def test_kind_of_a_status(code: int, kind: FaultKind) -> None:
    """The HTTP status decides, whatever the body says."""
    assert from_response(code, b'{"reason":"Expired","code":7}', {}, "LIST x").kind is kind


@given(st.binary() | st.text().map(lambda text: json.dumps({"kind": "Status", "message": text}).encode()))
def test_any_body_gives_a_short_printable_message(body: bytes) -> None:
    """A server's text is untrusted: it is cut and cleaned, and nothing crashes."""
    for fault in (
        from_response(500, body, {"retry-after": "x"}, "LIST x"),
        from_error_event(body, "WATCH x"),
    ):
        assert len(fault.message) < 400
        assert fault.message.isprintable()


def test_versions_are_chosen_in_order() -> None:
    """v1 before v1beta1 before Endpoints."""

    def group(*versions: str) -> bytes:
        return json.dumps({"kind": "APIGroup", "versions": [{"version": each} for each in versions]}).encode()

    assert choose(group("v1beta1", "v1")) is SliceApi.V1
    assert choose(group("v1beta1")) is SliceApi.V1BETA1
    assert choose(group("v2")) is SliceApi.ENDPOINTS
    with pytest.raises(Exception, match="not APIGroup"):
        choose(b'{"kind":"Status"}')


def test_version_comparison_is_only_for_plain_numbers() -> None:
    """Opaque texts are never older, whatever digits they hold."""
    assert version_is_older("9", "10")
    for pair in (("10", "9"), ("a", "b"), ("", "1"), ("-1", "1"), ("１", "2"), ("1" * 21, "2" * 21)):
        assert not version_is_older(*pair)


def test_selector_falls_back_to_all_slices_when_names_are_many() -> None:
    """A URL stays short."""
    assert selector(["b", "a"]) == "kubernetes.io/service-name in (a,b)"
    assert selector(f"s{number}" for number in range(65)) == "kubernetes.io/service-name"


def test_continue_token_that_expired_restarts_once() -> None:
    """A15: 410 in the middle of a paged list starts it again without the token, once at once, then with back-off."""
    reflector: Reflector[int] = Reflector(lambda: 0.0)
    reflector.start(0.0)
    commands = reflector.listed(ListPage("5", {("ns", "a"): 1}, "token-1"), 0.0)
    assert commands == [List("", "token-1", 500)]
    expired = Fault(FaultKind.EXPIRED, "expired")
    commands = reflector.list_failed(expired, 0.0)
    assert [type(each) for each in commands] == [Restarted, List]
    assert commands[-1] == List("0")
    reflector.listed(ListPage("5", {}, "token-2"), 0.0)
    assert isinstance(reflector.list_failed(expired, 0.0)[-1], Sleep)


@pytest.mark.parametrize(
    "tokens", [["same"] * 3, [f"t{number}" for number in range(2000)]], ids=["loop", "endless"]
)
def test_list_that_never_ends(tokens: list[str]) -> None:
    """A continue token that repeats, or never stops, is a failure that backs off."""
    reflector: Reflector[int] = Reflector(lambda: 0.0)
    reflector.start(0.0)
    for token in tokens:
        commands = reflector.listed(ListPage("5", {}, token), 0.0)
        if isinstance(commands[-1], Sleep):
            break
    assert isinstance(commands[-1], Sleep)
    assert not reflector.synced


def test_wrong_order_is_an_error() -> None:
    """What is not in the transition table is a bug of the driver and says so."""
    reflector: Reflector[int] = Reflector(lambda: 0.0)
    with pytest.raises(ReflectorProtocolError, match="new"):
        reflector.slept(0.0)
    reflector.start(0.0)
    with pytest.raises(ReflectorProtocolError, match="listing"):
        reflector.watch_opened(0.0)


def test_watch_starts_at_the_version_of_the_list() -> None:
    """The first list may be anything the server has; the watch goes on from its version for 300 to 600 s."""
    reflector: Reflector[int] = Reflector(lambda: 0.5)
    assert reflector.start(0.0) == [List("0")]
    assert reflector.listed(ListPage("7", {}), 0.0)[-1] == Watch("7", 450)


def test_role_is_valid_yaml_for_the_asked_subject() -> None:
    """The Role allows list and watch of slices and Services, and the binding names the subject."""
    for subject, kind in (
        (Subject("web", "front"), "ServiceAccount"),
        (Subject("", "bob@example.com"), "User"),
    ):
        role, binding = yaml.safe_load_all(role_yaml("shop", subject))
        assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "shop"
        assert {r for rule in role["rules"] for r in rule["resources"]} == {"endpointslices", "services"}
        assert all(rule["verbs"] == ["list", "watch"] for rule in role["rules"])
        assert binding["subjects"][0]["kind"] == kind
        assert binding["subjects"][0]["name"] == subject.name
        assert binding["roleRef"]["name"] == role["metadata"]["name"]


@pytest.mark.parametrize(
    "user",
    ['x"\n- kind: Group', "a b", "", "system:serviceaccount:A:b", "x" * 300, "system:serviceaccount:a"],
)
def test_user_names_cannot_inject_yaml(user: str) -> None:
    """A name out of a server's message is used only if it is harmless."""
    subject = Subject.from_user_name(user)
    documents = list(yaml.safe_load_all(role_yaml("shop", subject)))
    assert len(documents) == 2
    assert len(documents[1]["subjects"]) == 1


PORTS = (SlicePort("http", 8080),)


def one(name: str, *addresses: str, ports: tuple[SlicePort, ...] = PORTS) -> EndpointSlice:
    endpoints = tuple(SliceEndpoint(address=each) for each in addresses)
    return EndpointSlice(
        namespace="shop",
        name=name,
        service=ServiceKey("shop", "orders"),
        family=4,
        ports=ports,
        endpoints=endpoints,
    )


def shown(holding: Holding) -> list[str]:
    return sorted(each.address for one in holding.slices() for each in one.endpoints)


def test_removal_is_held_and_let_go() -> None:
    """An address that left all slices stays for 100 ms."""
    holding = Holding()
    holding.update({"s1": one("s1", "10.0.0.1", "10.0.0.2")}, 0.0)
    assert holding.update({"s1": one("s1", "10.0.0.2")}, 1.0)
    assert shown(holding) == ["10.0.0.1", "10.0.0.2"]
    assert holding.wake_at == 1.0 + HOLD
    assert not holding.expire(1.05)
    assert holding.expire(1.0 + HOLD)
    assert shown(holding) == ["10.0.0.2"]
    assert holding.wake_at == math.inf


def test_port_change_holds_the_old_place() -> None:
    """The same address on another port is another place: both are there for 100 ms."""
    holding = Holding()
    holding.update({"s1": one("s1", "10.0.0.1")}, 0.0)
    holding.update({"s1": one("s1", "10.0.0.1", ports=(SlicePort("http", 9090),))}, 1.0)
    assert {(s.ports[0].port, s.endpoints[0].address) for s in holding.slices()} == {
        (8080, "10.0.0.1"),
        (9090, "10.0.0.1"),
    }
    holding.expire(2.0)
    assert [s.ports[0].port for s in holding.slices()] == [9090]


def test_same_slice_again_is_no_change() -> None:
    """An equal slice publishes nothing."""
    holding = Holding()
    assert holding.update({"s1": one("s1", "10.0.0.1")}, 0.0)
    assert not holding.update({"s1": one("s1", "10.0.0.1")}, 1.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]), st.none() | st.sets(st.integers(1, 5)), st.floats(0.0, 0.15)
        ),
        max_size=30,
    )
)
def test_holding_shows_what_is_there_and_only_what_was_just_there(
    steps: list[tuple[str, set[int] | None, float]],
) -> None:
    """Everything in a slice is shown; anything else was in a slice at most 100 ms ago."""
    holding, now = Holding(), 0.0
    slices: dict[str, set[str]] = {}
    last_there: dict[str, float] = {}
    for name, members, delay in steps:
        now += delay
        holding.expire(now)
        for address in set().union(*slices.values()) if slices else ():
            last_there[address] = now
        texts = {f"10.0.0.{each}" for each in members} if members is not None else None
        holding.update({name: None if texts is None else one(name, *sorted(texts))}, now)
        if texts is None:
            slices.pop(name, None)
        else:
            slices[name] = texts
        there = set().union(*slices.values()) if slices else set()
        visible = set(shown(holding))
        assert there <= visible
        for address in visible - there:
            assert now - last_there[address] <= HOLD + 1e-9
        held = [e.address for s in holding.slices() if "~" in s.name for e in s.endpoints]
        assert len(held) == len(set(held))
        assert not set(held) & there
