"""The address policy: what passes, what is refused, and how networks are opted in."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from meshlib.errors import DataError
from meshlib.model.address import RELAXED, AddressPolicy, canonical, family

DEFAULT = AddressPolicy()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("192.168.255.0", "192.168.255.0"),
        ("100.64.0.1", "100.64.0.1"),
        ("203.0.113.7", "203.0.113.7"),
        ("168.63.129.17", "168.63.129.17"),
        ("fd00:0:0::1", "fd00::1"),
        ("FD00::A", "fd00::a"),
        ("2001:db8:0:0:1::1", "2001:db8::1:0:0:1"),
        ("64:ff9c::1", "64:ff9c::1"),
    ],
)
def test_ordinary_addresses_pass_in_canonical_form(text: str, expected: str) -> None:
    """Ordinary unicast addresses pass, and only their canonical text goes on."""
    assert DEFAULT.check(text) == expected
    assert canonical(text) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("169.254.0.1", "link-local"),
        ("169.254.169.254", "deny list"),
        ("100.100.100.200", "deny list"),
        ("168.63.129.16", "deny list"),
        ("fd00:ec2::254", "deny list"),
        ("fd00:0ec2:0::0254", "deny list"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "zone"),
        ("::1%lo", "zone"),
        ("10.0.0.1%00", "zone"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("240.0.0.1", "class E"),
        ("::ffff:127.0.0.1", "mapped (of 127.0.0.1)"),
        ("::ffff:10.0.0.1", "mapped (of 10.0.0.1)"),
        ("::ffff:169.254.169.254", "mapped (of 169.254.169.254)"),
        ("::ffff:0:10.0.0.1", "translated"),
        ("::127.0.0.1", "compatible (of 127.0.0.1)"),
        ("64:ff9b::a9fe:a9fe", "NAT64 (of 169.254.169.254)"),
        ("64:ff9b:1::1", "NAT64"),
        ("2002:7f00:1::", "6to4 (of 127.0.0.1)"),
        ("2001::1", "Teredo"),
        ("fec0::1", "site-local"),
    ],
)
def test_special_addresses_are_refused(text: str, word: str) -> None:
    """Everything that is not an ordinary unicast address is refused, with the reason."""
    with pytest.raises(DataError, match=r".") as caught:
        DEFAULT.check(text)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        " ", "127.1", "0", "0x7f.1", "010.0.0.1", "10.0.0.01", "2130706433", "10.0.0.1\n", " 10.0.0.1", "10.0.0.1 ",
        "10.0.0.1\0", "１０.0.0.1", "10.٠.0.1", "10.0.0.256", "10.0.0.-1", "10.0.0.+1", "10.0.0", "10.0.0.1.",
        "10.0.0.1.2", "...", "10..0.1", "evil.com/#", "user@host", "unix:/x", "ipv4:a,b", "[::1]", "[fd00::1]",
        "localhost", "metadata.google.internal", "10.0.0.1:80", "10.0.0.1/32", "x" * 4096, "1" * 4096, ":" * 4096,
        "fd00::1\n", "fd00::１", "\ud800", "1_0.0.0.1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("policy", [DEFAULT, RELAXED, AddressPolicy(allow=(ip_network("0.0.0.0/0"),))])
def test_odd_spellings_are_refused_by_every_policy(text: str, policy: AddressPolicy) -> None:
    """Whatever inet_aton or a person might read as an address, but is not its ordinary spelling, is refused."""
    with pytest.raises(DataError) as caught:
        policy.check(text)
    assert len(str(caught.value)) < 300, "the message does not repeat endless input"


def test_relaxed_allows_what_is_local_but_not_what_is_nonsense() -> None:
    """Static targets and files may name loopback and link-local addresses, nothing stranger."""
    assert RELAXED.check("127.0.0.1") == "127.0.0.1"
    assert RELAXED.check("::1") == "::1"
    assert RELAXED.check("169.254.1.1") == "169.254.1.1"
    for text in ("0.0.0.0", "224.0.0.1", "::ffff:127.0.0.1", "255.255.255.255"):
        with pytest.raises(DataError):
            RELAXED.check(text)


def test_allowed_networks_are_the_only_ones() -> None:
    """A list of networks refuses all others, special ranges within a wide network included."""
    pods = AddressPolicy(allow=(ip_network("10.244.0.0/16"), ip_network("fd00:10::/32")))
    assert pods.check("10.244.3.4") == "10.244.3.4"
    assert pods.check("fd00:10::1") == "fd00:10::1"
    for text in ("10.245.0.1", "fd00:11::1", "192.168.0.1"):
        with pytest.raises(DataError, match="outside"):
            pods.check(text)
    everything = AddressPolicy(allow=(ip_network("0.0.0.0/0"), ip_network("::/0")))
    for text in ("127.0.0.1", "169.254.169.254", "::1", "240.0.0.1", "::ffff:10.0.0.1"):
        with pytest.raises(DataError):
            everything.check(text)


def test_naming_a_special_range_opts_in_to_it() -> None:
    """A network inside a special range can only mean that range; what it embeds is still checked."""
    class_e = AddressPolicy(allow=(ip_network("240.0.0.0/8"), ip_network("10.0.0.0/8")))
    assert class_e.check("240.0.0.1") == "240.0.0.1"
    with pytest.raises(DataError, match="class E"):
        class_e.check("241.0.0.1")
    nat64 = AddressPolicy(allow=(ip_network("64:ff9b::/96"),))
    assert nat64.check("64:ff9b::cb00:7107") == "64:ff9b::cb00:7107"
    for text in ("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"):
        with pytest.raises(DataError, match="NAT64 of"):
            nat64.check(text)
    with pytest.raises(DataError, match="multicast"):
        AddressPolicy(allow=(ip_network("224.0.0.0/4"),)).check("224.0.0.1")


def test_deny_wins() -> None:
    """A denied network is refused even when it is allowed, also among ordinary addresses."""
    policy = AddressPolicy(allow=(ip_network("10.0.0.0/8"),), deny=(ip_network("10.9.0.0/16"),))
    assert policy.check("10.8.0.1") == "10.8.0.1"
    with pytest.raises(DataError, match="deny"):
        policy.check("10.9.0.1")
    with pytest.raises(DataError, match="deny"):
        AddressPolicy(deny=(ip_network("10.9.0.0/16"),)).check("10.9.0.1")
    # link-local allowed does not open the metadata service
    with pytest.raises(DataError, match="deny"):
        AddressPolicy(allow_link_local=True).check("169.254.169.254")


def test_policies_compare_by_their_settings() -> None:
    """Equal settings are an equal policy, so configurations can be compared."""
    assert AddressPolicy() == DEFAULT
    assert hash(AddressPolicy()) == hash(DEFAULT)
    assert AddressPolicy(allow_loopback=True) != DEFAULT


def test_family() -> None:
    """The family is read off the canonical text."""
    assert (family("10.0.0.1"), family("fd00::1")) == (4, 6)
