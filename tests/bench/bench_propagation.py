"""From the API server's commit of a slice to the changed picker that callers see, on a real API server.

The writer and the Mesh run on one machine. The commit lies between the start of the write and its answer, and the
watch event is often published before the answer is back. So both bounds are shown: counted from the answer (0 when the
publication came first), and counted from the start of the write, etcd's work and TLS included.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from meshlib.model.events import EndpointsChanged, Event
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.observing import subscribe
from tests.components.kube import KubeCluster
from tests.components.process import wait_for
from tests.integration.kubernetes_support import account_files

NAME = "API server commit to picker changed, ms"
TARGETS = "additions and changes p50 <= 10 ms, p99 <= 50 ms; removals (held 100 ms) p99 <= 150 ms"


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    rounds = 100 if quick else 500
    added: list[float] = []
    removed: list[float] = []
    bound: dict[str, list[float]] = {"additions": [], "removals": []}
    with KubeCluster("v1") as kube, tempfile.TemporaryDirectory() as folder:
        ns = kube.create_namespace()
        kube.create_service(ns, "orders")
        base = [f"10.0.0.{number}" for number in range(1, 100)]
        kube.put_slice(ns, "orders-1", "orders", base)
        files = account_files(Path(folder) / "sa", kube.ca_file, kube.admin_token)
        settings = {"api_server": kube.url, "service_account_dir": str(files)}
        changes: list[tuple[float, EndpointsChanged]] = []

        def note(event: Event) -> None:
            if isinstance(event, EndpointsChanged):
                changes.append((time.monotonic(), event))  # sent right after the cell has the new picker

        config = load_config({"discovery": {"k8s": settings}, "sync_timeout": 30.0}, environ={})
        end = subscribe(note)
        with Mesh(config=config) as mesh:
            handle = mesh.target(f"k8s:///orders.{ns}:http")
            handle.acquire(60).done()
            for number in range(rounds):
                extra = f"10.0.{1 + number // 250}.{1 + number % 250}"
                for addresses, times, label in (
                    ([*base, extra], added, "additions"),
                    (base, removed, "removals"),
                ):
                    start, count = time.monotonic(), len(changes)
                    kube.put_slice(ns, "orders-1", "orders", addresses)
                    committed = time.monotonic()
                    wait_for(lambda n=count: len(changes) > n, interval=0.002, what="the change")
                    at, event = changes[count]
                    if event.total != len(addresses) or len(handle.balancer.subchannels) != len(addresses):
                        raise RuntimeError(f"{event} instead of {len(addresses)} endpoints")
                    times.append(max(0.0, at - committed))
                    bound[label].append(at - start)
        end()
    rows = [
        [
            label,
            str(len(values)),
            *(f"{_quantile(values, share) * 1000:.1f}" for share in (0.5, 0.99, 1.0)),
            target,
        ]
        for label, values, target in (
            ("additions", added, "p50 <= 10, p99 <= 50"),
            ("removals", removed, "p99 <= 150"),
            ("additions, from the start of the write", bound["additions"], ""),
            ("removals, from the start of the write", bound["removals"], ""),
        )
    ]
    return ["change", "n", "p50", "p99", "max", "target"], rows


if __name__ == "__main__":
    for line in run(quick=True)[1]:
        print(line)
