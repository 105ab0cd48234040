"""What importing meshlib costs, beside httpx: in fresh interpreters, taken in turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

NAME = "Importing"
TARGETS = (
    "import meshlib takes at most half the time of import httpx, starts no thread, opens no socket, "
    "and loads none of httpx, grpc, kubernetes, dns"
)

_HEAVY = ("httpx", "grpc", "kubernetes", "dns")

#: Runs in the fresh interpreter: times the import alone, then looks at what it left behind.
_PROGRAM = """
import json, os, sys, threading, time
before = len(sys.modules)
begin = time.perf_counter()
{statement}
took = time.perf_counter() - begin
folder = "/proc/self/fd"
sockets = 0
if os.path.isdir(folder):
    for name in os.listdir(folder):
        try:
            sockets += os.readlink(f"{{folder}}/{{name}}").startswith("socket:")
        except OSError:
            pass  # the descriptor of the listing itself
print(json.dumps({{
    "ms": took * 1000,
    "modules": len(sys.modules) - before,
    "threads": threading.active_count(),
    "sockets": sockets,
    "heavy": [name for name in {heavy!r} if name in sys.modules],
}}))
"""


def look(statement: str) -> dict[str, object]:
    """Run ``statement`` in a fresh interpreter and tell what that did."""
    program = _PROGRAM.format(statement=statement, heavy=_HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    """Medians and spread over fresh interpreters."""
    # The third is no target: it is what the first use costs, which laziness only moves.
    statements = ("import meshlib", "import httpx", "from meshlib import Mesh")
    looks: dict[str, list[dict[str, object]]] = {statement: [] for statement in statements}
    for statement in statements:
        look(statement)  # writes the bytecode caches and fills the page cache, for all of them
    for _ in range(5 if quick else 31):
        for statement in statements:
            looks[statement].append(look(statement))
    base = statistics.median(float(str(found["ms"])) for found in looks["import httpx"])
    rows = []
    for statement in statements:
        times = sorted(float(str(found["ms"])) for found in looks[statement])
        last = looks[statement][-1]
        heavy = last["heavy"]
        rows.append(
            [
                statement,
                f"{statistics.median(times):.1f} ms",
                f"{times[0]:.1f} to {times[-1]:.1f} ms",
                f"{statistics.median(times) / base:.2f}",
                str(last["modules"]),
                str(last["threads"]),
                str(last["sockets"]),
                ", ".join(map(str, heavy)) if isinstance(heavy, list) and heavy else "none",
            ]
        )
    return [
        "",
        "median",
        "spread",
        "ratio to httpx",
        "modules",
        "threads",
        "sockets",
        "of the heavy ones",
    ], rows
