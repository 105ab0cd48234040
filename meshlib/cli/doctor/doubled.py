"""Doctor's look at balancing that is there already, in the configuration, the environment and the program's source."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from meshlib.cli.doctor.findings import Finding, note, ok
from meshlib.clients.grpc.ours import BALANCING
from meshlib.model.target import Target, TargetDefaults
from meshlib.model.target_grammar import cluster_host

_AREA = "double balancing"
_XDS = ("GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG")
#: Files read at most: a source tree, not a file system.
MAX_FILES = 20_000


def check_environment_balancing(environ: Mapping[str, str]) -> Iterable[Finding]:
    """gRPC's own control plane."""
    for name in _XDS:
        if environ.get(name):
            yield note(
                _AREA,
                f"{name} is set: channels for xds:/// are balanced by gRPC and stay gRPC's",
                "write k8s:/// for what meshlib shall balance",
            )


def check_aliases(aliases: Mapping[str, Target], defaults: TargetDefaults) -> Iterable[Finding]:
    """Aliases that lead to a Service's one address: what kube-proxy balances, meshlib cannot."""
    for host, target in aliases.items():
        service = cluster_host(target.name, target.port, defaults) if target.scheme == "dns" else None
        if service is not None:
            yield note(
                _AREA,
                f"alias {host}: {target} is the Service's own address (unless it is headless), which kube-proxy "
                "balances for each connection",
                f"write k8s:///{service.name}.{service.namespace}:{service.port}",
            )


def check_source(paths: Iterable[Path]) -> Iterable[Finding]:
    """gRPC channels that bring a policy of their own, in Python files. Reads, runs nothing."""
    read, found = 0, 0
    for path in files(paths):
        read += 1
        for line, what in _balancing(path):
            found += 1
            yield note(
                _AREA,
                f"{path}:{line}: {what}: a channel by host name that carries it balances itself: left to gRPC",
                "remove the option, so that meshlib balances the channel; or keep it, and do without meshlib there",
            )
        if read >= MAX_FILES:
            yield note(_AREA, f"only the first {MAX_FILES} files were read")
            break
    if read and not found:
        yield ok(_AREA, f"no gRPC channel with a balancing policy of its own in {read} files")


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """Python files below the paths, without hidden and installed ones."""
    for path in paths:
        if path.is_file():
            yield path
            continue
        for found in sorted(path.rglob("*.py")):
            parts = found.relative_to(path).parts
            if not any(part.startswith(".") or part in ("site-packages", "node_modules") for part in parts):
                yield found


def _balancing(path: Path) -> Iterator[tuple[int, str]]:
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError, OSError, RecursionError):
        return  # not Python of this version: nothing can be said of it
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in BALANCING:
            yield node.lineno, node.value
