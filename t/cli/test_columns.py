"""Columns of Parquet and Arrow files, next to what pyarrow reads."""

import datetime

import numpy as np
import pytest

import wendelin

pa = pytest.importorskip("pyarrow")
feather, parquet = pytest.importorskip("pyarrow.feather"), pytest.importorskip("pyarrow.parquet")

pytestmark = [pytest.mark.formats, pytest.mark.once]

N = 1000


def table():
    day = datetime.date(2026, 1, 31)
    return pa.table(
        {
            "i": pa.array(range(N), pa.int32()),
            "f": pa.array([None if i % 7 == 0 else i / 2 for i in range(N)]),
            "ok": pa.array([i % 3 == 0 for i in range(N)]),
            "text": pa.array([f"µ{i}" for i in range(N)]),
            "kind": pa.array(["a", "bc"] * (N // 2)).dictionary_encode(),
            "when": pa.array([None, *range(1, N)], pa.timestamp("us", tz="UTC")),
            "day": pa.array([day] * N),
            "missing": pa.array([None, *range(1, N)], pa.int64()),
            "list": pa.array([[1, 2]] * N),
        }
    )


@pytest.mark.parametrize("name", ["x.parquet", "x.feather", "x"])
def test_columns_are_arrays(call, path, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name == "x.feather":
        feather.write_feather(table(), name, chunksize=300)
    else:
        parquet.write_table(table(), name, row_group_size=300)
    done = call("import", "--step", "4K", "--blksize", "4K", name, f"{path}#t")
    assert f"{name}:list: values of type list" in done.stderr
    with wendelin.open(path, "r") as g:
        t = g["t"]
        assert set(t) == {"i", "f", "ok", "text", "kind", "when", "day", "missing"}
        for column in t:
            want = table()[column].to_numpy()
            assert len(t[column]) == N
            equal_nan = t[column].dtype.kind in "fM"
            if t[column].dtype.kind == "U":
                want = want.astype("U")
            assert np.array_equal(t[column][:], want, equal_nan=equal_nan), column
        assert t["i"].dtype == "i4"
        assert t["missing"].dtype == "f8"  # of int64
        assert t["when"].dtype == "M8[us]"
        assert t["when"].attrs["timezone"] == "UTC"
        assert t["day"].dtype == "M8[D]"
    call("import", f"{name}:f", f"{path}#one")
    with wendelin.open(path, "r") as g:
        assert np.array_equal(g["one"][:], g["t/f"][:], equal_nan=True)
    assert (
        "has no array 'z': it has i, f" in call("import", f"{name}:z", path + "#z", code=1).stderr
    )


READ = {"x.parquet": parquet.read_table, "x.arrow": feather.read_table}
M8, M8D = np.datetime64("2026-01-31T18:30", "m"), np.datetime64("2026-01-31")


def exported(call, path, tmp_path, name, values, *options, attrs=()):
    with wendelin.open(path) as g:
        g["x"] = values
        g["x"].attrs.update(attrs)
    done = call("export", "--force", *options, f"{path}#x", tmp_path / name)
    return READ[name](tmp_path / name), done


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([1, -2, 3], ">i2"), pa.int16()),
        (np.array([1, 2], "u8"), pa.uint64()),
        (np.array([True, False]), pa.bool_()),
        (np.array([0.1, np.nan, -0.0], "f4"), pa.float32()),
        (np.array([0.1, np.nan, np.inf], ">f8"), pa.float64()),
        (np.array(["", "µ", "a,b"]), pa.string()),
        (np.array([b"", b"\xff"]), pa.binary()),
        (np.array([M8D, "NaT"], "M8[D]"), pa.date32()),
        (np.array([M8, "NaT"], "M8[h]"), pa.timestamp("s")),
        (np.array([M8, "NaT"], "M8[us]"), pa.timestamp("us")),
        (np.array([M8], "M8[25ns]"), pa.timestamp("ns")),
        (np.array([5, "NaT"], "m8[D]"), pa.duration("s")),
        (np.empty(0, "f8"), pa.float64()),
    ],
    ids=lambda v: v.dtype.str if isinstance(v, np.ndarray) else "",
)
def test_an_array_is_a_column(call, path, tmp_path, name, values, kind):
    table, _ = exported(call, path, tmp_path, name, values)
    if name.endswith("parquet") and str(kind) == "timestamp[s]":
        kind = pa.timestamp("ms")  # Parquet has no seconds
    assert table.schema.field("x").type == kind
    column = table["x"]
    if values.dtype.kind in "Mm":
        assert column.null_count == np.isnat(values).sum()
    found = column.to_numpy().astype(values.dtype)
    assert np.array_equal(found, values, equal_nan=values.dtype.kind in "fMm")
    assert np.array_equal(np.signbit(found), np.signbit(values)) if kind == pa.float32() else True


