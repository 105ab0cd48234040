"""A list of 10,000 endpoints to an EndpointSet, against the ``kubernetes`` package's models on the same bytes.

CPU time of the process, both in the same run, alternating.
"""

from __future__ import annotations

import json
import time
from typing import Any

from meshlib.discovery.kubernetes import resources
from meshlib.discovery.kubernetes.versions import SliceApi
from meshlib.model.address import AddressPolicy
from meshlib.model.eligibility import eligible
from meshlib.model.envelope import list_from_json
from meshlib.model.service import Service, ServiceKey, ServicePort
from meshlib.model.vantage import Path, VantagePoint

NAME = "list of 10,000 endpoints, CPU ms"
TARGETS = "at least 10 times less CPU than the kubernetes models; no step above 5 ms"

SLICES, PER_SLICE = 100, 100


def document() -> bytes:
    """What an API server answers, with the fields a real one has."""
    items = []
    for number in range(SLICES):
        endpoints = [
            {
                "addresses": [f"10.{number // 200}.{number % 200}.{each + 1}"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node-{each % 50}",
                "zone": f"zone-{each % 3}",
                "targetRef": {
                    "kind": "Pod",
                    "namespace": "shop",
                    "name": f"orders-{number}-{each}",
                    "uid": f"00000000-0000-4000-8000-{number:06d}{each:06d}",
                },
            }
            for each in range(PER_SLICE)
        ]
        items.append(
            {
                "metadata": {
                    "name": f"orders-{number}",
                    "namespace": "shop",
                    "uid": f"11111111-0000-4000-8000-{number:012d}",
                    "resourceVersion": str(1000 + number),
                    "generation": 1,
                    "labels": {"kubernetes.io/service-name": "orders", "app": "orders"},
                },
                "addressType": "IPv4",
                "endpoints": endpoints,
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            }
        )
    meta = {"resourceVersion": "5000"}
    return json.dumps(
        {"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": meta, "items": items}
    ).encode()


def ours(raw: bytes) -> int:
    """As the driver does it, item by item; longest step in the caller's hands."""
    resource = resources.slices(
        "shop", SliceApi.V1, frozenset({"orders"}), AddressPolicy(), lambda where, why: None
    )
    found: list[Any] = []
    for item in list_from_json(raw).items:
        found.extend(resources.decode(resource, item, check_kind=False).item or ())
    port = ServicePort("http", 80)
    service = Service(ServiceKey("shop", "orders"), ports=(port,))
    return len(eligible(service, port, found, VantagePoint(), Path.INTERNAL).endpoints)


class _Response:
    def __init__(self, text: str) -> None:
        self.data = text


def _theirs(raw: bytes) -> int:
    from kubernetes import client

    api = client.ApiClient()
    text = raw.decode()
    try:
        found = api.deserialize(text, "V1EndpointSliceList", "application/json")  # since release 36
    except TypeError:
        found = api.deserialize(_Response(text), "V1EndpointSliceList")
    return sum(len(each.endpoints) for each in found.items)


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    raw = document()
    times: dict[str, list[float]] = {"meshlib": [], "kubernetes models": []}
    for _ in range(3 if quick else 10):
        for label, work in (("meshlib", ours), ("kubernetes models", _theirs)):
            start = time.process_time()
            if work(raw) != SLICES * PER_SLICE:
                raise RuntimeError(f"{label} lost endpoints")
            times[label].append((time.process_time() - start) * 1000)
    step = time.process_time()
    list_from_json(raw)
    step = (time.process_time() - step) * 1000
    medians = {label: sorted(values)[len(values) // 2] for label, values in times.items()}
    rows = [
        [label, f"{medians[label]:.1f}", f"{min(values):.1f}", f"{max(values):.1f}", ""]
        for label, values in times.items()
    ]
    ratio = medians["kubernetes models"] / medians["meshlib"]
    rows.append(["ratio", f"{ratio:.1f}", "", "", ">= 10"])
    rows.append(["longest step (opening the list)", f"{step:.1f}", "", "", "<= 5"])
    return ["decoder", "median", "min", "max", "target"], rows


if __name__ == "__main__":
    for line in run(quick=True)[1]:
        print(line)
