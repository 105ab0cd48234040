"""examples/observability as a user runs it: gunicorn workers, a real Prometheus, every query and every alert."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from meshlib.observe.catalogue import CATALOGUE, Kind
from meshlib.testing.fake_apiserver import FakeApiServer
from tests.components.backends import Backends
from tests.components.http_backend import LoopThread
from tests.components.process import (
    Daemon,
    NotAvailable,
    can_connect,
    free_port,
    leave_out,
    program,
    wait_for,
)

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "observability"
BOARD = json.loads((EXAMPLE / "meshlib-board.json").read_text())
ALERTS = yaml.safe_load((EXAMPLE / "alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
WORKERS = 2
#: What Prometheus and the files of the workers may take to tell, seconds; a busy machine is given all of it.
PATIENCE = 60.0


def queries() -> list[str]:
    return [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]


def test_board_and_rules_name_what_the_catalogue_has() -> None:
    """Every metric in them exists, and every metric that is exported by default is on the board."""
    names = {metric.prometheus for metric in CATALOGUE if not metric.per_endpoint}
    on_board = set(re.findall(r"\bmeshlib_\w+", json.dumps(BOARD)))
    assert on_board == names
    assert set(re.findall(r"\bmeshlib_\w+", " ".join(rule["expr"] for rule in RULES))) <= names
    for rule in RULES:
        assert rule["annotations"].keys() == {"summary", "runbook"}, rule["alert"]
    panels = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert all(panel["description"] for panel in panels)


def test_every_alert_has_a_paragraph() -> None:
    """Whoever is woken finds under its name what it means and what to do."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"^\*\*(Meshlib\w+)\*\*", page, re.MULTILINE)) == {rule["alert"] for rule in RULES}


def manifest(name: str, endpoints: list[str], port: int, cluster_ip: str = "") -> str:
    listed = "".join(f'\n- addresses: ["{address}"]' for address in endpoints) or " []"
    ip = f"\n  clusterIP: {cluster_ip}" if cluster_ip else ""
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:{ip}\n"
        f"  ports: [{{name: http, port: {port}, targetPort: {port}}}]\n---\n"
        f"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n"
        f"metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n"
        f"addressType: IPv4\nports: [{{name: http, port: {port}, protocol: TCP}}]\nendpoints:{listed}\n"
    )


