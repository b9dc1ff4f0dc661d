"""wendelin import of CSV files of others: missing values, and the lines that errors name."""

import os
import sys

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
    done = call("import", "--columns", "price", "--dtype", "f8", file, f"{path}#x", code=1)
    assert "x.csv, line 4: " in done.stderr
    assert "--missing" in done.stderr
    args = ("--columns", "n", "--missing", "x", "--dtype", "f8")
    done = call("import", *args, file, f"{path}#x", code=1)
    assert "'x' is not a value of float64" in done.stderr
    assert (
        "--missing is not for"
        in call(
            "import", "--missing", "1", "--as", "array", __file__ + "x.npy", f"{path}#x", code=2
        ).stderr
    )


GUESSED = """# what was measured; "one quote
day;when;name;n;big;price;ok;gap;zip
2026-01-01;2026-01-01T10:00:00.5;Ann;1;18446744073709551615;1,5;true;1;9223372036854775808x # a note

# more
2026-01-02;2026-01-01 10:00;"a ""b"" # c; d";-2;0;-2e3;False;;
2026-02-28;2026-01-01;µ;+3;7;nan;true;NA;NA
"""


def test_guessed_columns(call, path, tmp_path):
    (tmp_path / "g.csv").write_text(GUESSED)
    args = ("--decimal", ",", "--comment", "#", tmp_path / "g.csv", f"{path}#g")
    dtypes = ["M8[D]", "M8[ms]", "U12", "i8", "u8", "f8", "?", "f8", "U20"]
    names = ["day", "when", "name", "n", "big", "price", "ok", "gap", "zip"]
    told = "guessed: " + ", ".join(
        f"{name} {np.dtype(dtype)}" for name, dtype in zip(names, dtypes, strict=True)
    )
    assert told in call("import", "--dry-run", *args).stdout.replace("\n", " ")
    assert f"wendelin import: {told[:80]}" in call("import", *args).stderr
    with wendelin.open(path, "r") as g:
        found = g["g"][:]
    assert found.dtype == list(zip(names, dtypes, strict=True))
    nan = np.nan
    assert found["day"].astype(str).tolist() == ["2026-01-01", "2026-01-02", "2026-02-28"]
    assert found["when"][0] == np.datetime64("2026-01-01T10:00:00.5")
    assert found["name"].tolist() == ["Ann", 'a "b" # c; d', "µ"]
    assert found["n"].tolist() == [1, -2, 3]
    assert found["big"].tolist() == [(1 << 64) - 1, 0, 7]
    assert np.array_equal(found["price"], [1.5, -2000, nan], equal_nan=True)
    assert found["ok"].tolist() == [True, False, True]
    assert np.array_equal(found["gap"], [1, nan, nan], equal_nan=True)
    assert found["zip"].tolist() == ["9223372036854775808x", "", "NA"]


@pytest.mark.parametrize(
    ("text", "options", "dtype", "expected"),
    [
        ("a,b\n1,2\n3,4\n", [], "i8", [[1, 2], [3, 4]]),
        ("1,2.5\n3,4\n", [], "f8", [[1, 2.5], [3, 4]]),
        # float64 would lose digits
        ("9007199254740993,2.5\n", [], [("f0", "i8"), ("f1", "f8")], [(9007199254740993, 2.5)]),
        ("1\n99999999999999999999\n", [], "U20", ["1", "99999999999999999999"]),
        ("d\n2026-02-30\n", [], "U10", ["2026-02-30"]),
        ("n\n1\nNA\n", ["--missing", "-1"], "i8", [1, -1]),
        ("ok,n\ntrue,1\n,2\n", ["--missing", "false"], [("ok", "?"), ("n", "i8")], None),
        ("a,a,\nx,1,2\n", [], [("a_0", "U1"), ("a_1", "i8"), ("2", "i8")], [("x", 1, 2)]),
        ("n\n9007199254740993\n\nNA\n", [], "n has missing values as int64", None),
        ("ok\ntrue\nNA\n", [], "ok has missing values and truth values", None),
        ("a,b\n1,2\n\n3\n", [], "x.csv, line 4: the number of columns", None),
        ("a\nx\0\n", [], "a has NUL characters", None),
    ],
)
def test_guesses(call, path, tmp_path, text, options, dtype, expected):
    (tmp_path / "x.csv").write_text(text)
    fails = isinstance(dtype, str) and " " in dtype
    args = (*options, tmp_path / "x.csv", f"{path}#x")
    done = call("import", *args, code=int(fails))
    if fails:
        assert dtype in done.stderr
        return
    with wendelin.open(path, "r") as g:
        assert g["x"].dtype == np.dtype(dtype)
        assert expected is None or g["x"][:].tolist() == expected


