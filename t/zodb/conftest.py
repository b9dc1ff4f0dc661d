"""Fixtures of tests of blocks in a database."""

import pytest
import transaction
from support.storages import SMALL


@pytest.fixture
def small(path):
    """Return the URL of `path` with an option that aligns small blocks, too."""
    return f"file://{path}{SMALL}"


@pytest.fixture
def ends():
    """Abort what a test has not committed."""
    yield
    transaction.abort()
