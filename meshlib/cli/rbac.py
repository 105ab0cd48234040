"""``meshlib rbac``: the manifests that let a client read what it needs."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from meshlib.discovery.kubernetes.rbac import Subject, role_yaml

#: A Kubernetes object name (RFC 1123 subdomain).
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
#: A label of a pod selector, KEY=VALUE.
_LABEL = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_./]{0,252}[A-Za-z0-9])=([A-Za-z0-9][-A-Za-z0-9_.]{0,62})")
#: The API server's Service port, and the port its own endpoints usually have: a NetworkPolicy is applied after the
#: Service address was translated, so both must be open.
API_PORTS = (443, 6443)


def parse_name(text: str) -> tuple[str, str]:
    """``NAMESPACE/NAME`` checked; raises click.BadParameter."""
    namespace, _, name = text.partition("/")
    if not (_NAME.fullmatch(namespace) and _NAME.fullmatch(name)):
        raise click.BadParameter(f"{text!r} is not NAMESPACE/NAME, for example shop/orders")
    return namespace, name


def api_egress_yaml(
    client: tuple[str, str], labels: Sequence[tuple[str, str]], networks: Sequence[str]
) -> str:
    """A NetworkPolicy that lets pods with ``labels`` reach the API server at ``networks`` (none given: anywhere)."""
    namespace, account = client
    name = f"meshlib-api-{account}"[:253].rstrip("-.")
    selector = (
        "{}" if not labels else "\n    matchLabels:" + "".join(f'\n      "{k}": "{v}"' for k, v in labels)
    )
    ports = "".join(f"    - protocol: TCP\n      port: {port}\n" for port in API_PORTS)
    blocks = "".join(f'    - ipBlock:\n        cidr: "{network}"\n' for network in networks)
    space = "" if selector.startswith("\n") else " "
    return (
        "# Only where egress of these pods is restricted already: a pod's first egress policy forbids all the rest.\n"
        "apiVersion: networking.k8s.io/v1\n"
        "kind: NetworkPolicy\n"
        f'metadata:\n  name: {name}\n  namespace: "{namespace}"\n'
        "spec:\n"
        f"  podSelector:{space}{selector}\n"
        "  policyTypes: [Egress]\n"
        "  egress:\n"
        f"  - ports:\n{ports}" + (f"    to:\n{blocks}" if blocks else "")
    )


def _names(ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...]) -> object:
    return parse_name(value) if isinstance(value, str) else tuple(parse_name(item) for item in value)


def _labels(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    found = [_LABEL.fullmatch(item) for item in value]
    for item, match in zip(value, found, strict=True):
        if match is None:
            raise click.BadParameter(f"{item!r} is not KEY=VALUE, for example app=web")
    return tuple((match[1], match[2]) for match in found if match)


def _networks(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    from ipaddress import ip_network

    try:
        return tuple(str(ip_network(item)) for item in value)
    except ValueError as error:
        raise click.BadParameter(f"{error}; for example 10.96.0.1/32") from None


@click.command("rbac")
@click.option(
    "--from", "client", required=True, metavar="NS/SERVICEACCOUNT", callback=_names, help="Who calls."
)
@click.option(
    "--to",
    "services",
    required=True,
    multiple=True,
    metavar="NS/SERVICE",
    callback=_names,
    help="What is called; repeat it for more.",
)
@click.argument("more", nargs=-1, metavar="[NS/SERVICE]...", callback=_names)
@click.option(
    "--pod-label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_labels,
    help="Labels of the calling pods, for the NetworkPolicy (default: every pod of the namespace).",
)
@click.option(
    "--api-server",
    "networks",
    multiple=True,
    metavar="CIDR",
    callback=_networks,
    help="Where the API server is, for the NetworkPolicy (default: anywhere).",
)
@click.option(
    "--network-policy/--no-network-policy", default=True, show_default=True, help="Print the NetworkPolicy."
)
def command(
    client: tuple[str, str],
    services: tuple[tuple[str, str], ...],
    more: tuple[tuple[str, str], ...],
    labels: tuple[tuple[str, str], ...],
    networks: tuple[str, ...],
    network_policy: bool,
) -> None:
    """Print what a client needs to read the endpoints of Services: a Role and a RoleBinding per namespace, and a
    NetworkPolicy for the way to the API server. Nothing is applied.

    RBAC cannot restrict by label, and slices have generated names, so a Role opens the slices and Services of its
    whole namespace, for list and watch.

    \b
    Examples:
      meshlib rbac --from web/frontend --to shop/orders shop/stock
      meshlib rbac --from web/frontend --to shop/orders --no-network-policy | kubectl apply -f -
      meshlib rbac --from web/frontend --to shop/orders --pod-label app=web --api-server 10.96.0.1/32
    """
    subject = Subject(*client)
    documents = [
        role_yaml(namespace, subject) for namespace in sorted({where for where, _ in (*services, *more)})
    ]
    if network_policy:
        documents.append(api_egress_yaml(client, labels, networks))
        # On stderr, where it is seen although the manifests go into a pipe.
        chosen = f"pods of {client[0]} with these labels" if labels else f"every pod of {client[0]}"
        click.echo(
            f"note: the NetworkPolicy forbids {chosen} all other egress, DNS included, unless another policy allows "
            "it: apply it only where egress is restricted already (--no-network-policy leaves it out)",
            err=True,
        )
    click.echo("---\n".join(documents), nl=False)
