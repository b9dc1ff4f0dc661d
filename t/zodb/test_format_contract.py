"""Every block format does what arrays need of it."""

import pytest
from support.conformance import FormatTests


class TestZBlk0(FormatTests):
    @pytest.fixture
    def fmt(self):
        return "ZBlk0"


class TestZBlk1(FormatTests):
    @pytest.fixture
    def fmt(self):
        return "ZBlk1"


class TestAuto(FormatTests):
    """Small changes are stored as chunks, others as whole blocks."""

    @pytest.fixture
    def fmt(self):
        return "auto"
