"""Reading the settings of a picker strictly: every complaint names the place, what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping

from meshlib.errors import ConfigError


class Settings:
    """The settings of one picker. Read each known key, then call ``finish``: what is left over is an error.

    ``where`` is put before the key as it is (it ends with its own separator). Values have the types of TOML and
    JSON; a number given as text is an error, so that every source means the same.
    """

    def __init__(self, settings: Mapping[str, object], where: str) -> None:
        self._settings = settings
        self._where = where
        self._known: list[str] = []

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.bad(key, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A finite number in [low, high]; NaN is in no range."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.bad(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def bad(self, key: str, allowed: str) -> ConfigError:
        """The error for a value that is not allowed."""
        return ConfigError(f"{self._where}{key}", f"{_shown(self._settings.get(key))} is not {allowed}")

    def finish(self) -> None:
        """Refuse keys that nobody read."""
        for key in self._settings:
            if key not in self._known:
                allowed = f"known: {', '.join(self._known)}" if self._known else "this picker has no settings"
                raise ConfigError(f"{self._where}{_key(key)}", "unknown setting", allowed)

    def _take(self, key: str, default: object) -> object:
        self._known.append(key)
        return self._settings.get(key, default)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _key(key: object) -> str:
    text = key if isinstance(key, str) and key.isprintable() else repr(key)
    return text if len(text) <= 80 else text[:77] + "..."


def no_settings(settings: Mapping[str, object], where: str) -> None:
    """For the policies that have none."""
    Settings(settings, where).finish()
