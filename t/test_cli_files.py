"""wendelin import, wendelin export: every kind of file, byte for byte, also after a kill."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import storages
import transaction
from cgroup import NoCgroup, memory_cgroup
from cli import PROGRAM, ended_at, killed_at, wendelin
from clidata import database

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.zfile import ZFile
from wendelin.cli.files.base import slabs
from wendelin.lib.zodb import dbclose, dbopen

MIB = 1 << 20

pytestmark = [
    pytest.mark.formats,
    pytest.mark.once,
    pytest.mark.skipif(
        storages.kind() in (storages.CopiedFileStorageDatabase, storages.NeoDatabase),
        reason="the same as with a file that is mapped, and over ZEO",
    ),
]

RNG = np.random.default_rng(5)


def random(shape, dtype, order="C"):
    """Return an array with all kinds of bytes, also such as no number has."""
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
    error = call("import", tmp_path / "x.h5", f"{url}#c", code=1).stderr
    assert "a, group/b: say which one" in error
    error = call("import", tmp_path / "x.h5:c", f"{url}#c", code=1).stderr
    assert "no array 'c': it has a, group/b" in error


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (5, 1, 2, 3), (1, 1), ()])
def test_slabs(shape):
    """All ranges of elements; in no more slabs than there are edges."""
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
            ["--columns", "time,2", "--dtype", "S3"],
            np.array([["0", "x"], ["1", "y"], ["2", "two"]], "S3"),
        ),
        (
            ["--columns", "0,2", "--dtype", "[('t','u1'),('s','S9')]"],
            np.array([(0, "x"), (1, "y"), (2, "two\nlines")], [("t", "u1"), ("s", "S9")]),
        ),
        ([], "could not convert string 'x'"),
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


@pytest.mark.parametrize(
    "values",
    [
        RNG.standard_normal(500),
        RNG.standard_normal((200, 3)).astype("f4"),
        np.array([(1, "a,b"), (2, 'c"d')], [("n", "i4"), ("s", "S5")]),
        np.arange(10).view("M8[D]"),
    ],
)
def test_csv_is_the_same_after_a_round_trip(call, url, tmp_path, values):
    np.save(tmp_path / "x.npy", values)
    call("import", tmp_path / "x.npy", f"{url}#x")
    call("export", "--step", "1K", f"{url}#x", tmp_path / "x.csv")
    dtype = str(values.dtype.descr if values.dtype.names else values.dtype.str)
    call("import", "--dtype", dtype, tmp_path / "x.csv", f"{url}#y")
    with database(url) as root:
        assert same(root["y"][...], values)


def test_tabs_in_tsv(call, url, tmp_path):
    (tmp_path / "x.tsv").write_text("1\t2\n3\t4\n")
    call("import", tmp_path / "x.tsv", f"{url}#x")
    call("export", f"{url}#x", tmp_path / "y.tsv")
    assert (tmp_path / "y.tsv").read_text() == "1.0\t2.0\n3.0\t4.0\n"


def test_holes_are_not_written(call, url, tmp_path):
    """An array of a TiB, with a block at its end: the file is as sparse."""
    with database(url) as root:
        root["x"] = A = ZBigArray((1 << 40,), "u1")
        transaction.commit()
        A[-5:] = 7
        transaction.commit()
    call("export", f"{url}#x", tmp_path / "x.npy")
    state = os.stat(tmp_path / "x.npy")
    assert state.st_size == (1 << 40) + 128
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
    # the time that was told is good for the same
    call("export", "--at", changed["time"], f"{url}#x", tmp_path / "y.npy")
    assert np.load(tmp_path / "y.npy").tolist() == [1] * 10
    assert call("cat", "--at", f"0x{tids[0]}", f"{url}#x[:2]").stdout == "0\n0\n"
    assert "has no 'x'" in call("export", f"{url}#x", tmp_path / "z.npy", code=1).stderr
    error = call("cat", "--at", "1999-12-31", f"{url}#x", code=1).stderr
    assert "had nothing in it at" in error
    assert "is in the future" in call("cat", "--at", "2999-01-01", f"{url}#x", code=2).stderr
    assert "neither a tid" in call("cat", "--at", "then", f"{url}#x", code=2).stderr


# ---- interrupted, and gone on with ----


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Return a .npy file of 32 MiB."""
    path = tmp_path_factory.mktemp("large") / "x.npy"
    np.save(path, np.random.default_rng(7).integers(0, 2**62, 4 * MIB))
    return path


