"""What counts as "never connected", and errors made here."""

from __future__ import annotations

import pickle

import grpc
import pytest

from meshlib.clients.grpc.status import MeshRpcError, aio_error, is_local, is_refusal
from meshlib.errors import NoEndpoints

OURS = "ipv4:10.0.0.1:80"
WORDS = "failed to connect to all addresses; last error: UNKNOWN: {}: Failed to connect to remote host: {}"


@pytest.mark.parametrize(
    ("code", "details", "refused"),
    [
        (grpc.StatusCode.UNAVAILABLE, WORDS.format(OURS, "Connection refused"), True),
        (grpc.StatusCode.UNAVAILABLE, WORDS.format(OURS, "connect: Connection timed out (110)"), True),
        (grpc.StatusCode.UNAVAILABLE, WORDS.format("ipv4:10.0.0.1:8080", "Connection refused"), False),
        (grpc.StatusCode.UNAVAILABLE, WORDS.format("ipv4:110.0.0.1:80", "Connection refused"), False),
        (grpc.StatusCode.UNAVAILABLE, "Connection refused", False),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", False),
        (grpc.StatusCode.UNAVAILABLE, None, False),
        (grpc.StatusCode.INTERNAL, WORDS.format(OURS, "Connection refused"), False),
    ],
)
def test_only_our_own_failed_connection_is_a_refusal(
    code: grpc.StatusCode, details: str | None, refused: bool
) -> None:
    """The code, core's words and the very address together; a forwarded error of another address is none."""
    assert is_refusal(code, details, OURS) is refused


def test_running_out_of_descriptors_is_our_own_fault() -> None:
    """EMFILE blames no endpoint."""
    assert is_local(WORDS.format(OURS, "Too many open files"))
    assert not is_local(WORDS.format(OURS, "Connection refused"))


def test_synthesised_errors_are_what_grpc_errors_are() -> None:
    """RpcError, Call and Future at once, finished, raising itself; and the same error for asyncio."""
    cause = NoEndpoints("none")
    error = MeshRpcError(grpc.StatusCode.UNAVAILABLE, "NoEndpoints: none", cause)
    assert isinstance(error, grpc.RpcError)
    assert isinstance(error, grpc.Call)
    assert isinstance(error, grpc.Future)
    with pytest.raises(MeshRpcError):
        error.result()
    assert error.exception() is error
    assert error.traceback() is not None
    assert (error.done(), error.running(), error.cancelled(), error.cancel(), error.is_active()) == (
        True,
        False,
        False,
        False,
        False,
    )
    called: list[object] = []
    error.add_done_callback(called.append)
    assert called == [error]
    assert not error.add_callback(lambda: None)
    assert "UNAVAILABLE" in str(error)
    assert error.__cause__ is cause
    other = aio_error(error)
    assert (other.code(), other.details(), other.__cause__) == (error.code(), error.details(), cause)


def test_synthesised_errors_can_be_pickled() -> None:
    """Errors cross process boundaries in worker pools."""
    error = pickle.loads(pickle.dumps(MeshRpcError(grpc.StatusCode.UNAVAILABLE, "x")))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "x")
