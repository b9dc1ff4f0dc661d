"""lib/sizes.py: sizes as people write and read them."""

import doctest

import pytest

from wendelin.lib import sizes
from wendelin.lib.sizes import parse_size, size_text


def test_its_examples():
    tried = doctest.testmod(sizes)
    assert tried.attempted
    assert not tried.failed


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (0.4, "0 B"),
        (999, "999 B"),
        (1023, "0.999 KiB"),
        (1024, "1 KiB"),
        (96 << 10, "96 KiB"),
        (999 << 10, "999 KiB"),
        ((999 << 10) + 1000, "0.977 MiB"),  # not 1000 KiB
        (int(99.7 * 1024), "100 KiB"),
        (1 << 30, "1 GiB"),
        (1 << 63, "8 EiB"),
        (1 << 90, "1024 YiB"),
    ],
)
def test_texts(n, text):
    assert size_text(n) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1.5K", 1536),
        ("1.5 GiB", 3 << 29),
        ("2gb", 2 << 30),
        ("7B", 7),
        (" 3 T ", 3 << 40),
        ("9007199254740993", 9007199254740993),  # exact: no float has it
        ("0.1K", 102),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


def test_a_unit_for_numbers():
    assert parse_size("40", "M") == 40 << 20
    assert parse_size("1.5G", "M") == 3 << 29
    assert parse_size("7B", "M") == 7


@pytest.mark.parametrize(
    "text", ["", "0", "0.5", "-1", "M", "iB", "5iB", "1X", "25%", "1e9", "nan", "٣", "9" * 5000]
)
def test_texts_that_are_not_sizes(text):
    with pytest.raises(ValueError, match="is not a size: it must be like") as e:
        parse_size(text)
    assert repr(text) in str(e.value)
