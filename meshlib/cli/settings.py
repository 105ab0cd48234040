"""Configuration for commands: like the library's, but a kubeconfig may be used without naming it (decision D12)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from meshlib.cli.exits import stop
from meshlib.errors import ConfigError
from meshlib.runtime.config import Config, load_config


def command_config(
    *, namespace: str = "", kubeconfig: str = "", context: str = "", timeout: float | None = None
) -> Config:
    """Load the configuration with a command's options on top; prints the error and exits 2 when it is wrong."""
    try:
        config = load_config()
        code: dict[str, Any] = {}
        kubernetes = {"kubeconfig": kubeconfig, "context": context}
        chosen: dict[str, Any] = {key: value for key, value in kubernetes.items() if value}
        if "allow_kubeconfig" not in config.discovery.get("k8s", {}):
            chosen["allow_kubeconfig"] = True
        if chosen:
            code["discovery"] = {"k8s": chosen}
        if namespace:
            code["namespace"] = namespace
        if timeout is not None:
            code["sync_timeout"] = timeout
        return load_config(code)
    except ConfigError as error:
        stop(error)


def quiet(config: Config) -> Config:
    """``config`` for the Mesh of a command: nobody that `meshlib status` should find, or whose figures are wanted."""
    return replace(config, status_socket="off", exporters=())