RECORDS = np.array(
    [(M8D, 1.5, (1, "a"), [1, 2]), ("NaT", np.nan, (2, "µ"), [3, 4])],
    [("day", "M8[D]"), ("price", "f8"), ("p", [("n", ">i4"), ("s", "U3")]), ("a", "i2", (2,))],
)


@pytest.mark.parametrize("name", READ)
def test_fields_are_columns(call, path, tmp_path, name):
    attrs = {"unit": "mV", "n": 3, "list": [1, 2], "c": 1j}
    table, done = exported(call, path, tmp_path, name, RECORDS, attrs=attrs)
    assert table.column_names == ["day", "price", "p.n", "p.s", "a[0]", "a[1]"]
    assert table["p.n"].to_pylist() == [1, 2]
    assert table["p.s"].to_pylist() == ["a", "µ"]
    assert table["a[1]"].to_pylist() == [2, 4]
    assert table["day"].to_pylist() == [datetime.date(2026, 1, 31), None]
    metadata = table.schema.metadata
    assert [metadata[key] for key in (b"unit", b"n", b"list")] == [b"mV", b"3", b"[1, 2]"]
    assert "left out, attributes that" in done.stderr
    assert done.stderr.endswith(": c\n")
    table, _ = exported(call, path, tmp_path, name, RECORDS, "--columns", "p.s,day")
    assert table.column_names == ["p.s", "day"]
    call("import", tmp_path / name, f"{path}#again")
    with wendelin.open(path, "r") as g:
        assert g["again/p.s"][:].tolist() == ["a", "µ"]


@pytest.mark.parametrize("name", READ)
def test_rows_are_written_in_batches(call, path, tmp_path, name):
    values = np.arange(3 << 17, dtype="f8").reshape(-1, 3)  # 3 MiB
    attrs = {"timezone": "UTC"}
    table, _ = exported(call, path, tmp_path, name, values, "--step", "4K", attrs=attrs)
    assert table.column_names == ["x[0]", "x[1]", "x[2]"]
    assert np.array_equal(np.column_stack([c.to_numpy() for c in table.columns]), values)
    if name == "x.parquet":
        file = parquet.ParquetFile(tmp_path / name)
        rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    else:
        with pa.OSFile(str(tmp_path / name)) as source:
            file = pa.ipc.open_file(source)
            rows = [file.get_batch(i).num_rows for i in range(file.num_record_batches)]
    assert sum(rows) == len(values)
    assert max(rows) * 24 <= 1 << 20
    assert len(rows) <= 4
    times = np.array([M8], "M8[us]")
    table, _ = exported(call, path, tmp_path, name, times, attrs=attrs)
    assert table.schema.field("x").type == pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros(2, "c16"), [], "has no type for x, of dtype complex128"),
        (np.zeros(2, "M8[ps]"), [], "has no type for x"),
        (np.zeros(2, "V3"), [], "has no type for x"),
        (np.zeros((2, 2, 2)), [], "of shape (2, 2, 2)"),
        (np.zeros((2, 0)), [], "the array has none"),
        (np.array(["\ud800"]), [], "has a text that is not Unicode"),
        (np.array(["9999999-01-01"], "M8[D]"), [], "has times that date32[day] cannot have"),
        (RECORDS, ["--columns", "a"], "there is no column 'a': there are day, price, p.n"),
    ],
    ids=str,
)
def test_what_columns_cannot_have(call, path, tmp_path, values, options, message):
    with wendelin.open(path) as g:
        g["x"] = values
    done = call("export", *options, f"{path}#x", tmp_path / "x.parquet", code=1)
    assert message in done.stderr
    assert not list(tmp_path.glob("x.parquet*"))
    named = call("export", f"{path}#x", f"{tmp_path}/x.arrow:y", code=2)
    assert "a column has the name of the array" in named.stderr
    assert (
        "--columns is not for"
        in call("export", "--columns", "a", f"{path}#x", tmp_path / "x.csv", code=2).stderr
    )


