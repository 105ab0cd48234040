"""The golden vectors of tests/vectors/eligibility, run through decoding, eligibility and explanation."""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Any

import pytest

from meshlib.errors import DataError
from meshlib.model.address import AddressPolicy
from meshlib.model.decode_service import service_from_json
from meshlib.model.decode_slices import slice_from_json, slices_from_endpoints_json
from meshlib.model.eligibility import SliceUnion, eligible, explain
from meshlib.model.endpoint import Locality, Verdict
from meshlib.model.service import resolve_port
from meshlib.model.slices import EndpointSlice
from meshlib.model.vantage import Path, VantagePoint

FOLDER = FilePath(__file__).parents[2] / "vectors" / "eligibility"
FILES = sorted(FOLDER.glob("*.json"))
CASES = [(file.stem, case) for file in FILES for case in json.loads(file.read_text())]
RUNS = [(name, case, path) for name, case in CASES for path in case["expect"]]
KEYS = {
    "name", "rule", "service", "port", "by_host", "slices", "endpoints", "vantage", "expect", "skipped", "refused",
    "truncated", "uids",
}  # fmt: skip


def decoded(case: dict[str, Any]) -> tuple[list[EndpointSlice], int, int]:
    """The slices of a case, with the numbers of skipped pieces and refused objects."""
    skipped: list[tuple[str, str]] = []
    slices: list[EndpointSlice] = []
    refused = 0

    def skip(where: str, reason: str) -> None:
        assert where
        assert reason
        skipped.append((where, reason))

    policy = AddressPolicy()
    for obj in case["slices"]:
        try:
            slices.append(slice_from_json(json.dumps(obj).encode(), policy, skip))
        except DataError:
            refused += 1
    for obj in case.get("endpoints", []):
        slices.extend(slices_from_endpoints_json(json.dumps(obj).encode(), policy, skip))
    return slices, len(skipped), refused


@pytest.mark.parametrize(("file", "case", "path"), RUNS, ids=[f"{f}: {c['name']} ({p})" for f, c, p in RUNS])
def test_vector(file: str, case: dict[str, Any], path: str) -> None:
    """Each case gives exactly the written set, verdict and locality, whatever the order of the slices."""
    service = service_from_json(json.dumps(case["service"]).encode())
    port = resolve_port(service, case["port"], by_host=case.get("by_host", False))
    slices, skipped, refused = decoded(case)
    seen = case["vantage"]
    vantage = VantagePoint(seen["node"], seen["zone"], tuple(seen["families"]))
    expected = case["expect"][path]

    found = eligible(service, port, slices, vantage, Path(path))

    assert [endpoint.authority for endpoint in found.endpoints] == expected["endpoints"]
    assert found.verdict.value == expected["verdict"]
    assert found.locality.value == expected["locality"]
    assert found.terminating_fallback is expected["terminating_fallback"]
    assert (skipped, refused) == (case.get("skipped", 0), case.get("refused", 0))
    assert any(slice_.truncated for slice_ in slices) is case.get("truncated", False)
    for endpoint in found.endpoints:
        assert endpoint.uid == case.get("uids", {}).get(endpoint.authority, endpoint.uid)
    assert eligible(service, port, slices[::-1], vantage, Path(path)) == found
    assert SliceUnion().eligible(service, port, slices, vantage, Path(path)) == found


@pytest.mark.parametrize(("file", "case", "path"), RUNS, ids=[f"{f}: {c['name']} ({p})" for f, c, p in RUNS])
def test_explanation_agrees_with_vector(file: str, case: dict[str, Any], path: str) -> None:
    """The explanation lists every entry of every slice, and says yes exactly to the written set."""
    service = service_from_json(json.dumps(case["service"]).encode())
    port = resolve_port(service, case["port"], by_host=case.get("by_host", False))
    slices, _, _ = decoded(case)
    seen = case["vantage"]
    vantage = VantagePoint(seen["node"], seen["zone"], tuple(seen["families"]))

    told = explain(service, port, slices, vantage, Path(path))

    assert len(told) == sum(len(slice_.endpoints) for slice_ in slices)
    assert [line.endpoint.authority for line in told if line.eligible] == case["expect"][path]["endpoints"]
    assert all(line.reason for line in told)


def test_every_case_is_run_and_every_key_is_known() -> None:
    """No file, case or key of the vectors is passed over: names are unique, keys are read, paths exist."""
    assert {file.name for file in FOLDER.iterdir()} == {file.name for file in FILES}
    names = [(file, case["name"]) for file, case in CASES]
    assert len(names) == len(set(names)) >= 40
    assert {(file, case["name"]) for file, case, _ in RUNS} == set(names)
    for _, case in CASES:
        assert set(case) <= KEYS
        assert {"name", "rule", "service", "port", "slices", "vantage", "expect"} <= set(case)
        assert set(case["expect"]) <= {path.value for path in Path}
        assert case["slices"] or case.get("endpoints") or case["name"] == "no slices"


def test_vectors_show_every_outcome() -> None:
    """Each verdict, each locality, each path and the fallback are expected by at least one case."""
    expected = [(path, answer) for _, case in CASES for path, answer in case["expect"].items()]
    assert {answer["verdict"] for _, answer in expected} == {verdict.value for verdict in Verdict}
    assert {answer["locality"] for _, answer in expected} == {locality.value for locality in Locality}
    assert {path for path, _ in expected} == {path.value for path in Path}
    assert {answer["terminating_fallback"] for _, answer in expected} == {True, False}
