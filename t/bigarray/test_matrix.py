"""Calls of other libraries on views: none is short, hangs or crashes. See support/matrix.py."""

import os

import pytest
from support.matrix import COLUMNS, cells

pytestmark = [pytest.mark.once, pytest.mark.slow]


@pytest.mark.parametrize("column", COLUMNS)
def test_calls_of_other_libraries(column):
    results = cells(column)
    missing = {name for name, result in results.items() if result.startswith("missing")}
    bad = {name: r for name, r in results.items() if r != "works" and name not in missing}
    assert not bad
    # torch is too large for each run; ZEO would use uvloop, if it were there: see docs/cluster.md
    left_out = {name for name in missing if name.startswith(("torch:", "uvloop:"))}
    assert "CI" not in os.environ or missing == left_out, missing
