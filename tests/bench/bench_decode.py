"""A list of 10,000 endpoints to a picker, against the ``kubernetes`` package's models on the same bytes.

CPU time, both in the same run, in alternating processes.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from statistics import median
from typing import Any

from meshlib.discovery.kubernetes import resources
from meshlib.discovery.kubernetes.versions import SliceApi
from meshlib.model.address import AddressPolicy
from meshlib.model.envelope import list_from_json
from meshlib.model.events import discard
from meshlib.model.service import Service, ServiceKey, ServicePort
from meshlib.model.target import Target
from meshlib.model.update import Snapshot
from meshlib.model.vantage import VantagePoint
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.balancer import Balancer, Surroundings
from meshlib.runtime.config import load_config
from meshlib.runtime.factory import PickerFactory
from meshlib.runtime.primitives import StripedLocks

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
    """From the bytes of the list to a picker that callers see: decoding item by item, eligibility, Subchannels."""
    resource = resources.slices(
        "shop", SliceApi.V1, frozenset({"orders"}), AddressPolicy(), lambda where, why: None
    )
    found: list[Any] = []
    for item in list_from_json(raw).items:
        found.extend(resources.decode(resource, item, check_kind=False).item or ())
    service = Service(ServiceKey("shop", "orders"), ports=(ServicePort("http", 80),))
    locks = StripedLocks()
    balancer = Balancer(
        Target.parse("k8s:///orders.shop:http"),
        Surroundings(
            now=time.monotonic,
            emit=discard,
            make_subchannels=lambda endpoints, joined: [Subchannel(e, locks(), joined) for e in endpoints],
            build_picker=PickerFactory(load_config({}, environ={}), "k8s:///orders.shop:http", random.random),
            vantage=lambda slices: VantagePoint(),
        ),
    )
    balancer.apply(Snapshot(service, tuple(found), "bench"))
    picker = balancer.cell.state.picker
    return len(picker.subchannels) if picker is not None else 0


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


WORK = {"meshlib": ours, "kubernetes models": _theirs}
#: Lists decoded one after the other in each process; the first is what a process that starts pays.
LISTS = 6


def _in_a_process_of_its_own(label: str) -> list[float]:
    """CPU milliseconds of each list, in a fresh interpreter: neither's garbage and modules weigh on the other."""
    command = [sys.executable, "-m", "tests.bench.bench_decode", label]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(value) for value in answer.stdout.split()]


def _measure(label: str) -> list[float]:
    raw = document()
    times = []
    for _ in range(LISTS):
        start = time.process_time()
        if WORK[label](raw) != SLICES * PER_SLICE:
            raise RuntimeError(f"{label} lost endpoints")
        times.append((time.process_time() - start) * 1000)
    return times


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    first: dict[str, list[float]] = {label: [] for label in WORK}
    later: dict[str, list[float]] = {label: [] for label in WORK}
    for _ in range(3 if quick else 7):
        for label in WORK:
            one, *rest = _in_a_process_of_its_own(label)
            first[label].append(one)
            later[label].extend(rest)
    rows = []
    for what, times in (("first list of a process", first), ("later lists", later)):
        for label, values in times.items():
            rows.append(
                [what, label, f"{median(values):.1f}", f"{min(values):.1f}", f"{max(values):.1f}", ""]
            )
        ratio = median(times["kubernetes models"]) / median(times["meshlib"])
        rows.append([what, "ratio", f"{ratio:.1f}", "", "", ">= 10"])
    raw = document()
    step = time.process_time()
    list_from_json(raw)
    step = (time.process_time() - step) * 1000
    rows.append(["longest step", "meshlib, opening the list", f"{step:.1f}", "", "", "<= 5"])
    return ["what", "decoder", "median", "min", "max", "target"], rows


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(*_measure(sys.argv[1]))
    else:
        for line in run(quick=True)[1]:
            print(line)
