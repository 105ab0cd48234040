"""Writes the tables of docs/configuration.md: what the code knows of each key, and its words from the catalogue.

python scripts/config_reference.py
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meshlib.discovery.dns.settings import DnsSettings
from meshlib.discovery.file.poll import POLL
from meshlib.runtime.config import Config, reference
from meshlib.runtime.config.annotations import PREFIX
from meshlib.runtime.config.reference import Described
from meshlib.runtime.config.sources import variables

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN = "<!-- from here on: python scripts/config_reference.py -->\n"
END = "<!-- up to here -->\n"
_WIDE = "| Key, variable | Type | Default | Meaning |\n|---|---|---|---|\n"
_NARROW = "| Key | Type | Default | Meaning |\n|---|---|---|---|\n"


def made() -> str:
    """Everything between the two marks."""
    config = Config()
    named = variables()
    wide = []
    for key, words in reference.SCALARS.items():
        wide.append(_wide((key,), words, getattr(config, key), named))
    for key, words in reference.ADDRESS.items():
        wide.append(_wide(("address", key), words, getattr(config.address, key), named))
    for key, words in reference.TABLES.items():
        wide.append(_wide((key,), words, getattr(config, key), named))
    dns = DnsSettings()
    narrow = {
        '[target."..."]': [_narrow(key, words, None) for key, words in reference.TARGET.items()],
        "[discovery.k8s]": [_narrow(key, words, None) for key, words in reference.KUBERNETES.items()],
        "[discovery.dns]": [_narrow(key, words, getattr(dns, key)) for key, words in reference.DNS.items()],
        "[discovery.file]": [_narrow(key, words, POLL) for key, words in reference.FILE.items()],
    }
    parts = ["## All keys\n", _WIDE + "".join(wide)]
    for heading, rows in narrow.items():
        parts += [f"### {heading}\n", _NARROW + "".join(rows)]
    return "\n".join(parts)


def _wide(
    path: tuple[str, ...], words: Described, value: Any, named: Mapping[tuple[str, ...], tuple[str, ...]]
) -> str:
    names = "<br>".join(f"`{name}`" for name in (".".join(path), *named[path]))
    cells = (names, words.kind, words.default or _shown(value), _meaning(words))
    return f"| {' | '.join(cells)} |\n"


def _meaning(words: Described) -> str:
    more = [f"annotation `{PREFIX}{words.annotation}`"] if words.annotation else []
    more += ["*live*"] if words.live else []
    return "; ".join((words.meaning, *more))


def _narrow(key: str, words: Described, value: Any) -> str:
    return f"| `{key}` | {words.kind} | {words.default or _shown(value)} | {_meaning(words)} |\n"


def _shown(value: Any) -> str:
    """As TOML writes it."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, Mapping):
        return "`{}`"
    if isinstance(value, tuple):
        return "`[]`" if not value else f"`{list(value)}`"
    if isinstance(value, int | float):
        return f"`{value:g}`"
    raise TypeError(f"no default is known for {value!r}: say one in the catalogue")


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + made() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
