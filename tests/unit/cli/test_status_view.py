"""The tables of `meshlib status` and `meshlib top`: what they say, that they fit, and the rates between two looks."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from meshlib.cli import top
from meshlib.cli.app import meshlib
from meshlib.cli.status.ask import Silent, Worker
from meshlib.cli.status.find import Found, Socket
from meshlib.cli.status.layout import shortened
from meshlib.cli.status.rates import picture
from meshlib.cli.status.view import SHOWN, latency, most_telling, print_worker, print_workers
from meshlib.cli.top import busiest, draw
from meshlib.runtime.config.values import Value
from meshlib.runtime.recent import RecentEvent
from meshlib.runtime.report_form import (
    EndpointReport,
    MeshReport,
    PickerReport,
    ProcessReport,
    RolloutReport,
    TargetReport,
    TotalsReport,
)


def endpoint(number: int, **fields: Any) -> EndpointReport:
    given = {"name": f"orders-7c9d5b8f6-{number:05d}", "state": "ready", **fields}
    return EndpointReport(address=f"10.0.{number >> 8}.{number & 255}", port=8080, **given)


def target(
    *endpoints: EndpointReport,
    bare: int = 0,
    mode: str = "on",
    percent: float = 100.0,
    **fields: Any,
) -> TargetReport:
    requests = sum(each.requests for each in endpoints)
    failures = sum(each.failures for each in endpoints)
    given = {
        "mesh": 0,
        "target": "k8s:///orders.shop:http",
        "authority": "orders.shop.svc",
        "started": True,
        "way": "pods",
        "source": "kubernetes https://10.96.0.1:443 (v1)",
        "age": 12.0,
        "picker": PickerReport("peak_ewma", "default"),
        "members": len(endpoints),
        "requests": requests,
        "failures": failures,
        "totals": TotalsReport(0, requests, failures, 0),
        "rollout": RolloutReport(
            mode,
            percent,
            "meshlib.toml: mode",
            "said so",
            {"mesh": requests, "bare_observe": bare},
            0,
            {},
            {},
        ),
        "endpoints": endpoints,
        **fields,
    }
    return TargetReport(**given)


def worker(pid: int, *targets: TargetReport, at: float = 100.0, **fields: Any) -> dict[str, Any]:
    """A worker's document as it comes from the socket."""
    given = {
        "parent": 1,
        "uid": 1000,
        "program": "python -m gunicorn app:application",
        "versions": {"meshlib": "0.1.0", "python": "3.11.7"},
        "started": at - 60,
        "sidecar": "",
        "events": {},
        "recent": (),
        "meshes": (MeshReport("", "", (), (Value("zone", "eu-1", "MESHLIB_ZONE"),)),),
        **fields,
    }
    found = ProcessReport(pid=pid, at=at, targets=targets, **given)
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(found))
    return document


def shown(show: Any, what: Any, width: int = 80) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=width, highlight=False, markup=False), what)
    return stream.getvalue()


def test_one_worker_in_full() -> None:
    """Who it is, the settings somebody chose, each target with its endpoints, and what happened last."""
    text = shown(
        print_worker,
        worker(
            4711,
            target(
                endpoint(1, requests=9, failures=1, share=0.9, latency=0.0123, in_flight=2),
                endpoint(2, state="out", reason="not ready"),
            ),
            recent=(RecentEvent(100.0, "SourceRecovered", "api: answers again", 3),),
        ),
        width=120,
    )
    for expected in (
        "process 4711: python -m gunicorn app:application",
        "zone = eu-1 (MESHLIB_ZONE)",
        "k8s:///orders.shop:http: calls take pods",
        "10.0.0.1:8080",
        "90%",
        "12.3 ms",
        "orders-7c9d5b8f6-00001",
        "out: 10.0.0.2:8080 orders-7c9d5b8f6-00002: not ready",
        "api: answers again (3 times)",
    ):
        assert expected in text


def test_trouble_and_the_roll_out_are_told() -> None:
    """Another way and its reason, a stale source, a broken file, and where the requests went."""
    text = shown(
        print_worker,
        worker(
            1,
            target(way="dns", reason="no rights", error="403", stale=True, mode="observe", bare=7),
            meshes=(MeshReport("meshlib.toml", "line 3: no TOML", ("MESHLIB_X is unknown",), ()),),
        ),
    )
    for expected in (
        "calls take the bare way, and would take dns",
        "because no rights",
        "error: 403",
        "STALE",
        "observe: said so (meshlib.toml: mode)",
        "requests: 7 bare_observe",
        "THE FILE IS NOT IN FORCE: line 3: no TOML",
        "ignored: MESHLIB_X is unknown",
    ):
        assert expected in text


def test_workers_side_by_side() -> None:
    """Workers that believe the same share a line; who disagrees has one, with the reason."""
    good = target(endpoint(1, requests=5), endpoint(2, requests=5))
    text = shown(
        print_workers,
        [
            worker(11, good),
            worker(12, good),
            worker(13, target(way="dns", reason="no rights", members=1)),
            worker(14, target(started=False, mode="off", bare=3)),
        ],
    )
    rows = [line.split() for line in text.splitlines() if line.startswith("k8s")]
    assert ["k8s:///orders.shop:http", "pods", "2", "2", "0", "20", "0", "12", "s"] in rows
    assert any(row[1] == "dns" and row[2] == "1" for row in rows)
    assert any(row[1] == "off" for row in rows)
    assert "dns in 1 of 4 workers: no rights" in text.replace("\n", " ")


