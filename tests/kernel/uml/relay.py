"""Inside the guest: a pytest plugin that writes down every report, for the session outside to tell as its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

#: Names the file; set inside the guest only.
VARIABLE = "MESHLIB_GUEST_REPORTS"


def inside() -> bool:
    """Whether this is the guest."""
    return VARIABLE in os.environ


class Relay:
    """Appends to the file, report by report: what was done before a crash is known."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with self._path.open("a") as file:
            file.write(json.dumps(data) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Relay(config, Path(os.environ[VARIABLE])))
