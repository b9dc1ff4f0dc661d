"""docs/neighbours.md: every line of its tables is in a block that runs."""

import re

import pytest
from support import pages

pytestmark = pytest.mark.once

PAGE = pages.ROOT / "docs/neighbours.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(), flags=re.M)
SECTIONS = [section for section in SECTIONS if "| capability |" in section]


def test_each_neighbour_has_a_table():
    assert len(SECTIONS) == 3


@pytest.mark.parametrize("section", SECTIONS, ids=[s.split("\n")[0] for s in SECTIONS])
def test_lines_of_tables_are_run(section):
    rows = re.findall(r"^\| (?!capability|---).* \| `(.+)` \|$", section, flags=re.M)
    assert len(rows) == len(re.findall(r"^\| (?!capability|---)", section, flags=re.M)) > 9
    blocks = "\n".join(re.findall(r"^```\w+\n(.*?)^```", section, flags=re.M | re.S))
    missing = [row for row in rows if row not in blocks]
    assert missing == []
