"""Decoders on data that nobody would write: one bad piece costs one piece, and only DataError comes out."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meshlib.errors import DataError
from meshlib.model.address import AddressPolicy
from meshlib.model.decode_service import service_from_json, service_from_object
from meshlib.model.decode_slices import (
    slice_from_json,
    slice_from_object,
    slices_from_endpoints_json,
    slices_from_endpoints_object,
)
from meshlib.model.envelope import list_from_json, object_meta, status_from_json, watch_from_json
from meshlib.model.slices import EndpointSlice

POLICY = AddressPolicy()

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=5),
    st.lists(st.none(), max_size=2),
    st.dictionaries(st.sampled_from(["name", "ready", "x"]), st.one_of(st.none(), st.integers()), max_size=2),
)
texts = st.sampled_from(["a", "node-a", "zone-1", "", "x\r\ny"])
addresses = st.sampled_from(["10.0.0.1", "10.0.0.2", "127.0.0.1", "fd00::1", "::ffff:10.0.0.1", "x", ""])


def maybe(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly the good value, sometimes something else entirely."""
    return st.one_of(good, good, good, good, junk)


def record(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


names = maybe(st.lists(maybe(record(name=maybe(texts))), max_size=2))
port_entries = maybe(
    st.lists(
        maybe(
            record(
                name=maybe(texts),
                port=maybe(st.integers(-1, 70000)),
                protocol=maybe(st.sampled_from(["TCP", "UDP", "x"])),
            )
        ),
        max_size=3,
    )
)
metadata = maybe(
    record(
        name=maybe(st.just("s1")),
        namespace=maybe(st.just("shop")),
        labels=maybe(record(**{"kubernetes.io/service-name": maybe(st.just("orders"))})),
        generation=maybe(st.integers(0, 5)),
        resourceVersion=maybe(texts),
        annotations=maybe(st.dictionaries(texts, texts, max_size=2)),
    )
)
slice_objects = record(
    metadata=metadata,
    addressType=maybe(st.sampled_from(["IPv4", "IPv6", "FQDN"])),
    ports=port_entries,
    endpoints=maybe(
        st.lists(
            maybe(
                record(
                    addresses=maybe(st.lists(maybe(addresses), max_size=2)),
                    conditions=maybe(
                        record(
                            ready=maybe(st.booleans()),
                            serving=maybe(st.booleans()),
                            terminating=maybe(st.booleans()),
                        )
                    ),
                    hostname=maybe(texts),
                    nodeName=maybe(texts),
                    zone=maybe(texts),
                    targetRef=maybe(record(name=maybe(texts), uid=maybe(texts))),
                    hints=maybe(record(forZones=names, forNodes=names)),
                    topology=maybe(
                        st.dictionaries(st.just("kubernetes.io/hostname"), maybe(texts), max_size=1)
                    ),
                )
            ),
            max_size=4,
        )
    ),
)
endpoints_objects = record(
    metadata=metadata,
    subsets=maybe(
        st.lists(
            maybe(
                record(
                    addresses=maybe(
                        st.lists(maybe(record(ip=maybe(addresses), nodeName=maybe(texts))), max_size=3)
                    ),
                    notReadyAddresses=maybe(st.lists(maybe(record(ip=maybe(addresses))), max_size=2)),
                    ports=port_entries,
                )
            ),
            max_size=3,
        )
    ),
)


def outcome(decode: Any, value: Any) -> tuple[Any, list[tuple[str, str]]]:
    """What a decoder gives and what it skips; DataError counts as an outcome."""
    told: list[tuple[str, str]] = []
    try:
        return decode(value, POLICY, lambda *skipped: told.append(skipped)), told
    except DataError:
        return DataError, told


@given(slice_objects)
def test_json_and_objects_decode_alike(obj: dict[str, Any]) -> None:
    """The one-step way for good JSON and the piecewise way give one result and skip the same pieces."""
    found = outcome(slice_from_json, json.dumps(obj).encode())
    assert found == outcome(slice_from_object, obj)
    if isinstance(found[0], EndpointSlice):
        given_count = len(obj["endpoints"]) if isinstance(obj.get("endpoints"), list) else 0
        lost = sum(1 for where, _ in found[1] if where.endswith("]") and "endpoints[" in where)
        assert len(found[0].endpoints) == given_count - lost
        for endpoint in found[0].endpoints:
            assert (":" in endpoint.address) is (found[0].family == 6)
            assert POLICY.check(endpoint.address) == endpoint.address
            assert (endpoint.node + endpoint.zone + endpoint.hostname + endpoint.uid).isprintable()


@given(endpoints_objects)
def test_endpoints_decode_alike(obj: dict[str, Any]) -> None:
    """The same for core Endpoints."""
    found = outcome(slices_from_endpoints_json, json.dumps(obj).encode())
    assert found == outcome(slices_from_endpoints_object, obj)


@given(
    st.one_of(
        slice_objects, endpoints_objects, junk, st.recursive(junk, lambda inner: st.lists(inner, max_size=3))
    )
)
def test_service_is_whole_or_an_error(obj: Any) -> None:
    """Any object is a Service or DataError, the same from JSON and from the object."""

    def decoded(decode: Any, value: Any) -> Any:
        try:
            return decode(value)
        except DataError:
            return DataError

    assert decoded(service_from_json, json.dumps(obj).encode()) == decoded(service_from_object, obj)


GOOD_SLICE = json.dumps(
    {
        "metadata": {"name": "s1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "orders"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}, "nodeName": "n\u0085"}],
    }
).encode()
DECODERS = (list_from_json, watch_from_json, object_meta, status_from_json, service_from_json)


@given(st.integers(0, len(GOOD_SLICE)), st.binary(max_size=6), st.integers(0, 6), st.data())
def test_damaged_bytes(at: int, put: bytes, drop: int, data: st.DataObject) -> None:
    """Bytes put in, taken out or cut off end in a result or DataError, in every decoder."""
    raw = GOOD_SLICE[:at] + put + GOOD_SLICE[at + drop :]
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    outcome(slice_from_json, raw)
    outcome(slices_from_endpoints_json, raw)
    for decode in DECODERS:
        with suppress(DataError):
            decode(raw)


@given(st.binary(max_size=40))
def test_any_bytes(raw: bytes) -> None:
    """Arbitrary bytes are DataError everywhere, unless they happen to be what was asked for."""
    outcome(slice_from_json, raw)
    for decode in DECODERS:
        with suppress(DataError):
            decode(raw)
