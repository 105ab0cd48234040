"""The manifest reader on arbitrary text and structures."""

from __future__ import annotations

import json
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.discovery.file.documents import parse
from meshlib.discovery.file.objects import read_objects
from meshlib.errors import DataError
from meshlib.model.address import RELAXED

keys = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=12)
structures: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)
junk = st.text("abk:-[]{}&*!|>'\"#%@`, \n\t?0", max_size=80)
manifests = st.fixed_dictionaries(
    {"apiVersion": st.sampled_from(["v1", "discovery.k8s.io/v1", "v2", ""]) | structures},
    optional={
        "kind": st.sampled_from(["Service", "EndpointSlice", "Endpoints", "List", "EndpointSliceList", "Pod"])
        | structures,
        "metadata": structures | st.fixed_dictionaries({"name": st.just("a"), "namespace": structures}),
        "spec": structures,
        "items": structures,
        "endpoints": structures,
        "subsets": structures,
        "ports": structures,
        "addressType": structures,
    },
)


@given(junk)
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    """No text makes it crash; what is refused names a line of the text."""
    for is_json in (False, True):
        try:
            documents = parse(text, is_json)
        except DataError as error:
            line = int(error.where.removeprefix("line "))
            assert 1 <= line <= text.count("\n") + 2
        else:
            assert all(document.line >= 1 for document in documents)


@given(st.dictionaries(keys, structures, max_size=5))
def test_json_and_yaml_of_one_structure_agree(value: dict[str, Any]) -> None:
    """What was written is what is read, through JSON, through JSON as YAML, and through block YAML."""
    text = json.dumps(value)
    assert [document.value for document in parse(text, True)] == [value]
    block = yaml.safe_dump(value)
    assert [document.value for document in parse(block, False)] == [value]


@settings(max_examples=200)
@given(st.lists(manifests, max_size=3))
def test_any_objects_are_decoded_or_refused(objects: list[dict[str, Any]]) -> None:
    """Manifest-shaped data of any content: objects, skips with places, or one DataError with file and line."""
    text = "---\n".join(json.dumps(value) + "\n" for value in objects)
    try:
        found = read_objects(text, "a.yaml", RELAXED)
    except DataError as error:
        places = [error.where]
    else:
        places = [place for place, _ in found.skipped]
    assert all(place.startswith("a.yaml:") for place in places)