def test_a_column_is_the_kind_of_all_its_cells():
    from wendelin.cli.files.csvguess import Column

    for parts, dtype in [
        ((["1"], ["2.5"]), "f8"),
        ((["", "NaN"], [" 7 "]), "f8"),
        ((["2026-01-01"], ["2026-01-01 10:00:00.123456"]), "M8[us]"),
        ((["1600-01-01"], ["1600-01-01T00:00:00.123456789"]), "U29"),
        ((["1"], ["2026-01-01"]), "U10"),
        ((["-1"], ["9223372036854775808"]), "U19"),
        ((["true"], ["1"]), "U4"),
        ((["1\x1f2"],), "U3"),
        ((["007"],), "U3"),
        ((["1.5"], ["00"]), "U3"),
        ((["1", "-01", "2.5"],), "U3"),
        ((["01.5", "0", "-0", "00.5", "01e2"],), "f8"),
    ]:
        column = Column("x")
        for cells in parts:
            column.take(cells)
        assert column.dtype(2, None) == dtype, parts


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a;b\n1;2\n", [], "2 columns with the delimiter ';', and one with ',': say"),
        ("a;b\n1,5;2,5\n", [], "--delimiter ';', and --decimal , for numbers such as 1,5"),
        ("a;b\n1,5;2,5\n", [], "and lines of different lengths with ','"),
        ("a\tb\n1\t2\n", ["--dtype", "f8"], "by --delimiter $'\\t'"),
        ("# x\na|b|c\n1|2|3\n", ["--comment", "#"], "3 columns with the delimiter '|'"),
        ("1.5 2\n-3e5 4\n", [], "2 columns with the delimiter ' '"),
        ("a,b\n1,2\n", ["--decimal", ","], ""),  # the comma cannot be the delimiter
        ("New York\nSan Diego\n", [], ""),
        ("a;b\n1;2;3\n", [], ""),
        ('"a;b"\n"c;d"\n', [], ""),
        ("a;b,c\nd;e,f\n", [], ""),
        ("a;b\nc;d\n", ["--delimiter", ","], ""),
    ],
)
def test_a_file_with_another_delimiter(call, path, tmp_path, text, options, message):
    (tmp_path / "x.csv").write_text(text)
    args = (*options, tmp_path / "x.csv", f"{path}#x")
    done = call("import", "--dry-run", *args, code=int(bool(message)))
    assert message in done.stderr


APPENDED = """# another day
price;ok;name;day
2,5;true;"x;y";2026-02-01 # one
;False; ;2026-02-02
"""


def test_rows_are_appended_as_the_dtype_of_the_array(call, path, tmp_path):
    """The options are those of an import; fields are found by name, and nothing is guessed."""
    dtype = [("day", "M8[s]"), ("name", "U3"), ("price", ">f4"), ("ok", "u1")]
    with wendelin.open(path) as g:
        g.create_array("x", data=np.array([("2026-01-01", "a", 1, 2)], dtype))
        g.create_array("day", data=np.zeros(1, "M8[h]"))
    (tmp_path / "x.csv").write_text(APPENDED.replace("true", "1").replace("False", "0"))
    args = ("--decimal", ",", "--comment", "#", tmp_path / "x.csv", f"{path}#x")
    assert "line 4: " in call("append", *args, code=1).stderr  # an empty cell
    call("append", "--missing", "0", *args)
    call(
        "append", "--delimiter", ";", "--columns", "day", "--comment", "#", args[-2], f"{path}#day"
    )
    with wendelin.open(path, "r") as g:
        expected = [("2026-01-01", "a", 1, 2), ("2026-02-01", "x;y", 2.5, 1)]
        expected.append(("2026-02-02", "0", 0, 0))
        assert np.array_equal(g["x"][:], np.array(expected, dtype))
        assert g["day"][1:].astype(str).tolist() == ["2026-02-01T00", "2026-02-02T00"]
    (tmp_path / "x.csv").write_text("day;ok;name;price\n2026-02-01;1;long;1\n")
    error = call("append", *args, code=1).stderr
    assert "line 2: 'long' has 4 characters, and <U3 takes 3" in error
    with wendelin.open(path, "r") as g:
        assert len(g["x"]) == 3