def nulls():
    return pa.table(
        {
            "i": pa.array([1, None, 3], pa.int16()),
            "big": pa.array([(1 << 53) + 1, None, 3]),
            "ok": pa.array([True, None, False]),
            "text": pa.array(["a", None, "NaN"]),
            "raw": pa.array([b"\xff", None, b"a"]),
            "day": pa.array([None, datetime.date(2026, 1, 2), None]),
            "none": pa.array([None] * 3, pa.int8()),
            "full": pa.array([1, 2, 3], pa.uint8()),
        }
    )


@pytest.mark.parametrize(
    ("missing", "expected", "left"),
    [
        (
            None,
            {"i": [1, np.nan, 3], "text": ["a", "", "NaN"], "raw": [b"\xff", b"", b"a"]},
            {"big": "1 missing values, which int64 does not have", "ok": "--missing says what"},
        ),
        (
            "-1",
            {"i": [1, -1, 3], "big": [(1 << 53) + 1, -1, 3], "text": ["a", "-1", "NaN"]},
            {"ok": ""},
        ),
        ("2026-01-01", {"i": [1, np.nan, 3]}, {"big": "", "ok": ""}),
        ("true", {"ok": [True, True, False]}, {"big": ""}),
    ],
)
def test_missing_values(call, path, tmp_path, missing, expected, left):
    """Nulls are what the user says; else NaN, NaT, '', if the dtype has such or loses nothing."""
    parquet.write_table(nulls(), tmp_path / "x.parquet", row_group_size=2)
    options = ["--missing", missing] if missing else []
    done = call("import", *options, tmp_path / "x.parquet", f"{path}#t")
    for name, why in left.items():
        assert any(f":{name}: " in line and why in line for line in done.stderr.splitlines())
    with wendelin.open(path, "r") as g:
        t = g["t"]
        assert set(t) == set(nulls().column_names) - set(left)
        for name, values in expected.items():
            assert repr(t[name][:]) == repr(np.array(values, t[name].dtype)), name
        day = ["2026-01-01" if missing == "2026-01-01" else "NaT", "2026-01-02"]
        assert t["day"][:2].astype(str).tolist() == day
        assert t["i"].dtype == ("i2" if missing == "-1" else "f8")
        assert t["full"].dtype == "u1"


