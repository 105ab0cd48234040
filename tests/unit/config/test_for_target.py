"""Config.for_target: local settings, then what a Service may say about itself."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.model.target import TargetDefaults
from meshlib.runtime.config import Config, load_config

TARGET = "k8s:///orders.shop:http"


def config(**code: Any) -> Config:
    return load_config(code, {})


def annotated(**values: str) -> dict[str, str]:
    return {f"meshlib.dev/{name.replace('_', '-')}": value for name, value in values.items()}


def test_default() -> None:
    """Nothing said anywhere: the default picker."""
    found = config().for_target(TARGET, {})
    assert (found.picker, dict(found.settings), found.where, found.warnings) == (
        "peak_ewma",
        {},
        "default",
        (),
    )


def test_own_table_wins_over_everything() -> None:
    """A table of the target wins over the process-wide picker and over annotations, and brings its own settings."""
    own = {"picker": "round_robin", "hash_key": "client", "authority": "orders.example"}
    found = config(picker="maglev", picker_settings={"table_size": 7}, target={TARGET: own}).for_target(
        TARGET, annotated(picker="random", hash_key="header:x")
    )
    assert (found.picker, dict(found.settings)) == ("round_robin", {})
    assert (found.hash_key, found.authority) == ("client", "orders.example")
    assert found.where == f'code: target."{TARGET}".picker'


@pytest.mark.parametrize(
    "text", ["orders.shop.svc:http", "orders.shop.svc.cluster.local:http", "k8s:///orders:http"]
)
def test_a_table_is_found_by_any_spelling(text: str) -> None:
    """Host names and k8s:/// of one Service port share one table."""
    settings = config(target={TARGET: {"picker": "round_robin"}})
    assert settings.for_target(text, {}, defaults=TargetDefaults(namespace="shop")).picker == "round_robin"


@pytest.mark.parametrize(
    "text", ["k8s:///orders.shop:grpc", "k8s:///orders.other:http", "k8s:///stock.shop:http"]
)
def test_another_target_has_another_table(text: str) -> None:
    """Port, namespace and name all count."""
    assert config(target={TARGET: {"picker": "round_robin"}}).for_target(text, {}).picker == "peak_ewma"


def test_annotation_applies_where_nothing_is_said_locally() -> None:
    """A Service may choose a built-in picker with its settings, and the hash key."""
    found = config().for_target(
        TARGET,
        annotated(
            picker="least_request", picker_settings='{"slow_start_window": 5}', hash_key="header:x-user"
        ),
        service="shop/orders",
    )
    assert (found.picker, dict(found.settings), found.hash_key) == (
        "least_request",
        {"slow_start_window": 5},
        "header:x-user",
    )
    assert found.where == "Service shop/orders: annotation meshlib.dev/picker"
    assert found.warnings == ()


def test_local_picker_beats_annotation() -> None:
    """What is configured locally wins over the annotation (D11), settings included."""
    found = config(picker="round_robin").for_target(
        TARGET, annotated(picker="least_request", picker_settings='{"slow_start_window": 5}')
    )
    assert (found.picker, dict(found.settings)) == ("round_robin", {})


@pytest.mark.parametrize(
    ("annotations", "part"),
    [
        (annotated(picker="evil"), "no built-in picker 'evil'"),
        (annotated(picker="os:system"), "no built-in picker"),
        (annotated(picker="x" * 100_000), "no built-in picker"),
        (annotated(picker="least_request", picker_settings="{"), "picker-settings ignored"),
        (annotated(picker="least_request", picker_settings="[1]"), "needs a JSON object"),
        (annotated(picker="least_request", picker_settings='{"slow_start_window": -1}'), "slow_start_window"),
        (annotated(picker="least_request", picker_settings='{"nonsense": 1}'), "nonsense"),
        (annotated(picker="least_request", picker_settings='{"a": ' * 700 + "1" + "}" * 700), "ignored"),
        (annotated(picker="least_request", picker_settings=" " * 5000), "longer than"),
        (annotated(hash_key="nonsense"), "unknown source"),
        (annotated(strict="true"), "may set only"),
        (annotated(allow="0.0.0.0/0"), "may set only"),
        (annotated(authority="evil.example"), "may set only"),
        (annotated(aliases="{}"), "may set only"),
    ],
)
def test_bad_annotations_are_skipped_with_a_warning(annotations: dict[str, str], part: str) -> None:
    """What another tenant may not say, or says wrongly, changes nothing and names Service and annotation."""
    found = config().for_target(TARGET, annotations, service="shop/orders")
    assert (found.picker, dict(found.settings), found.hash_key, found.authority) == ("peak_ewma", {}, "", "")
    (warning,) = found.warnings
    assert "shop/orders" in warning
    assert "meshlib.dev/" in warning
    assert part in warning


def test_foreign_annotations_are_not_looked_at() -> None:
    """Annotations of others are no business of ours."""
    assert (
        config().for_target(TARGET, {"kubectl.kubernetes.io/last-applied-configuration": "{"}).warnings == ()
    )


def test_a_plugin_must_be_enabled_locally() -> None:
    """An installed plugin is not loaded because an annotation names it, unless the configuration enables it."""
    found = config().for_target(TARGET, annotated(picker="meshlib-no-such-plugin"))
    assert "no plugin of that name is enabled" in found.warnings[0]
    enabled = config(plugins=["meshlib-no-such-plugin"]).for_target(
        TARGET, annotated(picker="meshlib-no-such-plugin")
    )
    assert enabled.picker == "peak_ewma"
    assert "unknown" in enabled.warnings[0]  # enabled, so it is looked for; but nobody installed it
