"""load_config: precedence, places, and errors that name the place."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from meshlib.errors import ConfigError
from meshlib.runtime.config import Config, load_config
from meshlib.runtime.config.keys import SCALARS, TABLES
from meshlib.runtime.config.sources import variables

FULL = """
strict = true
namespace = "shop"
mode = "observe"
percent = 5
allow_targets = ["Orders.shop.svc", "stock.internal:8080", "k8s:///orders.shop:http"]
cluster_domain = "Cluster.Example."
node = "node-a"
zone = "eu-1"
short_names = false
sync_timeout = 0.5
sidecar = "ignore"
picker = "least_request"
hash_key = "header:x-user"
plugins = ["my-picker"]
exporters = ["prometheus"]
wire = "httpcore"
total_connections = 500
status_socket = "/run/app"

[picker_settings]
choices = 3

[aliases]
"orders.internal" = "k8s:///orders.shop:http"
"Stock.internal:8080" = "dns:///stock.example:80"

[address]
allow = ["10.0.0.0/8", "fd00::/8"]
deny = ["10.1.0.0/16"]
allow_loopback = true

[discovery.k8s]
context = "staging"

[target."k8s:///orders.shop:http"]
picker = "round_robin"
authority = "orders.example"
"""


def written(folder: Path, text: str) -> str:
    path = folder / "settings.toml"
    path.write_text(text)
    return str(path)


def test_every_key_of_a_file_is_read(tmp_path: Path) -> None:
    """A file with every key gives a Config with every value, normalised."""
    config = load_config(environ={}, file=written(tmp_path, FULL))
    assert config.strict
    assert not config.short_names
    assert (config.namespace, config.cluster_domain) == ("shop", "cluster.example")
    assert (config.node, config.zone, config.sidecar) == ("node-a", "eu-1", "ignore")
    assert config.sync_timeout == 0.5
    assert (config.picker, dict(config.picker_settings)) == ("least_request", {"choices": 3})
    assert (config.hash_key, config.plugins) == ("header:x-user", ("my-picker",))
    assert config.exporters == ("prometheus",)
    assert (config.mode, config.percent) == ("observe", 5.0)
    assert config.allow_targets == ("orders.shop.svc", "stock.internal:8080", "k8s:///orders.shop:http")
    assert config.wire == "httpcore"
    assert config.total_connections == 500
    assert config.status_socket == "/run/app"
    assert config.aliases == {
        "orders.internal": "k8s:///orders.shop:http",
        "stock.internal:8080": "dns:///stock.example:80",
    }
    assert config.address.allow == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert config.address.deny == (ip_network("10.1.0.0/16"),)
    assert config.address.allow_loopback
    assert config.discovery["k8s"] == {"context": "staging"}
    assert config.target["k8s:///orders.shop:http"]["authority"] == "orders.example"


def test_full_file_covers_all_keys() -> None:
    """The file above is kept complete: a new key must be added to it, and so be tested."""
    for key in (*SCALARS, *TABLES):
        assert key in FULL, key


def test_nothing_set_gives_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any source the configuration is the documented default, and every source says so."""
    monkeypatch.chdir(tmp_path)
    config = load_config(environ={})
    assert config == Config()
    assert config.source("strict") == "default"


@pytest.mark.parametrize(
    ("sources", "expected", "place"),
    [
        ("file", 1, "settings.toml: sync_timeout"),
        ("file environ", 2, "MESHLIB_SYNC_TIMEOUT"),
        ("file environ code", 3, "code: sync_timeout"),
        ("code", 3, "code: sync_timeout"),
    ],
)
def test_precedence_per_key(tmp_path: Path, sources: str, expected: float, place: str) -> None:
    """Code wins over MESHLIB_*, which wins over the file (D11), and the value remembers its place."""
    named = written(tmp_path, "sync_timeout = 1.0" if "file" in sources else "")
    config = load_config(
        {"sync_timeout": 3.0} if "code" in sources else None,
        {"MESHLIB_SYNC_TIMEOUT": "2"} if "environ" in sources else {},
        named,
    )
    assert config.sync_timeout == expected
    assert config.source("sync_timeout").endswith(place)


def test_tables_are_merged_entry_by_entry(tmp_path: Path) -> None:
    """An alias in code replaces the file's alias of that name and leaves the file's others in force."""
    named = written(tmp_path, '[aliases]\na = "dns:///a:1"\nb = "dns:///b:1"')
    config = load_config({"aliases": {"b": "dns:///c:1"}}, {}, named)
    assert config.aliases == {"a": "dns:///a:1", "b": "dns:///c:1"}
    assert config.source("aliases", "b") == "code: aliases.b"
    assert config.source("aliases", "a") == f"{named}: aliases.a"


