"""wendelin import, wendelin export of HDF5 and Zarr: dtypes, links to other files, and holes."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import transaction
from support import dtypes
from support.clidata import database

from wendelin.bigarray.array_zodb import ZBigArray

h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")

pytestmark = [pytest.mark.formats, pytest.mark.once, pytest.mark.only("fs", "zeo")]


@pytest.fixture
def url(testdb):
    """Return the URL of a database that nobody has open."""
    return testdb.url


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Go to an empty folder, which has a secret beside it."""
    (tmp_path / "secret").write_bytes(b"secret" * 2)
    (tmp_path / "sec").write_bytes(b"sec")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def nothing(url):
    """Say whether a database has nothing in it."""
    with database(url) as root:
        return not list(root)


# ---- bytes of the dtype ----

ENUM = h5py.enum_dtype({"LOW": 1, "HIGH": 300}, basetype=">i2")
STRUCT = np.dtype([("x", ">f4"), ("e", ">i2"), ("c", ">c16"), ("in", [("t", ">u8")], (2,))])


DTYPES = [
    ">f4",
    ">i2",
    ">c8",
    ">c16",
    ">u8",
    ">f2",
    ENUM,
    "?",
    STRUCT,
    np.dtype(">M8[25s]"),
    "S3",
    ">g",
]


def dataset_of(file, dtype, chunks):
    """Make a dataset x of an HDF5 file; return it, and the values that h5py reads."""
    from wendelin.cli.files.hdf5 import _dtype_for

    dtype = np.dtype(dtype)
    values = np.zeros((9, 5), dtype)
    dtypes.fill(np.random.default_rng(1), values)
    told = dtype if dtype.metadata else _dtype_for(h5py, dtype)
    dataset = file.create_dataset("x", (9, 5), told, chunks=chunks)
    dataset[...] = values.view(told)
    expected = dataset[...]
    assert dtypes.same(expected, values)
    return dataset, expected


