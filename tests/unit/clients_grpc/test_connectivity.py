"""The aggregate of endpoint states."""

from __future__ import annotations

import grpc
import pytest
from grpc import ChannelConnectivity as State

from meshlib.clients.grpc.connectivity import aggregate, channel_state


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([], State.IDLE),
        ([State.TRANSIENT_FAILURE, State.READY, State.CONNECTING], State.READY),
        ([State.TRANSIENT_FAILURE, State.CONNECTING, State.IDLE], State.CONNECTING),
        ([State.TRANSIENT_FAILURE, State.IDLE], State.IDLE),
        ([State.TRANSIENT_FAILURE, State.TRANSIENT_FAILURE], State.TRANSIENT_FAILURE),
    ],
)
def test_aggregate(states: list[State], expected: State) -> None:
    """READY if any, else CONNECTING, else IDLE, else TRANSIENT_FAILURE: round_robin's rule."""
    assert aggregate(states) is expected


def test_the_installed_grpcio_tells_a_channels_state_without_a_subscription() -> None:
    """The one private thing that is used works with this grpcio."""
    with grpc.insecure_channel("ipv4:127.0.0.1:9") as channel:
        assert channel_state(channel) is State.IDLE
