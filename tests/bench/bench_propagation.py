"""From the API server's commit of a slice to the published Snapshot, on a real API server.

The writer and the resolver run on one machine. The commit lies between the start of the write and its answer, and the
watch event is often published before the answer is back. So both bounds are shown: counted from the answer (0 when the
publication came first), and counted from the start of the write, etcd's work and TLS included.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from meshlib.model.update import Snapshot
from tests.components.kube import KubeCluster
from tests.components.process import wait_for
from tests.integration.kubernetes_support import account_files, mesh, ready

NAME = "API server commit to published, ms"
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
        with mesh(api_server=kube.url, service_account_dir=str(files)) as loop:
            seen = loop.watch(f"k8s:///orders.{ns}:http")
            seen.wait_addresses(set(base))
            for number in range(rounds):
                extra = f"10.0.{1 + number // 250}.{1 + number % 250}"
                for addresses, times, label in (
                    ([*base, extra], added, "additions"),
                    (base, removed, "removals"),
                ):
                    start, count = time.monotonic(), len(seen.updates)
                    kube.put_slice(ns, "orders-1", "orders", addresses)
                    committed = time.monotonic()
                    wanted = set(addresses)

                    def arrived(count: int = count, wanted: set[str] = wanted) -> float | None:
                        for at, update in seen.updates[count:]:
                            if isinstance(update, Snapshot) and ready(update) == wanted:
                                return at
                        return None

                    at = wait_for(arrived, interval=0.002, what="the change")
                    times.append(max(0.0, at - committed))
                    bound[label].append(at - start)
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
