"""Private addresses, whatever is asked for in whatever order: never one for two, and always the same one again."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from meshlib.agent.backends.ipvs.private import PrivateAddresses
from meshlib.agent.desired import FrontendKey

#: Few different last bits, so that first choices meet.
VIPS = st.builds(
    lambda first, rest: f"{first >> 4 | first << 4 & 0xF0}.1.2.{rest}", st.integers(0, 255), st.integers(0, 3)
) | st.ip_addresses(v=4).map(str)


@given(st.lists(VIPS | st.just(""), max_size=60), st.sampled_from(["240.0.0.0/4", "10.0.0.0/8"]))
def test_one_for_each(addresses: list[str], block: str) -> None:
    """Different frontends have different private addresses, inside the block, and none of them is its own."""
    held = PrivateAddresses(block)
    found = {each: held.key(FrontendKey("TCP", each, 80), 4).address for each in addresses}
    assert len(set(found.values())) == len(found)
    assert all(ip_address(each) in ip_network(block) for each in found.values())
    assert all(each != private for each, private in found.items())
    assert all(held.key(FrontendKey("UDP", each, 9), 4).address == found[each] for each in addresses)
