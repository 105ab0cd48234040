"""How the agent finds its API server: what its own setting adds to the credentials."""

from __future__ import annotations

import pytest

from meshlib.agent.assembly import kubernetes_settings
from meshlib.agent.settings import AgentSettings
from meshlib.discovery.kubernetes.credentials import SERVICE_ACCOUNT_DIR
from meshlib.errors import ConfigError


def test_another_way_to_the_same_server() -> None:
    """The address alone is replaced: who we are is told by the pod's service account, as without the setting."""
    found = kubernetes_settings(AgentSettings(api_server="https://192.0.2.1:6443"), {})
    assert found["api_server"] == "https://192.0.2.1:6443"
    assert found["service_account_dir"] == SERVICE_ACCOUNT_DIR
    assert "api_server" not in kubernetes_settings(AgentSettings(), {})


def test_two_servers_are_refused() -> None:
    """A kubeconfig names its own."""
    assert kubernetes_settings(AgentSettings(), {"KUBECONFIG": "/a"})["allow_kubeconfig"]
    with pytest.raises(ConfigError, match="KUBECONFIG names a server as well"):
        kubernetes_settings(AgentSettings(api_server="https://192.0.2.1"), {"KUBECONFIG": "/a"})
