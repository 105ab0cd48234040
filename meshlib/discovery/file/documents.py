"""Text of a manifest file into plain objects that know their lines. Pure; importing this module imports PyYAML.

Kubernetes' own reading of YAML is followed: it is turned into JSON, so only null, booleans, numbers, text, lists and
objects exist, timestamps stay text, and a key stands once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

from meshlib.errors import DataError

#: Ten thousand endpoints make about 3 MB of YAML; beyond this it is no manifest, and parsing would hold the process.
MAX_BYTES: Final = 16 * 1024 * 1024
#: Nodes that aliases may add to a file. Anchors save typing, not megabytes; nested ones grow exponentially.
MAX_ALIASED: Final = 100_000
#: Kubernetes objects nest about ten deep; the limit keeps hostile nesting from the interpreter's own.
MAX_DEPTH: Final = 100

#: Digits of the largest number in a manifest: all of Kubernetes' have at most 64 bits. Python does not even print one
#: of 4,301 digits, so what is beyond ends here.
MAX_DIGITS: Final = 20

_Loader: Any = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # libyaml is about ten times faster, where it is there
_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_STEP = re.compile(r"([A-Za-z_]\w*)|\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file, or one item of a List in it. ``line``: 1-based, of its first line."""

    value: Any
    line: int
    node: Any = None  #: PyYAML's node, for ``line_of``

    def line_of(self, path: str) -> int:
        """The line of the deepest part of ``path`` (``spec.ports[0].port``) that exists here."""
        node, line = self.node, self.line
        for name, index in _STEP.findall(path):
            found = _child(node, name, int(index) if index else None)
            if found is None:
                break
            node, line = found, found.start_mark.line + 1
        return line

    def items(self) -> Iterator[Document]:
        """The items of a List object as Documents of their own."""
        listed = self.value.get("items")
        if listed is None:
            return
        if not isinstance(listed, list):
            raise DataError(f"line {self.line_of('items')}", "items is not a list")
        for position, item in enumerate(listed):
            node = _child(_child(self.node, "items", None), "", position)
            line = node.start_mark.line + 1 if node is not None else self.line
            yield Document(item, line, node)


def parse(text: str, is_json: bool) -> list[Document]:
    """All documents of a file; empty ones are left out. Raises DataError with ``line N`` as its place."""
    if is_json:
        value = _json(text)
        return [] if value is None else [Document(value, 1, _json_node(text))]
    return _yaml(text)