def progress_of(url):
    """Return how many elements an import has committed, as another client sees it."""
    try:
        root = dbopen(url, read_only=True)
    except Exception:
        return -1
    try:
        return root["x~import"]["done"] if "x~import" in root else 0
    except Exception:  # a file that is being written to
        return -1
    finally:
        dbclose(root)


def test_an_import_that_was_killed_is_gone_on_with(call, url, tmp_path, large):
    args = ("import", "--step", "1M", "--blksize", "64K", large, f"{url}#x")
    assert killed_at(args, lambda: progress_of(url) > 0, tmp_path)
    done = progress_of(url)
    assert 0 < done < 4 * MIB
    with database(url) as root:
        assert not root["x"][done : done + 10_000].any()
    # as it is seen meanwhile
    info = call("info", "--json", f"{url}#x").json
    assert info["import"] == {"done": done}
    export = ("export", f"{url}#x", tmp_path / "y.npy")
    assert f"is not complete: it has {done} elements" in call(*export, code=1).stderr
    # another source is refused, and the same, elsewhere, is taken
    other = tmp_path / "other.npy"
    np.save(other, np.zeros(4 * MIB, "i8"))
    error = call("import", other, f"{url}#x", code=1).stderr
    assert "was begun from another source (changed)" in error or "(changed, size)" in error
    again = wendelin("import", "--json", "--step", "8M", large, f"{url}#x").json
    assert again["resumed_at"] == done * 8
    with database(url) as root:
        assert np.array_equal(root["x"][...], np.load(large, mmap_mode="r"))
        assert set(root) == {"x"}


def test_an_import_that_is_interrupted_says_how_to_go_on(url, large):
    args = ("import", "--step", "1M", "--blksize", "64K", large, f"{url}#x")
    done = ended_at(signal.SIGINT, args, lambda: progress_of(url) > 0)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"interrupted: {url}#x has {progress_of(url)} of {4 * MIB} elements" in line
    assert "the same command goes on from there" in line


def test_an_interrupt_in_a_fault_is_one(call, url, tmp_path, monkeypatch):
    """Ctrl-C comes while a block is looked up: then the touch fails, and those after it."""
    np.save(tmp_path / "x.npy", np.arange(MIB))
    lookup = ZFile.lookup
    calls = []

    def interrupted(self, blk):
        calls.append(blk)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return lookup(self, blk)

    monkeypatch.setattr(ZFile, "lookup", interrupted)
    args = ("import", "--step", "1M", "--blksize", "64K", tmp_path / "x.npy", f"{url}#x")
    assert f"interrupted: {url}#x has 0 of {MIB} elements" in call(*args, code=1).stderr
    call(*args)


def test_an_import_is_not_gone_on_with_over_what_was_changed(call, url, tmp_path, large):
    args = ("import", "--step", "1M", "--blksize", "64K", large, f"{url}#x")
    assert killed_at(args, lambda: progress_of(url) > 0, tmp_path)
    with database(url) as root:
        root["x"][root["x~import"]["done"] - 3] += 1
        transaction.commit()
    error = call(*args, code=1).stderr
    assert "was changed since its import was interrupted" in error
    call("import", "--replace", "--step", "8M", large, f"{url}#x")
    with database(url) as root:
        assert np.array_equal(root["x"][...], np.load(large, mmap_mode="r"))


@pytest.mark.parametrize("suffix", ["npy", "csv", "zarr", "h5"])
def test_an_export_that_was_killed_is_gone_on_with(url, tmp_path, large, suffix):
    pytest.importorskip({"h5": "h5py", "zarr": "zarr"}.get(suffix, "numpy"))
    n = 4 * MIB if suffix in ("npy", "zarr") else MIB
    values = np.load(large, mmap_mode="r")[:n]
    with database(url) as root:
        root["x"] = A = ZBigArray((n,), "i8", blksize=64 * 1024)
        transaction.commit()
        A[:] = values
        transaction.commit()
    part, state = tmp_path / f"y.{suffix}.part", tmp_path / f"y.{suffix}.part.json"
    args = ("export", "--step", "512K", f"{url}#x", f"y.{suffix}")

    def reached():
        if suffix == "h5":
            return part.exists()
        return state.exists()

    assert killed_at(args, reached, tmp_path)
    assert part.exists()
    assert not (tmp_path / f"y.{suffix}").exists()
    # what is committed meanwhile is not in it
    with database(url) as root:
        root["x"][0] = root["x"][-1] = 5
        transaction.commit()
    wendelin(*args, cwd=tmp_path)
    if suffix == "npy":
        found = np.load(tmp_path / "y.npy")
    elif suffix == "csv":
        found = np.loadtxt(tmp_path / "y.csv", "i8")
    elif suffix == "zarr":
        import zarr

        found = zarr.open_array(str(tmp_path / "y.zarr"), mode="r")[:]
    else:  # begun anew
        import h5py

        with h5py.File(tmp_path / "y.h5") as f:
            found = f["x"][:]
        assert found[0] == found[-1] == 5
        values = np.concatenate([[5], values[1:-1], [5]])
    assert np.array_equal(found, values)
    assert not part.exists()
    assert not state.exists()