class Shop:
    """A gunicorn service with one upstream for each kind of fault, and a Prometheus that scrapes it."""

    def __init__(
        self, backends: Backends, loop: LoopThread, api: FakeApiServer, folder: Path, prometheus: str
    ) -> None:
        self.folder, self.loop = folder, loop
        self.well = backends.http(3)
        (self.sick,) = backends.http(1)
        (self.front,) = backends.http(1)
        self.api = api
        self.targets = {
            name: f"file://{self.file(name)}#shop/{name}:http"
            for name in ("orders", "stock", "gone", "mtls", "broken")
        } | {"cluster": "k8s:///cluster.shop:http", "watched": "k8s:///watched.shop:http"}
        port = self.well[0].port
        hosts = [one.host for one in self.well]
        self.write("orders", hosts, port)
        self.write("stock", [self.sick.host], self.sick.port)
        self.write("gone", hosts, port)
        # The pods of this one refuse (nobody listens there), the Service's address answers.
        self.write("mtls", hosts, self.front.port, self.front.host)
        self.write("broken", hosts, port)
        self.port, self.prometheus_port = free_port("127.0.0.1"), free_port("127.0.0.1")
        #: The bare way of what is only observed leads somewhere, too: to ourselves.
        self.hosts = {name: f"{name}.local" for name in self.targets} | {"watched": f"localhost:{self.port}"}
        self.gunicorn = self._gunicorn()
        self.prometheus = self._prometheus(prometheus)
        self.client = httpx.Client(
            timeout=100, trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def write(self, name: str, endpoints: list[str], port: int, cluster_ip: str = "") -> None:
        """As kubectl and editors do it: whole, by renaming."""
        fresh = self.folder / "fresh"
        fresh.write_text(manifest(name, endpoints, port, cluster_ip))
        fresh.replace(self.file(name))

    def _gunicorn(self) -> Daemon:
        values = self.folder / "values"
        values.mkdir()
        config = self.folder / "meshlib.toml"
        config.write_text(
            'sync_timeout = 60\ntotal_connections = 12\nsidecar = "ignore"\nstatus_socket = "off"\n'
            "[address]\nallow_loopback = true\n"
            f'[discovery.file]\npoll = 0.2\n[discovery.k8s]\napi_server = "{self.api.url}"\n'
            f'[target."{self.targets["watched"]}"]\nmode = "observe"\n'
            + "[aliases]\n"
            + "".join(f'"{self.hosts[name]}" = "{target}"\n' for name, target in self.targets.items())
        )
        upstreams = {name: f"http://{host}/" for name, host in self.hosts.items()}
        return Daemon(
            "gunicorn",
            [
                *(sys.executable, "-m", "gunicorn", "--chdir", str(EXAMPLE), "--workers", str(WORKERS)),
                *(
                    "--threads",
                    "24",
                    "--graceful-timeout",
                    "2",
                    "--bind",
                    f"127.0.0.1:{self.port}",
                    "app:application",
                ),
            ],
            self.folder,
            {
                **os.environ,
                "HOME": str(self.folder),  # newer versions keep a control socket there
                "MESHLIB_CONFIG": str(config),
                "PROMETHEUS_MULTIPROC_DIR": str(values),
                "UPSTREAMS": json.dumps(upstreams),
                "UPSTREAM_TIMEOUT": "60",
            },
        )

    def _prometheus(self, path: str) -> Daemon:
        config = yaml.safe_load((EXAMPLE / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "500ms"}
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{self.port}"]
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        rules = json.loads(json.dumps(ALERTS))
        for rule in rules["groups"][0]["rules"]:
            rule["for"] = "0s"
        (self.folder / "alerts.yaml").write_text(yaml.safe_dump(rules))
        return Daemon(
            "prometheus",
            [
                path,
                f"--config.file={self.folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self.folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{self.prometheus_port}",
            ],
            self.folder,
        )

    def __enter__(self) -> Shop:
        self.gunicorn.start()
        self.prometheus.start()
        self.gunicorn.wait_until(lambda: can_connect("127.0.0.1", self.port))
        self.prometheus.wait_until(lambda: can_connect("127.0.0.1", self.prometheus_port))
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.prometheus.stop()
        self.gunicorn.stop(10)

    def get(self, name: str) -> int:
        """One request to the service, over a connection of its own: any worker may get it. 0: that one was killed."""
        try:
            return self.client.get(f"http://127.0.0.1:{self.port}/{name}").status_code
        except httpx.RemoteProtocolError:
            return 0

    def ask(self, path: str, **params: str) -> Any:
        answer = self.client.get(
            f"http://127.0.0.1:{self.prometheus_port}/api/v1/{path}", params=params
        ).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        return [(one["metric"], float(one["value"][1])) for one in self.ask("query", query=expr)["result"]]

    def value(self, expr: str) -> float:
        return sum(value for _, value in self.query(expr))

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        return wait_for(condition, timeout=PATIENCE, what=what, interval=0.1)

    def put(self, name: str, hosts: list[str], port: int) -> None:
        """A Service in the cluster, with these endpoints."""
        self.loop.run(put(self.api, name, hosts, port))

    def workers(self) -> list[int]:
        pid = self.gunicorn.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def firing(self) -> set[tuple[str, str]]:
        """Alerts that fire, with the target (or else the protocol or resolver) that they name."""
        found = set()
        for alert in self.ask("alerts")["alerts"]:
            labels = alert["labels"]
            about = labels.get("target") or labels.get("protocol") or labels.get("resolver") or ""
            if alert["state"] == "firing":
                found.add((labels["alertname"], about))
        return found


@pytest.fixture
def shop(backends: Backends, tmp_path: Path) -> Iterator[Shop]:
    try:
        path = program("prometheus", package="prometheus")
    except NotAvailable as error:
        leave_out("metrics", error)
        raise
    loop, api = LoopThread(), FakeApiServer()
    loop.run(api.start())
    try:
        made = Shop(backends, loop, api, tmp_path, path)
        for name in ("cluster", "watched"):
            made.put(name, [one.host for one in made.well], made.well[0].port)
        with made:
            yield made
        loop.run(api.close())
    finally:
        loop.close()


async def put(api: FakeApiServer, name: str, hosts: list[str], port: int) -> None:
    """The Service, and a slice with these endpoints (the server's own helper writes another port)."""
    api.service("shop", name, clusterIP="127.0.0.1")
    api.put(
        {
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {
                "namespace": "shop",
                "name": f"{name}-1",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [host], "conditions": {"ready": True}} for host in hosts],
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        }
    )


@pytest.mark.timeout(300)
def test_every_query_answers_and_the_right_alerts_fire(shop: Shop) -> None:
    """Figures agree with what the backends counted, one fault of each kind fires its alert and no other, every query of
    the board has data, and the death of a worker lets no counter fall."""
    with ThreadPoolExecutor(40) as pool:

        def everything(times: int = 1, *names: str) -> list[int]:
            return list(pool.map(shop.get, (names or tuple(shop.targets)) * times))

        # While all is well: both workers know every target, and Prometheus has seen it.
        def both() -> bool:
            everything()
            known = shop.query('count by (target) (meshlib_targets{way="pods"} == 2)')
            return len(known) == len(shop.targets) - 1  # pods refuse in one

        shop.until(both, "both workers to know all targets")
        (orders,) = {shop.targets["orders"]}
        answered = sum("orders.local" in one.host for back in shop.well for one in back.received)
        shop.until(
            lambda: shop.value(f'meshlib_attempts_total{{target="{orders}"}}') == answered,
            f"{answered} attempts",
        )
        assert shop.value(f'meshlib_attempts_total{{target="{orders}",outcome="failed"}}') == 0
        assert shop.value("sum(meshlib_processes)") == WORKERS
        fine = {("MeshlibFallback", shop.targets["mtls"])}
        # The pods that refused, until there was more traffic.
        noise = {("MeshlibAttemptsFail", shop.targets["mtls"])}
        # Nothing was known when the first request came.
        early = {("MeshlibObservedRefusals", shop.targets["watched"])}
        shop.until(lambda: shop.firing() - noise - early <= fine, "no other alert")

        # One fault of each kind.
        hosts, port = [one.host for one in shop.well], shop.well[0].port
        shop.sick.status, shop.sick.delay = 500, 0.3  # slow, too: more at once than may be open
        shop.write("gone", [], port)
        shop.put("cluster", [*hosts, "169.254.169.254"], port)  # an address that is refused
        shop.file("broken").write_text("kind: Service\n\tbroken")
        shop.put("watched", [], port)
        wanted = {
            ("MeshlibAttemptsFail", shop.targets["stock"]),
            ("MeshlibCallsFail", shop.targets["gone"]),
            ("MeshlibConnectionsRefused", "http"),
            ("MeshlibDataSkipped", "k8s"),
            ("MeshlibEndpointsGone", shop.targets["gone"]),
            ("MeshlibEndpointsGone", shop.targets["watched"]),
            ("MeshlibObservedRefusals", shop.targets["watched"]),
            ("MeshlibSourceFails", shop.targets["broken"]),
            *fine,
        }
        firing: set[tuple[str, str]] = set()

        def fires() -> bool:
            everything(8, "stock", "stock", "stock", "gone", "watched", "mtls")
            firing.clear()
            firing.update(shop.firing())
            return firing - noise == wanted

        try:
            shop.until(fires, "the alerts")
        except TimeoutError:
            assert firing - noise == wanted, shop.gunicorn.tail()
            raise

        # The board.
        for expr in map(as_grafana, queries()):
            shop.until(lambda expr=expr: shop.query(expr), expr)  # type: ignore[misc]
        for variable in BOARD["templating"]["list"]:
            if variable["type"] == "query":
                metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
                found = shop.until(lambda metric=metric: shop.query(as_grafana(metric)), metric)  # type: ignore[misc]
                assert all(labels.get(label) for labels, _ in found)

        # A worker is killed: another comes, and what the dead one counted stays.
        shop.sick.delay = 0.0
        before = shop.value("sum(meshlib_attempts_total)")
        killed = shop.workers()[0]
        os.kill(killed, signal.SIGKILL)

        def replaced() -> bool:
            everything()
            workers = shop.workers()
            return (
                killed not in workers
                and len(workers) == WORKERS
                and shop.value("sum(meshlib_processes)") == WORKERS
            )

        shop.until(replaced, "another worker")
        shop.until(lambda: shop.value("sum(meshlib_attempts_total)") >= before, "what was counted")
        for metric in CATALOGUE:
            if metric.kind is Kind.COUNTER:
                assert shop.value(f"sum(resets({metric.prometheus}[10m]))") == 0, metric.prometheus


def as_grafana(expr: str) -> str:
    """With the variables as they are when nothing is chosen; a short interval, as there is only half a minute."""
    return expr.replace("$__rate_interval", "30s").replace("$job", ".*").replace("$target", ".*")