def _json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            at = [match.start() for match in re.finditer(re.escape(json.dumps(twice)) + r"\s*:", text)]
            line = text.count("\n", 0, at[1]) + 1 if len(at) > 1 else 1
            raise DataError(f"line {line}", f"the key {twice!r:.80} stands twice")
        return found

    def integer(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            line = text.count("\n", 0, max(0, text.find(digits))) + 1
            raise DataError(f"line {line}", f"a number of more than {MAX_DIGITS} digits")
        return int(digits)

    try:
        return json.loads(text, object_pairs_hook=unique, parse_int=integer)
    except json.JSONDecodeError as error:
        raise DataError(f"line {error.lineno}", f"not JSON: {error.msg}") from None
    except RecursionError:
        raise DataError("line 1", f"nested deeper than {MAX_DEPTH} levels") from None


def _json_node(text: str) -> Any:
    """JSON is (nearly) YAML, so PyYAML can tell its lines; where it cannot, errors name line 1."""
    loader = _Loader(text)
    try:
        return next(_roots(loader), None)
    except (yaml.YAMLError, DataError):
        return None
    finally:
        loader.dispose()


def _yaml(text: str) -> list[Document]:
    documents: list[Document] = []
    try:
        loader = _Loader(text)
        try:
            for node in _roots(loader):
                value = _Builder(loader).value(node)
                if value is not None:
                    documents.append(Document(value, node.start_mark.line + 1, node))
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise DataError(f"line {line}", f"not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        position = getattr(error, "position", None)
        line = text.count("\n", 0, position) + 1 if isinstance(position, int) else 1
        raise DataError(f"line {line}", f"not YAML: {getattr(error, 'reason', None) or error}") from None
    return documents


def _roots(loader: Any) -> Iterator[Any]:
    """The root node of each document. PyYAML's own composer recurses, in C without any bound; this one does not."""
    anchors: dict[str, Any] = {}
    tags: dict[
        str, str
    ] = {}  # a manifest repeats its words, and finding a plain scalar's tag is most of the work
    open_nodes: list[Any] = []
    while True:
        event = loader.get_event()
        kind = type(event)
        if kind is yaml.ScalarEvent:
            node = _scalar(loader, event, tags)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            node = _collection(loader, event)
            if event.anchor is not None:
                anchors[event.anchor] = node
            open_nodes.append(node)
            if len(open_nodes) > MAX_DEPTH:
                raise _error(node, f"nested deeper than {MAX_DEPTH} levels")
            continue
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            node = open_nodes.pop()
        elif kind is yaml.AliasEvent:
            if event.anchor not in anchors:
                raise _error(event, f"not YAML: unknown alias {event.anchor!r:.80}")
            node = anchors[event.anchor]
        elif event is None or kind is yaml.StreamEndEvent:
            return
        else:  # start of the stream, start or end of a document
            anchors = {}
            continue
        if kind is yaml.ScalarEvent and event.anchor is not None:
            anchors[event.anchor] = node
        if not open_nodes:
            yield node
            continue
        children = open_nodes[-1].value
        if type(open_nodes[-1]) is yaml.SequenceNode:
            children.append(node)
        elif children and len(children[-1]) == 1:
            children[-1] = (children[-1][0], node)
        else:
            children.append((node,))


def _scalar(loader: Any, event: Any, tags: dict[str, str]) -> Any:
    tag = event.tag
    if tag is None or tag == "!":
        if event.implicit[0]:
            tag = tags.get(event.value)
            if tag is None:
                tag = tags[event.value] = loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        else:
            tag = _TAG + "str"
    return yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark)


def _collection(loader: Any, event: Any) -> Any:
    kind: Any = yaml.MappingNode if type(event) is yaml.MappingStartEvent else yaml.SequenceNode
    tag = event.tag
    if tag is None or tag == "!":
        tag = loader.resolve(kind, None, event.implicit)
    return kind(tag, [], event.start_mark, event.end_mark)


def _error(node: Any, reason: str) -> DataError:
    return DataError(f"line {node.start_mark.line + 1}", reason)


class _Builder:
    """Plain values from the nodes of one document, within bounds."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._seen: set[int] = set()
        self._aliased = 0

    def value(self, node: Any, depth: int = 0, aliased: bool = False) -> Any:
        if depth > MAX_DEPTH:
            raise _error(node, f"nested deeper than {MAX_DEPTH} levels (or an alias that holds itself)")
        if isinstance(node, yaml.ScalarNode):
            self._count(node, aliased)
            return self._scalar(node)
        aliased = aliased or id(node) in self._seen
        self._count(node, aliased)
        self._seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            self._known(node, "seq")
            return [self.value(item, depth + 1, aliased) for item in node.value]
        self._known(node, "map")
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                for name, item in self._merged(value, depth + 1):
                    merged.setdefault(name, item)
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise _error(key, "a key must be text")
            if key.value in found:
                raise _error(key, f"the key {key.value!r:.80} stands twice")
            found[key.value] = self.value(value, depth + 1, aliased)
        return {**merged, **found}

    def _merged(self, node: Any, depth: int) -> Iterator[tuple[str, Any]]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for part in parts:
            value = self.value(part, depth + 1, aliased=True)
            if not isinstance(value, dict):
                raise _error(part, "<< wants a mapping")
            yield from value.items()

    def _count(self, node: Any, aliased: bool) -> None:
        self._aliased += aliased
        if self._aliased > MAX_ALIASED:
            raise _error(node, f"aliases expand to more than {MAX_ALIASED} nodes")

    def _scalar(self, node: Any) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind in ("null", "bool", "int", "float"):
            try:
                value = self._loader.construct_object(node)
            except (ValueError, KeyError, OverflowError):
                raise _error(node, f"{node.value!r:.80} is not a YAML {kind}") from None
            if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
                raise _error(node, f"a number of more than {MAX_DIGITS} digits")
            return value
        if kind not in ("str", "timestamp", "value", "binary"):
            raise _error(node, f"the tag {node.tag!r:.80} has no meaning in a manifest")
        return node.value

    def _known(self, node: Any, kind: str) -> None:
        if node.tag != _TAG + kind:
            raise _error(node, f"the tag {node.tag!r:.80} has no meaning in a manifest")


def _child(node: Any, name: str, index: int | None) -> Any:
    if index is not None:
        inside = isinstance(node, yaml.SequenceNode) and index < len(node.value)
        return node.value[index] if inside else None
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == name), None)
    return None