@pytest.mark.parametrize("name", [*READ, "x.csv"])
def test_a_group_of_columns(call, path, tmp_path, name):
    """Rows of all arrays; attributes of the group and of columns; and back again."""
    rng = np.random.default_rng(1)
    columns = {
        "day": np.arange(N).view("M8[D]"),
        "n": rng.integers(0, 9, N).astype(">i4"),
        "name, 2": np.array(["µ", "b"] * (N // 2)),
        "v": np.asfortranarray(rng.standard_normal((N, 2))),
    }
    with wendelin.open(path) as g:
        t = g.create_group("t")
        t.attrs.update(unit="mV", n=5, list=[1, {"a": None}], text="5")
        t["day"] = columns["day"]
        for other in "n", "name, 2", "v":
            order = "F" if columns[other].flags.f_contiguous and other == "v" else "C"
            t.create_array(other, data=columns[other], order=order)
        t["n"].attrs["c"] = 1j
        t["n"].attrs["range"] = [0, 9]
        t.create_group("below")
        t["one"] = np.array(3)
    done = call("export", "--step", "4K", f"{path}#t", tmp_path / name)
    assert "t/below is a " in done.stderr
    assert "t/one is one value, not a column" in done.stderr
    assert "n: c" in done.stderr
    call("import", tmp_path / name, f"{path}#again")
    with wendelin.open(path, "r") as g:
        again = g["again"]
        names = ["day", "n", "name, 2", "v[0]", "v[1]"]
        for column in names:
            want = columns["v"][:, int(column[2])] if column[0] == "v" else columns[column]
            assert np.array_equal(again[column][:], want), column
        if name == "x.csv":
            assert list(again.dtype.names) == names
            return
        assert list(again) == names
        assert again.attrs == {"unit": "mV", "n": 5, "list": [1, {"a": None}], "text": "5"}
        assert again["n"].attrs == {"range": [0, 9]}
    table = READ[name](tmp_path / name)
    assert table.schema.field("n").metadata[b"range"] == b"[0, 9]"
    call("export", "--columns", "n,day", f"{path}#t", tmp_path / f"some-{name}")
    assert READ[name](tmp_path / f"some-{name}").column_names == ["n", "day"]


def test_a_group_that_is_not_a_table(call, path, tmp_path):
    with wendelin.open(path) as g:
        g.create_group("t")["a"] = np.arange(3)
        g["t/b"] = np.arange(4)
        g.create_group("empty")
        g.create_group("twice")["a"] = np.zeros((3, 2))
        g["twice/a[0]"] = np.arange(3)
    twice = call("export", f"{path}#twice", tmp_path / "x.parquet", code=1).stderr
    assert "two columns of the parquet file would have the name 'a[0]'" in twice
    error = call("export", f"{path}#t", tmp_path / "x.parquet", code=1).stderr
    assert (
        "arrays of different lengths, and a table has rows of all of them: a has 3, b has 4"
        in error
    )
    assert "has no columns" in call("export", f"{path}#empty", tmp_path / "x.csv", code=1).stderr
    assert not list(tmp_path.glob("x.*.part*"))


@pytest.mark.parametrize("name", READ)
def test_metadata_are_attributes(call, path, tmp_path, name):
    """Those of others are text; of a file with one column, they are those of the array."""
    attrs = {"unit": "mV", "n": 3, "list": [1, 2.5]}
    exported(call, path, tmp_path, name, np.arange(3), attrs=attrs)
    call("import", tmp_path / name, f"{path}#y")
    field = pa.field("a", pa.int8(), metadata={"unit": "V", "bad": b"\xff"})
    schema = pa.schema([field], metadata={"n": "3", "pandas": "{}", "wendelin:json": "oh"})
    table = pa.table({"a": pa.array([1], pa.int8())}, schema=schema)
    if name == "x.parquet":
        parquet.write_table(table, tmp_path / name)
    else:
        feather.write_feather(table, tmp_path / name)
    call("import", "--as", "group", tmp_path / name, f"{path}#t")
    with wendelin.open(path, "r") as g:
        assert g["y"].attrs == attrs
        assert g["t"].attrs == {"n": "3"}
        assert g["t/a"].attrs == {"unit": "V", "bad": b"\xff"}


@pytest.mark.parametrize("name", ["x.mat", "x.cdf"])
def test_what_is_not_written_is_refused(call, path, tmp_path, name):
    with wendelin.open(path) as g:
        g["x"] = np.arange(3)
    done = call("export", f"{path}#x", tmp_path / name, code=1)
    assert "are imported only" in done.stderr
    assert not list(tmp_path.glob("x.*.part*"))


def test_a_damaged_file_is_refused(call, path, tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + b"\xff" * 50 + b"PAR1")
    done = call("import", tmp_path / "x.parquet", path, code=1)
    assert "is not a readable parquet file" in done.stderr
    assert done.stderr.count("\n") == 1
