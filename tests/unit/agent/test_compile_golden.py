"""The golden snapshots of tests/vectors/compile: facts on one side, Desired and its changes on the other, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from meshlib.agent.compile import compile_desired
from tests.unit.agent.golden import World, change_lines, check, compiler_for, settings_of

FOLDER = Path(__file__).parents[2] / "vectors" / "compile"
FILES = sorted(FOLDER.glob("*.yaml"))
CASES = [(file.stem, case) for file in FILES for case in yaml.safe_load(file.read_text())]
KEYS = {"name", "acceptance", "rule", "settings", "node", "host", "steps"}
STEP_KEYS = {"services", "slices", "node", "change", "expect", "skipped", "triggers"}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{file}: {case['name']}", marks=pytest.mark.acceptance(*case["acceptance"]))
        for file, case in CASES
    ],
)
def test_golden(case: dict[str, Any]) -> None:
    """Every step gives exactly the written frontends, notes and health ports, at once and from the step before."""
    families = sorted({family for step in case["steps"] for family in step.get("expect", {})})
    world = World(case)
    compilers = {family: compiler_for(case, family) for family in families}
    for step in case["steps"]:
        world.skipped.clear()
        told = world.step(step)
        facts = world.facts()
        for family, compiler in compilers.items():
            change = compiler.update(told, world.host)
            desired = compiler.desired()
            whole = compile_desired(facts, settings_of(case), family)
            assert (desired, desired.notes) == (whole, whole.notes)
            if family in step.get("expect", {}):
                check(step["expect"][family], desired)
            if family in step.get("change", {}):
                assert change_lines(change) == step["change"][family]
            if family in step.get("triggers", {}):
                assert bool(change.triggers) is step["triggers"][family]
        assert list(dict.fromkeys(world.skipped)) == step.get("skipped", [])


def test_every_case_is_run_and_every_key_is_known() -> None:
    """Names are unique, no key is passed over, and every step expects something."""
    names = [(file, case["name"]) for file, case in CASES]
    assert len(names) == len(set(names)) >= 40
    for _, case in CASES:
        assert set(case) <= KEYS
        assert case["rule"]
        for step in case["steps"]:
            assert set(step) <= STEP_KEYS
            assert step.get("expect") or step.get("change")
