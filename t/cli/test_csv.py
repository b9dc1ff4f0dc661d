"""wendelin import of CSV files of others: missing values, and the lines that errors name."""

import numpy as np
import pytest

import wendelin

pytestmark = [pytest.mark.formats, pytest.mark.once]

TEXT = """t,price,n
2026-01-01,1.5,3

2026-01-02,,4
,NA,"5"
2026-01-04,null,N/A
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "x.csv").write_text(TEXT)
    return tmp_path / "x.csv"


@pytest.mark.parametrize(
    ("column", "dtype", "missing", "expected"),
    [
        ("price", "f8", "NaN", [1.5, np.nan, np.nan, np.nan]),
        ("n", "i4", "-1", [3, 4, 5, -1]),
        ("t", "M8[D]", "NaT", ["2026-01-01", "2026-01-02", "NaT", "2026-01-04"]),
        ("price", "U4", "?", ["1.5", "?", "?", "?"]),
    ],
)
def test_missing_values(call, path, file, column, dtype, missing, expected):
    call("import", "--columns", column, "--dtype", dtype, "--missing", missing, file, f"{path}#x")
    with wendelin.open(path, "r") as g:
        assert g["x"].dtype == dtype
        expected = np.array(expected, dtype)
        assert np.array_equal(g["x"][:], expected, equal_nan=expected.dtype.kind in "fM")


def test_missing_values_of_structures(call, path, file):
    dtype = "[('t','M8[D]'),('p','f4'),('n','i2')]"
    done = call("import", "--dtype", dtype, "--missing", "NaN", file, f"{path}#x", code=1)
    assert "--missing: 'NaN' is not a value of" in done.stderr


def test_an_error_names_the_line_of_the_file(call, path, file):
    done = call("import", "--columns", "price", file, f"{path}#x", code=1)
    assert "x.csv, line 4: " in done.stderr
    assert "--missing" in done.stderr
    done = call("import", "--columns", "n", "--missing", "x", file, f"{path}#x", code=1)
    assert "'x' is not a value of float64" in done.stderr
    assert (
        "--missing is not for"
        in call(
            "import", "--missing", "1", "--as", "array", __file__ + "x.npy", f"{path}#x", code=2
        ).stderr
    )