@pytest.mark.parametrize(
    ("name", "text", "key", "expected"),
    [
        ("MESHLIB_STRICT", "YES", "strict", True),
        ("MESHLIB_SHORT_NAMES", "off", "short_names", False),
        ("MESHLIB_ZONE", " eu-1 ", "zone", "eu-1"),
        ("NODE_NAME", "node-a", "node", "node-a"),
        ("MESHLIB_NODE_NAME", "node-b", "node", "node-b"),
        ("MESHLIB_TOTAL_CONNECTIONS", "500", "total_connections", 500),
        ("MESHLIB_PLUGINS", "one, two", "plugins", ("one", "two")),
        ("MESHLIB_PICKER_SETTINGS", '{"choices": 3}', "picker_settings", {"choices": 3}),
        ("MESHLIB_ALIASES", '{"a": "dns:///a:1"}', "aliases", {"a": "dns:///a:1"}),
        ("MESHLIB_DISCOVERY", '{"k8s": {"context": "c"}}', "discovery", {"k8s": {"context": "c"}}),
    ],
)
def test_variables(name: str, text: str, key: str, expected: object) -> None:
    """Each kind of value can be written in an environment variable."""
    config = load_config(environ={name: text})
    assert getattr(config, key) == expected


def test_own_variable_wins_over_node_name() -> None:
    """MESHLIB_NODE_NAME is more specific than NODE_NAME."""
    config = load_config(environ={"NODE_NAME": "a", "MESHLIB_NODE_NAME": "b"})
    assert (config.node, config.source("node")) == ("b", "MESHLIB_NODE_NAME")


def test_address_variables() -> None:
    """Lists of networks are separated by commas."""
    config = load_config(environ={"MESHLIB_ADDRESS_ALLOW": "10.0.0.0/8,192.168.0.0/16"})
    assert config.address.allow == (ip_network("10.0.0.0/8"), ip_network("192.168.0.0/16"))


def test_every_key_has_a_variable() -> None:
    """Each key can be set from the environment, by one name that no other key uses."""
    names = [name for found in variables().values() for name in found]
    assert len(names) == len(set(names))
    assert {path[0] for path in variables()} == {*SCALARS, *TABLES}


def test_empty_variable_counts_as_unset() -> None:
    """Manifests often set variables to nothing."""
    assert load_config(environ={"MESHLIB_STRICT": ""}).strict is False


def test_unknown_variable_is_a_warning() -> None:
    """A misspelt variable is reported with a hint, but it does not stop the program."""
    (warning,) = load_config(environ={"MESHLIB_STRIKT": "1"}).warnings
    assert "MESHLIB_STRIKT" in warning
    assert "'MESHLIB_STRICT'" in warning


def test_service_links_are_not_ours() -> None:
    """Kubernetes injects such variables where a Service is called meshlib."""
    environ = {
        "MESHLIB_SERVICE_HOST": "10.0.0.1",
        "MESHLIB_PORT": "tcp://10.0.0.1:80",
        "MESHLIB_PORT_80_TCP": "x",
    }
    assert load_config(environ=environ).warnings == ()


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"strikt": True}, "code: strikt", "did you mean 'strict'"),
    ({"strict": "yes"}, "code: strict", "needs true or false"),
    ({"sync_timeout": 61}, "code: sync_timeout", "outside 0 to 60"),
    ({"sync_timeout": -0.1}, "code: sync_timeout", "outside"),
    ({"sync_timeout": float("nan")}, "code: sync_timeout", "outside"),
    ({"sync_timeout": True}, "code: sync_timeout", "number of seconds"),
    ({"total_connections": -1}, "code: total_connections", "outside 0 to 1048576"),
    ({"total_connections": True}, "code: total_connections", "needs a whole number"),
    ({"total_connections": 1.5}, "code: total_connections", "needs a whole number"),
    ({"status_socket": "run/app"}, "code: status_socket", "neither auto, off nor an absolute path"),
    ({"status_socket": True}, "code: status_socket", "needs text"),
    ({"namespace": "*"}, "code: namespace", "not a namespace name"),
    ({"namespace": "../x"}, "code: namespace", "not a namespace name"),
    ({"namespace": "a" * 64}, "code: namespace", "not a namespace name"),
    ({"cluster_domain": "a..b"}, "code: cluster_domain", "not a domain name"),
    ({"zone": "a\nb"}, "code: zone", "unprintable"),
    ({"sidecar": "off"}, "code: sidecar", "not one of auto, ignore"),
    ({"picker": 1}, "code: picker", "needs text"),
    ({"picker": ""}, "code: picker", "not a name"),
    ({"picker_settings": []}, "code: picker_settings", "needs a table"),
    ({"hash_key": "haeder:x"}, "code: hash_key", "unknown source"),
    ({"plugins": "one"}, "code: plugins", "needs a list"),
    ({"plugins": [1]}, "code: plugins[0]", "needs text"),
    ({"aliases": {"a b": "dns:///a:1"}}, "code: aliases", "not a host name"),
    ({"aliases": {"": "dns:///a:1"}}, "code: aliases", "needs a host name"),
    ({"aliases": {"a:0": "dns:///a:1"}}, "code: aliases", "no port from 1 to 65535"),
    ({"aliases": {"a": "k8s:///"}}, "code: aliases.a", "invalid target"),
    ({"aliases": "a"}, "code: aliases", "needs a table"),
    ({"address": {"alow": []}}, "code: address.alow", "did you mean 'allow'"),
    ({"address": {"allow": ["10.0.0.1/8"]}}, "code: address.allow[0]", "host bits"),
    ({"address": {"allow": "10.0.0.0/8"}}, "code: address.allow", "needs a list of networks"),
    ({"address": {"allow_loopback": 1}}, "code: address.allow_loopback", "needs true or false"),
    ({"discovery": {"k8s": 1}}, "code: discovery.k8s", "needs a table"),
    (
        {"discovery": {"k8s": {"kubeconifg": "x"}}},
        "code: discovery.k8s.kubeconifg",
        "did you mean 'kubeconfig'",
    ),
    ({"discovery": {"k8s": {"in_cluster": "yes"}}}, "code: discovery.k8s.in_cluster", "needs true or false"),
    ({"target": {"nonsense": {}}}, "code: target.nonsense", "invalid target"),
    ({"target": {"dns:///a:1": {"piker": "x"}}}, 'code: target."dns:///a:1".piker', "did you mean 'picker'"),
    (
        {"target": {"dns:///a:1": {"authority": "a/b"}}},
        'code: target."dns:///a:1".authority',
        "not a host name",
    ),
]