def test_what_is_guessed_is_shown(call, path, tmp_path):
    (tmp_path / "x.csv").write_text(",".join(f"c{i}" for i in range(10)) + "\n" + "1," * 9 + "x\n")
    args = (tmp_path / "x.csv", f"{path}#x")
    shown = ", ".join(f"c{i} int64" for i in range(8))
    assert call("import", *args).stderr == f"wendelin import: guessed: {shown}, and 2 more\n"
    assert f"guessed: {shown}, c8 int64, c9 <U1" in call("import", "--dry-run", *args).stdout
    done = call("import", "--json", "--replace", *args)
    assert not done.stderr
    assert done.json["guessed"][8:] == ["c8 int64", "c9 <U1"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ["--decimal", ",", "--dtype", "f8"],
            1,
            "x.csv, line 3: there is a '.', and numbers have ','",
        ),
        (
            ["--decimal", ",", "--dtype", "[('a','f8'),('b','U3')]"],
            1,
            "x.csv, line 3: there is a '.', and numbers have ','",
        ),
        (["--decimal", ",", "--delimiter", ","], 2, "must be different"),
        (["--comment", "//"], 2, "must be one character"),
    ],
)
def test_wrong_numbers_and_characters(call, path, tmp_path, options, code, message):
    (tmp_path / "x.csv").write_text("a;b\n1,5;2\n1.5;3\n")
    assert message in call("import", *options, tmp_path / "x.csv", f"{path}#x", code=code).stderr


ROWS = 300
# one of them is another float32 if it is not rounded to a double first
ODD = ["5e-324", "16777217", "1.000000059604644775390626", "0x11", "0.1,2", "9" * 30]


@pytest.mark.parametrize(
    "dtype",
    ["f8", "f4", ">f8", "i8", "u1", [("a", "f4"), ("b", "<i8"), ("c", "f8")]],
    ids=str,
)
def test_pyarrow_reads_what_numpy_reads(tmp_path, dtype):
    """Equal bit by bit; each block that pyarrow leaves to NumPy gives the same value or error."""
    pytest.importorskip("pyarrow")
    from wendelin.cli.errors import Failure
    from wendelin.cli.files.text import CsvSource

    rng = np.random.default_rng(1)
    taken = 0
    odd = ["", "nan", " 7", "+5", "007", "-0", "1e999", "-1e-999", "1e5", "0x1f", '"8"', "--1", "."]
    for cell in [None, *odd, "300", "1.", ".5", *ODD]:
        numbers = rng.integers(0, 100, (ROWS, 3)).astype(object)
        if np.dtype(dtype).kind == "f":
            numbers = rng.standard_normal((ROWS, 3)) * 10.0 ** rng.integers(-4, 4, (ROWS, 3))
        lines = [",".join(map(str, row)) for row in numbers.tolist()]
        if cell is not None:
            lines[200] = lines[200].rpartition(",")[0] + "," + cell
        (tmp_path / "x.csv").write_text("\n".join(lines))
        results = []
        for fast in True, False:
            for missing in None, "1":
                source = CsvSource(
                    str(tmp_path / "x.csv"), ",", [], np.dtype(dtype), False, {}, missing
                )
                if fast:
                    taken += source._fast.read(list(source._rows())) is not None
                else:
                    source._fast = None
                try:
                    results.append(source.read(0, source.layout.size).tobytes())
                except Failure as e:
                    results.append(str(e))
                source.close()
        assert results[:2] == results[2:], cell
    assert taken >= 4


