"""``make walk``: the week of tests/walk/week.py with a cluster of its own, told day by day."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.components.kube import KubeCluster
from tests.components.process import NotAvailable
from tests.walk.week import Week, walk

#: Requests of a day.
SOME = 200


def main() -> int:
    """0: all days as they should be; 1: not; 2: something that it needs is missing."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        print("the walk needs root and the program unshare: the service gets a hosts file of its own")
        return 2
    try:
        with (
            tempfile.TemporaryDirectory(prefix="walk-") as folder,
            tempfile.TemporaryDirectory(prefix="ms-") as place,
            KubeCluster("v1") as kube,
            Week(kube, Path(folder), Path(place), lambda line: print(line, flush=True)) as week,
        ):
            walk(week, SOME)
    except NotAvailable as error:
        print(error)
        return 2
    except (AssertionError, TimeoutError) as error:
        print(f"not as it should be: {error!r}", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
