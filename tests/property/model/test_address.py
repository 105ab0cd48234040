"""The address policy against the standard library as oracle."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

from hypothesis import given
from hypothesis import strategies as st

from meshlib.errors import DataError
from meshlib.model.address import AddressPolicy, canonical

DEFAULT = AddressPolicy()

near_misses = st.lists(
    st.one_of(
        st.integers(0, 300).map(str),
        st.sampled_from(["", "00", "01", "0x7f", "+1", "-1", " 1", "1 ", "1_0", "١", "１", "255", "256"]),
    ),
    min_size=1,
    max_size=6,
).map(".".join)


@given(
    st.one_of(near_misses, st.text(alphabet="0123456789abcdefx:.%[] \n", max_size=20), st.text(max_size=12))
)
def test_never_another_meaning_than_the_standard_librarys(text: str) -> None:
    """What passes is the canonical text of exactly the address that ``ipaddress`` reads; all else is DataError."""
    try:
        passed = DEFAULT.check(text)
    except DataError:
        return
    assert passed == str(ip_address(text)) == canonical(text)


@given(st.integers(0, 2**32 - 1))
def test_ipv4_kinds(number: int) -> None:
    """An IPv4 address passes exactly when the standard library calls it nothing special in our sense."""
    address = IPv4Address(number)
    special = (
        address in IPv4Network("0.0.0.0/8")
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or str(address) in ("100.100.100.200", "168.63.129.16")
    )
    assert _passes(DEFAULT, str(address)) is not special


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0, 0xFFFF << 32, 0xFFFF << 48, 0x64FF9B << 96, 0x2002 << 112])
)
def test_embedded_ipv4_never_passes(number: int, prefix: int) -> None:
    """No IPv4 address passes inside an IPv6 one, ordinary or not."""
    embedded = number << 80 if prefix >> 112 == 0x2002 else number
    assert not _passes(DEFAULT, str(IPv6Address(prefix | embedded)))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(1, 32))
def test_allowed_network_bounds_everything(number: int, base: int, prefix: int) -> None:
    """With an allowed network nothing outside it passes, and deny has the last word."""
    network = IPv4Network((base, prefix), strict=False)
    text = str(IPv4Address(number))
    if _passes(AddressPolicy(allow=(network,)), text):
        assert IPv4Address(number) in network
    denied = AddressPolicy(allow_loopback=True, allow_link_local=True, deny=(network,))
    assert not (_passes(denied, text) and IPv4Address(number) in network)


def _passes(policy: AddressPolicy, text: str) -> bool:
    try:
        policy.check(text)
    except DataError:
        return False
    return True
