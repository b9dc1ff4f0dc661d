"""Calls of other libraries on views: none is short, hangs or crashes. See matrix.py."""

import os

import pytest
from matrix import COLUMNS, cells

pytestmark = pytest.mark.once


@pytest.mark.parametrize("column", COLUMNS)
def test_calls_of_other_libraries(column):
    results = cells(column)
    missing = {name for name, result in results.items() if result.startswith("missing")}
    bad = {name: r for name, r in results.items() if r != "works" and name not in missing}
    assert not bad
    # torch alone is too large for every run
    assert "CI" not in os.environ or all(name.startswith("torch:") for name in missing), missing
