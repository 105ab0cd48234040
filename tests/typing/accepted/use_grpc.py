"""The channels are grpc's own types, so generated stubs take them."""

import grpc
import grpc.aio

import meshlib.grpc


def sync_channel() -> grpc.Channel:
    return meshlib.grpc.insecure_channel(
        "k8s:///orders.shop:grpc", options=[("grpc.max_receive_message_length", 1)]
    )


def secure(credentials: grpc.ChannelCredentials) -> grpc.Channel:
    return meshlib.grpc.secure_channel("k8s:///orders.shop:grpc", credentials)


def async_channel() -> grpc.aio.Channel:
    return meshlib.grpc.aio.insecure_channel("k8s:///orders.shop:grpc")
