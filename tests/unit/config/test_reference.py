"""The configuration reference: each key that exists is described, what is said is true, and the page is current."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from meshlib.discovery.dns.settings import DnsSettings
from meshlib.errors import ConfigError
from meshlib.runtime.config import keys, load_config, reference
from meshlib.runtime.config.annotations import read_annotations

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "config_reference.py"


def test_every_key_is_described() -> None:
    """A new key needs its words in meshlib/runtime/config/reference.py, and then the script."""
    assert set(reference.SCALARS) == set(keys.SCALARS)
    assert set(reference.ADDRESS) == set(keys.ADDRESS)
    assert set(reference.TABLES) == set(keys.TABLES) - {"address"}
    assert set(reference.TARGET) == set(keys.TARGET)
    assert set(reference.KUBERNETES) == set(keys.KUBERNETES) - {"environ"}
    assert set(reference.DNS) == set(DnsSettings.__dataclass_fields__)


def test_the_page_is_current() -> None:
    """Otherwise: python scripts/config_reference.py"""
    script = runpy.run_path(str(SCRIPT))
    text = script["PAGE"].read_text()
    assert script["page"](text) == text


def test_variables_are_written_as_the_page_says() -> None:
    """Its example: a plain value, a number, a list with commas and no brackets, a table as JSON."""
    block = (ROOT / "docs" / "configuration.md").read_text().split("```text\n")[1].split("```")[0]
    config = load_config(environ=dict(line.split("=", 1) for line in block.splitlines()))
    assert config.strict is True
    assert config.sync_timeout == 0.5
    assert config.allow_targets == ("orders.shop.svc", "k8s:///stock.shop:http")
    assert config.aliases == {"orders.internal": "k8s:///orders.shop:http"}


def words_of(kind: str) -> list[str]:
    return [part.strip("` ").strip('"') for part in kind.split(",") if part.strip("` ").startswith('"')]


@pytest.mark.parametrize("key", [key for key, said in reference.SCALARS.items() if words_of(said.kind)])
def test_the_words_that_a_key_takes(key: str) -> None:
    """Each is taken, and the error for another one lists them all."""
    words = words_of(reference.SCALARS[key].kind)
    for word in words:
        assert getattr(load_config({key: word}, environ={}), key) == word
    with pytest.raises(ConfigError) as caught:
        load_config({key: "neither"}, environ={})
    assert all(word in caught.value.reason for word in words)


EXAMPLES: Mapping[str, Any] = {
    "true, false": True,
    "text": "shop",
    "name": "maglev",
    "table": {},
    "list of text": ["one"],
    "list of targets and hosts": ["orders.shop.svc"],
    "list of networks": ["10.0.0.0/8"],
    "host": "orders.example",
    "URL": "https://192.0.2.1",
    "path": "/etc/mesh",
    "seconds": 1.5,
    "number": 5,
}


def example(path: tuple[str, ...], said: reference.Described) -> Any:
    if words := words_of(said.kind):
        return words[0]
    if path == ("hash_key",) or path[-1] == "hash_key":
        return "header:x-user"
    return EXAMPLES[said.kind.partition(", 0")[0]]


DESCRIBED = {
    **{(key,): said for key, said in reference.SCALARS.items()},
    **{("address", key): said for key, said in reference.ADDRESS.items()},
    **{("target", "k8s:///orders.shop:80", key): said for key, said in reference.TARGET.items()},
    **{("discovery", "k8s", key): said for key, said in reference.KUBERNETES.items()},
}


@pytest.mark.parametrize("path", DESCRIBED, ids=".".join)
def test_a_value_of_the_type_is_taken_and_another_is_not(path: tuple[str, ...]) -> None:
    """What the column "Type" says is what the check of the key asks for."""

    def nested(value: Any) -> dict[str, Any]:
        for part in reversed(path):
            value = {part: value}
        return value  # type: ignore[no-any-return]

    load_config(nested(example(path, DESCRIBED[path])), environ={})
    with pytest.raises(ConfigError):
        load_config(nested(object()), environ={})


def test_annotations_are_those_that_are_read() -> None:
    """Each annotation of the reference is known to the reader; one that is not gives its warning."""
    named = {said.annotation for said in reference.SCALARS.values() if said.annotation}
    for name in named:
        _, warnings = read_annotations({f"meshlib.dev/{name}": "{"}, "shop/orders", (), "peak_ewma")
        assert warnings
        assert "may set only" not in " ".join(warnings), name
    _, warnings = read_annotations({"meshlib.dev/strict": "true"}, "shop/orders", (), "peak_ewma")
    assert "may set only" in " ".join(warnings)
