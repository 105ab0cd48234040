"""The tests of this folder run inside the guest, all of them in one boot; outside, their reports are told.

Run them like any others. A test outside is never executed there, nor are its fixtures set up.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.components.process import NotAvailable, leave_out
from tests.kernel.uml import guest, relay
from tests.kernel.uml.space import Space

HERE = Path(__file__).parent
_REPORTS = pytest.StashKey[dict[str, list[pytest.TestReport]]]()
_TROUBLE = pytest.StashKey[Exception]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("kernel")
            item.add_marker(pytest.mark.timeout(600))  # the first one waits for all of them
            item.add_marker(pytest.mark.xdist_group("uml"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if relay.inside() or HERE not in item.path.parents:
        return None
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item):
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports(item: pytest.Item) -> Sequence[pytest.TestReport]:
    stash = item.session.stash
    if _REPORTS not in stash:
        stash[_REPORTS] = {}
        try:
            stash[_REPORTS] = _run(item.session)
        except (NotAvailable, guest.GuestFailed) as error:
            stash[_TROUBLE] = error
    reports = stash[_REPORTS].get(item.nodeid)
    if reports:
        return reports
    trouble = stash.get(_TROUBLE, guest.GuestFailed("the guest told nothing about this test"))

    def explain() -> None:
        if isinstance(trouble, NotAvailable):
            leave_out("kernel", trouble)
        pytest.fail(str(trouble), pytrace=False)

    call = pytest.CallInfo.from_call(explain, when="call")
    return [item.ihook.pytest_runtest_makereport(item=item, call=call)]


def _run(session: pytest.Session) -> dict[str, list[pytest.TestReport]]:
    guest.kernel()
    names = [item.nodeid for item in session.items if HERE in item.path.parents]
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
            guest.run(words, folder, env={relay.VARIABLE: str(lines)}, timeout=540)
        except guest.GuestFailed as error:
            session.stash[_TROUBLE] = error
        found: dict[str, list[pytest.TestReport]] = {}
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
