"""Channel arguments and target strings of single-address channels."""

from __future__ import annotations

import pytest

from meshlib.clients.grpc.options import channel_options, endpoint_target
from meshlib.model.endpoint import Endpoint


def test_users_options_come_first_and_win() -> None:
    """A name the user gave is not given again; the others are ours."""
    options = channel_options([("grpc.enable_http_proxy", 1), ("x", 2)], "orders.shop.svc")
    assert options[:2] == (("grpc.enable_http_proxy", 1), ("x", 2))
    assert dict(options[2:])["grpc.default_authority"] == "orders.shop.svc"
    assert dict(options[2:])["grpc.use_local_subchannel_pool"] == 1
    assert [name for name, _ in options].count("grpc.enable_http_proxy") == 1


def test_users_authority_wins_over_the_targets() -> None:
    """grpc.default_authority given by the user is the only one."""
    options = channel_options([("grpc.default_authority", "mine")], "orders.shop.svc")
    assert [value for name, value in options if name == "grpc.default_authority"] == ["mine"]


def test_no_authority_leaves_the_address() -> None:
    """A target without a logical name (static) sets no authority."""
    assert "grpc.default_authority" not in dict(channel_options(None, ""))


@pytest.mark.parametrize(
    ("address", "text"),
    [("10.0.0.1", "ipv4:10.0.0.1:80"), ("2001:db8::1", "ipv6:%5B2001:db8::1%5D:80")],
)
def test_addresses_are_formatted_for_core(address: str, text: str) -> None:
    """IPv4 and IPv6 in the form that core does not resolve again."""
    assert endpoint_target(Endpoint(address=address, port=80)) == text


@pytest.mark.parametrize("address", ["orders", "10.0.0.1:99", "10.0.0.1,10.0.0.2", "unix:/x", ""])
def test_anything_but_an_address_is_refused(address: str) -> None:
    """A host name or a list never reaches core, whatever a control plane says."""
    with pytest.raises(ValueError):
        endpoint_target(Endpoint(address=address, port=80))


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_ports_out_of_range_are_refused(port: int) -> None:
    """A port that cannot be dialled is an error that names it."""
    with pytest.raises(ValueError, match=str(port)):
        endpoint_target(Endpoint(address="10.0.0.1", port=port))
