"""Fixtures of tests of a ZarrGroup: a committed group, and another client of its database."""

import pytest
import transaction
from support.clients import Client

from wendelin.zarr import ZarrGroup


@pytest.fixture
def g(root):
    root["g"] = ZarrGroup()
    transaction.commit()
    return root["g"]


@pytest.fixture
def client(root, g):
    found = Client(root)
    yield found
    found.close()
