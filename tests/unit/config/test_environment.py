"""target_defaults, alias_targets and address_policy: the configuration in the model's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshlib.errors import ConfigError, DataError
from meshlib.model.target import Target, TargetDefaults
from meshlib.runtime.config import address_policy, alias_targets, load_config, target_defaults


def defaults(
    tmp_path: Path, resolv: str = "", namespace: str | None = None, **code: object
) -> TargetDefaults:
    (tmp_path / "resolv.conf").write_text(resolv)
    if namespace is not None:
        (tmp_path / "namespace").write_text(namespace)
    return target_defaults(
        load_config(code, {}), resolv_conf=tmp_path / "resolv.conf", namespace_file=tmp_path / "namespace"
    )


def test_outside_a_cluster(tmp_path: Path) -> None:
    """Nothing to learn from: Kubernetes' usual names."""
    found = defaults(tmp_path)
    assert (found.namespace, found.cluster_domain, found.search, found.ndots) == (
        "default",
        "cluster.local",
        (),
        1,
    )


def test_missing_files_are_no_error(tmp_path: Path) -> None:
    """A host without resolv.conf and service account is an ordinary host."""
    gone = tmp_path / "gone"
    found = target_defaults(load_config({}, {}), resolv_conf=gone, namespace_file=gone)
    assert found == TargetDefaults()


def test_in_a_pod(tmp_path: Path) -> None:
    """Namespace from the service account, domain, search list and ndots from resolv.conf (D1)."""
    found = defaults(
        tmp_path,
        "search shop.svc.example.org svc.example.org example.org\noptions ndots:5\n",
        namespace="shop\n",
    )
    assert (found.namespace, found.cluster_domain, found.ndots) == ("shop", "example.org", 5)
    assert found.search == ("shop.svc.example.org", "svc.example.org", "example.org")


def test_configuration_wins(tmp_path: Path) -> None:
    """What is configured is not overruled by what is found."""
    (tmp_path / "resolv.conf").write_text("search svc.example.org")
    (tmp_path / "namespace").write_text("shop")
    found = target_defaults(
        load_config({"namespace": "web", "cluster_domain": "other.org"}, {}),
        resolv_conf=tmp_path / "resolv.conf",
        namespace_file=tmp_path / "namespace",
    )
    assert (found.namespace, found.cluster_domain) == ("web", "other.org")


def test_a_strange_namespace_file_is_not_believed(tmp_path: Path) -> None:
    """The file's text goes into URLs and selectors, so it must be a namespace name."""
    assert defaults(tmp_path, namespace="../../x").namespace == "default"


def test_aliases_become_targets() -> None:
    """An alias is a Target, completed with the defaults."""
    config = load_config({"aliases": {"Orders.Internal": "k8s:///orders:http"}}, {})
    found = alias_targets(config, TargetDefaults(namespace="shop"))
    assert found == {"orders.internal": Target.parse("k8s:///orders.shop:http")}


def test_address_policy_follows_the_settings() -> None:
    """allow and deny reach the policy that addresses must pass."""
    policy = address_policy(load_config({"address": {"deny": ["10.1.0.0/16"], "allow_loopback": True}}, {}))
    assert policy.check("127.0.0.1") == "127.0.0.1"
    with pytest.raises(DataError):
        policy.check("10.1.2.3")


@pytest.mark.parametrize("address", ["100.100.100.200", "168.63.129.16", "fd00:ec2::254", "169.254.169.254"])
@pytest.mark.parametrize("settings", [{}, {"deny": ["10.1.0.0/16"]}], ids=["default", "deny"])
def test_metadata_services_are_refused_whatever_is_configured(
    settings: dict[str, object], address: str
) -> None:
    """They hand out credentials, and not all are link-local: no configuration loses them from the policy."""
    with pytest.raises(DataError):
        address_policy(load_config({"address": settings}, {})).check(address)


def test_bad_alias_cannot_be_configured() -> None:
    """An alias that is no target is refused when the configuration is read."""
    with pytest.raises(ConfigError):
        load_config({"aliases": {"a": "k8s:///../x:1"}}, {})
