"""The check of our English: it finds bad habits, at their lines, and lets through what is right."""

import pytest
from support import language

pytestmark = [pytest.mark.once, pytest.mark.formats]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Who touches it is told.", "Who"),
        ("It is for who reads.", "who"),
        ("whoever handled it", "whoever"),
        ("it is somebody's file", "somebody"),
        ("a thread does what he wants", "he"),
        ("'x' is no size", "is no"),
        ("the state of before", "of before"),
        ("This room knows pages.", "This room"),
    ],
)
def test_bad_habits_are_found(text, words):
    assert [found for _, _, found in language.found(text)] == [words]


@pytest.mark.parametrize(
    "text",
    [
        "a person who can write, and users who read",
        "There is no size, and there can be no other.",
        "It is no longer open, and no faster: 1 is no more than 2.",
        "It was there before.",
        "the room for it",
    ],
)
def test_what_is_right_is_let_through(text):
    assert list(language.found(text)) == []


def test_lines_are_named(tmp_path):
    """Also where a habit goes over the end of a line; code is not looked at."""
    path = tmp_path / "x.py"
    path.write_text(
        '"""A head.\n\nIt is\nno head.\n"""\n\nwho = "who"\nx = 1  # it is\n# no number\n'
        'f"last of {who}"\n"of somebody"\n'
    )
    assert [line.split(":")[0] for line in language.check(path)] == ["3", "11", "8"]
    page = tmp_path / "x.md"
    page.write_text("# Title\n\nRight: `who`.\n\nThe state\nof before.\n")
    (line,) = language.check(page)
    assert line.startswith("5: ") or line.startswith("6: ")
