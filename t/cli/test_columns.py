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
    assert f"{name}:missing: 1 missing values, which int64 does not have" in done.stderr
    assert f"{name}:list: values of type list" in done.stderr
    with wendelin.open(path, "r") as g:
        t = g["t"]
        assert set(t) == {"i", "f", "ok", "text", "kind", "when", "day"}
        for column in t:
            want = table()[column].to_numpy()
            assert len(t[column]) == N
            equal_nan = t[column].dtype.kind in "fM"
            if t[column].dtype.kind == "U":
                want = want.astype("U")
            assert np.array_equal(t[column][:], want, equal_nan=equal_nan), column
        assert t["i"].dtype == "i4"
        assert t["when"].dtype == "M8[us]"
        assert t["when"].attrs["timezone"] == "UTC"
        assert t["day"].dtype == "M8[D]"
    call("import", f"{name}:f", f"{path}#one")
    with wendelin.open(path, "r") as g:
        assert np.array_equal(g["one"][:], g["t/f"][:], equal_nan=True)
    assert (
        "has no array 'z': it has i, f" in call("import", f"{name}:z", path + "#z", code=1).stderr
    )


@pytest.mark.parametrize("name", ["x.parquet", "x.mat", "x.cdf"])
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
