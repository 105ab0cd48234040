"""docs/kernel-acceptance.md says what the markers say, and every line of the list is shown or explained."""

from __future__ import annotations

from tests.acceptance.page import PAGE, Line, Shown, lines, marked, page, problems, shown


def test_the_page_is_current() -> None:
    """Otherwise: python -m tests.acceptance."""
    assert PAGE.read_text() == page(lines(), shown())


def test_every_line_is_shown_or_explained() -> None:
    """And none twice, none by a marker that names no line, none that needs packets without any."""
    assert problems(lines(), shown()) == []
    assert [line.number for line in lines()] == list(range(1, 116))


def test_markers_are_found_wherever_they_stand() -> None:
    """At a function, a class, a module and a parameter; what is no test is none."""
    text = """
pytestmark = [pytest.mark.kernel, pytest.mark.acceptance(1)]
def helper(): ...
@pytest.mark.acceptance(2, 3)
def test_a(): ...
@pytest.mark.acceptance(4)
class TestB:
    @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.acceptance(5))])
    async def test_c(self): ...
"""
    assert list(marked(text)) == [({1, 2, 3}, "test_a"), ({1, 4, 5}, "test_c")]


def test_what_is_wrong_is_told() -> None:
    """A line without anything, one with both, one whose packets are missing, a marker of no line."""
    listed = [
        Line(1, "FLT", "a"),
        Line(2, "FLT", "b", why="w"),
        Line(3, "FLT", "c", packets=True),
        Line(4, "XYZ", "d", why="w"),
    ]
    here = [Shown("tests/unit/test_x.py", "test_x")]
    assert problems(listed, {2: here, 3: here, 9: here}) == [
        "line 1 has neither a test nor a reason",
        "line 2 has both tests and a reason",
        "line 3 can be shown by a real kernel only, and is not",
        "line 4: no area is called XYZ",
        "tests/unit/test_x.py test_x names line 9",
    ]
    assert problems(listed[2:3], {3: [Shown("tests/kernel/test_y.py", "test_y")]}) == []
