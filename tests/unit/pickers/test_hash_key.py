"""Hash key: the setting, and taking the key out of headers, cookies and metadata."""

from __future__ import annotations

import pytest

from meshlib.errors import ConfigError
from meshlib.pickers.hash_key import HashKeySource, HashKeySpec, parse_hash_key


@pytest.mark.parametrize(
    ("text", "source", "name"),
    [
        ("header:X-User", HashKeySource.HEADER, "x-user"),
        ("cookie:Session", HashKeySource.COOKIE, "Session"),
        ("metadata:x-user-bin", HashKeySource.METADATA, "x-user-bin"),
        ("client", HashKeySource.CLIENT, ""),
        ("callable", HashKeySource.CALLABLE, ""),
    ],
)
def test_forms(text: str, source: HashKeySource, name: str) -> None:
    """The five forms are read, header names without case, cookie names exactly; str gives the form back."""
    spec = parse_hash_key(text, "here")
    assert spec == HashKeySpec(source, name)
    assert parse_hash_key(str(spec), "here") == spec


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "unknown source ''"),
        ("headers:x", "unknown source 'headers'"),
        ("header", "needs a name"),
        ("header:", "needs a name"),
        ("header:a b", "'a b' is no header name"),
        ("cookie:a=b", "is no cookie name"),
        ("metadata:X-User", "is no metadata key"),
        ("metadata:é", "is no metadata key"),
        ("client:me", "'client' takes no name, given 'me'"),
        ("header:x\n", "is no header name"),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    """Whatever is not one of the forms is a ConfigError at the place that was given."""
    with pytest.raises(ConfigError) as caught:
        parse_hash_key(text, "annotation meshlib.dev/hash-key")
    assert caught.value.where == "annotation meshlib.dev/hash-key"
    assert words in str(caught.value)


def test_from_headers() -> None:
    """Headers by name without case, from a mapping or from pairs; several values are joined; missing is None."""
    spec = parse_hash_key("header:X-User", "here")
    assert spec.from_headers({"x-uSER": "ann"}) == "ann"
    assert spec.from_headers([("X-User", "a"), ("Accept", "*"), ("x-user", "b")]) == "a, b"
    assert spec.from_headers({"X-Users": "ann"}) is None
    assert spec.from_headers({"X-User": ""}) == ""


def test_from_cookies() -> None:
    """The first cookie of exactly that name, over several header lines, quotes removed; missing is None."""
    spec = parse_hash_key("cookie:sid", "here")
    assert spec.from_headers({"Cookie": "a=1; sid=x=y; sid=z"}) == "x=y"
    assert spec.from_headers([("cookie", "SID=no"), ("Cookie", 'sid="q"')]) == "q"
    assert spec.from_headers({"Cookie": "sid"}) is None
    assert spec.from_headers({"X": "sid=1"}) is None


def test_from_metadata() -> None:
    """Metadata entries of a call, text and binary; a header setting reads metadata too; other sources have none."""
    metadata = [("x-user", "ann"), ("x-id-bin", b"\x00\x01")]
    assert parse_hash_key("metadata:x-user", "here").from_metadata(metadata) == "ann"
    assert parse_hash_key("metadata:x-id-bin", "here").from_metadata(metadata) == b"\x00\x01"
    assert parse_hash_key("header:X-User", "here").from_metadata(metadata) == "ann"
    assert parse_hash_key("metadata:none", "here").from_metadata(metadata) is None
    for other in ("client", "callable", "cookie:x-user"):
        assert parse_hash_key(other, "here").from_metadata(metadata) is None
    assert parse_hash_key("client", "here").from_headers({"client": "x"}) is None
