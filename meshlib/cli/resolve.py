"""``meshlib resolve``: who may receive traffic for a target, who may not, why, and how old that knowledge is."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from meshlib.cli.exits import EPILOG, NEGATIVE, OK, UNKNOWN, stop
from meshlib.cli.output import age, output_option, print_json, print_table, visible
from meshlib.cli.settings import command_config, quiet
from meshlib.errors import MeshError
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.observing import counters

#: How long ``--watch`` sleeps between looks at most, seconds: a change wakes it at once, this only bounds Ctrl-C.
_LOOK = 0.5


def describe(handle: TargetHandle) -> dict[str, Any]:
    """The JSON form of the answer; its keys are part of the interface."""
    status = handle.status()
    state = handle.state
    error = state.error() if state.error is not None else None
    eligible = {(entry["address"], entry["port"]): entry for entry in status["endpoints"]}
    rows: list[dict[str, Any]] = [
        {
            "address": line.endpoint.address,
            "port": line.endpoint.port,
            "eligible": line.eligible,
            "reason": line.reason,
            "name": line.endpoint.name,
            "node": line.endpoint.node,
            "zone": line.endpoint.zone,
            "weight": line.endpoint.weight,
            "slice": line.slice,
        }
        for line in handle.balancer.explain()
    ]
    listed = {(row["address"], row["port"]) for row in rows if row["eligible"]}
    # What calls use although it is in no slice: the Service's own address or what DNS says (decision D3).
    rows += [
        {
            "address": entry["address"],
            "port": entry["port"],
            "eligible": True,
            "reason": status["reason"],
            "name": entry["name"],
            "node": "",
            "zone": "",
            "weight": entry["weight"],
            "slice": "",
        }
        for where, entry in eligible.items()
        if where not in listed
    ]
    return {
        "target": str(handle.target),
        "authority": handle.authority,
        "way": status["way"],
        "reason": status["reason"],
        "verdict": status["verdict"],
        "locality": status["locality"],
        "synced": handle.synced,
        "stale": status["stale"],
        "age": status["age"],
        "error": str(error or status["error"] or ""),
        "source": {"name": status["source"], **handle.describe()},
        "skipped": status["skipped"],
        "events": counters(),
        "endpoints": rows,
    }


def exit_code(found: dict[str, Any]) -> int:
    """0: somebody may receive traffic; 1: known that nobody may; 3: not known."""
    if any(row["eligible"] for row in found["endpoints"]):
        return OK
    return NEGATIVE if found["synced"] else UNKNOWN


def _print(found: dict[str, Any]) -> None:
    rows = [
        (
            f"[{row['address']}]:{row['port']}"
            if ":" in row["address"]
            else f"{row['address']}:{row['port']}",
            "yes" if row["eligible"] else "no",
            row["reason"],
            row["name"],
            row["zone"] or row["node"],
        )
        for row in sorted(found["endpoints"], key=lambda row: not row["eligible"])
    ]
    count = sum(row["eligible"] for row in found["endpoints"])
    print_table(
        f"{visible(found['target'])}: {count} of {len(rows)} may receive traffic",
        ("endpoint", "traffic", "why", "pod", "zone"),
        rows,
    )
    click.echo(f"calls take: {found['way']}" + (f" ({visible(found['reason'])})" if found["reason"] else ""))
    source = found["source"]
    stale = ", STALE" if found["stale"] else ""
    click.echo(f"source: {visible(source['name']) or 'none yet'}, last change {age(found['age'])} ago{stale}")
    details = {
        key: value for key, value in source.items() if key != "name" and value not in (None, "", 0, False)
    }
    if details:
        click.echo("  " + ", ".join(f"{key} {_short(value)}" for key, value in details.items()))
    if found["skipped"]:
        click.echo(f"skipped: {found['skipped']} entries of the source (see the log)")
    if found["error"]:
        click.echo(f"error: {visible(found['error'])}")


def _short(value: object) -> str:
    return visible(f"{value:.1f}" if isinstance(value, float) else str(value))


def _wait(handle: TargetHandle, timeout: float) -> None:
    """Until discovery has spoken, or said that it cannot, or time is up."""
    deadline = time.monotonic() + timeout
    while not handle.synced and (left := deadline - time.monotonic()) > 0:
        if handle.state.settled and handle.balancer.last_error is not None:
            return
        handle.wait_for_change(min(left, _LOOK))


def _show(found: dict[str, Any], output: str, watching: bool) -> None:
    if output == "table":
        _print(found)
    elif watching:
        click.echo(json.dumps(found, default=str, ensure_ascii=False))
    else:
        print_json(found)


def _steady(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in ("age", "source", "events")}


@click.command("resolve", epilog=EPILOG)
@click.argument("target")
@click.option("--watch", "-w", is_flag=True, help="Print it again at every change, until interrupted.")
@output_option
@click.option(
    "--timeout",
    type=click.FloatRange(0, 60),
    default=5.0,
    show_default=True,
    help="Seconds to wait for the first answer.",
)
@click.option(
    "--namespace", "-n", default="", help="Namespace of names without one (default: the pod's own)."
)
@click.option(
    "--kubeconfig", default="", help="Kubeconfig file (default: KUBECONFIG, in-cluster, ~/.kube/config)."
)
@click.option("--context", default="", help="Context of the kubeconfig.")
def command(
    target: str, watch: bool, output: str, timeout: float, namespace: str, kubeconfig: str, context: str
) -> None:
    """Show who may receive traffic for TARGET, who may not and why, where the data came from and how old it is.

    \b
    TARGET is one of
      k8s:///orders.shop:http            a Service port, by name or number
      orders.shop.svc:80                 the same, as a host name
      dns:///orders.example:80           an address list in DNS
      dns+srv:///_http._tcp.example      SRV records
      file:///manifests#shop/orders:80   manifests in a file or folder
      static:///10.0.0.1:80,10.0.0.2:80;weight=3

    \b
    Examples:
      meshlib resolve k8s:///orders.shop:http
      meshlib resolve k8s:///orders:http -n shop --watch
      meshlib resolve k8s:///orders.shop:http -o json | jq '.endpoints[] | select(.eligible | not)'

    With --watch and JSON, each state is one line.
    """
    config = command_config(namespace=namespace, kubeconfig=kubeconfig, context=context)
    try:
        with Mesh(config=quiet(config)) as mesh:
            handle = mesh.target(target)
            _wait(handle, timeout)
            found = describe(handle)
            _show(found, output, watch)
            while watch:
                handle.wait_for_change(_LOOK)
                latest = describe(handle)
                if _steady(latest) != _steady(found):
                    found = latest
                    _show(found, output, watch)
    except MeshError as error:
        stop(error)
    except KeyboardInterrupt:
        raise SystemExit(OK) from None
    raise SystemExit(exit_code(found))
