"""Cookies: httpx hands every reply to ``http.cookiejar``, which makes two mail messages and a urllib request of it to
find that there is no cookie. Where there is none, nothing is what is left to do.

httpx2 looks before, too. In httpx it is a quarter of what a small request costs (docs/decisions/0003). A reply with a
cookie, and a jar of the application's own kind, take httpx's way.
"""

from __future__ import annotations

import functools
from http.cookiejar import CookieJar
from types import MethodType
from typing import Any

from meshlib.clients.httpx.flavour import Flavour, is_from

_COOKIES = frozenset({b"set-cookie", b"set-cookie2"})


class CookieShortcut:
    """For all clients of a flavour: one per installation, put on and taken off by one thread, while others use it."""

    def __init__(self, flavour: Flavour) -> None:
        self._kind: Any = flavour.httpx.Cookies
        self._genuine = _genuine(flavour)
        self._ours = _shortened(self._genuine) if self._genuine is not None else None

    def put_on(self) -> None:
        if self._ours is not None:
            self._kind.extract_cookies = self._ours

    def take_off(self) -> None:
        """Leaves alone what somebody put around it meanwhile."""
        if self._ours is not None and self._kind.__dict__.get("extract_cookies") is self._ours:
            self._kind.extract_cookies = self._genuine


def shorten(client: Any, flavour: Flavour) -> None:
    """For one client, until somebody gives it another jar. Done twice it is as done once."""
    cookies = client.cookies
    genuine = _genuine(flavour)
    if genuine is not None and type(cookies) is flavour.httpx.Cookies:
        cookies.extract_cookies = MethodType(_shortened(genuine), cookies)


def restore(client: Any) -> None:
    """Undo ``shorten``."""
    client.cookies.__dict__.pop("extract_cookies", None)


def _genuine(flavour: Flavour) -> Any:
    """httpx's own method; None where there is nothing to shorten, or somebody replaced it who wants every reply."""
    method = flavour.httpx.Cookies.__dict__.get("extract_cookies")
    return method if flavour.httpx.__name__ == "httpx" and is_from(method, flavour.httpx) else None


def _shortened(genuine: Any) -> Any:
    @functools.wraps(genuine)
    def extract_cookies(self: Any, response: Any) -> None:
        # The standard jar's own way without a cookie ends without a trace; a subclass may keep one.
        if type(self.jar) is CookieJar:
            for name, _ in response.headers.raw:
                if name.lower() in _COOKIES:
                    break
            else:
                return
        genuine(self, response)

    return extract_cookies
