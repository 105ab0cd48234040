"""For tests of code that uses meshlib or extends it (docs/testing.md); meshlib's own tests use nothing else.

``meshlib.testing.contracts`` holds the checks for pickers, by contract class.
"""

from __future__ import annotations

from meshlib.testing.clock import FakeClock
from meshlib.testing.fake_apiserver import FakeApiServer
from meshlib.testing.manual import ManualResolver

__all__ = ["FakeApiServer", "FakeClock", "ManualResolver"]
