"""The week of a service that tries meshlib: five modes on real workers, each request counted where it arrives."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import yaml
from click.testing import CliRunner

from meshlib.cli.app import meshlib
from meshlib.observe.catalogue import REQUESTS
from tests.components.backends import Backends
from tests.components.process import Daemon, can_connect, free_port, program, wait_for

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "monday_to_friday"
WORKERS = 4
#: Longest wait for anything here, seconds: only what never comes takes so long.
PATIENCE = 90.0
BARE = ("bare_off", "bare_observe", "bare_percent")


@dataclass(slots=True)
class Answers:
    """What callers of the service got: how many, from which worker of it and which server behind; and failures."""

    workers: Counter[int] = field(default_factory=Counter)
    servers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Week:
    """A Service ``stock`` with three pods and a bare way, and the gunicorn service that calls it.

    ``bare`` is what the name leads to without meshlib: in a cluster kube-proxy's address, here a server of its own, so
    that what went which way is counted where it arrived.
    """

    def __init__(self, kube: Any, folder: Path, place: Path, say: Callable[[str], None]) -> None:
        self.say, self.place = say, place
        self.sent = 0
        self._folder = folder
        self._backends = Backends()
        self.bare, *self.pods = self._backends.http(4)
        namespace = kube.create_namespace()
        self.host = f"stock.{namespace}.svc"
        port = self.bare.port
        listed = [{"name": "http", "port": port, "targetPort": port, "protocol": "TCP"}]
        kube.create_service(namespace, "stock", ports=listed, selector={})
        kube.put_slice(
            namespace,
            "stock-1",
            "stock",
            [pod.host for pod in self.pods],
            ports=[{"name": "http", "port": port, "protocol": "TCP"}],
        )
        self._kubeconfig = kube.write_kubeconfig(folder / "kubeconfig", namespace=namespace)
        self._config = folder / "meshlib.toml"
        self.write('mode = "off"')
        self.port, self.prometheus_port = free_port("127.0.0.1"), free_port("127.0.0.1")
        self._gunicorn, self._prometheus = self._service(), self._scraper()
        self._client = httpx.Client(
            timeout=PATIENCE, trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    def __enter__(self) -> Week:
        try:
            self._gunicorn.start()
            self._prometheus.start()
            self._gunicorn.wait_until(lambda: can_connect("127.0.0.1", self.port), PATIENCE)
            self._prometheus.wait_until(lambda: can_connect("127.0.0.1", self.prometheus_port), PATIENCE)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._prometheus.stop()
        self._gunicorn.stop(15)
        self._backends.__exit__()

    # -- what stands around --------------------------------------------------------------------------------------

    def _service(self) -> Daemon:
        values, hosts = self._folder / "values", self._folder / "hosts"
        values.mkdir()
        hosts.write_text(f"127.0.0.1 localhost\n{self.bare.host} {self.host}\n")
        env = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
        return Daemon(
            "gunicorn",
            [
                # A pod's view of names: a hosts file of its own in the place of cluster DNS.
                *("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)),
                *(sys.executable, "-m", "meshlib", "run", "--", sys.executable, "-m", "gunicorn"),
                *("--chdir", str(EXAMPLE), "--workers", str(WORKERS), "--timeout", "0"),
                *("--bind", f"127.0.0.1:{self.port}", "app:application"),
            ],
            self._folder,
            {
                **env,
                "PYTHONPATH": str(ROOT),
                "HOME": str(self._folder),  # newer versions keep a control socket there
                "MESHLIB_CONFIG": str(self._config),
                "MESHLIB_EXPORTERS": "prometheus",
                "MESHLIB_STATUS_SOCKET": str(self.place),
                "PROMETHEUS_MULTIPROC_DIR": str(values),
                "STOCK_URL": f"http://{self.host}:{self.bare.port}/",
                "STOCK_TIMEOUT": str(PATIENCE),
            },
        )

    def _scraper(self) -> Daemon:
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [
                {"job_name": "shop", "static_configs": [{"targets": [f"127.0.0.1:{self.port}"]}]}
            ],
        }
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        return Daemon(
            "prometheus",
            [
                program("prometheus", package="prometheus"),
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{self.prometheus_port}",
            ],
            self._folder,
        )

    def write(self, stage: str) -> None:
        """As a ConfigMap or an editor does it: whole, by renaming."""
        fresh = self._folder / "fresh.toml"
        fresh.write_text(
            f'{stage}\nsync_timeout = 60\npicker = "round_robin"\nsidecar = "ignore"\n'
            "[address]\nallow_loopback = true\n"
            f'[discovery.k8s]\nkubeconfig = "{self._kubeconfig}"\n'
        )
        fresh.replace(self._config)

    # -- the traffic ---------------------------------------------------------------------------------------------

    def ask(self, answers: Answers) -> None:
        try:
            answer = self._client.get(f"http://127.0.0.1:{self.port}/")
        except httpx.HTTPError as error:
            answers.failures.append(repr(error))
            return
        if answer.status_code != 200:
            answers.failures.append(answer.text)
            return
        worker, server = answer.text.split()
        answers.workers[int(worker)] += 1
        answers.servers[server] += 1

    def send(self, count: int) -> Answers:
        """So many requests, a few at a time; none may fail."""
        answers = Answers()
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda _: self.ask(answers), range(count)))
        self._took(answers)
        return answers

    @contextmanager
    def load(self, answers: Answers) -> Iterator[None]:
        """Traffic without a pause while the block runs; none may fail."""
        over = threading.Event()

        def on_and_on() -> None:
            while not over.is_set():
                self.ask(answers)

        threads = [threading.Thread(target=on_and_on) for _ in range(WORKERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()
        self._took(answers)

    def _took(self, answers: Answers) -> None:
        assert answers.failures == []
        self.sent += answers.workers.total()

    @property
    def arrived(self) -> tuple[int, int]:
        """Requests that the bare way's server and the pods have counted."""
        return self.bare.requests, sum(pod.requests for pod in self.pods)

    # -- looking -------------------------------------------------------------------------------------------------

    def status(self) -> dict[int, dict[str, Any]]:
        """What every worker says of the target, by process number: ``meshlib status --all-workers --json``."""

        def everybody() -> dict[str, Any] | None:
            done = CliRunner().invoke(
                meshlib,
                ["status", "--all-workers", "--json"],
                env={"MESHLIB_STATUS_SOCKET": str(self.place), "MESHLIB_CONFIG": None},
            )
            document: dict[str, Any] = json.loads(done.stdout)
            return None if document["silent"] else document  # on a busy machine a worker may be late

        document = wait_for(everybody, timeout=PATIENCE, what="an answer of every worker")
        return {worker["pid"]: target for worker in document["workers"] for target in worker["targets"]}

    def observed(self) -> tuple[int, Counter[str]]:
        """Requests that would have gone to a pod, and those that would not, by reason."""
        found = [target["rollout"] for target in self.status().values()]
        refusals: Counter[str] = Counter()
        for rollout in found:
            refusals.update(rollout["refusals"])
        return sum(rollout["observed"] for rollout in found), refusals

    def believed(self) -> dict[str, int]:
        """Requests by way, as all workers together tell them."""
        ways: Counter[str] = Counter()
        for target in self.status().values():
            ways.update(target["rollout"]["requests"])
        return {way: ways[way] for way in ("mesh", *BARE)}

    def until(self, stage: str, mode: str, percent: float = 100.0) -> float:
        """Write the stage and wait until every worker is in it; the seconds that took."""
        self.write(stage)
        begun = time.monotonic()

        def everywhere() -> bool:
            stages = {
                (target["rollout"]["mode"], target["rollout"]["percent"]) for target in self.status().values()
            }
            return stages == {(mode, percent)}

        wait_for(everywhere, timeout=PATIENCE, what=f"{mode} at {percent:g} % in every worker", interval=0.2)
        return time.monotonic() - begun

    def measured(self) -> dict[str, float]:
        """Requests by way, as Prometheus has them."""
        answer = self._client.get(
            f"http://127.0.0.1:{self.prometheus_port}/api/v1/query",
            params={"query": f"sum by (way) ({REQUESTS.prometheus})"},
        ).json()
        found = {one["metric"]["way"]: float(one["value"][1]) for one in answer["data"]["result"]}
        return {way: found.get(way, 0.0) for way in ("mesh", *BARE)}


