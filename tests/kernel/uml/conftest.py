"""The tests of this folder run inside the guest; outside, their reports are told. Two boots: those that use a cluster
have one of their own, so that none waits for tests that it was not asked for.

Run them like any others. A test outside is never executed there, nor are its fixtures set up.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.components.kube_binaries import cache_folder
from tests.components.process import NotAvailable, leave_out, required_lanes
from tests.kernel.uml import guest, relay
from tests.kernel.uml.space import Space

if TYPE_CHECKING:
    from tests.components.kube import KubeCluster

HERE = Path(__file__).parent
Reports = dict[str, list[pytest.TestReport]]
#: By boot: whether it has a cluster.
_REPORTS = pytest.StashKey[dict[bool, Reports]]()
_TROUBLE = pytest.StashKey[dict[bool, Exception]]()


#: Set by `make kernel-cluster`: a cluster in the guest takes minutes, longer than all other tests of this folder.
CLUSTER = "MESHLIB_GUEST_CLUSTER"


@pytest.hookimpl(tryfirst=True)  # before the tests are given to workers by their groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not os.environ.get(CLUSTER) and not relay.inside():
        left_out = [item for item in items if HERE in item.path.parents and _with_cluster(item)]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("kernel")
            item.add_marker(pytest.mark.timeout(600))  # the first one waits for all of them
            item.add_marker(pytest.mark.xdist_group("uml"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if relay.inside() or HERE not in item.path.parents:
        return None
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item):
        hook.pytest_runtest_logreport(report=report)
    # What the test before set up, outside, was kept for this one, and ends here where the next has no use for it.
    item.session._setupstate.teardown_exact(nextitem)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports(item: pytest.Item) -> Sequence[pytest.TestReport]:
    done = item.session.stash.setdefault(_REPORTS, {})
    troubles = item.session.stash.setdefault(_TROUBLE, {})
    boot = _with_cluster(item)
    if boot not in done:
        done[boot] = {}
        try:
            done[boot] = _run(item.session, boot)
        except (NotAvailable, guest.GuestFailed) as error:
            troubles[boot] = error
    reports = done[boot].get(_plain(item.nodeid))
    if reports:
        for report in reports:
            report.nodeid = item.nodeid
        return reports
    trouble = troubles.get(boot, guest.GuestFailed("the guest told nothing about this test"))

    def explain() -> None:
        if isinstance(trouble, NotAvailable):
            leave_out("kernel", trouble)
        pytest.fail(str(trouble), pytrace=False)

    call = pytest.CallInfo.from_call(explain, when="call")
    return [item.ihook.pytest_runtest_makereport(item=item, call=call)]


def _plain(nodeid: str) -> str:
    """Without the group that pytest-xdist adds to it."""
    return nodeid.removesuffix("@uml")


def _with_cluster(item: pytest.Item) -> bool:
    return "kube" in getattr(item, "fixturenames", ())


def _run(session: pytest.Session, boot: bool) -> Reports:
    guest.kernel()
    mine = [item for item in session.items if HERE in item.path.parents and _with_cluster(item) is boot]
    names = [_plain(item.nodeid) for item in mine]
    # Not under /tmp, which the guest has for itself.
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="meshlib-guest-") as name:
        folder = Path(name)
        lines = folder / "reports"
        lines.touch()
        command = [guest.python(), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", relay.__name__]
        command += ["--rootdir", str(guest.ROOT), *names]
        # Failed tests are told by their reports; anything else that goes wrong is the guest's trouble.
        words = ["sh", "-c", '"$@"; code=$?; [ $code -le 1 ]', "sh", *command]
        try:
            env = {relay.VARIABLE: str(lines), "XDG_CACHE_HOME": str(cache_folder().parents[2])}
            env["MESHLIB_REQUIRE"] = ",".join(required_lanes())
            guest.run(words, folder, env=env, memory=3072 if boot else 1024, timeout=540)
        except guest.GuestFailed as error:
            session.stash[_TROUBLE][boot] = error
        found: Reports = {}
        for line in lines.read_text().splitlines():
            report = session.config.hook.pytest_report_from_serializable(
                config=session.config, data=json.loads(line)
            )
            found.setdefault(report.nodeid, []).append(report)
        return found


@pytest.fixture
def space() -> Iterator[Space]:
    """A network namespace of the test's own, lo up, with helpers; the test's thread is in it."""
    from tests.kernel.uml.node import OPEN

    with Space() as made:
        yield made
    while OPEN:
        OPEN.pop().close()


@pytest.fixture(scope="session")
def kube() -> Iterator[KubeCluster]:
    """A real API server with its controllers, in the guest."""
    from tests.components.kube import KubeCluster

    try:
        cluster = KubeCluster("v1beta1")
    except NotAvailable as error:
        leave_out("kube", error)
        raise
    with cluster:
        yield cluster
