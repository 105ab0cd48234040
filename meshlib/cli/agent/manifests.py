"""``meshlib agent manifests``: what `kubectl apply` needs to run the agent on every node."""

from __future__ import annotations

import re
from pathlib import Path

import click

from meshlib import __version__
from meshlib.agent.manifest_text import manifests, to_toml
from meshlib.cli.agent.options import settings, settings_options

#: A namespace (RFC 1123 label), and an image reference without anything that YAML would read.
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_IMAGE = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._/-]*(:[0-9]+/[A-Za-z0-9._/-]+)?(:[A-Za-z0-9._-]+)?(@sha256:[0-9a-f]{64})?"
)


def _namespace(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not _NAMESPACE.fullmatch(value):
        raise click.BadParameter(f"{value!r:.80} is not a namespace")
    return value


def _image(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not _IMAGE.fullmatch(value):
        raise click.BadParameter(f"{value!r:.80} is not an image")
    return value


@click.command("manifests")
@settings_options
@click.option("--namespace", "-n", callback=_namespace, default="kube-system", show_default=True)
@click.option(
    "--image",
    callback=_image,
    default=f"meshlib-agent:{__version__}",
    show_default=True,
    help="Built with examples/agent/Dockerfile.",
)
def command(file: Path | None, flags: tuple[str, ...], namespace: str, image: str) -> None:
    """Print a ServiceAccount, its rights, the settings and the DaemonSet, for `kubectl apply -f -` or kustomize. Each
    capability and mount says in a comment what it is for. Nothing is applied.

    \b
    Examples:
      meshlib agent manifests --set mode=nftables --set api_server=https://192.0.2.10:6443
      meshlib agent manifests --set service_proxy_name=meshlib --set beside_kube_proxy=true \\
        --set health_address=0.0.0.0:10266 --set metrics_address=127.0.0.1:10259
    """
    loaded = settings(file, flags)
    given = [
        (key, to_toml(getattr(loaded.settings, key)))
        for key in sorted(loaded.places)
        # Which node it is differs from pod to pod.
        if key != "node_name"
    ]
    port = int(loaded.settings.health_address.rpartition(":")[2] or 0)
    if not port:
        raise click.UsageError("the DaemonSet's probes need a health_address")
    click.echo(manifests(namespace, image, given, port), nl=False)