@pytest.mark.parametrize("chunks", [None, (2, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_dataset_through_a_database(call, url, here, dtype, chunks):
    """It is imported, exported, and imported again; a transaction has several rows of chunks."""
    with h5py.File("x.h5", "w") as file:
        _, expected = dataset_of(file, dtype, chunks)
    call("import", "--blksize", "4K", "x.h5", f"{url}#x")
    for i, suffix in enumerate(["h5", "npy"]):
        call("export", f"{url}#x", f"y.{suffix}")
        call("import", f"y.{suffix}", f"{url}#y{i}")
    with database(url) as root:
        assert root["x"].dtype == np.dtype(dtype)
        assert root["x"].dtype.metadata is None
        for name in "x", "y0", "y1":
            assert dtypes.same(root[name][...], expected)


@pytest.mark.parametrize("together", [0, 1, 1 << 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_chunks_that_are_too_large_are_read_in_parts(here, dtype, together):
    from wendelin.cli.files.datasets import DatasetSource

    with h5py.File("x.h5", "w") as file:
        dataset, expected = dataset_of(file, dtype, (2, 3))
        flat = expected.reshape(-1)
        for step in 1, 7, 45:
            source = DatasetSource(dataset, (2, 3), {}, together=together)
            for start in range(0, 45, step):
                stop = min(start + step, 45)
                assert dtypes.same(source.read(start, stop), flat[start:stop])


def test_zarr_of_the_other_byte_order_through_a_database(call, url):
    values = np.arange(12).reshape(4, 3).astype(">f4")
    for version in 2, 3:
        name = f"x{version}.zarr"
        array = zarr.create_array(
            name, shape=(4, 3), dtype=">f4", chunks=(2, 3), zarr_format=version
        )
        array[:] = values
        call("import", name, f"{url}#x{version}")
        with database(url) as root:
            assert np.array_equal(root[f"x{version}"][...], values)


PADDED = {
    "aligned": np.dtype([("a", "i1"), ("b", "f8")], align=True),
    "out of order": np.dtype({"names": ["a", "b"], "formats": ["f4", "f8"], "offsets": [8, 0]}),
    "both": np.dtype(
        {"names": ["a", "b"], "formats": [">f4", "S3"], "offsets": [9, 1], "itemsize": 16}
    ),
    "overlapping": np.dtype({"names": ["a", "b"], "formats": ["u4", "u1"], "offsets": [0, 0]}),
    "titles": np.dtype([(("A title", "a"), ">f4"), (("Another", "b"), "i1")]),
}


@pytest.mark.parametrize("suffix", ["h5", "zarr", "npy", "npz", "csv"])
@pytest.mark.parametrize("name", PADDED)
def test_structures_with_gaps(call, url, name, suffix):
    """They come out equal, with the same fields; ls and info print them."""
    dtype = PADDED[name]
    values = np.zeros(5, dtype)
    dtypes.fill(np.random.default_rng(2), values)
    if suffix == "csv":  # texts of ASCII only
        values["b"] = 65
        values["a"] = 1
    with database(url) as root:
        root["x"] = A = ZBigArray(5, dtype)
        transaction.commit()
        A[:] = values
        transaction.commit()
    (found,) = call("ls", "--json", url).json
    descr = found["dtype"]
    as_told = np.dtype(descr) if isinstance(descr, dict) else None
    assert as_told in (None, dtype)
    assert "x" in call("ls", url).stdout
    assert "dtype" in call("info", "--json", f"{url}#x").json
    call("info", f"{url}#x")
    call("export", f"{url}#x", f"x.{suffix}")
    told = ["--dtype", str([(n, dtype[n].str) for n in dtype.names])] if suffix == "csv" else []
    call("import", *told, f"x.{suffix}", f"{url}#y")
    with database(url) as root:
        assert dtypes.same(root["y"][...], values)
        if suffix == "h5" and name not in ("overlapping", "titles"):
            assert root["y"].dtype == dtype


def test_datasets_of_array_type(call, url):
    values = np.arange(24, dtype=">i4").reshape(4, 2, 3)
    with h5py.File("x.h5", "w") as file:
        array = h5py.h5t.array_create(h5py.h5t.STD_I32BE, (2, 3))
        space = h5py.h5s.create_simple((4,))
        chunked = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        chunked.set_chunk((3,))
        h5py.h5d.create(file.id, b"plain", array, space)
        h5py.h5d.create(file.id, b"chunked", array, space, chunked)
        h5py.h5d.create(file.id, b"scalar", array, h5py.h5s.create(h5py.h5s.SCALAR))
        file["plain"][...] = file["chunked"][...] = values
        file["scalar"][...] = values[1]
        found = {name: file[name][...] for name in file}
    for name in "plain", "chunked", "scalar":
        call("import", "--blksize", "4K", "--step", "4K", f"x.h5:{name}", f"{url}#{name}")
        with database(url) as root:
            expected = values[1] if name == "scalar" else values
            assert np.array_equal(root[name][...], expected)
            assert np.array_equal(root[name][...], found[name])
            assert root[name].dtype == values.dtype


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
@pytest.mark.parametrize("order", ["C", "F"])
def test_names_that_are_not_of_latin_1(call, url, order):
    """They are in .npy files of version 3, which come out byte for byte."""
    dtype = np.dtype([("Δt", "f4"), ("b\\", "i4"), ("é", [("名", ">i2")])])
    values = np.zeros((3, 12345), dtype, order)
    dtypes.fill(np.random.default_rng(3), values)
    np.save("x.npy", values)
    np.savez("x.npz", x=values)
    for suffix in "npy", "npz":
        call("import", f"x.{suffix}", f"{url}#{suffix}")
        call("export", f"{url}#{suffix}", f"y.{suffix}:x"[: None if suffix == "npz" else -2])
        with database(url) as root:
            assert root[suffix].dtype == dtype
    assert Path("x.npy").read_bytes() == Path("y.npy").read_bytes()
    with np.load("y.npz") as file:
        assert dtypes.same(file["x"], values)


def test_headers_that_are_not_right(call, url, here):
    """Each is an error of one line; a header longer than NumPy reads by default is taken."""
    magic = b"\x93NUMPY\x03\x00"
    good = b"{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }\n"
    for data in (
        magic,
        magic + b"\xff\xff\xff\xff",
        magic + b"\x08\x00\x00\x00\xff\xfe{}    ",
        magic + b"\x10\x00\x00\x00" + b"(" * 16,
        magic + len(good).to_bytes(4, "little") + good,
        b"\x93NUMPY\x04\x00" + bytes(200),
    ):
        (here / "x.npy").write_bytes(data)
        error = call("import", "x.npy", f"{url}#x", code=1).stderr
        assert "is not a readable .npy file" in error
        assert error.count("\n") == 1
    values = np.zeros(3, [(f"field {i}", "<i2") for i in range(2000)])
    np.save("x.npy", values)
    call("import", "x.npy", f"{url}#x")
    call("export", f"{url}#x", "y.npy")
    assert Path("x.npy").read_bytes() == Path("y.npy").read_bytes()


def test_an_import_that_fails_leaves_nothing(call, url, monkeypatch):
    """A library gives other values than it announced, or writing fails."""
    from wendelin.bigarray import BigArray
    from wendelin.cli.files.flat import FlatSource

    np.save("x.npy", np.arange(5))
    read = FlatSource._read
    for wrong, message in (
        (lambda *args: read(*args).astype("U"), "gave values of dtype <U"),
        (lambda *args: read(*args)[1:], "gave 4 elements instead of 5"),
    ):
        monkeypatch.setattr(FlatSource, "_read", wrong)
        assert message in call("import", "x.npy", f"{url}#x", code=1).stderr
        assert nothing(url)
    monkeypatch.setattr(FlatSource, "_read", read)

    def fails(*args):
        raise ValueError("could not broadcast")

    with monkeypatch.context() as m:
        m.setattr(BigArray, "__setitem__", fails)
        assert "could not broadcast" in call("import", "x.npy", f"{url}#x", code=1).stderr
    assert nothing(url)
    call("import", "x.npy", f"{url}#x")


# ---- what is in other files ----


def make_hdf5(here):
    """Make a file with datasets that are elsewhere, and others that only look so."""
    with h5py.File("other.h5", "w") as file:
        file["x"] = np.arange(3)
        file["group/x"] = np.arange(3)
    os.mkfifo("pipe")  # opening it to read waits for ever
    with h5py.File("x.h5", "w") as file:
        file["inside"] = np.arange(3)
        file.create_dataset("external", (6,), "u1", external=[("../secret", 0, 6)])
        for name, path in ("file", "other.h5"), ("link", os.path.abspath("other.h5")):
            layout = h5py.VirtualLayout((3,), "i8")
            layout[:] = h5py.VirtualSource(path, "x", (3,))
            file.create_virtual_dataset(f"virtual {name}", layout)
        layout = h5py.VirtualLayout((5,), "i8", maxshape=(None,))
        source = h5py.VirtualSource("pipe", "x", (5,), maxshape=(None,))
        layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
        file.create_virtual_dataset("virtual pipe", layout)
        file["linked"] = h5py.ExternalLink("other.h5", "x")
        file["linked group"] = h5py.ExternalLink("other.h5", "group")
        file["linked pipe"] = h5py.ExternalLink("pipe", "x")
        file["soft"] = h5py.SoftLink("linked group/x")
        file["round"] = h5py.SoftLink("round")
        file["nowhere"] = h5py.SoftLink("/not/there")
        for name, of in ("within", "inside"), ("hidden", "external"), ("hidden link", "linked"):
            layout = h5py.VirtualLayout((3,), "i8" if name == "within" else "u1")
            layout[:] = h5py.VirtualSource(".", of, (3,))
            file.create_virtual_dataset(name, layout)
        layout = h5py.VirtualLayout((3,), "u1")
        layout[:] = h5py.VirtualSource(".", "circle", (3,))
        file.create_virtual_dataset("circle", layout)
        file["alias"] = h5py.SoftLink("/inside")
        # short to write, long to follow: each has the next one many times
        for i in range(14):
            file[f"link{i}"] = h5py.SoftLink("/".join([f"link{i + 1}"] * 40))
            layout = h5py.VirtualLayout((30,), "u1")
            for k in range(30):
                layout[k : k + 1] = h5py.VirtualSource(".", f"power{i + 1}", (30,))[k : k + 1]
            file.create_virtual_dataset(f"power{i}", layout)
        file["link14"] = h5py.SoftLink("/")
        file["power14"] = np.arange(30, dtype="u1")


REFUSED = {
    "external": "has its bytes in another file, '../secret'",
    "virtual file": "is made of datasets of other files, 'other.h5'",
    "virtual link": "is made of datasets of other files, '/",
    "virtual pipe": "is made of datasets of other files, 'pipe'",
    "linked": "is behind a link to another file, 'other.h5'",
    "linked group/x": "is behind a link to another file, 'other.h5'",
    "linked pipe": "is behind a link to another file, 'pipe'",
    "soft": "is behind a link to another file, 'other.h5'",
    "hidden": "has its bytes in another file, '../secret'",
    "hidden link": "is behind a link to another file",
}


def test_hdf5_that_is_elsewhere(call, url, here):
    make_hdf5(here)
    for name, message in REFUSED.items():
        error = call("import", f"x.h5:{name}", f"{url}#x", code=1).stderr
        assert message in error
        assert "--external" in error
    assert "more than 16 levels" in call("import", "x.h5:circle", f"{url}#x", code=1).stderr
    assert "more than 16 links" in call("import", "x.h5:round", f"{url}#x", code=1).stderr
    assert "more than 16 links" in call("import", "x.h5:link0/inside", f"{url}#x", code=1).stderr
    assert "more than 10,000 sources" in call("import", "x.h5:power0", f"{url}#x", code=1).stderr
    assert "has no array 'nowhere'" in call("import", "x.h5:nowhere", f"{url}#x", code=1).stderr
    error = call("import", "--as", "array", "x.h5", f"{url}#x", code=1).stderr
    assert "name one of them" in error
    assert nothing(url)
    left = {
        entry["name"] for entry in call("import", "--json", "x.h5", f"{url}#all").json["left_out"]
    }
    assert {name.partition("/")[0] for name in REFUSED} <= left
    with database(url) as root:
        assert b"sec" not in b"".join(A[...].tobytes() for A in root["all"].values() if A.shape)
        del root["all"]
        transaction.commit()
    for name in "inside", "within", "alias", "power12":
        call("import", f"x.h5:{name}", f"{url}#{name}")
    for name in "virtual file", "virtual link", "linked", "linked group/x", "soft":
        call("import", "--external", f"x.h5:{name}", f"{url}#{name.replace('/', ' ')}")
    with database(url) as root:
        assert root.pop("power12")[...].tolist() == list(range(30))
        assert all(root[name][...].tolist() == [0, 1, 2] for name in root)
        assert len(root) == 8
        transaction.abort()
    call("import", "--external", "x.h5:external", f"{url}#s")
    with database(url) as root:
        assert bytes(root["s"][...]) == b"secret"


def array_in(path, version=3, **options):
    """Make a Zarr array of 6 bytes, in 2 chunks, not compressed."""
    array = zarr.create_array(
        path, shape=(6,), dtype="u1", chunks=(3,), zarr_format=version, compressors=None, **options
    )
    array[:] = 1
    return array


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_that_is_elsewhere(call, url, here, version):
    group = zarr.open_group("x.zarr", mode="w", zarr_format=version)
    array_in("x.zarr/inside", version)
    array_in("x.zarr/chunk", version)
    array_in("other.zarr", version)
    chunk = here / "x.zarr/chunk" / ("0" if version == 2 else "c/0")
    chunk.unlink()
    chunk.symlink_to(here / "../sec")
    (here / "x.zarr/array").symlink_to("../other.zarr")
    assert group["array"][:].tolist() == [1] * 6  # zarr itself follows the link
    for member in "chunk", "array":
        error = call("import", f"x.zarr:{member}", f"{url}#x", code=1).stderr
        assert f"x.zarr/{member}" in error
        assert "is a symbolic link: it is followed only with --external" in error
    for member in "../other.zarr", "inside/../../other.zarr":
        call("import", f"x.zarr:{member}", f"{url}#x", code=1)
    assert nothing(url)
    assert "is a symbolic link" in call("import", "x.zarr", f"{url}#x", code=1).stderr
    with database(url) as root:
        assert set(root["x"]) == {"inside"}
    call("import", "x.zarr:inside", f"{url}#inside")
    call("import", "--external", "x.zarr:chunk", f"{url}#chunk")
    call("import", "--external", "x.zarr:array", f"{url}#array")
    (here / "link.zarr").symlink_to("other.zarr")  # a link that the user names
    call("import", "link.zarr", f"{url}#link")
    with database(url) as root:
        assert bytes(root["chunk"][...]) == b"sec\1\1\1"
        assert all(bytes(root[name][...]) == b"\1" * 6 for name in ("inside", "array", "link"))


def test_zarr_of_pipes_zips_and_pickles(call, url, here):
    array_in("x.zarr")
    (here / "x.zarr/c/1").unlink()
    os.mkfifo("x.zarr/c/1")
    error = call("import", "x.zarr", f"{url}#x", code=1).stderr
    assert "x.zarr/c/1 is neither a file nor a folder" in error
    (here / "zip.zarr").write_bytes(b"PK")
    assert "unpack a zip file first" in call("import", "zip.zarr", f"{url}#x", code=1).stderr
    array_in("p.zarr", 2)
    (here / "p.zarr/0").write_bytes(pickle.dumps(Evil()))
    about = json.loads((here / "p.zarr/.zarray").read_text())
    for codec in "filters", "compressor":
        pickled = {"id": "pickle", "protocol": 4}
        new = about | {codec: [pickled] if codec == "filters" else pickled}
        (here / "p.zarr/.zarray").write_text(json.dumps(new))
        call("import", "p.zarr", f"{url}#x", code=1)
    assert not (here / "run").exists()
    assert nothing(url)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("run",)


def test_external_is_refused_for_files_without_links(call, url):
    np.save("x.npy", np.arange(3))
    error = call("import", "--external", "x.npy", f"{url}#x", code=2).stderr
    assert "--external is not for npy files" in error


# ---- what is not there ----


def test_what_is_too_large_is_said_at_once(call, url, here):
    with h5py.File("x.h5", "w") as file:
        file.create_dataset("chunks", (1 << 50,), "u1", chunks=(1 << 20,))
        file.create_dataset("whole", (1 << 47,), "f8")
    zarr.create_array("x.zarr", shape=(1 << 50,), dtype="u1", chunks=(1 << 49,))
    for name in "x.h5:chunks", "x.h5:whole", "x.zarr":
        error = call("import", name, f"{url}#x", code=1).stderr
        assert f"{name} is too large: its shape is" in error
        assert "so it has 1 PiB; an import takes 128 TiB at most" in error
    np.save("x.npy", np.zeros(10))
    data = (here / "x.npy").read_bytes().replace(b"(10,), ", b"(1<<9,)").replace(b"1<<9", b"9999")
    (here / "x.npy").write_bytes(data)
    error = call("import", "x.npy", f"{url}#x", code=1).stderr
    assert "has 80 bytes of data instead of 79992" in error
    assert nothing(url)


def test_chunks_that_are_not_stored_are_not_read(call, url, monkeypatch):
    """Of an array of 64 TiB with some elements, little more than the stored chunks is read."""
    from wendelin.cli.files.datasets import DatasetSource

    with h5py.File("x.h5", "w") as file:
        sparse = file.create_dataset("sparse", (1 << 44,), "f4", chunks=(1 << 16,))
        sparse[12345678901] = 7
        sparse[-1] = 8
        wide = file.create_dataset("wide", (300, 200, 100), "i2", chunks=(7, 100, 9))
        wide[13, 5, 7] = wide[200, 199, 99] = 5
        file.create_dataset("never", (1 << 45,), "u1")
        file.create_dataset("filled", (100,), "u1", fillvalue=3, chunks=(10,))
        wide = wide[...]
    read, count = DatasetSource._read, 0

    def counted(self, start, stop):
        nonlocal count
        count += (stop - start) * self.layout.dtype.itemsize
        return read(self, start, stop)

    monkeypatch.setattr(DatasetSource, "_read", counted)
    for name, most in ("sparse", 1 << 20), ("wide", 4 << 20), ("never", 0), ("filled", 100):
        count = 0
        args = ("--blksize", "64K", "--step", "64K")
        call("import", *args, f"x.h5:{name}", f"{url}#{name}")
        assert count <= most
    with database(url) as root:
        assert root["sparse"][12345678901] == 7
        assert root["sparse"][-1] == 8
        assert np.array_equal(root["wide"][...], wide)
        assert list(root["never"].zfile.blktab) == []
        assert root["filled"][...].tolist() == [3] * 100


def test_holes_of_a_file_are_not_read(call, url, here):
    """A sparse file of 4 TiB."""
    with open("x.raw", "wb") as file:
        file.truncate(1 << 42)
        file.seek(1 << 41)
        file.write(b"\7")
    call("import", "--dtype", ">f4", "x.raw", f"{url}#x")
    with database(url) as root:
        assert root["x"][1 << 39] == np.array([7 << 24], ">u4").view(">f4")
        assert len(list(root["x"].zfile.blktab)) == 1