@pytest.mark.parametrize(("code", "place", "reason"), BAD, ids=[str(code)[:60] for code, _, _ in BAD])
def test_bad_values_name_place_and_reason(code: dict[str, Any], place: str, reason: str) -> None:
    """Every wrong value is refused with an error that says where and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        load_config(code, {})
    assert caught.value.where.startswith(place)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"MESHLIB_STRICT": "maybe"}, "MESHLIB_STRICT: needs true or false"),
        ({"MESHLIB_SYNC_TIMEOUT": "soon"}, "MESHLIB_SYNC_TIMEOUT: needs a number"),
        ({"MESHLIB_SYNC_TIMEOUT": "inf"}, "MESHLIB_SYNC_TIMEOUT: inf is outside"),
        ({"MESHLIB_ALIASES": "a=b"}, "MESHLIB_ALIASES: needs a JSON object"),
        ({"MESHLIB_ALIASES": '{"a": "k8s:///"}'}, "MESHLIB_ALIASES: a: invalid target"),
        ({"MESHLIB_ADDRESS_DENY": "10/8,x"}, "MESHLIB_ADDRESS_DENY"),
        ({"MESHLIB_PICKER_SETTINGS": "[" * 100_000}, "MESHLIB_PICKER_SETTINGS: needs a JSON object"),
    ],
)
def test_bad_variables_are_named(environ: dict[str, str], reason: str) -> None:
    """An error from the environment names the variable, not the key."""
    with pytest.raises(ConfigError) as caught:
        load_config(environ=environ)
    assert str(caught.value).startswith(reason)


def test_bad_toml_names_file_and_line(tmp_path: Path) -> None:
    """A syntax error names the file and the line."""
    with pytest.raises(ConfigError, match=r"settings\.toml: not valid TOML.*line 2"):
        load_config(environ={}, file=written(tmp_path, "strict = true\nzone = = 1\n"))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a = " + b"[" * 100_000])
def test_unreadable_bytes_are_a_config_error(tmp_path: Path, content: bytes) -> None:
    """No content of a file escapes as another exception."""
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(environ={}, file=path)


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    """A file that was named and is missing is an error; nobody wants defaults instead."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(environ={"MESHLIB_CONFIG": str(tmp_path / "absent.toml")})


def test_own_file_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """./meshlib.toml is used when it is ours alone to write."""
    monkeypatch.chdir(tmp_path)
    Path("meshlib.toml").write_text("strict = true")
    Path("meshlib.toml").chmod(0o644)
    config = load_config(environ={})
    assert config.strict
    assert config.file == "meshlib.toml"


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_others_may_write_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """./meshlib.toml that others may write is ignored with a warning (D11); naming it overrides that."""
    monkeypatch.chdir(tmp_path)
    Path("meshlib.toml").write_text("strict = true")
    Path("meshlib.toml").chmod(mode)
    config = load_config(environ={})
    assert not config.strict
    assert config.file == ""
    assert "others may write it" in config.warnings[0]
    assert load_config(environ={"MESHLIB_CONFIG": "meshlib.toml"}).strict


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """./meshlib.toml of another user is ignored with a warning."""
    monkeypatch.chdir(tmp_path)
    Path("meshlib.toml").write_text("strict = true")
    os.chown("meshlib.toml", 12345, 12345)
    config = load_config(environ={})
    assert not config.strict
    assert "user 12345" in config.warnings[0]


def test_a_folder_of_that_name_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody named it, so what is not a file is a warning only."""
    monkeypatch.chdir(tmp_path)
    Path("meshlib.toml").mkdir()
    (warning,) = load_config(environ={}).warnings
    assert "meshlib.toml ignored" in warning


def test_config_is_immutable() -> None:
    """Nobody can change settings that others hold."""
    config = load_config({"aliases": {"a": "dns:///a:1"}}, {})
    with pytest.raises(AttributeError):
        config.strict = True  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.aliases["b"] = "dns:///b:1"  # type: ignore[index]
