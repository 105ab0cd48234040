"""Fixtures that start real components, once per test process, only when a test asks for them.

A component that is not installed skips its tests with one line; where MESHLIB_REQUIRE (a list such as
`kube,dns`) names its lane, it fails them instead.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.components.process import NotAvailable, leave_out

# The components import servers, certificates and clients: only a test that uses one should wait for that.
if TYPE_CHECKING:
    from tests.components.backends import Backends
    from tests.components.dns import Knot, Unbound
    from tests.components.kube import KubeCluster

# A shell starts background jobs with SIGINT ignored, and programs inherit that: tests that send one would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow or busy machine is no counterexample: property tests have no limits of time (pytest's own ends one that hangs).
settings.register_profile("meshlib", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("meshlib")

# fixture → (lane and marker, whether its tests share one instance and so belong on one worker)
COMPONENTS = {
    "kube_v1beta1": ("kube", True),
    "kube_v1": ("kube", True),
    "own_kube": ("kube", False),
    "knot": ("dns", True),
    "unbound": ("dns", True),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by the components they use, and keeps those that share one on one xdist worker."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        shared = ""
        for fixture, (lane, is_shared) in COMPONENTS.items():
            if fixture in names:
                item.add_marker(lane)
                shared = shared or (lane if is_shared else "")
        if shared and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(shared))


@pytest.fixture(autouse=True)
def _nothing_stays_installed() -> Iterator[None]:
    """A test that fails between install() and uninstall() fails alone."""
    yield
    install = sys.modules.get("meshlib.clients.install")
    if install is not None:
        install.uninstall()


@pytest.fixture(scope="session")
def kube_v1beta1() -> Iterator[KubeCluster]:
    """Kubernetes with discovery.k8s.io/v1beta1 and slices made by the real controllers. Do not kill it."""
    yield from _kube("v1beta1")


@pytest.fixture(scope="session")
def kube_v1() -> Iterator[KubeCluster]:
    """Kubernetes with discovery.k8s.io/v1; tests write slices with put_slice. Do not kill it."""
    yield from _kube("v1")


def _kube(flavour: Any) -> Iterator[KubeCluster]:
    from tests.components.kube import KubeCluster

    try:
        cluster = KubeCluster(flavour)
    except NotAvailable as error:
        leave_out("kube", error)
    with cluster:
        yield cluster


@pytest.fixture
def own_kube() -> Iterator[Callable[..., KubeCluster]]:
    """own_kube(flavour="v1beta1", **options): a cluster of the test's own, which it may kill and pause."""
    from tests.components.kube import KubeCluster

    with ExitStack() as running:

        def start(flavour: Any = "v1beta1", **options: Any) -> KubeCluster:
            try:
                cluster = KubeCluster(flavour, **options)
            except NotAvailable as error:
                leave_out("kube", error)
            return running.enter_context(cluster)

        yield start


@pytest.fixture
def namespace() -> Iterator[Callable[[KubeCluster], str]]:
    """namespace(kube): the name of a fresh namespace, so that tests can share a cluster."""
    made: list[tuple[KubeCluster, str]] = []

    def create(kube: KubeCluster) -> str:
        name = kube.create_namespace()
        made.append((kube, name))
        return name

    yield create
    for kube, name in made:
        # Only asked for: the namespace controller empties it while the next test runs.
        if kube.apiserver.running:
            kube.client.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="session")
def knot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Knot]:
    """An authoritative DNS server for the zone `mesh.test`, changed live with set_records()."""
    from tests.components.dns import Knot

    try:
        server = Knot(tmp_path_factory.mktemp("knot"))
    except NotAvailable as error:
        leave_out("dns", error)
    with server:
        yield server


@pytest.fixture
def unbound(knot: Knot, tmp_path: Path) -> Iterator[Unbound]:
    """A caching resolver in front of `knot` that can be told to misbehave."""
    from tests.components.dns import Unbound

    try:
        server = Unbound(tmp_path, forward_to=knot.address)
    except NotAvailable as error:
        leave_out("dns", error)
    with server:
        yield server


@pytest.fixture(params=["httpcore", "fast"])
def wire(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs over each of httpx's connection engines: those of a Mesh, and those of a bare handle."""
    from meshlib.clients.httpx import engines

    name: str = request.param
    monkeypatch.setenv("MESHLIB_WIRE", name)
    monkeypatch.setattr(engines, "DEFAULT", name)
    return name


@pytest.fixture
def backends() -> Iterator[Backends]:
    """Real HTTP and gRPC servers on addresses 127.0.0.2, 127.0.0.3, ... that count what they get."""
    from tests.components.backends import Backends

    with Backends() as running:
        yield running