#: dtypes -> cells of others that are likely in a column of them
CELLS = {
    "i8": ["7", "-3", " 5", "+5", "007", "9223372036854775807", "1.5", "--1", "1_0"],
    "u1": ["255", "0", "300", "-1"],
    "f8": ["1.5", "-2e3", ".5", "7.", "inf", "-NaN", " 3", "1e999", "0x1", "1 2", "1,5,1"],
    "f4": ["0.1", "1.000000059604644775390626", "16777217", "-0", "5e-324"],
    "?": ["true", "False", "1", "maybe", " TRUE"],
    "M8[s]": ["2026-01-01", "2026-01-01 10:00", "2026-01-01T10:00:00.5", "NaT", "today's", " "],
    "U6": ["x", " y ", '"a;b"', '""', '"a ""b"""', '"two\nlines"', 'a"b"', "µ", "# x", "toolong"],
    "S4": ["x", '"c"', "µ", "é", "toolong"],
    "c16": ["1+2j", "3", "(1-1j)"],
}
GAPS = ["", "NA", "null", " nan ", "N/A\t"]


@pytest.mark.parametrize("seed", range(int(os.environ.get("WENDELIN_CORE_TEST_CSV", "2"))))
def test_cells_of_any_kind_are_the_same_with_and_without_pyarrow(tmp_path, seed, monkeypatch):
    """Values bit by bit, errors, and what is guessed; a part of the files has something wrong."""
    pytest.importorskip("pyarrow")
    from wendelin.cli.errors import Failure
    from wendelin.cli.files import csvcells, text
    from wendelin.cli.files.convert import packed

    rng = np.random.default_rng(seed)
    path = str(tmp_path / "x.csv")
    taken = []
    monkeypatch.setattr(
        csvcells.CellReader,
        "read",
        lambda self, *args, read=csvcells.CellReader.read: (
            taken.append(read(self, *args)) or taken[-1]
        ),
    )

    def result(*args):
        try:
            source = text.CsvSource(path, *args)
        except Failure as e:
            return str(e)
        try:
            layout = source.layout
            return layout, source.guessed, source.read(0, layout.size).tobytes()
        except Failure as e:
            return str(e)
        finally:
            source.close()

    for _ in range(25):
        kinds = rng.choice(list(CELLS), rng.integers(1, 5)).tolist()
        decimal, comment = (",", "#") if rng.random() < 0.4 else (".", None)
        odd = rng.random() < 0.5  # some cells that are wrong, or read by NumPy only
        columns = []
        for kind in kinds:
            pool = CELLS[kind] if odd else CELLS[kind][:2]
            cells = np.array(pool, object)[rng.integers(0, len(pool), ROWS)]
            if rng.random() < 0.4:
                cells = np.where(rng.random(ROWS) < 0.2, rng.choice(GAPS), cells)
            numeric = kind in ("f8", "f4", "c16")
            columns.append([c.replace(".", decimal) if numeric else c for c in cells.tolist()])
        lines = [";".join(row) + "\n" for row in zip(*columns, strict=True)]
        if rng.random() < 0.2:
            lines[100] = lines[100][:-1] + ";1\n"
        with open(path, "w") as f:
            f.writelines(lines)
        dtype = np.dtype([(str(i), kind) for i, kind in enumerate(kinds)])
        missing = [None, "0", "NaN", "NaT", "false"][rng.integers(0, 5)]
        chosen = ["0", str(len(kinds) - 1)] if rng.random() < 0.3 else []
        guess = rng.random() < 0.5
        if chosen and not guess:
            dtype = packed(dtype[["0", str(len(kinds) - 1)]]) if len(kinds) > 1 else dtype
        args = (";", chosen, None if guess else dtype, False, {}, missing, comment, decimal)
        with_pyarrow = result(*args)
        with monkeypatch.context() as m:
            m.setitem(sys.modules, "pyarrow", None)
            assert with_pyarrow == result(*args), (kinds, args)
    assert sum(values is not None for values in taken) > 10  # pyarrow did something


def test_without_pyarrow_numpy_reads(tmp_path, monkeypatch):
    from wendelin.cli.files.text import CsvSource

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    np.savetxt(tmp_path / "x.csv", np.arange(100))
    source = CsvSource(str(tmp_path / "x.csv"), ",", [], np.dtype("f8"), None, {})
    assert source._fast is None
    assert np.array_equal(source.read(0, 100), np.arange(100))
    source.close()
