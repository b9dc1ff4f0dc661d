"""Every format of blocks does what arrays want of one."""

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
    """Small changes are chunks, and others are whole blocks."""

    @pytest.fixture
    def fmt(self):
        return "auto"
