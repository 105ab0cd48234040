"""Settings as rows: everything in force, with its place, and no secret."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.runtime.config import load_config
from meshlib.runtime.config.keys import ADDRESS, SCALARS
from meshlib.runtime.config.values import HIDDEN, config_values


def rows(code: dict[str, Any], environ: dict[str, str] | None = None) -> dict[str, tuple[Any, str]]:
    config = load_config(code, environ=environ or {})
    return {row.key: (row.value, row.source) for row in config_values(config)}


def test_every_key_is_there_with_its_place() -> None:
    """Defaults, variables and code, each with where it comes from; tables entry by entry."""
    found = rows(
        {"aliases": {"orders.internal": "k8s:///orders.shop:http"}, "address": {"allow": ["10.0.0.0/8"]}},
        {"MESHLIB_ZONE": "eu-1"},
    )
    assert set(SCALARS) <= set(found)
    assert {f"address.{key}" for key in ADDRESS} <= set(found)
    assert found["picker"] == ("peak_ewma", "default")
    assert found["zone"] == ("eu-1", "MESHLIB_ZONE")
    assert found["address.allow"] == (["10.0.0.0/8"], "code: address.allow")
    alias = 'aliases."orders.internal"'
    assert found[alias] == ("k8s:///orders.shop:http", f"code: {alias}")


@pytest.mark.parametrize("key", ["token", "api_key", "Password", "client_secret", "auth", "credentials_file"])
def test_what_may_be_a_secret_is_only_named(key: str) -> None:
    """The tables of resolvers we do not know may hold tokens; people paste what a status page says."""
    found = rows({"discovery": {"consul": {key: "hunter2", "address": "10.0.0.1"}}})
    assert found[f"discovery.consul.{key}"][0] == HIDDEN
    assert found["discovery.consul.address"][0] == "10.0.0.1"
    assert "hunter2" not in str(found)


def test_a_secret_within_tables_and_lists_is_only_named() -> None:
    """Whatever depth a resolver's settings have; what stands beside it is shown."""
    found = rows(
        {"discovery": {"consul": {"http": {"token": "hunter2", "peers": [{"port": 1, "key": "hunter2"}]}}}}
    )
    shown = {"token": HIDDEN, "peers": [{"port": 1, "key": HIDDEN}]}
    assert found["discovery.consul.http"][0] == shown


def test_what_we_know_is_shown() -> None:
    """Kubernetes' own settings are paths and switches; the stand-in for the environment is not shown."""
    found = rows({"discovery": {"k8s": {"kubeconfig": "/etc/kube", "environ": {"X_TOKEN": "hunter2"}}}})
    assert found["discovery.k8s.kubeconfig"][0] == "/etc/kube"
    assert found["discovery.k8s.environ"][0] == HIDDEN
