"""``meshlib check-url``: decision D1 shown for one URL."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

import click

from meshlib.cli.exits import EPILOG, NEGATIVE, OK, stop
from meshlib.cli.output import output_option, print_json, visible
from meshlib.cli.settings import command_config
from meshlib.errors import ConfigError
from meshlib.model.hosts import HostKind, match_host
from meshlib.model.target import TargetDefaults
from meshlib.policies.rollout import decide
from meshlib.runtime.config import Config, alias_targets, target_defaults
from meshlib.runtime.config.rollout import wish_for
from meshlib.runtime.dev_file import find_dev_file

_DECISIONS = {
    HostKind.ALIAS: "balanced",
    HostKind.CLUSTER: "balanced",
    HostKind.SHORT: "balanced if known",
    HostKind.NOT_OURS: "untouched",
}
_MEANINGS = {
    "balanced": "meshlib picks an endpoint for every request.",
    "balanced if known": "balanced once one of these Services is known; until then the request takes its usual way.",
    "untouched": "the request takes its usual way; meshlib looks nothing up for it.",
}


def explain_url(url: str, config: Config, defaults: TargetDefaults) -> dict[str, Any]:
    """What happens to a request to ``url``; ValueError when it is not a URL with a scheme and a host."""
    parts = urlsplit(url)
    if not parts.scheme or not parts.hostname:
        raise ValueError(
            f"{url!r} is not a URL with a scheme and a host; for example http://orders.shop.svc/items"
        )
    dev_file = find_dev_file(os.environ, defaults).file
    aliases = {**alias_targets(config, defaults), **(dev_file.aliases if dev_file is not None else {})}
    match = match_host(parts.scheme, parts.hostname, parts.port, defaults, aliases, config.short_names)
    decision = _DECISIONS[match.kind]
    targets = []
    held_back = {}
    for target in match.targets:
        instead = dev_file.target(target) if dev_file is not None else target
        settings = config.for_target(str(target), defaults=defaults)
        staged = decide(wish_for(config, target, defaults))
        if not staged.everything:
            held_back[str(target)] = f"{staged} ({staged.reason}; {staged.source})"
        targets.append(
            {
                "target": str(target),
                "authority": settings.authority or parts.hostname,
                "picker": settings.picker,
                "picker_source": settings.where,
                "instead": str(instead) if instead != target else "",
                "rollout": str(staged),
                "rollout_reason": staged.reason,
                "rollout_source": staged.source,
            }
        )
    return {
        "url": url,
        "decision": decision,
        "meaning": _MEANINGS[decision] + _but(held_back, len(targets)),
        "kind": match.kind.value,
        "reason": match.reason,
        "targets": targets,
        "namespace": defaults.namespace,
        "cluster_domain": defaults.cluster_domain,
    }


def _but(held_back: dict[str, str], targets: int) -> str:
    """What the configured roll-out takes away, for a target or for several that it treats alike or not."""
    if not held_back:
        return ""
    stages = set(held_back.values())
    if len(stages) == 1 and len(held_back) == targets:
        return f" But the roll-out is at: {stages.pop()}."
    each = ", ".join(f"{stage} for {target}" for target, stage in held_back.items())
    return f" But the roll-out is at: {each}."


@click.command("check-url", epilog=EPILOG)
@click.argument("url")
@click.option("--namespace", "-n", default="", help="Namespace to judge from (default: the pod's own).")
@output_option
def command(url: str, namespace: str, output: str) -> None:
    """Say what would happen to requests to URL, and why. Asks nobody: it only reads the configuration,
    so the roll-out is the configured one, without the Service's annotation.

    \b
    Examples:
      meshlib check-url http://orders.shop.svc/items
      meshlib check-url http://orders:8080/ --namespace shop
      meshlib check-url https://example.com/
    """
    try:
        config = command_config(namespace=namespace)
        found = explain_url(url, config, target_defaults(config))
    except ConfigError as error:
        stop(error)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if output == "json":
        print_json(found)
    else:
        click.echo(f"{visible(url)}: {found['decision']}")
        click.echo(f"  {visible(found['meaning'])}")
        click.echo(f"  why: {visible(found['reason'])}")
        for target in found["targets"]:
            click.echo(
                f"  target: {target['target']}  (picker {target['picker']}, from {target['picker_source']})"
            )
            if target["instead"]:
                click.echo(f"  here: {target['instead']}  (meshlib.dev.toml)")
    raise SystemExit(NEGATIVE if found["decision"] == "untouched" else OK)
