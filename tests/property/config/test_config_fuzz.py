"""Whatever is written anywhere: reading the configuration gives a Config or a ConfigError; annotations never raise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshlib.errors import ConfigError
from meshlib.runtime.config import Config, load_config, target_defaults
from meshlib.runtime.config.annotations import HASH_KEY, PICKER, PREFIX, SETTINGS
from meshlib.runtime.config.keys import ADDRESS, KUBERNETES, SCALARS, TABLES, TARGET
from meshlib.runtime.config.sources import variables

KEYS = [*SCALARS, *TABLES, *ADDRESS, *TARGET, *KUBERNETES, "k8s", "k8s:///orders.shop:http", "dns:///a:1"]
WORDS = st.sampled_from(
    [*KEYS, "peak_ewma", "maglev", "header:x", "auto", "10.0.0.0/8", "true", "a.b"]
) | st.text(max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
NAMES = [name for found in variables().values() for name in found]


def read(code: Any, environ: dict[str, str], file: Path | None = None) -> Config | ConfigError:
    """Any other exception fails the test."""
    try:
        return load_config(code, environ, file)
    except ConfigError as error:
        return error


def check(found: Config | ConfigError, place: str = "") -> None:
    """An error says where and what."""
    if isinstance(found, ConfigError):
        assert place in found.where
        assert found.where
        assert found.reason


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No meshlib.toml of this folder."""
    monkeypatch.chdir(tmp_path)


@given(st.dictionaries(WORDS, VALUES, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_code(code: dict[str, Any]) -> None:
    """Values of any shape under any key."""
    found = read(code, {})
    check(found)
    if isinstance(found, Config):
        for key in code:
            if key in SCALARS:
                assert found.source(key) == f"code: {key}"


@given(
    st.dictionaries(st.sampled_from(NAMES), WORDS | VALUES.map(lambda value: json.dumps(value)), max_size=4)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_environment(environ: dict[str, str]) -> None:
    """Text of any kind in any variable."""
    check(read({}, environ))


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file(content: bytes) -> None:
    """Bytes of any kind in the file."""
    path = Path("any.toml")
    path.write_bytes(content)
    check(read({}, {}, path), "any.toml")


@given(
    st.dictionaries(
        st.sampled_from([PICKER, SETTINGS, HASH_KEY]) | WORDS.map(PREFIX.__add__) | WORDS,
        WORDS | VALUES.map(lambda value: json.dumps(value)),
        max_size=4,
    )
)
def test_any_annotations(annotations: dict[str, str]) -> None:
    """Settings come back whatever a Service says, and what it may not say changes nothing."""
    found = Config().for_target("k8s:///orders.shop:http", annotations, service="shop/orders")
    assert found.authority == ""
    if PICKER not in annotations and SETTINGS not in annotations:
        assert (found.picker, dict(found.settings)) == ("peak_ewma", {})
    for warning in found.warnings:
        assert "shop/orders" in warning


@given(st.text(), st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_resolv_conf_and_namespace(resolv_conf: str, namespace: str) -> None:
    """Files of the environment hold anything; the defaults are usable all the same."""
    Path("resolv.conf").write_text(resolv_conf, errors="surrogatepass")
    Path("namespace").write_text(namespace, errors="surrogatepass")
    found = target_defaults(Config(), resolv_conf="resolv.conf", namespace_file="namespace")
    assert found.namespace
    assert "/" not in found.namespace
    assert 0 <= found.ndots <= 15
