"""Text of manifests into objects with lines: strict, bounded, and exact about where."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshlib.discovery.file import documents
from meshlib.discovery.file.documents import parse
from meshlib.errors import DataError


def values(text: str, is_json: bool = False) -> list[Any]:
    return [document.value for document in parse(text, is_json)]


def refused(text: str, is_json: bool = False) -> DataError:
    with pytest.raises(DataError) as caught:
        parse(text, is_json)
    return caught.value


def test_documents_with_their_lines() -> None:
    """Several documents, empty ones left out, each with its first line."""
    found = parse("# a comment\na: 1\n---\n---\n\nb: 2\n...\n", False)
    assert [(document.value, document.line) for document in found] == [({"a": 1}, 2), ({"b": 2}, 6)]


@pytest.mark.parametrize("text", ["", "\n\n", "# only\n", "---\n---\n", "null"])
def test_nothing_is_nothing(text: str) -> None:
    """An empty file holds no object and is no error."""
    assert values(text) == []


def test_scalars_as_kubernetes_reads_them() -> None:
    """Numbers, booleans and null are typed; timestamps and quoted numbers stay text; keys are text."""
    text = "{a: 80, b: '80', c: true, d: null, e: 2024-01-01, f: 1.5, 80: x, g: 0o17, h: ~}"
    assert values(text) == [
        {
            "a": 80,
            "b": "80",
            "c": True,
            "d": None,
            "e": "2024-01-01",
            "f": 1.5,
            "80": "x",
            "g": "0o17",
            "h": None,
        }
    ]


def test_line_of_a_path() -> None:
    """An error deep inside an object is placed at its own line, or at the nearest part that exists."""
    (document,) = parse("kind: Service\nspec:\n  ports:\n  - port: 1\n  - name: x\n    port: 99999\n", False)
    assert document.line_of("spec.ports[1].port") == 6
    assert document.line_of("spec.ports[1]") == 5
    assert document.line_of("spec.ports[7].port") == 4
    assert document.line_of("nothing") == 1


def test_json_has_lines_too() -> None:
    """JSON, tabs included, is read as JSON and placed as exactly."""
    text = '{\n\t"kind": "List",\n\t"items": [\n\t\t{"kind": "Service"},\n\t\t{"kind": "Other"}\n\t]\n}'
    (document,) = parse(text, True)
    assert [item.line for item in document.items()] == [4, 5]


@pytest.mark.parametrize(
    "text,line,reason",
    [
        ("a: 1\n\tb: 2\n", 2, "not YAML"),
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "not YAML"),
        ("a: 1\na: 2\n", 2, "twice"),
        ("x:\n  a: 1\n  b: 2\n  a: 3\n", 4, "twice"),
        ("a: *nobody\n", 1, "not YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", 1, "tag"),
        ("a: !secret x\n", 1, "tag"),
        ("? [1, 2]\n: x\n", 1, "key"),
        ("a: 1\n<<: 7\n", 2, "mapping"),
        ("a: \x00\n", 1, "not YAML"),
    ],
)
def test_broken_yaml_names_its_line(text: str, line: int, reason: str) -> None:
    """Tabs, open brackets, duplicate keys, unknown aliases and tags: the line and the reason."""
    error = refused(text)
    assert error.where == f"line {line}"
    assert reason in error.reason


@pytest.mark.parametrize(
    "text,line",
    [('{"a": 1,\n x}', 2), ('{"a": 1,\n "b": 1,\n "a": 2}', 3), ("{", 1), ("{'a': 1}", 1), ('{"a": 1} x', 1)],
)
def test_broken_json_names_its_line(text: str, line: int) -> None:
    """JSON errors and duplicate keys have lines as well."""
    assert refused(text, is_json=True).where == f"line {line}"


def test_alias_bomb_is_refused() -> None:
    """Nine levels of nine aliases would be a billion nodes: refused after a bounded number."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 10)]
    assert "aliases" in refused("\n".join(levels)).reason


def test_merge_bomb_is_refused() -> None:
    """The same through merge keys."""
    levels = ["a0: &a0 {x: 1}"]
    levels += [f"a{n}: &a{n}\n  <<: [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 10)]
    assert "aliases" in refused("\n".join(levels)).reason


def test_an_alias_that_holds_itself_is_refused() -> None:
    """A recursive structure has no JSON form and would never end."""
    assert "levels" in refused("a: &a [*a]\n").reason


def test_honest_anchors_work() -> None:
    """Anchors and merge keys as people use them: own keys win over merged ones."""
    assert values("base: &b {x: 1, y: 2}\nuse: {<<: *b, y: 3}\n")[0]["use"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 200 + "]" * 200, "{a: " * 100_000, "- " * 100_000 + "x"]
)
def test_deep_nesting_is_refused(text: str) -> None:
    """Nesting beyond any manifest is an error, not a crash of the interpreter."""
    assert "levels" in refused(text).reason


def test_json_nesting_is_refused() -> None:
    """The same for JSON."""
    assert "levels" in refused("[" * 200_000 + "]" * 200_000, is_json=True).reason


@pytest.mark.parametrize("number", ["9" * 5000, "-" + "9" * 30, "0x" + "f" * 5000, ":".join(["59"] * 3000)])
def test_numbers_that_python_does_not_even_print(number: str) -> None:
    """Each is an error with its line, in JSON too, and never an exception of another kind later on."""
    for text, is_json in ((f"a: 1\nb: {number}\n", False), (f'{{"a": 1,\n"b": {number}}}', True)):
        error = refused(text, is_json=is_json)
        assert error.where == "line 2"


def test_yaml_and_json_agree() -> None:
    """A manifest in JSON means the same whichever way it is read."""
    manifest = {
        "kind": "Service",
        "spec": {"ports": [{"port": 80, "name": "http"}], "x": None, "y": True, "z": "é"},
    }
    text = json.dumps(manifest)
    assert values(text) == values(text, is_json=True) == [manifest]


def test_size_bound_is_sane() -> None:
    """The bound leaves room for ten thousand endpoints of 300 bytes each."""
    assert documents.MAX_BYTES > 10_000 * 300