def walk(week: Week, some: int) -> None:
    """Monday to Friday. ``some``: requests of a day. Raises AssertionError where a day is not as it should be."""
    say = week.say
    answers = week.send(some)
    while len(week.status()) < WORKERS:  # the kernel hands connections to whoever is there first
        answers = week.send(some)
    monday = week.sent
    assert week.arrived == (monday, 0)
    assert not any(target["started"] for target in week.status().values())
    assert week.believed() == {"mesh": 0, "bare_off": monday, "bare_observe": 0, "bare_percent": 0}
    say(f"Monday     off: {monday} requests of {WORKERS} workers, all the bare way; no discovery runs")

    took = week.until('mode = "observe"', "observe")

    def discovered() -> bool:
        week.send(WORKERS)  # discovery begins with a worker's first request
        return all(target["started"] and target["members"] == 3 for target in week.status().values())

    wait_for(discovered, timeout=PATIENCE, what="discovery in every worker", interval=0.2)
    early, watched = week.observed(), week.send(some)
    assert watched.servers.keys() == answers.servers.keys() == {week.bare.name}
    assert week.arrived == (week.sent, 0)
    picks, refusals = week.observed()
    assert (picks - early[0], refusals) == (some, early[1])
    assert picks + refusals.total() == week.sent - monday
    say(
        f"Tuesday    observe, after {took:.1f} s: {week.sent - monday} requests, all the bare way; {picks} would have "
        f"gone to a pod{''.join(f', {count} {why}' for why, count in refusals.items())}"
    )

    took = week.until('mode = "on"\npercent = 5', "on", 5.0)
    week.send(4 * some)
    pods = week.arrived[1]
    # Every worker keeps to the share within a few, whatever it got.
    assert abs(pods - 4 * some * 0.05) <= 3 * WORKERS, pods
    say(f"Wednesday  5 %, after {took:.1f} s: {pods} of {4 * some} requests went to pods")

    took = week.until('mode = "on"', "on")
    before = week.arrived
    balanced = week.send(some)
    assert week.arrived == (before[0], before[1] + some)
    assert set(balanced.servers) == {pod.name for pod in week.pods}
    shares = ", ".join(f"{count / some:.0%}" for count in balanced.servers.values())
    say(f"Thursday   on, after {took:.1f} s: {some} requests, all to pods: {shares}")

    loaded = Answers()
    with week.load(loaded):
        took = week.until('mode = "off"', "off")
        still = week.arrived
        wait_for(lambda: week.arrived[0] > still[0] + some // 4, timeout=PATIENCE, what="the bare way")
        pods = week.arrived[1]
        assert pods - still[1] <= WORKERS, "only what was in flight went to pods after the switch"
        back = week.until('mode = "on"', "on")
        wait_for(lambda: week.arrived[1] > pods + some // 4, timeout=PATIENCE, what="the mesh's way")
    say(
        f"Friday     under load: off after {took:.1f} s, on again after {back:.1f} s; "
        f"{loaded.workers.total()} requests, none failed"
    )

    bare, pods = week.arrived
    believed = week.believed()
    assert bare + pods == week.sent
    assert (believed["mesh"], sum(believed[way] for way in BARE)) == (pods, bare)
    wait_for(
        lambda: week.measured() == believed,
        timeout=PATIENCE,
        what=f"Prometheus to have {believed}",
        interval=0.5,
    )
    say(f"The books  {week.sent} sent = {bare} bare + {pods} to pods, counted by the servers;")
    say(f"           meshlib status and Prometheus say the same: {believed}")