HOSTILE = "\x1b]0;owned\x07[red]" + "x" * 300


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_and_sends_nothing_foreign_to_the_terminal(width: int) -> None:
    """Long and hostile names of other tenants neither widen a table nor act on the terminal."""
    hostile = target(
        *(endpoint(n, requests=10**9 + n, failures=10**7, latency=1.5, share=0.05) for n in range(40)),
        endpoint(41, name=HOSTILE, state="out", reason=HOSTILE),
        target=f"k8s:///{HOSTILE}",
        reason=HOSTILE,
        error=HOSTILE,
        source=HOSTILE,
    )
    one = worker(2**22, hostile, program=HOSTILE, sidecar=HOSTILE)
    other = worker(2**22 - 1, hostile, program="other")
    look = {"a": one, "b": other}
    drawing = draw(picture(look, look), 2, 1.0, width, 24)
    for text in (
        shown(print_worker, one, width),
        shown(print_workers, [one, other], width),
        shown(Console.print, drawing, width),
    ):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert len(shown(Console.print, drawing, width).splitlines()) <= 24


def test_of_too_many_the_telling_ones_are_shown() -> None:
    """Those that fail, then the busiest; in their own order, the rest is a number."""
    rows = [
        msgspec.to_builtins(endpoint(n, requests=n, failures=int(n == 3), in_flight=int(n == 5)))
        for n in range(100)
    ]
    chosen = [row["requests"] for row in most_telling(rows)]
    assert len(chosen) == SHOWN
    assert chosen[:2] == [3, 5]
    assert chosen == sorted(chosen)
    text = shown(print_worker, worker(1, target(*(endpoint(n) for n in range(30)), left_out=70)))
    assert "and 80 more: --json has them" in text


def test_rates_are_differences_over_all_workers() -> None:
    """Per second of each worker's own time, summed; a worker that was not there before has none."""
    before = {
        "a": worker(1, target(endpoint(1, requests=100, failures=4), bare=10), at=100.0),
        "b": worker(2, target(endpoint(1, requests=50)), at=100.5),
    }
    after = {
        "a": worker(1, target(endpoint(1, requests=120, failures=6, latency=0.2), bare=30), at=102.0),
        "b": worker(2, target(endpoint(1, requests=60, latency=0.3)), at=101.5),
        "c": worker(3, target(endpoint(1, requests=999)), at=101.5),
    }
    seen = picture(before, after)
    (line,) = seen.targets
    assert (line.workers, line.requests, line.failures, line.bare) == (3, 20.0, 1.0, 10.0)
    ((name, one),) = seen.endpoints
    assert (name, one.name, one.requests, one.latency) == (
        *("k8s:///orders.shop:http", "10.0.0.1:8080", 20.0),
        0.3,
    )


def test_an_endpoint_that_came_back_counts_anew() -> None:
    """Fewer requests than before are those since its return, never a negative rate."""
    before = {"a": worker(1, target(endpoint(1, requests=100)), at=100.0)}
    after = {"a": worker(1, target(endpoint(1, requests=3)), at=101.0)}
    assert picture(before, after).endpoints[0][1].requests == 3.0


def test_two_meshes_of_one_worker_are_counted_once() -> None:
    """Totals of a target belong to the process; its endpoints in both Meshes are added up."""
    before = {"a": worker(1, target(endpoint(1)), target(endpoint(1), mesh=1), at=100.0)}
    both = (target(endpoint(1, requests=4), totals=TotalsReport(0, 9, 0, 0)) for _ in range(2))
    seen = picture(before, {"a": worker(1, *both, at=101.0)})
    assert seen.targets[0].requests == 9.0
    assert seen.endpoints[0][1].requests == 8.0


def test_top_tells_of_those_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the head while others answer; when all are silent, who they are, with the code of what is not known."""
    mute = Silent(Socket(b"\0mute", 0, 7), "too busy")
    found, workers = Found([mute.socket]), [Worker(Socket(b"\0told", 0, 1), worker(1, target(endpoint(1))))]
    monkeypatch.setattr(top, "look", lambda *_, **__: (found, workers, [mute]))
    told = CliRunner().invoke(meshlib, ["top", "--interval", "0.2"])
    assert told.exit_code == 0
    assert "1 workers" in told.output
    assert "1 WITHOUT AN ANSWER (meshlib status)" in told.output
    workers.clear()
    silent = CliRunner().invoke(meshlib, ["top"])
    assert silent.exit_code == 3
    assert "no answer from process 7 (@mute): too busy" in silent.output
    assert "Check that" not in silent.output


def test_the_busiest_have_the_room() -> None:
    """Those that fail come first, then the most requests; the order on the screen stays."""
    before = {"a": worker(1, target(*(endpoint(n) for n in range(10))), at=100.0)}
    after = {
        "a": worker(1, target(*(endpoint(n, requests=n, failures=int(n == 2)) for n in range(10))), at=101.0)
    }
    chosen = [line.name for _, line in busiest(picture(before, after).endpoints, 3)]
    assert chosen == ["10.0.0.2:8080", "10.0.0.8:8080", "10.0.0.9:8080"]


def test_small_words() -> None:
    """Latencies have three digits, and what is cut is cut in the middle."""
    assert [latency(each) for each in (None, 0.0001234, 0.0456, 0.99951, 1.5)] == [
        *("-", "0.123 ms", "45.6 ms", "1 s", "1.5 s"),
    ]
    assert shortened("k8s:///orders.shop:http", 11) == "k8s:/…:http"
    assert shortened("short", 11) == "short"
