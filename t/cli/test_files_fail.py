"""wendelin import, wendelin export: killed, interrupted or refused; the same command goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transaction
from support.cli import PROGRAM, ended_at, killed_at, wendelin
from support.clidata import database

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.zodb.blockfile import ZFile
from wendelin.cli.address import Address
from wendelin.lib.zodb import dbclose, dbopen

MIB = 1 << 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.formats,
    pytest.mark.once,
    pytest.mark.only("fs", "zeo"),
]


@pytest.fixture
def url(testdb):
    """Return the URL of a database that nobody has open."""
    return testdb.url


# ---- interrupted; the same command goes on ----


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


def test_an_import_goes_on_after_a_kill(call, url, tmp_path, large):
    args = ("import", "--step", "1M", "--blksize", "64K", large, f"{url}#x")
    assert killed_at(args, lambda: progress_of(url) > 0, tmp_path)
    done = progress_of(url)
    assert 0 < done < 4 * MIB
    with database(url) as root:
        assert "x" not in root
        assert not root["x~import"]["array"][done : done + 10_000].any()
    # what commands say of it meanwhile
    info = call("info", "--json", f"{url}#x").json
    assert info["import"] == {"done": done}
    assert f"{done} of {4 * MIB} elements" in call("info", f"{url}#x").stdout
    assert [a["path"] for a in call("ls", "--json", url).json] == ["x~import/array"]
    for args in ("export", f"{url}#x", tmp_path / "y.npy"), ("copy", f"{url}#x", f"{url}#y"):
        assert "has no 'x': it has x~import" in call(*args, code=1).stderr
    # another source is refused, and the same one is taken
    other = tmp_path / "other.npy"
    np.save(other, np.zeros(4 * MIB, "i8"))
    error = call("import", other, f"{url}#x", code=1).stderr
    assert "was begun from another source (changed)" in error or "(changed, size)" in error
    again = wendelin("import", "--json", "--step", "8M", large, f"{url}#x").json
    assert again["resumed_at"] == done * 8
    with database(url) as root:
        assert np.array_equal(root["x"][...], np.load(large, mmap_mode="r"))
        assert set(root) == {"x"}


def test_an_import_of_rows_goes_on_after_a_kill(url, tmp_path):
    """A CSV file is read from its beginning again, however much is there already."""
    values = np.random.default_rng(3).integers(0, 1000, (50_000, 3))
    lines = "\n".join(",".join(map(str, row)) for row in values.tolist())
    (tmp_path / "x.csv").write_text(f"a,b,c\n{lines}\n")
    args = ("--dtype", "i8", "--blksize", "4K", tmp_path / "x.csv", f"{url}#x")
    killed = ("import", "--step", "4K", *args)  # steps end within rows
    assert killed_at(killed, lambda: progress_of(url) > 0, tmp_path)
    done = progress_of(url)
    assert 0 < done < values.size
    assert wendelin("import", "--json", *args).json["resumed_at"] == done * 8
    with database(url) as root:
        assert np.array_equal(root["x"][...], values)


def test_an_import_that_is_interrupted_says_how_to_go_on(url, large):
    args = ("import", "--step", "1M", "--blksize", "64K", large, f"{url}#x")
    done = ended_at(signal.SIGINT, args, lambda: progress_of(url) > 0)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"interrupted: {url}#x has {progress_of(url)} of {4 * MIB} elements" in line
    assert "the same command goes on from there" in line


def test_an_interrupt_in_a_fault_interrupts_the_import(call, url, tmp_path, monkeypatch):
    """Ctrl-C comes while a block is looked up: that touch fails, and later ones."""
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
    assert call("info", "--json", f"{url}#x").json["import"] == {"done": 0}
    # nothing was committed that could be lost: another import may begin
    np.save(tmp_path / "y.npy", np.arange(3))
    call("import", tmp_path / "y.npy", f"{url}#x")
    assert call("cat", f"{url}#x").stdout == "0\n1\n2\n"


def test_an_import_does_not_go_on_over_what_was_changed(call, url, tmp_path, large):
    args = ("import", "--step", "1M", "--blksize", "64K", large, f"{url}#x")
    assert killed_at(args, lambda: progress_of(url) > 0, tmp_path)
    with database(url) as root:
        root["x~import"]["array"][root["x~import"]["done"] - 3] += 1
        transaction.commit()
    error = call(*args, code=1).stderr
    assert "was changed since its import was interrupted" in error
    call("import", "--replace", "--step", "8M", large, f"{url}#x")
    with database(url) as root:
        assert np.array_equal(root["x"][...], np.load(large, mmap_mode="r"))


@pytest.mark.parametrize("suffix", ["npy", "csv", "zarr", "h5"])
def test_an_export_goes_on_after_a_kill(url, tmp_path, large, suffix):
    pytest.importorskip({"h5": "h5py", "zarr": "zarr"}.get(suffix, "numpy"))
    n = MIB if suffix == "csv" else 4 * MIB  # so that it does not end before it is killed
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
        return state.exists() and json.loads(state.read_text())["done"]

    assert killed_at(args, reached, tmp_path)
    assert part.exists()
    assert not (tmp_path / f"y.{suffix}").exists()
    # what is committed meanwhile is not in the file
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
    state = {"source": source, "tid": tid, "done": 5, "position": 0}
    (tmp_path / "w.npy.part.json").write_text(json.dumps(state))
    error = call("export", f"{url}#y", tmp_path / "w.npy", code=1).stderr
    assert "is of another export" in error
    assert (tmp_path / "w.npy.part").exists()


# ---- what cannot be ----


def transaction_of(url):
    """Return the last transaction of a database."""
    with database(url) as root:
        return root._p_jar.db().lastTransaction()


def corrupt_npz(path):
    """Write a .npz whose array fails its checksum, after its first MiB."""
    np.savez(path, a=np.arange(2 * MIB // 8))
    data = bytearray(path.read_bytes())
    data[3 * MIB // 2] ^= 1
    path.write_bytes(data)


def test_what_is_replaced_is_there_until_the_new_one_is(call, url, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(1, 6))
    call("import", tmp_path / "x.npy", f"{url}#x")
    (tmp_path / "wrong.csv").write_text("1\nx\n")
    corrupt_npz(tmp_path / "corrupt.npz")
    there = transaction_of(url)
    args = ("--dtype", "f8", tmp_path / "wrong.csv", f"{url}#x")
    error = call("import", "--replace", *args, code=1).stderr
    assert "could not convert string 'x'" in error
    assert "the same command" not in error
    assert transaction_of(url) == there
    assert call("cat", f"{url}#x").stdout == "1\n2\n3\n4\n5\n"
    args = ("--step", "512K", "--blksize", "64K", tmp_path / "corrupt.npz", f"{url}#x")
    error = call("import", "--replace", *args, code=1).stderr
    assert "Bad CRC-32" in error
    assert "--replace begins again" in error
    assert call("cat", f"{url}#x").stdout == "1\n2\n3\n4\n5\n"
    assert call("info", "--json", f"{url}#x").json["import"]["done"] > 0
    call("export", f"{url}#x", tmp_path / "y.npy")
    call("import", "--replace", tmp_path / "x.npy", f"{url}#x")
    with database(url) as root:
        assert set(root) == {"x"}


def test_a_copy_of_an_array_onto_itself(call, url, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(5))
    call("import", tmp_path / "x.npy", f"{url}#x")
    there = transaction_of(url)
    assert "are the same" in call("copy", "--replace", f"{url}#x", f"{url}#x", code=2).stderr
    assert transaction_of(url) == there


def test_only_arrays_are_replaced(call, url, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(5))
    call("import", tmp_path / "x.npy", f"{url}#x/y")
    call("import", tmp_path / "x.npy", f"{url}#a~import")
    there = transaction_of(url)
    error = call("import", "--replace", tmp_path / "x.npy", f"{url}#x", code=1).stderr
    assert "x exists already: it is a BTrees.OOBTree.OOBTree, not an array" in error
    for replace in [], ["--replace"]:  # the name that an import has for itself
        error = call("import", *replace, tmp_path / "x.npy", f"{url}#a", code=1).stderr
        assert "a~import is a wendelin.bigarray.array_zodb.ZBigArray: the import needs" in error
    assert transaction_of(url) == there


def test_a_wrong_command_is_not_in_the_way_of_the_corrected_one(call, url, tmp_path):
    (tmp_path / "semi.csv").write_text("1;2\n3;4\n")
    there = transaction_of(url)
    error = call("import", tmp_path / "semi.csv", f"{url}#g/x", code=1).stderr
    assert "semi.csv has 2 columns with the delimiter ';', and one with ','" in error
    assert "the same command" not in error
    assert transaction_of(url) == there
    call("import", "--delimiter", ";", tmp_path / "semi.csv", f"{url}#g/x")
    assert call("cat", f"{url}#g/x").stdout == "1\t2\n3\t4\n"


def test_an_import_that_was_overtaken_does_not_replace(call, url, tmp_path):
    """Another import to the same name begins while one is under way."""
    from wendelin.cli.errors import Failure
    from wendelin.cli.files.flat import npy_source
    from wendelin.cli.transfer import Target

    np.save(tmp_path / "x.npy", np.arange(5))
    with database(url) as root:
        source = npy_source(tmp_path / "x.npy", {})
        args = (Address(url, ("x",)), source, False, 1 << 16, None)
        first = Target(root, *args)
        first.begin()
        second = Target(root, *args)
        second.begin()
        for step in lambda: first.advance(5), first.finish:
            with pytest.raises(Failure, match="x has begun meanwhile"):
                step()
        second.finish()
        assert root["x"] is second.array
        with pytest.raises(Failure, match="exists already"):
            Target(root, *args)
        source.close()


def test_only_force_and_replace_overwrite(call, url, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(5))
    np.save(tmp_path / "y.npy", np.arange(6.0))
    call("import", tmp_path / "x.npy", f"{url}#x")
    assert "exists already" in call("import", tmp_path / "y.npy", f"{url}#x", code=1).stderr
    assert "exists already" in call("export", f"{url}#x", tmp_path / "y.npy", code=1).stderr
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
        (["x.npy"], 2, "Missing argument 'URL[#path]'"),
        (["x.npy", "{url}"], 2, "does not name an array"),
        (["x.npy", "{url}#x[3]"], 2, "has a slice"),
        (["x.npy", "{url}#x]"], 2, "brackets that are not a [slice]"),
        (["x.what", "{url}#x"], 2, "none of the known suffixes"),
        (["--dtype", "f8", "x.npy", "{url}#x"], 2, "--dtype is not for npy files"),
        (["--columns", "a", "x.raw", "{url}#x"], 2, "--columns is not for raw files"),
        (["x.raw", "{url}#x"], 2, "need --dtype"),
        (["--dtype", "O", "x.raw", "{url}#x"], 2, "'O' is not a dtype of numbers"),
        (["--dtype", "(2,)f4", "x.raw", "{url}#x"], 2, "its subarrays are axes of the shape"),
        (["--dtype", "[('x',", "x.raw", "{url}#x"], 2, "is not a dtype of numbers"),
        (["--shape", "1,x", "x.raw", "{url}#x"], 2, "'1,x' is not a shape"),
        (["--step", "0", "x.npy", "{url}#x"], 2, "'0' is not a size"),
        (["--blksize", "1000", "x.npy", "{url}#x"], 2, "1000"),
        (["--delimiter", "ab", "x.csv", "{url}#x"], 2, "one character"),
        (["--delimiter", '"', "x.csv", "{url}#x"], 2, "not an end of a line and not a quote"),
        (["--delimiter", "\n", "x.csv", "{url}#x"], 2, "not an end of a line and not a quote"),
        (["--dtype", "(2,)f4", "x.csv", "{url}#x"], 2, "are axes of the shape"),
        (["--header", "x.npy", "{url}#x"], 2, "--header is not for npy files"),
        (["--blksize", "1T", "x.npy", "{url}#x"], 2, "'1T' is more than the limit of page memory"),
        (["--dtype", "u1", "--offset", "99", "text.npy.raw", "{url}#x"], 1, "21 bytes: --offset"),
        (["--dtype", "u1", "pipe", "{url}#x"], 1, "pipe is not a regular file"),
        (["pipe.npy", "{url}#x"], 1, "pipe.npy is not a regular file"),
        (["pipe.csv", "{url}#x"], 1, "pipe.csv is not a regular file"),
        (["latin.csv", "{url}#x"], 1, "latin.csv is not text in UTF-8"),
        (["--format", "ZBlk7", "x.npy", "{url}#x"], 2, "'ZBlk7'"),
        (["nowhere.npy", "{url}#x"], 1, "nowhere.npy: No such file"),
        (["text.npy", "{url}#x"], 1, "is not a readable .npy file"),
        (["text.npz", "{url}#x"], 1, "is not an .npz file"),
        (["text.h5", "{url}#x"], 1, "text.h5"),
        (["nowhere.zarr", "{url}#x"], 1, "nowhere.zarr: No such file"),
        (["empty.csv", "{url}#x"], 1, "is empty"),
        (["objects.npy", "{url}#x"], 1, "holds objects"),
        (["short.npy", "{url}#x"], 1, "has 40 bytes of data instead of 80"),
        (["--dtype", "f8", "--shape", "3", "text.npy.raw", "{url}#x"], 1, "has 21 bytes"),
        (["x.npy", "foo://x#x"], 1, "file, memory"),
        (["x.npy", "nowhere/x.fs#x"], 1, "No such file"),
        (["x.npy", "{url}#a/b"], 1, "a is a wendelin.bigarray.array_zodb.ZBigArray"),
        (["x.npy", "{url}#list/b"], 1, "list is a persistent.list.PersistentList"),
        (["x.npy", "{url}#list/1/z"], 1, "list is a persistent.list.PersistentList"),
        (["x.npy", "{url}#list/0/z"], 1, "list/0 is a builtins.dict"),
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
    Path("latin.csv").write_bytes(b"1\n\xff\n")
    for name in "pipe", "pipe.npy", "pipe.csv":
        os.mkfifo(name)
    for name in "text.npy", "text.npz", "text.h5", "text.npy.raw":
        Path(name).write_text("this is not the file\n")
    with database(url) as root:
        root["a"] = ZBigArray((3,), "f8")
        root["list"], root["numbers"], root["plain"] = PersistentList([{}]), IOBTree(), {}
        transaction.commit()
        before = root._p_jar.db().lastTransaction()
    done = call("import", *(arg.format(url=url) for arg in args), code=code)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert transaction_of(url) == before


def test_strings_of_zarr(call, url, tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "z.zarr"), mode="w")
    group.create_array("s", shape=(3,), dtype=str)[:] = np.array(
        ["a", "b\0", "c"], np.dtypes.StringDType()
    )
    error = call("import", f"{tmp_path}/z.zarr:s", f"{url}#x", code=1).stderr
    assert "has texts that end with a NUL" in error
    assert error.count("\n") == 1


def test_what_files_cannot_have(call, url, tmp_path):
    with database(url) as root:
        root["x"] = ZBigArray((3, 4, 5), "f8")
        root["m"] = ZBigArray((3,), [("t", "U5")])
        transaction.commit()
    assert "a CSV file has rows" in call("export", f"{url}#x", tmp_path / "x.csv", code=1).stderr
    pytest.importorskip("h5py")
    assert "cannot have dtype" in call("export", f"{url}#m", tmp_path / "m.h5", code=1).stderr
    assert (
        "none of the known suffixes" in call("export", f"{url}#x", tmp_path / "x.q", code=2).stderr
    )
    assert [f for f in os.listdir(tmp_path) if "part" in f or f.startswith(("x", "m"))] == []


def test_libraries_that_are_not_installed(call, url, tmp_path, monkeypatch):
    with database(url) as root:
        root["x"] = ZBigArray((3,), "f8")
        transaction.commit()
    for name, suffix, extra in ("h5py", "h5", "hdf5"), ("zarr", "zarr", "zarr"):
        monkeypatch.setitem(sys.modules, name, None)
        (tmp_path / f"y.{suffix}").touch()
        message = f"{name} is needed, but not installed: pip install 'wendelin.core"
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
