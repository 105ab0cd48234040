"""What a subscriber hears: news only, failures once, recovery always."""

from __future__ import annotations

from meshlib.discovery.outlet import Outlet
from meshlib.errors import DiscoveryError
from meshlib.model.service import Service, ServiceKey
from meshlib.model.update import DoesNotExist, Failure, Snapshot, Update

FACTS = Snapshot(Service(ServiceKey("", "a")), (), "test")
OTHER = Snapshot(Service(ServiceKey("", "b")), (), "test")
WRONG = Failure(DiscoveryError("no"))


def test_only_news_goes_out() -> None:
    """Equal facts are silent, a count of skipped entries is no news, other facts are."""
    heard: list[Update] = []
    outlet = Outlet(heard.append)
    outlet.show(FACTS)
    outlet.show(FACTS)
    outlet.show(Snapshot(FACTS.service, (), "test", skipped=7))
    outlet.show(OTHER)
    outlet.show(DoesNotExist("gone"))
    outlet.show(DoesNotExist("gone"))
    assert heard == [FACTS, OTHER, DoesNotExist("gone")]


def test_failure_once_and_recovery_with_the_same_facts() -> None:
    """A failure is told once; changed facts go out meanwhile, followed by the failure; recovery repeats the facts."""
    heard: list[Update] = []
    outlet = Outlet(heard.append)
    outlet.show(FACTS)
    outlet.show(FACTS, WRONG)
    outlet.show(None, WRONG)
    outlet.show(OTHER, WRONG)
    outlet.show(OTHER)
    assert heard == [FACTS, WRONG, OTHER, WRONG, OTHER]


def test_closed_from_inside_publish() -> None:
    """A subscriber that closes while it is being told hears nothing more."""
    heard: list[Update] = []

    def publish(update: Update) -> None:
        heard.append(update)
        outlet.closed = True

    outlet = Outlet(publish)
    outlet.show(FACTS, WRONG)
    outlet.show(OTHER)
    assert heard == [FACTS]