def test_a_part_of_another_export_is_left_alone(call, url, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(5))
    call("import", tmp_path / "x.npy", f"{url}#x")
    call("import", tmp_path / "x.npy", f"{url}#y")
    call("export", f"{url}#x", tmp_path / "z.npy")
    (tmp_path / "z.npy").rename(tmp_path / "w.npy.part")
    with database(url) as root:
        tid = root._p_jar.db().lastTransaction().hex()
        oid = root["x"]._p_oid.hex()
    source = {"url": url, "path": ["x"], "oid": oid}
    state = {"source": source, "tid": tid, "done": 5}
    (tmp_path / "w.npy.part.json").write_text(json.dumps(state))
    error = call("export", f"{url}#y", tmp_path / "w.npy", code=1).stderr
    assert "was begun by another export" in error
    assert (tmp_path / "w.npy.part").exists()


# ---- what cannot be ----


def test_nothing_is_lost(call, url, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(5))
    np.save(tmp_path / "y.npy", np.arange(6.0))
    call("import", tmp_path / "x.npy", f"{url}#x")
    assert "is there already" in call("import", tmp_path / "y.npy", f"{url}#x", code=1).stderr
    assert "is there already" in call("export", f"{url}#x", tmp_path / "y.npy", code=1).stderr
    assert np.load(tmp_path / "y.npy").dtype == float
    call("export", "--force", f"{url}#x", tmp_path / "y.npy")
    assert np.load(tmp_path / "y.npy").tolist() == [0, 1, 2, 3, 4]
    np.save(tmp_path / "y.npy", np.arange(6.0))
    call("import", "--replace", tmp_path / "y.npy", f"{url}#x")
    with database(url) as root:
        assert root["x"][...].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["x.npy"], 2, "Missing argument 'URL#path'"),
        (["x.npy", "{url}"], 2, "names no array"),
        (["x.npy", "{url}#x[3]"], 2, "has a slice"),
        (["x.npy", "{url}#x]"], 2, "brackets that are no [slice]"),
        (["x.what", "{url}#x"], 2, "none of the suffixes"),
        (["--dtype", "f8", "x.npy", "{url}#x"], 2, "--dtype is not for npy files"),
        (["--columns", "a", "x.raw", "{url}#x"], 2, "--columns is not for raw files"),
        (["x.raw", "{url}#x"], 2, "need --dtype"),
        (["--dtype", "O", "x.raw", "{url}#x"], 2, "'O' is no dtype of numbers"),
        (["--dtype", "[('x',", "x.raw", "{url}#x"], 2, "is no dtype of numbers"),
        (["--shape", "1,x", "x.raw", "{url}#x"], 2, "'1,x' is no shape"),
        (["--step", "0", "x.npy", "{url}#x"], 2, "'0' is no size"),
        (["--blksize", "1000", "x.npy", "{url}#x"], 2, "1000"),
        (["--delimiter", "ab", "x.csv", "{url}#x"], 2, "one character"),
        (["--format", "ZBlk7", "x.npy", "{url}#x"], 2, "'ZBlk7'"),
        (["nowhere.npy", "{url}#x"], 1, "nowhere.npy: No such file"),
        (["text.npy", "{url}#x"], 1, "is no .npy that can be read"),
        (["text.npz", "{url}#x"], 1, "is no .npz file"),
        (["text.h5", "{url}#x"], 1, "text.h5"),
        (["nowhere.zarr", "{url}#x"], 1, "nowhere.zarr: No such file"),
        (["empty.csv", "{url}#x"], 1, "is empty"),
        (["objects.npy", "{url}#x"], 1, "holds objects"),
        (["short.npy", "{url}#x"], 1, "ends after 40 bytes of data, of 80"),
        (["--dtype", "f8", "--shape", "3", "text.npy.raw", "{url}#x"], 1, "has 21 bytes"),
        (["x.npy", "foo://x#x"], 1, "file, memory"),
        (["x.npy", "nowhere/x.fs#x"], 1, "No such file"),
        (["x.npy", "{url}#a/b"], 1, "a is a wendelin.bigarray.array_zodb.ZBigArray"),
        (["x.npy", "{url}#list/b"], 1, "list is a persistent.list.PersistentList"),
        (["x.npy", "{url}#numbers/b"], 1, "numbers has no names for keys"),
        (["x.npy", "{url}#plain/b"], 1, "plain is a builtins.dict"),
    ],
)
def test_a_wrong_import_is_one_line(call, url, tmp_path, monkeypatch, args, code, message):
    from BTrees.IOBTree import IOBTree
    from persistent.list import PersistentList

    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.arange(10))
    np.save("objects.npy", np.array([{}], object))
    Path("short.npy").write_bytes(Path("x.npy").read_bytes()[:-40])
    Path("empty.csv").touch()
    for name in "text.npy", "text.npz", "text.h5", "text.npy.raw":
        Path(name).write_text("this is no such file\n")
    with database(url) as root:
        root["a"] = ZBigArray((3,), "f8")
        root["list"], root["numbers"], root["plain"] = PersistentList(), IOBTree(), {}
        transaction.commit()
        before = root._p_jar.db().lastTransaction()
    done = call("import", *(arg.format(url=url) for arg in args), code=code)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    if "short" not in args[0]:
        with database(url) as root:
            assert root._p_jar.db().lastTransaction() == before


