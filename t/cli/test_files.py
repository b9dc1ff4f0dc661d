"""wendelin import, wendelin export: every kind of file, byte for byte; in little memory."""

import contextlib
import os
import subprocess
import zipfile

import numpy as np
import pytest
import transaction
from support import storages
from support.cgroup import NoCgroup, memory_cgroup
from support.cli import PROGRAM
from support.clidata import database

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.cli.files.base import slabs

MIB = 1 << 20

pytestmark = [pytest.mark.formats, pytest.mark.once, pytest.mark.only("fs", "zeo")]

RNG = np.random.default_rng(5)


def random(shape, dtype, order="C"):
    """Return an array of random bytes, also such as no number has."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    if dtype.kind == "b":
        return RNG.integers(0, 2, shape, "u1").view("?")
    data = RNG.integers(0, 256, count * dtype.itemsize, "u1")
    return data.view(dtype).reshape(shape, order=order)


STRUCT = np.dtype(
    {"names": ["x", "n"], "formats": ["<f4", "S3"], "offsets": [0, 8], "itemsize": 12}
)

LAYOUTS = {
    "f8": random((4000,), "f8"),
    "big-endian": random((30, 400), ">i4"),
    "fortran": random((60, 70, 3), "<f4", "F"),
    "scalar": random((), "i8"),
    "empty": random((0, 5), "f8"),
    "odd": random((5000,), "S7"),  # elements straddle blocks
    "bool": random((100, 3), "?"),
    "time": random((50,), "<M8[us]"),
    "struct": random((700,), STRUCT),
    "long rows": random((2, 20_000), "u2"),
}


@pytest.fixture
def url(testdb):
    """Return the URL of a database that nobody has open."""
    return testdb.url


def same(a, b):
    """Say whether arrays are the same, byte for byte."""
    a, b = np.asarray(a), np.asarray(b)
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.tobytes("A") == b.tobytes("A")
        and (a.ndim < 2 or a.size < 2 or a.flags.f_contiguous == b.flags.f_contiguous)
    )


# ---- round trips ----


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_npy_and_npz_are_the_same_after_a_round_trip(call, url, tmp_path, name, suffix):
    values = LAYOUTS[name]
    if suffix == "npy":
        np.save(tmp_path / "x.npy", values)
    else:
        np.savez_compressed(tmp_path / "x.npz", a=values)
    options = ("--blksize", "4096", "--step", "8K")
    call("import", *options, tmp_path / f"x.{suffix}", f"{url}#f/x")
    with database(url) as root:
        assert same(root["f"]["x"][...], values)
        assert list(root["f"]) == ["x"]  # nothing of the import is left
    call("export", "--step", "8K", f"{url}#f/x", tmp_path / f"y.{suffix}")
    with np.load(tmp_path / f"y.{suffix}") if suffix == "npz" else contextlib.nullcontext():
        if suffix == "npy":
            assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "y.npy").read_bytes()
        else:
            with zipfile.ZipFile(tmp_path / "x.npz") as x, zipfile.ZipFile(tmp_path / "y.npz") as y:
                assert x.read("a.npy") == y.read("x.npy")
    assert sorted(os.listdir(tmp_path))[-2:] == [f"x.{suffix}", f"y.{suffix}"]


def test_raw_bytes(call, url, tmp_path):
    values = random((50, 300), ">f4", "F")
    (tmp_path / "x.data").write_bytes(b"header" + values.tobytes("F"))
    shape = ("--dtype", ">f4", "--shape", "50,300", "--order", "F", "--offset", "6")
    call("import", *shape, "--blksize", "4K", tmp_path / "x.data", f"{url}#x")
    with database(url) as root:
        assert same(root["x"][...], values)
    call("export", f"{url}#x", tmp_path / "y.bin")
    assert (tmp_path / "y.bin").read_bytes() == values.tobytes("F")
    call("import", "--dtype", "u1", tmp_path / "y.bin", f"{url}#flat")
    with database(url) as root:
        assert bytes(root["flat"][...]) == values.tobytes("F")


@pytest.mark.parametrize("name", ["f8", "big-endian", "fortran", "scalar", "empty", "bool"])
@pytest.mark.parametrize("suffix", ["h5", "zarr"])
def test_hdf5_and_zarr(call, url, tmp_path, name, suffix):
    pytest.importorskip("h5py" if suffix == "h5" else "zarr")
    values = LAYOUTS[name]
    with database(url) as root:
        root["x"] = A = ZBigArray(
            values.shape, values.dtype, "F" if name == "fortran" else "C", blksize=4096
        )
        transaction.commit()
        A[...] = values
        transaction.commit()
    call("export", "--step", "8K", f"{url}#x", tmp_path / f"x.{suffix}:a/b")
    call("import", "--step", "8K", tmp_path / f"x.{suffix}", f"{url}#y")
    call("import", "--step", "8K", tmp_path / f"x.{suffix}:a/b", f"{url}#z")
    with database(url) as root:
        # these files have axes, and no order
        assert root["y"].dtype == values.dtype
        assert root["y"][...].tobytes("C") == values.tobytes("C")
        assert same(root["y"][...], root["z"][...])


def test_datasets_in_chunks_that_do_not_fit(call, url, tmp_path):
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    values = random((70, 90, 11), "<i2")
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("a", data=values, chunks=(16, 7, 11), compression="gzip")
        f.create_dataset("group/b", data=values[0])
    zarr.create_array(str(tmp_path / "x.zarr"), shape=values.shape, chunks=(9, 90, 4), dtype="i2")[
        :
    ] = values
    call("import", "--step", "12K", "--blksize", "4K", tmp_path / "x.h5:a", f"{url}#a")
    call("import", tmp_path / "x.h5:group/b", f"{url}#b")
    call("import", "--step", "12K", "--blksize", "4K", tmp_path / "x.zarr", f"{url}#z")
    with database(url) as root:
        assert same(root["a"][...], values)
        assert same(root["b"][...], values[0])
        assert same(root["z"][...], values)
    error = call("import", "--as", "array", tmp_path / "x.h5", f"{url}#c", code=1).stderr
    assert "a, group/b: name one of them" in error
    error = call("import", tmp_path / "x.h5:c", f"{url}#c", code=1).stderr
    assert "no array 'c': it has a, group/b" in error


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (5, 1, 2, 3), (1, 1), ()])
def test_slabs(shape):
    """All ranges of elements are split into few slabs."""
    values = np.arange(int(np.prod(shape))).reshape(shape)
    for start in range(values.size + 1):
        for stop in range(start, values.size + 1):
            found = list(slabs(shape, start, stop))
            for slab in found:
                assert values[slab.where].shape == slab.shape
            flat = [values[slab.where].reshape(-1) for slab in found]
            expected = values.reshape(-1)[start:stop]
            assert np.array_equal(np.concatenate([[], *flat]), expected)
            assert len(found) <= max(1, 2 * len(shape) - 1)


CSV = 'time,price,"a, b"\n0,1.5,x\n1,-2e3,y\n\n2,nan,"two\nlines"\n'


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--columns", "price"], np.array([1.5, -2e3, np.nan])),
        (["--columns", "1"], np.array([1.5, -2e3, np.nan])),
        (["--columns", "price,time"], np.array([[1.5, 0], [-2e3, 1], [np.nan, 2]])),
        (["--columns", "time", "--dtype", "i2"], np.array([0, 1, 2], "i2")),
        (["--columns", "a, b".replace(", ", "")], "no column 'ab'"),
        (
            ["--columns", "time,2", "--dtype", "S10"],
            np.array([["0", "x"], ["1", "y"], ["2", "two\nlines"]], "S10"),
        ),
        (["--columns", "2", "--dtype", "S3"], "line 5: 'two\\nlines' has 9 characters, and |S3"),
        (
            ["--columns", "0,2", "--dtype", "[('t','u1'),('s','S9')]"],
            np.array([(0, "x"), (1, "y"), (2, "two\nlines")], [("t", "u1"), ("s", "S9")]),
        ),
        (["--dtype", "f8"], "could not convert string 'x'"),
        (
            [],
            np.array(
                [(0, 1.5, "x"), (1, -2e3, "y"), (2, np.nan, "two\nlines")],
                [("time", "i8"), ("price", "f8"), ("a, b", "U9")],
            ),
        ),
    ],
)
def test_csv(call, url, tmp_path, options, expected):
    (tmp_path / "x.csv").write_text(CSV)
    code = 1 if isinstance(expected, str) else 0
    done = call("import", *options, "--step", "16", tmp_path / "x.csv", f"{url}#x", code=code)
    if code:
        assert expected in done.stderr
        return
    with database(url) as root:
        assert same(root["x"][...], expected)


NESTED = np.dtype([("a", "f4", (2, 2)), ("p", [("x", "?"), ("y, z", "S2")]), ("b", "i4")])


@pytest.mark.parametrize(
    "values",
    [
        RNG.standard_normal(500),
        RNG.standard_normal((200, 3)).astype("f4"),
        np.array([(1, "a,b"), (2, 'c"d')], [("n", "i4"), ("s", "S5")]),
        np.arange(10).view("M8[D]"),
        np.array([3, "NaT", -(1 << 60)], "m8[us]"),
        np.array([1 + 2j, -0.0, complex(0, np.nan)], "c16"),
        np.array([False, True, False]),
        np.array([[True, False], [False, True]]),
        np.array([b"", b" ", b"a b", b"\r", b"a\nb", b"1"]),
        np.array([["\t", ""], ["", "\u20ac"]]),
        np.array(
            [([[1, 2], [3, 4]], (True, b","), 5), ([[6, 7], [8, 9]], (False, b""), 0)], NESTED
        ),
        np.empty(0, NESTED),
    ],
    ids=lambda values: f"{values.dtype.char}{values.shape}",
)
def test_csv_is_the_same_after_a_round_trip(call, url, tmp_path, values):
    np.save(tmp_path / "x.npy", values)
    call("import", tmp_path / "x.npy", f"{url}#x")
    call("export", "--step", "1K", f"{url}#x", tmp_path / "x.csv")
    dtype = str(values.dtype.descr if values.dtype.names else values.dtype.str)
    # a first row of texts would be taken for names
    header = ["--no-header"] if values.dtype.kind in "SU" else []
    call("import", "--dtype", dtype, *header, tmp_path / "x.csv", f"{url}#y")
    with database(url) as root:
        assert same(root["y"][...], values)


def test_csv_names_all_columns(call, url, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(1, NESTED))
    call("import", tmp_path / "x.npy", f"{url}#x")
    call("export", f"{url}#x", tmp_path / "x.csv")
    header = 'a[0][0],a[0][1],a[1][0],a[1][1],p.x,"p.y, z",b'
    assert (tmp_path / "x.csv").read_text() == f'{header}\n0.0,0.0,0.0,0.0,False,"",0\n'


def test_bytes_that_are_not_text(call, url, tmp_path):
    np.save(tmp_path / "x.npy", np.array([b"a", b"\xff"]))
    call("import", tmp_path / "x.npy", f"{url}#x")
    error = call("export", f"{url}#x", tmp_path / "x.csv", code=1).stderr
    assert r"b'\xff' is not ASCII" in error
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize(
    ("text", "options", "header", "expected"),
    [
        ("a,b\n1,2\n", [], ["a", "b"], [[1, 2]]),
        ("N/A\n1\n2\n", [], ["N/A"], [1, 2]),
        ("N/A\n1\n2\n", ["--no-header"], None, [np.nan, 1.0, 2.0]),
        ("N/A\n1\n2\n", ["--no-header", "--dtype", "i8"], None, "convert string 'N/A'"),
        ("1\n2\n", ["--header"], ["1"], [2]),
        ("300\n2\n", ["--dtype", "u1"], None, "could not convert string '300'"),
        ("2.5\n", ["--dtype", "i4"], None, "could not convert string '2.5'"),
        ("nan\n2\n", [], None, [np.nan, 2.0]),
        ("1,x\n", ["--dtype", "f8"], None, "could not convert string 'x'"),
        ("1,x\n", [], None, [(1, "x")]),
        ("name\nab\ncd\n", ["--dtype", "S4"], ["name"], [b"ab", b"cd"]),
        ("False\n1\n0\ntrue\n", ["--dtype", "?"], None, [False, True, False, True]),
        ("1\nmaybe\n", ["--dtype", "?"], None, "maybe"),
        ("2020-01-01\n", ["--dtype", "M8[D]"], None, [np.datetime64("2020-01-01").item()]),
        # the number of a column is not a name, if the file has no names
        ("1,5\n", ["--columns", "1"], None, [5]),
        ("1,5\n", ["--columns", "1", "--header"], ["1", "5"], []),
        ("1,5\n", ["--columns", "a"], None, "no column 'a': it has 2 columns, without names"),
        ('1,"2\n3,4\n', [], None, "a quote in line 1 that is not closed"),
        ('1,2\n\n3,"4\n5,6\n', [], None, "a quote in line 3 that is not closed"),
        ("1\n \n2\n", ["--dtype", "f8"], None, "could not convert string ' '"),
        ("1\n \n2\n", [], None, [1.0, np.nan, 2.0]),
        ("1\n\r\n\n2\n", [], None, [1, 2]),
        ("1,2\n3,4,5\n", [], None, "number of columns"),
        ("1,2\n,\n", ["--dtype", "i8"], None, "could not convert string ''"),
        ("007\n08\n", [], None, ["007", "08"]),
        ("1,2\n3\n", [], None, "number of columns"),
        ("a,b\n1,2\n", ["--dtype", "[('x','f4',(2,)),('y','i2')]"], None, "has 3 columns"),
    ],
)
def test_no_row_of_a_csv_file_is_lost(call, url, tmp_path, text, options, header, expected):
    (tmp_path / "x.csv").write_text(text, newline="")
    code = 1 if isinstance(expected, str) else 0
    done = call("import", "--json", *options, tmp_path / "x.csv", f"{url}#x", code=code)
    if code:
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1
        return
    assert done.json["header"] == header
    with database(url) as root:
        found = root["x"][...].tolist()
        assert [str(x) for x in found] == [str(x) for x in expected]


def test_a_number_of_columns_that_changes_between_steps(tmp_path):
    from wendelin.cli.errors import Failure
    from wendelin.cli.files.text import CsvSource

    (tmp_path / "x.csv").write_text("1,2\n3,4\n5,6,7\n8,9,1\n")
    with contextlib.closing(
        CsvSource(str(tmp_path / "x.csv"), ",", [], np.dtype(float), None, {})
    ) as source:
        assert source.read(0, 4).tolist() == [1, 2, 3, 4]
        with pytest.raises(Failure, match="the number of columns is 3, and 2 in the first line"):
            source.read(4, 8)


def test_an_import_tells_of_the_header(call, url, tmp_path):
    (tmp_path / "x.csv").write_text("N/A\n1\n2\n")
    done = call("import", tmp_path / "x.csv", f"{url}#x")
    assert done.stdout == f"{url}#x: 16 B, after a header: N/A\n"


def test_tabs_in_tsv(call, url, tmp_path):
    (tmp_path / "x.tsv").write_text("1\t2\n3\t4\n")
    call("import", tmp_path / "x.tsv", f"{url}#x")
    call("export", f"{url}#x", tmp_path / "y.tsv")
    assert (tmp_path / "y.tsv").read_text() == "1\t2\n3\t4\n"


def test_holes_are_not_written(call, url, tmp_path):
    """An array of a TiB, with a block at its end: the file is as sparse."""
    with database(url) as root:
        root["x"] = A = ZBigArray((1 << 40,), "u1")
        transaction.commit()
        A[-5:] = 7
        transaction.commit()
    call("export", f"{url}#x", tmp_path / "x.npy")
    state = os.stat(tmp_path / "x.npy")
    assert state.st_size == (1 << 40) + 4096  # elements of a large file begin with a block
    assert state.st_blocks * 512 < 8 * MIB
    assert np.load(tmp_path / "x.npy", mmap_mode="r")[-6:].tolist() == [0, 7, 7, 7, 7, 7]


def test_zeros_are_not_stored(call, url, tmp_path):
    values = np.zeros(1 << 20, "u1")
    values[-1] = 1
    np.save(tmp_path / "x.npy", values)
    call("import", "--blksize", "64K", tmp_path / "x.npy", f"{url}#x")
    with database(url) as root:
        assert list(root["x"].zfile.blktab) == [15]


# ---- what was there, and when ----


def test_export_of_the_past(call, url, tmp_path):
    with database(url) as root:
        root["x"] = A = ZBigArray((10,), "i4")
        transaction.commit()
        tids = []
        for i in range(3):
            A[:] = i
            transaction.commit()
            tids.append(A._p_jar.db().lastTransaction().hex())
        del root["x"]
        transaction.commit()
    changed = call("export", "--json", "--at", tids[1], f"{url}#x", tmp_path / "x.npy").json["at"]
    assert np.load(tmp_path / "x.npy").tolist() == [1] * 10
    assert changed["tid"] == tids[1]
    # --at takes the time that was told, too
    call("export", "--at", changed["time"], f"{url}#x", tmp_path / "y.npy")
    assert np.load(tmp_path / "y.npy").tolist() == [1] * 10
    assert call("cat", "--at", f"0x{tids[0]}", f"{url}#x[:2]").stdout == "0\n0\n"
    assert "has no 'x'" in call("export", f"{url}#x", tmp_path / "z.npy", code=1).stderr
    error = call("cat", "--at", "1999-12-31", f"{url}#x", code=1).stderr
    assert "was empty at" in error
    assert "is in the future" in call("cat", "--at", "2999-01-01", f"{url}#x", code=2).stderr
    assert "neither a tid" in call("cat", "--at", "then", f"{url}#x", code=1).stderr


# ---- memory ----


@pytest.mark.slow
@pytest.mark.skipif(storages.kind().has_server, reason="what a file does is in the cgroup, too")
def test_little_memory(tmp_path):
    """In a cgroup of 128 MiB, commands go through 256 MiB."""
    size = 256 * MIB
    with open(tmp_path / "x.raw", "wb") as f:
        for _ in range(size // MIB):
            f.write(RNG.integers(1, 255, 4096, "u1").tobytes() * (MIB // 4096))
    commands = [
        ["import", "--dtype", "f8", "--shape", "64,524288", "x.raw", "x.fs#x"],
        ["verify", "x.fs"],
        ["copy", "x.fs", "y.fs"],
        ["copy", "y.fs#x", "z.fs#x"],
        ["export", "z.fs#x", "y.raw"],
    ]
    env = {k: v for k, v in os.environ.items() if k != "WENDELIN_CORE_RAM"}
    try:
        with memory_cgroup(128 * MIB) as procs:
            for command in commands:
                done = subprocess.run(
                    ["sh", "-c", f'echo $$ > {procs} && exec "$@"', "sh", PROGRAM, *command],
                    cwd=tmp_path,
                    env=env,
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                assert done.returncode == 0, (command, done.returncode, done.stderr)
    except NoCgroup as e:
        pytest.skip(str(e))
    assert subprocess.run(["cmp", "x.raw", "y.raw"], cwd=tmp_path).returncode == 0
