"""The ``meshlib demo`` command: puts the parts together and runs the story."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Mapping

import click

from meshlib.cli.demo.board import Board
from meshlib.cli.demo.fleet import Fleet
from meshlib.cli.demo.screen import LiveScreen, PlainScreen, Screen, print_summary
from meshlib.cli.demo.story import BASE_DELAY, DEAD, FIRST, JOINER, SLOW, SLOW_DELAY, chapters, summarize
from meshlib.cli.exits import NEGATIVE, OK
from meshlib.cli.output import print_json
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh

#: How often the picture is drawn and the story looked at, seconds.
TICK = 0.125
#: Shares and latencies on the screen are those of this time, seconds: long enough to be calm, short enough to move.
WINDOW = 2.0
#: What shells say of a program that SIGTERM ended: 128 and the signal's number.
TERMINATED = 128 + signal.SIGTERM


@click.command("demo", epilog="Exit codes: 0 no request failed; 1 some did.")
@click.option(
    "--seconds",
    type=click.FloatRange(10, 300),
    default=30.0,
    show_default=True,
    help="How long traffic runs.",
)
@click.option(
    "--plain", is_flag=True, help="Lines instead of a live table (always so when not on a terminal)."
)
@click.option("--json", "as_json", is_flag=True, help="Print only the summary, as JSON.")
def command(seconds: float, plain: bool, as_json: bool) -> None:
    """Send httpx and gRPC traffic to five real local servers while one slows down, one dies and one joins.

    Needs no cluster and no privileges: the servers are child processes on 127.0.0.1, and a folder of manifests is the
    registry. It ends by itself with figures to judge by.

    \b
    Examples:
      meshlib demo
      meshlib demo --seconds 60
      meshlib demo --plain | tee demo.txt
    """
    screen: Screen = PlainScreen() if plain or as_json or not sys.stdout.isatty() else LiveScreen(seconds)
    board = Board()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that the servers are ended here, too
    with Fleet() as fleet:
        if not as_json:
            click.echo("starting five servers ...")
        fleet.start(*FIRST, JOINER)
        for name in FIRST:
            fleet.register(name)
        happened = _run(fleet, board, screen, seconds, quiet=as_json)
    found = summarize(board, seconds, happened)
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        print_summary(found)
    raise SystemExit(NEGATIVE if found.failed else OK)


def _run(fleet: Fleet, board: Board, screen: Screen, seconds: float, quiet: bool) -> dict[str, float]:
    """Play the story; returns when each event really happened."""
    # Here, because httpx and grpc are what takes long to import: the servers start meanwhile.
    from meshlib.cli.demo.traffic import HOST, Traffic

    # The demo shows the defaults: neither this environment nor a meshlib.toml that lies here is read.
    config = load_config({"aliases": {HOST: fleet.target("http")}}, environ={}, file=os.devnull)
    states = dict.fromkeys(FIRST, "ok")
    happened: dict[str, float] = {}
    with Mesh(config=config) as mesh:
        traffic = Traffic(mesh, fleet.target("grpc"), board)
        handles = (mesh.target(fleet.target("http")), mesh.target(fleet.target("grpc")))
        ahead = list(chapters(seconds))
        traffic.start()
        try:
            with screen:
                while (now := traffic.elapsed()) < seconds:
                    while ahead and ahead[0].at <= now:
                        chapter = ahead.pop(0)
                        _act(fleet, chapter.event, states)
                        happened[chapter.event] = traffic.elapsed()
                        if not quiet:
                            screen.tell(chapter)
                    if not quiet:
                        counts = _counts([handle.status() for handle in handles])
                        screen.show(now, board.lines(tuple(states), now - WINDOW, now), states, counts)
                    time.sleep(TICK)
        finally:
            traffic.stop()
    return happened


def _act(fleet: Fleet, event: str, states: dict[str, str]) -> None:
    match event:
        case "slow":
            fleet.slow_down(SLOW, SLOW_DELAY)
            states[SLOW] = "slow"
        case "stop":
            fleet.stop(DEAD)
            states[DEAD] = "dead"
        case "forget":
            fleet.forget(DEAD)
            states[DEAD] = "gone"
        case "join":
            fleet.register(JOINER)
            states[JOINER] = "joined"
        case _:
            fleet.slow_down(SLOW, BASE_DELAY)
            states[SLOW] = "ok"


def _counts(statuses: list[Mapping[str, object]]) -> dict[str, tuple[int, int]]:
    """Backend -> (in flight, failed) over all handles."""
    found: dict[str, tuple[int, int]] = {}
    for status in statuses:
        endpoints = status["endpoints"]
        for entry in endpoints if isinstance(endpoints, list) else ():
            inflight, failures = found.get(entry["name"], (0, 0))
            found[entry["name"]] = (inflight + entry["inflight"], failures + entry["failures"])
    return found