def test_what_files_cannot_have(call, url, tmp_path):
    with database(url) as root:
        root["x"] = ZBigArray((3, 4, 5), "f8")
        root["m"] = ZBigArray((3,), "M8[s]")
        transaction.commit()
    assert "a CSV file has rows" in call("export", f"{url}#x", tmp_path / "x.csv", code=1).stderr
    pytest.importorskip("h5py")
    assert "cannot have dtype" in call("export", f"{url}#m", tmp_path / "m.h5", code=1).stderr
    assert "none of the suffixes" in call("export", f"{url}#x", tmp_path / "x.q", code=2).stderr
    assert [f for f in os.listdir(tmp_path) if "part" in f or f.startswith(("x", "m"))] == []


def test_libraries_that_are_not_installed(call, url, tmp_path, monkeypatch):
    with database(url) as root:
        root["x"] = ZBigArray((3,), "f8")
        transaction.commit()
    for name, suffix, extra in ("h5py", "h5", "hdf5"), ("zarr", "zarr", "zarr"):
        monkeypatch.setitem(sys.modules, name, None)
        (tmp_path / f"y.{suffix}").touch()
        message = f"{name} is needed for that, and is not installed: pip install 'wendelin.core"
        for args in (
            ("export", f"{url}#x", tmp_path / f"x.{suffix}"),
            ("import", tmp_path / f"y.{suffix}", f"{url}#y"),
        ):
            assert f"{message}[{extra}]'" in call(*args, code=1).stderr


def test_a_disk_that_is_full(tmp_path):
    """An import goes on when there is room."""
    np.save(tmp_path / "x.npy", np.arange(4 * MIB // 8))
    script = (
        f"mount -t tmpfs -o size=3m none . && cd $PWD && {PROGRAM} import --step 1M --blksize 64K"
        f" {tmp_path}/x.npy x.fs#x; echo code $?; mount -o remount,size=9m . &&"
        f" {PROGRAM} import {tmp_path}/x.npy x.fs#x && {PROGRAM} export x.fs#x y.npy &&"
        f" cmp y.npy {tmp_path}/x.npy && echo same"
    )
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=tmp_path / "disk",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "code 1\n" in done.stdout, done
    assert done.stdout.endswith("same\n"), done
    (line,) = done.stderr.splitlines()
    assert "No space left on device" in line
    assert "the same command goes on from there" in line


# ---- memory ----


@pytest.mark.skipif(storages.kind().has_server, reason="what a file does is in the cgroup, too")
def test_little_memory(tmp_path):
    """A cgroup of 128 MiB, and 256 MiB through all the commands that go over them."""
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
